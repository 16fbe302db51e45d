"""Waiting for an outcome that a cancel cannot take back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Outcome(asyncio.Future[Any]):
    """The outcome of something under way, which a task waits for even while it is being cancelled.

    A task whose future refuses to be cancelled gets its `CancelledError` when it wakes up: the outcome is known by then.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        """Refuses: what is under way cannot be taken back."""
        return False


class _Work(asyncio.Task[T]):
    """A task that only the end of its event loop cancels, and not who waits for it."""

    def cancel(self, msg: Any | None = None) -> bool:
        return not self.get_loop().is_running() and super().cancel(msg)


async def outlast(work: Coroutine[Any, Any, T]) -> T:
    """Does some work to its end, whatever happens to the caller: a cancelled one gets its `CancelledError` afterwards."""
    return await _Work(work, loop=asyncio.get_running_loop())

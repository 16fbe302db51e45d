"""Waiting for an outcome that a cancel cannot take back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Outcome(asyncio.Future[Any]):
    """The outcome of something under way, which a task waits for even while it is being cancelled.

    A task whose future refuses to be cancelled gets its `CancelledError` when it wakes up: the outcome is known by then.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        """Refuses: what is under way cannot be taken back."""
        return False


class _Waiting(Generic[T]):
    """A task as the future of one that waits for it, which refuses to be cancelled with the other.

    The task itself does not: what it calls may have a timeout, which cancels it. A future of its own would have to be woken
    by the task first.
    """

    __slots__ = ("_asyncio_future_blocking", "_task")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task
        # With this and what follows, it is a future to asyncio (`asyncio.isfuture`).
        self._asyncio_future_blocking = False

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._task.get_loop()

    def add_done_callback(self, call: Callable[[asyncio.Task[T]], Any], *, context: Context | None = None) -> None:
        self._task.add_done_callback(call, context=context)

    def cancel(self, msg: Any | None = None) -> bool:
        return False

    def __await__(self) -> Generator[Any, None, T]:
        if not self._task.done():
            self._asyncio_future_blocking = True
            yield self
        return self._task.result()


async def outlast(work: Coroutine[Any, Any, T]) -> T:
    """Does some work to its end, whatever happens to the caller: a cancelled one gets its `CancelledError` afterwards.

    The work is a task of its own, which timeouts in it may cancel, and the end of the event loop.
    """
    return await _Waiting(asyncio.get_running_loop().create_task(work))

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


async def outlast(work: Coroutine[Any, Any, T]) -> T:
    """Does some work to its end, whatever happens to the caller: a cancelled one gets its `CancelledError` afterwards."""
    task = asyncio.get_running_loop().create_task(work)
    outcome = Outcome()

    def settle(done: asyncio.Task[T]) -> None:
        if outcome.done():
            return
        if done.cancelled():
            # The loop is being shut down: nobody but it can cancel the work.
            asyncio.Future.cancel(outcome)
        elif (error := done.exception()) is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(done.result())

    task.add_done_callback(settle)
    result: T = await outcome
    return result

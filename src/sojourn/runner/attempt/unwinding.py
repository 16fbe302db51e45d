"""What ends before its end: iterators of agents, and event loops with what still waits in them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from sojourn.run.types import RunRecord

logger = logging.getLogger("sojourn.run")

CLOSE_TRIES = 3
"""How often a generator is told to end that goes on all the same."""


async def unwind(produced: Any, task: asyncio.Task[Any] | None, record: RunRecord) -> None:
    """Ends an iterator before its end: its `finally` blocks run, and what it still yields is not taken.

    Args:
        produced: The iterator.
        task: Who has iterated.
        record: Whose agent it is.
    """
    if not runs_in(task):
        return  # The event loop is gone: nothing can be awaited any more.
    if not hasattr(produced, "athrow"):
        if hasattr(produced, "aclose"):
            await produced.aclose()
        return
    # Not `aclose`: a generator that yields once more could not be brought to its end after that.
    for _ in range(CLOSE_TRIES):
        if getattr(produced, "ag_frame", produced) is None:
            return  # It has ended by itself.
        try:
            await produced.athrow(GeneratorExit())
        except (GeneratorExit, StopAsyncIteration):
            return
    fields = {"run_id": record.id, "session_id": record.session_id, "user_id": record.user_id}
    logger.warning("run %s: an agent goes on after it was closed", record.id, extra=fields)


def runs_in(task: asyncio.Task[Any] | None) -> bool:
    """Whether this is called by a running task; not by the collection of one whose event loop is gone."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        return False


class LoopLock(asyncio.Lock):
    """A lock for tasks of one event loop, which may end while they wait: collecting them then is quiet."""

    def release(self) -> None:
        """See `asyncio.Lock`."""
        if not self.locked():
            super().release()
        # It tells who waits next, which is nobody in a loop that is gone.
        with suppress(RuntimeError):
            super().release()

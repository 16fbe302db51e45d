"""Who follows which run, and what becomes of a run whose clients are all gone."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sojourn.errors import SojournError
from sojourn.run.status import RunStatus
from sojourn.runner.handle import Run
from sojourn.server.config import ServerConfig

logger = logging.getLogger("sojourn.server")

_Key = tuple[str, int]
"""An app, and the key of a run in the app's store: apps may have stores of their own."""


class Following:
    """Counts the requests that follow runs, and cancels those that nobody follows any more, where `on_disconnect` says so.

    Only a run that was started by a request which stays to follow it is ever cancelled, and never one that waits for a person.

    Args:
        config: `on_disconnect` and `disconnect_grace`.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._cancels = config.on_disconnect == "cancel"
        self._grace = config.disconnect_grace
        self._followers: Counter[_Key] = Counter()
        self._started: dict[_Key, Run] = {}
        self._timers: dict[_Key, asyncio.TimerHandle] = {}
        self._cancelling: set[asyncio.Task[None]] = set()

    @contextmanager
    def follow(self, run: Run, *, started: bool = False) -> Iterator[None]:
        """Counts whoever is in this block as following the run.

        Args:
            run: The run.
            started: Whether it was started by the request that follows it: from now on it is cancelled when it has been
                followed by nobody for the grace.
        """
        if not self._cancels:
            yield
            return
        key = run.record.app_name, run.record.uid
        self._followers[key] += 1
        if started:
            self._started[key] = run
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        try:
            yield
        finally:
            self._left(key)

    def close(self) -> None:
        """Cancels no more runs: they are suspended with the server."""
        self._cancels = False
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _left(self, key: _Key) -> None:
        self._followers[key] -= 1
        if self._followers[key]:
            return
        del self._followers[key]
        run = self._started.get(key)
        if run is None:
            return
        if not self._cancels or not _goes_on(run):
            del self._started[key]
            return
        self._timers[key] = asyncio.get_running_loop().call_later(self._grace, self._end, key)

    def _end(self, key: _Key) -> None:
        del self._timers[key]
        run = self._started.pop(key)
        if _goes_on(run):
            task = asyncio.get_running_loop().create_task(_cancel(run))
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)


def _goes_on(run: Run) -> bool:
    return run.status in (RunStatus.QUEUED, RunStatus.RUNNING)


async def _cancel(run: Run) -> None:
    try:
        await run.cancel("its client has gone")
    except SojournError as error:
        logger.error("run %s of a client that has gone could not be cancelled: %s", run.id, error)

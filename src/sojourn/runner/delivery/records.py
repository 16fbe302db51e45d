"""Changes of runs' records that are repeated while the store does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sojourn.errors import Conflict, SojournError, Unavailable
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Begun, NewRun, Submitted
from sojourn.run.types import RunError, RunRecord
from sojourn.runner import observe
from sojourn.runner.delivery.hub import Hub
from sojourn.runner.services import Services

SUBMIT_RETRIES = (0.0, 0.1)
"""Seconds before a run is recorded again after the store did not answer. Repeating is safe: its id is recognised."""

BEGIN_RETRIES = (0.2, 1.0, 5.0, 15.0, 15.0, 15.0)
"""Seconds before an attempt is begun again after the store did not answer."""

CLOSE_RETRY_SECONDS = (0.2, 1.0, 5.0, 15.0)
"""Pauses between tries to begin or close a run whose store does not answer; the last one repeats."""


class Records:
    """Records, begins and closes runs.

    Args:
        services: Whose store it is.
        hub: What knows the runs that this process executes.
        is_closed: Whether nobody waits any more for a store that is away.
    """

    def __init__(self, services: Services, hub: Hub, is_closed: Callable[[], bool]) -> None:
        self._store = services.store
        self._app_name = services.app_name
        self._observers = services.observers
        self._hub = hub
        self._is_closed = is_closed

    async def submit(self, new: NewRun, begin: bool) -> Submitted:
        """Records a run, and begins it if it may."""
        repeated = False
        pauses = iter(SUBMIT_RETRIES)
        while True:
            try:
                submitted = await observe.stored(self._observers, "submit", self._store.submit(new, begin=begin))
                break
            except Unavailable:
                pause = next(pauses, None)
                if pause is None:
                    raise
                repeated = True
                await asyncio.sleep(pause)
        record = submitted.record
        if repeated and submitted.known and record.status is RunStatus.RUNNING and record.uid not in self._hub.jobs:
            # It was recorded by a call whose reply was lost, and begun; nobody executes it.
            return submitted._replace(record=await self._store.requeue_lost(record.uid))
        return submitted

    async def begin(self, run_uid: int) -> Begun:
        """Begins an attempt of a queued run."""
        away = False
        pauses = iter(BEGIN_RETRIES)
        while True:
            try:
                return await observe.stored(self._observers, "begin", self._store.begin(run_uid))
            except Unavailable:
                away = True
                pause = next(pauses, None)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            except Conflict:
                if not away:
                    raise
                # It had begun, and the reply was lost: that attempt is nobody's.
                away = False
                await self._store.requeue_lost(run_uid)

    async def close(self, run_id: str, user_id: str, error: RunError, move: Move) -> RunRecord | None:
        """Closes a run that nobody executes, as soon as the store answers.

        Returns:
            Its record; None if there is none, or the Runner was closed before the store answered.
        """
        pauses = iter(CLOSE_RETRY_SECONDS)
        while True:
            try:
                record = await self._store.get_run(self._app_name, run_id, user_id)
                if record.status is RunStatus.RUNNING and record.uid not in self._hub.jobs:
                    record = await self._store.take_over(record.uid, error, move=move)
                elif record.status is RunStatus.QUEUED and record.uid not in self._hub.jobs:
                    record = await self._store.close_run(record.uid, error, move=move)
                return record
            except Unavailable:
                if self._is_closed():
                    return None
            except SojournError:
                return None
            await asyncio.sleep(next(pauses, CLOSE_RETRY_SECONDS[-1]))

"""Keeping an app's data as long as it is to be kept, and ending what is done for what is removed."""

from __future__ import annotations

import logging
from functools import partial

from sojourn.data.care import DataCare
from sojourn.data.pruning import Retention
from sojourn.errors import InvalidInput, SojournError
from sojourn.runner.delivery.dispatch import Dispatcher
from sojourn.session.types import SessionKey

logger = logging.getLogger("sojourn.data")

FIRST_SECONDS = 30.0
"""After which a Runner makes its first round: what it is started for comes first."""


async def stop_session(dispatcher: Dispatcher, key: SessionKey) -> None:
    """Ends what is done for a session that is gone: its runs, and what is being added of it to memory."""
    services, hub = dispatcher.services, dispatcher.hub
    for job in [j for j in hub.jobs.values() if j.live.record.key == key]:
        hub.let_go(job, job.live.record)
    if services.ingest is not None:
        await services.ingest.end_additions(key)


def data_of(dispatcher: Dispatcher) -> DataCare:
    """See `Runner.data`."""
    services = dispatcher.services

    async def forget(app_name: str, user_id: str) -> None:
        if services.ingest is not None:
            await services.ingest.forget(app_name, user_id, None)

    stop = partial(stop_session, dispatcher)
    return DataCare(services.store, artifacts=services.artifacts, memory=services.memory, stop=stop, forget=forget)


class Keeping:
    """Removes what an app has kept long enough, round by round, for as long as its Runner is not closed.

    Args:
        dispatcher: The Runner's.
        retention: How long the data is kept.
    """

    def __init__(self, dispatcher: Dispatcher, retention: Retention) -> None:
        self._dispatcher = dispatcher
        self._retention = retention
        self._data = data_of(dispatcher)
        # The event loop in which it goes round.
        self._started_in = -1

    def start(self) -> None:
        """Begins, a little later; twice is fine."""
        hub = self._dispatcher.hub
        if self._started_in != hub.generation and self._retention.bounded:
            self._started_in = hub.generation
            self._later(min(FIRST_SECONDS, self._retention.every))

    def _later(self, seconds: float) -> None:
        hub = self._dispatcher.hub
        hub.at(seconds, lambda: hub.spawn(self._round()))

    async def _round(self) -> None:
        admission = self._dispatcher.admission
        if admission.closed:
            return
        try:
            if await self._dispatcher.may_execute():
                app_name = self._dispatcher.app_name
                pruned = await self._data.prune(app_name, self._retention, stopped=lambda: admission.closed)
                if pruned.runs or pruned.sessions:
                    logger.info(
                        "retention of app %s: removed %d sessions, %d runs, %d events",
                        app_name, pruned.sessions, pruned.runs, pruned.events,
                    )  # fmt: skip
        except SojournError as error:
            logger.warning("retention of app %s failed, and is tried again: %s", self._dispatcher.app_name, error)
        except Exception:
            # An artifact service may raise anything; nobody waits for this who could be told.
            logger.exception(
                "retention of app %s failed, and is tried again: an error without a code", self._dispatcher.app_name
            )
        self._later(self._retention.every)


def keeping_of(dispatcher: Dispatcher, retention: Retention | None) -> Keeping | None:
    """What sees to a Runner's retention; None if its data is kept for ever.

    Raises:
        InvalidInput: `runner.invalid` for what is no `Retention`.
        Unsupported: `data.unsupported` if the store does not support retention.
    """
    if retention is None:
        return None
    if not isinstance(retention, Retention):
        raise InvalidInput(f"retention is {retention!r}; give a Retention(…), or None", code="runner.invalid")
    return Keeping(dispatcher, retention)

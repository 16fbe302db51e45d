"""The life of a Runner: taking up what an earlier process left unfinished, and leaving nothing lost behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from sojourn.data.services import settle
from sojourn.errors import NotFound, SojournError, Unavailable
from sojourn.run.retention import SupportsRetention
from sojourn.run.status import RunStatus
from sojourn.run.store import MAX_DEATHS
from sojourn.run.types import RunRecord
from sojourn.runner.attempt.ending import Stop
from sojourn.runner.delivery.dispatch import Dispatcher
from sojourn.runner.delivery.hub import Job

logger = logging.getLogger("sojourn.runner")

Wait = Callable[[Collection[asyncio.Future[Any]]], Awaitable[Any]]
"""Waits for some of these, as long as it sees fit."""


@dataclass(slots=True, frozen=True)
class CloseReport:
    """What became of the runs when a Runner was closed.

    Attributes:
        drained: Runs that came to their end within the grace.
        suspended: Detached runs that were interrupted and go on when a Runner of the app is entered again.
        queued: Detached runs that had not started; they start then.
        cancelled: Attached runs, whose readers end with the process.
        abandoned: Runs whose code did not end; it can store nothing any more.
    """

    drained: int = 0
    suspended: int = 0
    queued: int = 0
    cancelled: int = 0
    abandoned: int = 0


@dataclass(slots=True, frozen=True)
class Load:
    """What a Runner has to do in this process.

    Attributes:
        running: Runs that execute.
        queued: Runs that wait for their turn or a slot.
        abandoned: Runs that were stopped and whose code does not end.
    """

    running: int
    queued: int
    abandoned: int


def load_of(dispatcher: Dispatcher) -> Load:
    """See `Runner.load`."""
    executing = (j for j in dispatcher.hub.jobs.values() if j.dispatcher is dispatcher and j.execution is not None)
    return Load(sum(1 for _ in executing), dispatcher.admission.limiter.queued, dispatcher.admission.limiter.abandoned)


class Closing:
    """The closing of a Runner, while it lasts: it may be made to hurry."""

    def __init__(self) -> None:
        self.report: asyncio.Future[CloseReport] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()

    def bound(self, seconds: float) -> None:
        """Gives the runs no more time than this from now on."""
        if seconds <= 0:
            self._over.set()
        else:
            asyncio.get_running_loop().call_later(seconds, self._over.set)

    async def wait(self, awaited: Collection[asyncio.Future[Any]]) -> None:
        """Waits for all of these, or until the time is over."""
        over = asyncio.ensure_future(self._over.wait())
        all_done = asyncio.ensure_future(asyncio.wait(awaited))
        await asyncio.wait((over, all_done), return_when=asyncio.FIRST_COMPLETED)
        over.cancel()
        all_done.cancel()


async def ready(dispatcher: Dispatcher) -> None:
    """Makes sure that runs can be taken on, after those that an earlier process left unfinished.

    Raises:
        Unavailable: `runner.closed`.
        Conflict: `runner.other_loop`, and what `recover` says.
    """
    hub = dispatcher.admission.ready()
    if not dispatcher.store.shared or dispatcher.recovered_in == hub.generation:
        return
    async with hub.recovering:
        # Whoever executes runs of a database knows that nobody else does: what is unfinished there is nobody's.
        if dispatcher.recovered_in != hub.generation:
            await _recover(dispatcher)


async def recover(dispatcher: Dispatcher) -> list[RunRecord]:
    """Takes up the app's runs that an earlier process left unfinished; entering the Runner does this.

    Detached runs go on (`on_crash="resume"`) or fail with `run.lost`; attached ones fail, as their readers are gone; a run
    whose process has died three times fails with `run.crash_loop`. Waiting runs stay as they are.

    Returns:
        The runs taken up.

    Raises:
        Conflict: `store.in_use` if another process executes this store's runs.
    """
    async with dispatcher.admission.ready().recovering:
        return await _recover(dispatcher)


async def _recover(dispatcher: Dispatcher) -> list[RunRecord]:
    # One at a time: what one has brought to execution would be lost to another that had found it before.
    hub = dispatcher.admission.ready()
    generation = hub.generation
    await dispatcher.store.become_executor()
    taken: list[RunRecord] = []
    for found in await dispatcher.store.unfinished(dispatcher.app_name):
        record = await _take_up(dispatcher, found)
        if record is not None:
            taken.append(record)
    dispatcher.recovered_in = generation
    if isinstance(dispatcher.store, SupportsRetention) and dispatcher.services.artifacts is not None:
        hub.spawn(_settle(dispatcher, dispatcher.store))
    return taken


async def _settle(dispatcher: Dispatcher, store: SupportsRetention) -> None:
    """Removes the artifacts of sessions whose deletion an earlier process did not finish."""
    try:
        await settle(store, dispatcher.services.artifacts, dispatcher.app_name)
    except SojournError as error:
        logger.warning(
            "artifacts of deleted sessions of app %s are not removed yet; that is tried again when a Runner is entered: %s",
            dispatcher.app_name, error,
        )  # fmt: skip


async def _take_up(dispatcher: Dispatcher, record: RunRecord) -> RunRecord | None:
    """Brings a run that was found unfinished to execution, or to its end; None if it is in good hands."""
    hub = dispatcher.admission.ready()
    if record.uid in hub.jobs or (record.app_name, record.user_id, record.id) in hub.recording:
        return None
    if record.status is RunStatus.WAITING:
        hub.spawn(dispatcher.watch_waiting(record))
        return None
    lost = record.status is RunStatus.RUNNING
    if lost:
        try:
            record = await dispatcher.store.requeue_lost(record.uid, ends=lambda r: _why_not(dispatcher, r) is not None)
        except NotFound:
            # Its session was deleted meanwhile.
            return None
        if record.status is not RunStatus.QUEUED:
            return None
    return record if dispatcher.deliver(record, ahead=lost, close_with=_why_not(dispatcher, record)) else None


def _why_not(dispatcher: Dispatcher, record: RunRecord) -> SojournError | None:
    """Why a run that was left unfinished does not go on, if it does not."""
    if record.deaths >= MAX_DEATHS:
        return Unavailable(
            f"the process died in {record.deaths} attempts of run {record.id!r}; it is not tried again",
            code="run.crash_loop",
            retryable=False,
        )
    if record.attached:
        return Unavailable(f"the process of run {record.id!r} and its reader has ended", code="run.lost", retryable=True)
    if record.deaths and dispatcher.services.run_config(record).on_crash == "fail":
        return Unavailable(f"the process of run {record.id!r} has died", code="run.lost", retryable=True)
    return None


async def close(dispatcher: Dispatcher, closing: Closing) -> CloseReport:
    """Ends a dispatcher's runs after it was closed; see `Runner.close`."""
    hub = dispatcher.hub
    if dispatcher.recording:
        await closing.wait(set(dispatcher.recording))
    own = [j for j in hub.jobs.values() if j.dispatcher is dispatcher]
    queued = [j for j in own if hub.engine.withdraw(j.delivery)]
    active = [j for j in own if j not in queued]
    drained, left = await _await_end(active, closing.wait)
    for job in left:
        dispatcher.stop(job, "shutdown", Stop.SHUTDOWN)
    longest = max((j.execution.config.cancel_grace for j in left if j.execution), default=0.0)
    await _await_end(left, lambda waits: asyncio.wait(waits, timeout=longest + 1.0))
    cancelled = sum([await dispatcher.end_queued(job) for job in queued])
    abandoned = sum(j.abandoned for j in left)
    suspended = sum(1 for j in left if j.live.record.status is RunStatus.QUEUED)
    await hub.settle(10.0)
    if dispatcher.services.ingest is not None:
        dispatcher.services.ingest.stop()
    return CloseReport(
        drained=len(drained),
        suspended=suspended,
        queued=len(queued) - cancelled,
        cancelled=cancelled + sum(1 for j in left if j.live.record.status is RunStatus.CANCELLED),
        abandoned=abandoned,
    )


async def _await_end(jobs: list[Job], wait: Wait) -> tuple[list[Job], list[Job]]:
    """Waits for runs to end; returns those that did and those that did not."""
    if jobs:
        waits = {asyncio.ensure_future(j.live.wait_ended()): j for j in jobs}
        await wait(waits)
        done = [w for w in waits if w.done()]
        pending = [w for w in waits if not w.done()]
        for one in pending:
            one.cancel()
        return [waits[w] for w in done], [waits[w] for w in pending]
    return [], []

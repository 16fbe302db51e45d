"""Slots of those who wait for runs: whoever holds one and waits for a run must not keep it from that run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from sojourn.agents.current import find_current_run
from sojourn.engine.limiter import Limiter
from sojourn.errors import Conflict
from sojourn.run.live import LiveRun
from sojourn.run.status import RunStatus

if TYPE_CHECKING:
    from sojourn.runner.delivery.hub import Hub, Job


class HeldSlot:
    """A slot that some code holds, or shares: an agent's run, or a session's block. One run at a time may use it.

    Args:
        limiters: Those whose slot it is.
        outer: What the code around it holds.
        freed: Called when a run does not use it any more, before another one may.

    Attributes:
        in_use: Whether a run uses it.
    """

    __slots__ = ("_freed", "_lending", "_limiters", "_wanted", "in_use", "outer")

    def __init__(
        self, limiters: Sequence[object], *, outer: HeldSlot | None = None, freed: Callable[[], None] | None = None
    ) -> None:
        self.in_use = False
        self.outer = outer
        self._limiters = limiters
        self._freed = freed
        self._wanted: list[Job] = []
        self._lending = False

    def is_of(self, limiter: Limiter) -> bool:
        """Whether it is a slot of a limiter."""
        return limiter in self._limiters

    def free(self) -> None:
        """A run does not use it any more; the next that is waited for gets it."""
        self.in_use = False
        if self._freed is not None:
            self._freed()
        self._lend()

    def offer(self, job: Job) -> None:
        """Lets a queued run use it, at once or after those that were offered it before."""
        if job not in self._wanted:
            self._wanted.append(job)
            self._lend()

    def withdraw(self) -> None:
        """Lends it to no further run: the code that held it is gone."""
        self._limiters = ()
        self._wanted.clear()

    def _lend(self) -> None:
        if self._lending:
            # Of those that want it, any number may have ended, and free it at once.
            return
        self._lending = True
        try:
            while self._wanted and not self.in_use:
                job = self._wanted.pop(0)
                if not job.delivery.started and job.delivery.needs_slot:
                    self.in_use = True
                    job.dispatcher.admission.lend_slot(job.live.record.uid, self.free)
        finally:
            self._lending = False


_held: ContextVar[HeldSlot | None] = ContextVar("sojourn_held_slot", default=None)


def held_slot() -> HeldSlot | None:
    """What the calling code holds; None for nothing."""
    return _held.get()


def set_held_slot(slot: HeldSlot | None) -> None:
    """Says what the running context holds from now on."""
    _held.set(slot)


def before_waiting(hub: Hub, live: LiveRun) -> None:
    """Called before the calling code waits for a run: a run in the queue is offered the slot that this code holds.

    Raises:
        Conflict: `run.nested_session` if the run cannot start before this code's own run has ended.
    """
    if live.record.status is not RunStatus.QUEUED:
        return
    slot = _held.get()
    job = hub.jobs.get(live.record.uid) if slot is not None else None
    if job is None or job.delivery.started:
        return
    _check_turn(hub, job)
    while slot is not None:
        if slot.is_of(job.delivery.limiter):
            slot.offer(job)
            return
        slot = slot.outer


def _check_turn(hub: Hub, job: Job) -> None:
    current, session = find_current_run(), job.delivery.session
    if current is None or session not in current.lineage.sessions:
        return
    # What goes on in the background after its run has ended may wait.
    if any(j.live.record.key == session and j.delivery.started for j in hub.jobs.values()):
        raise Conflict(
            f"a run of session {session} waits for run {job.live.record.id!r} of the same session, which starts only when the "
            "first has ended; do not wait for it there",
            code="run.nested_session",
        )

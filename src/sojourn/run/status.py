"""The life of a run, as one table of moves. Everything that changes a run's status goes through `move`."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from sojourn.errors import Conflict


class RunStatus(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether no move leads out of it."""
        return self in TERMINAL


TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})


class Move(StrEnum):
    """What can happen to a run."""

    BEGIN = "begin"
    WAIT = "wait"
    ANSWER = "answer"
    REQUEUE = "requeue"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"


class Transition(NamedTuple):
    """One row of the table."""

    source: RunStatus
    move: Move
    target: RunStatus
    why: str


TRANSITIONS: tuple[Transition, ...] = (
    Transition(RunStatus.QUEUED, Move.BEGIN, RunStatus.RUNNING, "its turn and a slot are free"),
    Transition(RunStatus.QUEUED, Move.CANCEL, RunStatus.CANCELLED, "cancelled before it started"),
    Transition(RunStatus.QUEUED, Move.FAIL, RunStatus.FAILED, "waited too long, or may not be resumed"),
    Transition(RunStatus.RUNNING, Move.WAIT, RunStatus.WAITING, "asked a person"),
    Transition(RunStatus.RUNNING, Move.REQUEUE, RunStatus.QUEUED, "process lost or shut down"),
    Transition(RunStatus.RUNNING, Move.COMPLETE, RunStatus.COMPLETED, "the agent finished"),
    Transition(RunStatus.RUNNING, Move.FAIL, RunStatus.FAILED, "the agent failed or a bound was reached"),
    Transition(RunStatus.RUNNING, Move.CANCEL, RunStatus.CANCELLED, "cancelled"),
    Transition(RunStatus.WAITING, Move.ANSWER, RunStatus.QUEUED, "answered"),
    Transition(RunStatus.WAITING, Move.CANCEL, RunStatus.CANCELLED, "cancelled"),
    Transition(RunStatus.WAITING, Move.EXPIRE, RunStatus.FAILED, "nobody answered in time"),
)

_TARGETS = {(t.source, t.move): t.target for t in TRANSITIONS}


def move(status: RunStatus, by: Move, *, run_id: str = "") -> RunStatus:
    """The status that a move leads to.

    Raises:
        Conflict: `run.illegal_move` if the table has no such row; nothing is changed.
    """
    try:
        return _TARGETS[status, by]
    except KeyError:
        raise Conflict(f"run {run_id!r} is {status}; it cannot {by}", code="run.illegal_move") from None

"""How an attempt ends that does not come to its own end: stopped from outside, or by what an agent raised."""

from __future__ import annotations

import logging
from enum import StrEnum

from sojourn.agents.control import RunPaused
from sojourn.errors import RunCancelled, SojournError, TimedOut
from sojourn.run.config import RunConfig
from sojourn.run.status import Move
from sojourn.run.types import RunError, RunRecord
from sojourn.runner.attempt.log import Outcome

logger = logging.getLogger("sojourn.run")


class Stop(StrEnum):
    """Why an attempt is stopped from outside."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"


def outcome_of_stop(reason: Stop | None, why: str | None, record: RunRecord, config: RunConfig) -> Outcome:
    """How a stopped attempt ends."""
    match reason:
        case Stop.TIMEOUT:
            error: SojournError = TimedOut(
                f"run {record.id!r} did not finish within {config.timeout:g} seconds; see RunConfig.timeout",
                code="run.timeout",
                retryable=False,
            )
            return Outcome(Move.FAIL, RunError.of(error))
        case Stop.CANCEL:
            return Outcome(Move.CANCEL, RunError.of(RunCancelled(why or "cancelled")))
        case _:
            if record.attached:
                return Outcome(Move.CANCEL, RunError.of(RunCancelled("its reader's process shut down")))
            return Outcome(Move.REQUEUE)


def outcome_of_error(error: BaseException, record: RunRecord) -> Outcome:
    """How an attempt ends that nobody has stopped; what has no code of its own is logged."""
    if isinstance(error, RunPaused):
        return Outcome(Move.WAIT)
    if isinstance(error, SojournError):
        return Outcome(Move.FAIL, RunError.of(error), error)
    fields = {"run_id": record.id, "session_id": record.session_id, "user_id": record.user_id}
    logger.error("run %s failed: an agent raised", record.id, exc_info=error, extra=fields)
    message = f"an agent raised {type(error).__name__}; the log of run {record.id!r} has the details"
    return Outcome(Move.FAIL, RunError("agent.failed", message), error)

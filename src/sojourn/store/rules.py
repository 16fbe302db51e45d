"""What every store checks and says in the same way."""

from __future__ import annotations

from typing import Any

from sojourn import jsonvalue, platform
from sojourn.errors import AlreadyExists, Conflict, Fenced, InvalidInput, NotFound
from sojourn.run.store import Fence, NewRun
from sojourn.run.types import Interrupt, RunError, RunRecord
from sojourn.session.types import SessionKey

MAX_PAGE = 1000


def check_page(limit: int) -> None:
    """Refuses a page size outside of 1 to 1,000 with `page.invalid`."""
    if not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"limit is {limit!r}; give 1 to {MAX_PAGE}", code="page.invalid")


def page_token(created_at: float, tie: str) -> str:
    """The token of the page that starts after this position."""
    return f"{created_at!r}~{tie}"


def page_after(token: str | None) -> tuple[float, str] | None:
    """The position that a page token names; `page.invalid` if it is none of ours."""
    if token is None:
        return None
    created_at, sep, tie = token.partition("~")
    try:
        if sep:
            return float(created_at), tie
    except ValueError:
        pass
    raise InvalidInput(f"{token!r} is not a page token; pass Page.next of the page before", code="page.invalid")


def same_input(known: RunRecord, run: NewRun) -> None:
    """Refuses a run id that was used for something else with `run.conflict`."""
    if known.key != run.key or known.message.content != run.message.content:
        raise Conflict(
            f"run id {run.id!r} was used for another message or session; use a new id for a new run", code="run.conflict"
        )


def open_for(interrupt: Interrupt, answer: Any) -> bool:
    """Whether an interrupt takes this answer: true if open, false if it has this very answer already.

    Raises:
        Conflict: `interrupt.conflict` if it has another answer; `interrupt.closed` if it was dropped or has expired.
    """
    if interrupt.status == "answered":
        if jsonvalue.canonical(interrupt.answer) == jsonvalue.canonical(answer):
            return False
        raise Conflict(f"interrupt {interrupt.id!r} has been answered differently", code="interrupt.conflict")
    expired = interrupt.expires_at is not None and interrupt.expires_at <= platform.now()
    if interrupt.status != "open" or expired:
        status = "expired" if expired else interrupt.status
        raise Conflict(f"interrupt {interrupt.id!r} is {status}; it takes no answer", code="interrupt.closed")
    return True


def cancelled(record: RunRecord) -> RunError:
    """What is stored of a run that was cancelled on request."""
    return RunError("run.cancelled", record.cancel_requested or "cancelled", "RunCancelled")


def session_not_found(key: SessionKey) -> NotFound:
    """The session does not exist."""
    return NotFound(f"session {key} does not exist; create it first or check its ids", code="session.not_found")


def session_exists(key: SessionKey) -> AlreadyExists:
    """The session exists."""
    return AlreadyExists(f"session {key} exists already; use it, or choose another id", code="session.exists")


def session_busy(key: SessionKey, run_id: str) -> Conflict:
    """The session has an unfinished run."""
    return Conflict(
        f"session {key} is busy with run {run_id!r}; wait for it, or use when_busy='enqueue' or 'replace'", code="session.busy"
    )


def run_not_found(run_id: str) -> NotFound:
    """The run does not exist."""
    return NotFound(f"run {run_id!r} does not exist", code="run.not_found")


def run_not_finished(record: RunRecord) -> Conflict:
    """The run has not finished."""
    return Conflict(f"run {record.id!r} is {record.status}; only a finished run can be repeated", code="run.not_finished")


def run_ambiguous(run_id: str) -> InvalidInput:
    """More than one user has a run of this id."""
    return InvalidInput(f"several users have a run {run_id!r}; pass user_id", code="run.ambiguous")


def interrupt_not_found(run_id: str, interrupt_id: str) -> NotFound:
    """The interrupt does not exist."""
    return NotFound(f"run {run_id!r} has no interrupt {interrupt_id!r}", code="interrupt.not_found")


def fenced(record: RunRecord | None, fence: Fence) -> Fenced:
    """The attempt may not write."""
    if record is None:
        return Fenced(f"run {fence.run_uid} is gone: its session was deleted")
    return Fenced(
        f"attempt {fence.attempt} of run {record.id!r} may not write: the run is {record.status} at attempt {record.attempt}"
    )

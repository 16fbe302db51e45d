"""What every store checks, decides and says in the same way."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from sojourn import jsonvalue, platform
from sojourn.errors import AlreadyExists, Conflict, Fenced, Gone, InvalidInput, NotFound
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.page import page_after
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Fence, NewRun
from sojourn.run.types import Interrupt, RunError, RunRecord
from sojourn.session.state import APP, USER, StateDelta, check_key, check_number
from sojourn.session.types import SessionKey

MISSING: Any = object()
"""In place of a value: the key is absent."""

# -- what is checked ----------------------------------------------------------------------------------------------------


def check_ids(*, app_name: str, user_id: str | None = None, session_id: str | None = None) -> None:
    """Refuses a filter that could name nothing with `id.invalid`; None stands for any."""
    check_id(app_name, "app_name")
    if user_id is not None:
        check_id(user_id, "user_id")
    if session_id is not None:
        check_id(session_id, "session_id")


def check_window(limit: int | None) -> None:
    """Refuses a window of fewer than no events with `page.invalid`; None stands for all."""
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise InvalidInput(f"a window of {limit!r} events cannot be; give 0 or more", code="page.invalid")


LAST_KEY = 2**63 - 1
"""Beyond the store's own key of any session or run."""


def key_after(token: str | None) -> int:
    """The number that the store's own keys of the next page are below; `LAST_KEY` for the first page.

    Raises:
        InvalidInput: `page.invalid` if the token is none of ours.
    """
    position = page_after(token)
    if position is None:
        return LAST_KEY
    tie = position[1]
    if not (tie.isascii() and tie.isdigit() and len(tie) < 19):
        raise InvalidInput(f"{token!r} is not a page token; pass Page.next of the page before", code="page.invalid")
    return int(tie)


def check_bounds(keep_events: int | None, ended_before: float | None, limit: int) -> None:
    """Refuses bounds of what is to be removed that cannot be with `retention.invalid`."""
    if keep_events is not None and not _is_count(keep_events, 0, LAST_KEY):
        raise InvalidInput(f"keep_events is {keep_events!r}; give 0 or more", code="retention.invalid")
    if ended_before is not None and not (isinstance(ended_before, int | float) and ended_before - ended_before == 0):
        raise InvalidInput(f"{ended_before!r} is no time; give seconds since the epoch", code="retention.invalid")
    if not _is_count(limit, 1, MAX_BATCH):
        raise InvalidInput(f"limit is {limit!r}; give 1 to {MAX_BATCH}", code="retention.invalid")


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


MAX_BATCH = 100_000
"""Events that one transaction may be asked to remove."""


def check_delta(delta: StateDelta) -> StateDelta:
    """A checked copy of changes that no event carries, without `temp:` keys.

    Raises:
        InvalidInput: `state.invalid_key`, `state.not_a_number`, `json.invalid`.
    """
    checked = StateDelta.of_values(delta.values)
    for key in delta.deleted:
        checked.deleted[check_key(key)] = None
    for key, by in delta.increments.items():
        checked.increments[check_key(key)] = check_number(by)
    return checked.durable()


def same_input(known: RunRecord, run: NewRun) -> None:
    """Refuses a run id that was used for something else with `run.conflict`."""
    same_message = known.trimmed or known.message.content == run.message.content
    if known.key != run.key or not same_message or known.retry_of != run.retry_of:
        raise run_conflict(run.id)


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


def dropped(interrupt: Interrupt, by: Move) -> Interrupt:
    """An interrupt as it is after its run got a terminal status: an open one is dropped.

    If the run ends because nobody answered in time, those whose time has passed are `expired`.
    """
    if interrupt.status != "open":
        return interrupt
    late = by is Move.EXPIRE and interrupt.expires_at is not None and interrupt.expires_at <= platform.now()
    return replace(interrupt, status="expired" if late else "dropped")


def closed_by(record: RunRecord, by: Move) -> RunStatus:
    """The terminal status to which somebody else than the attempt closes a run: failed or cancelled.

    Raises:
        Conflict: `run.illegal_move` for any other move.
    """
    if by not in _CLOSING:
        raise Conflict(f"run {record.id!r} is {record.status}; to {by} does not close it", code="run.illegal_move")
    return move(record.status, by, run_id=record.id)


_CLOSING = (Move.FAIL, Move.CANCEL, Move.EXPIRE)


def cancelled(record: RunRecord) -> RunError:
    """What is stored of a run that was cancelled on request."""
    return RunError("run.cancelled", record.cancel_requested or "cancelled", "RunCancelled")


# -- what is put back ---------------------------------------------------------------------------------------------------

Owner = tuple[str, ...]
"""Whose state a key is: `(app,)`, `(app, user)`, or `()` for the session's."""


def owner_of(key: SessionKey, name: str) -> Owner:
    """The owner of the state key `name` as seen from a session."""
    if name.startswith(APP):
        return (key.app_name,)
    if name.startswith(USER):
        return (key.app_name, key.user_id)
    return ()


class Undo(NamedTuple):
    """What one change of a run's state replaced; kept from the last hand-over to the end of the run.

    Attributes:
        seq: The event that made the change. A change that no event carries goes with the run's newest event.
        owner: Whose key it is.
        key: The key.
        old: Its value before; `MISSING` if there was none.
        new: Its value after; `MISSING` if it was deleted.
        by: What was added; None for a set or delete.
    """

    seq: int
    owner: Owner
    key: str
    old: Any
    new: Any
    by: int | float | None


def found_state(state: dict[str, Any], undo: Iterable[Undo]) -> dict[str, Any]:
    """The state as the run found it: `state` without the changes in `undo`, which are in the order of writing."""
    found = dict(state)
    for entry in reversed(list(undo)):
        value = entry.old if entry.by is None else _without(found.get(entry.key, MISSING), entry)
        if value is MISSING:
            found.pop(entry.key, None)
        else:
            found[entry.key] = value
    return found


def put_back(
    undo: list[Undo], gone: Container[int], read: Callable[[Owner, str], Any], write: Callable[[Owner, str, Any], None]
) -> list[Undo]:
    """Takes back what superseded events changed, where nobody else has written since.

    A value that is not the one written is left as it is; an increment is subtracted from whatever number there is, unless
    the run itself has set the key since.

    Args:
        undo: The run's changes in the order of writing.
        gone: The `seq` of the superseded events.
        read: Reads a key; `MISSING` if it is absent.
        write: Writes a key; `MISSING` deletes it.

    Returns:
        The changes that remain. One that followed a change taken back stands on what that one had replaced.
    """
    covered: set[tuple[Owner, str]] = set()
    for entry in reversed(undo):
        place = entry.owner, entry.key
        if entry.seq not in gone:
            if entry.by is None:
                covered.add(place)
        elif place not in covered:
            current = read(*place)
            value = _without(current, entry)
            if value is not current:
                write(*place, value)
    return _relinked(undo, gone)


def _without(current: Any, entry: Undo) -> Any:
    if _same_value(current, entry.new):
        return entry.old
    if entry.by is not None and isinstance(current, int | float) and not isinstance(current, bool):
        return current - entry.by
    return current


def _relinked(undo: list[Undo], gone: Container[int]) -> list[Undo]:
    found: dict[tuple[Owner, str], Any] = {}
    kept: list[Undo] = []
    for entry in undo:
        place = entry.owner, entry.key
        if entry.seq in gone:
            found.setdefault(place, entry.old)
        else:
            kept.append(entry._replace(old=found.pop(place)) if place in found else entry)
    return kept


def _same_value(a: Any, b: Any) -> bool:
    if a is MISSING or b is MISSING:
        return a is b
    # Python takes True, 1 and 1.0 for equal; as JSON they are three values.
    return a is b or jsonvalue.canonical(a) == jsonvalue.canonical(b)


# -- what is said -------------------------------------------------------------------------------------------------------


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


def run_conflict(run_id: str) -> Conflict:
    """The run id was used for something else."""
    return Conflict(
        f"run id {run_id!r} was used for another message, session or repeated run; use a new id for a new run",
        code="run.conflict",
    )


def run_not_finished(repeated: str, record: RunRecord) -> Conflict:
    """A run cannot be repeated: it, or one submitted after it, has not finished."""
    which = f"run {record.id!r}" if record.id == repeated else f"run {record.id!r}, which came after run {repeated!r},"
    remedy = "answer it, or cancel it" if record.status is RunStatus.WAITING else "wait for its end, or cancel it"
    return Conflict(f"{which} is {record.status}; {remedy}, and then repeat run {repeated!r}", code="run.not_finished")


def run_trimmed(record: RunRecord) -> Gone:
    """The events of the run were removed."""
    return Gone(
        f"retention has removed what run {record.id!r} consisted of; its record is left, and its end can be read after "
        f"{max(record.last_pos - 1, 0)}",
        code="cursor.trimmed",
    )


def events_trimmed(key: SessionKey, after: int, first_seq: int) -> Gone:
    """Events after this position were removed."""
    return Gone(
        f"retention has removed events of session {key} after {after}; all are there from {first_seq} on: go on after "
        f"{first_seq - 1}, or read what is left from the beginning",
        code="cursor.trimmed",
    )


def user_active(app_name: str, user_id: str) -> Conflict:
    """The user has a session, so not everything of theirs can be erased."""
    return Conflict(
        f"user {user_id!r} has a session in app {app_name!r}: it was created meanwhile; see to it that nobody writes for them, "
        "and erase again",
        code="data.user_active",
        retryable=True,
    )


def without_words(message: Event) -> Event:
    """What is left of the message of a run that was trimmed."""
    return Event(id=message.id, run_id=message.run_id, author=message.author, timestamp=message.timestamp)


def run_superseded(record: RunRecord) -> Conflict:
    """The run cannot be repeated: it does not count any more."""
    return Conflict(
        f"run {record.id!r} does not count any more since run {record.superseded_by!r}; repeat that one, or one after it",
        code="run.superseded",
    )


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

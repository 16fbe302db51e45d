"""What happens to runs apart from what their attempts write, as operations on the tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sojourn import platform
from sojourn.postgres.tables import Record, Tables
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Answered, Begun
from sojourn.run.types import RunError, RunRecord
from sojourn.store.numbering import Numbered
from sojourn.store.postgres import log, records, repeats, sessions, state
from sojourn.store.postgres.text import indexed
from sojourn.store.prepared import Entry, message_entry_of
from sojourn.store.recording import Repeat
from sojourn.store.rows import INTERRUPT, dump, dump_error, dump_words
from sojourn.store.rules import cancelled, closed_by, found_state, interrupt_not_found, open_for, run_not_found

# Whatever changes a run begins with locking its session, so that one after the other does; what is read then is as it is.


class Locked(NamedTuple):
    """A run whose session is locked."""

    record: RunRecord
    sid: int
    event_count: int
    active_agent: str | None


async def lock(db: Tables, run_uid: int) -> Locked:
    """Locks the session of a run and reads the run.

    Raises:
        NotFound: `run.not_found`.
    """
    row: Record | None = await sessions.lock_of_run(db, run_uid)
    if row is None:
        raise run_not_found(str(run_uid))
    return Locked(await records.get(db, run_uid), row["sid"], row["event_count"], row["active_agent"])


# -- begin ------------------------------------------------------------------------------------------------------------


async def begin(db: Tables, run_uid: int) -> Begun:
    """What `RunStore.begin` does."""
    locked = await lock(db, run_uid)
    record = locked.record
    if record.status is RunStatus.QUEUED and record.cancel_requested is not None:
        record = await close(db, record, Move.CANCEL, cancelled(record))
    elif record.status in _BUSY_STATUS:
        move(record.status, Move.BEGIN, run_id=record.id)
        return await (_begin_first(db, locked) if record.attempt == 0 else _begin_again(db, record))
    return Begun(record, await sessions.get(db, record.key), [], [])


_BEGIN = """
    UPDATE {schema}.runs SET status = 'running', attempt = 1, version = version + 1, agent = $2, start_agent = $2,
        first_seq = $3, message = NULL, last_pos = 1, started_at = $4 WHERE uid = $1
"""
_BEGIN_AGAIN = """
    UPDATE {schema}.runs SET status = 'running', attempt = attempt + 1, version = version + 1, answered = false WHERE uid = $1
"""
_COUNT = "UPDATE {schema}.sessions SET event_count = $2, updated_at = $3 WHERE sid = $1"
_INTERRUPTS = f"SELECT {INTERRUPT} FROM {{schema}}.interrupts i WHERE i.run_uid = $1 ORDER BY i.n"
_INTERRUPT = f"SELECT {INTERRUPT} FROM {{schema}}.interrupts i WHERE i.run_uid = $1 AND i.name = $2"


async def _begin_first(db: Tables, locked: Locked) -> Begun:
    record, sid, count, active_agent = locked
    uid, key, now = record.uid, record.key, platform.now()
    entry = message_entry_of(record.message)
    staged = await state.stage_delta(db, sid, key, entry.delta)
    if record.retry_of is not None:
        active_agent = await repeats.take_place(db, key, sid, Repeat(record.id, record.retry_of, uid), active_agent)
    await state.store(db, sid, staged)
    await log.write(db, sid, uid, Numbered(entry, count + 1, 1, ordinal=0))
    await db.run(_COUNT, sid, count + 1, now)
    await db.run(_BEGIN, uid, active_agent, count + 1, now)
    return Begun(await records.get(db, uid), await sessions.get(db, key), [], [])


async def _begin_again(db: Tables, record: RunRecord) -> Begun:
    uid, key = record.uid, record.key
    await db.run(_BEGIN_AGAIN, uid)
    record = await records.get(db, uid)
    session = await sessions.get(db, key)
    undo = await state.read_undo(db, uid, key)
    if undo:
        session = session.model_copy(update={"state": found_state(session.state, undo)})
    rows = await db.all(_INTERRUPTS, uid)
    return Begun(record, session, await records.steps(db, uid), [records.question_of(row, record.id, key) for row in rows])


# -- closing ----------------------------------------------------------------------------------------------------------

_CLOSE = """
    UPDATE {schema}.runs SET status = $2, attempt = $3, error = $4, last_pos = last_pos + 1, finished_at = $5,
        version = version + 1 WHERE uid = $1
"""
_EXPIRE = """
    UPDATE {schema}.interrupts SET status = 'expired' WHERE run_uid = $1 AND status = 'open' AND expires_at <= $2
"""
_DROP = "UPDATE {schema}.interrupts SET status = 'dropped' WHERE run_uid = $1 AND status = 'open'"


async def close(db: Tables, record: RunRecord, by: Move, error: RunError, *, attempt: int | None = None) -> RunRecord:
    """Makes a terminal move that no attempt makes."""
    status = closed_by(record, by)
    await db.run(
        _CLOSE, record.uid, status.value, record.attempt if attempt is None else attempt, dump_error(error), platform.now()
    )
    await state.drop_undo(db, record.uid)
    await drop_interrupts(db, record.uid, by)
    return await records.get(db, record.uid)


async def drop_interrupts(db: Tables, run_uid: int, by: Move) -> None:
    """Closes the questions of a run that has ended or is about to, as `rules.dropped` says."""
    if by is Move.EXPIRE:
        await db.run(_EXPIRE, run_uid, platform.now())
    await db.run(_DROP, run_uid)


async def take_over(db: Tables, run_uid: int, error: RunError, by: Move) -> RunRecord:
    """What `RunStore.take_over` does."""
    record = (await lock(db, run_uid)).record
    return await close(db, record, by, error, attempt=record.attempt + 1) if record.status is RunStatus.RUNNING else record


async def request_cancel(db: Tables, run_uid: int, reason: str, vacant: Callable[[Tables], Any] | None) -> RunRecord:
    """What `RunStore.request_cancel` does.

    Args:
        db: The tables.
        run_uid: The run.
        reason: Why.
        vacant: Finds out whether nobody executes runs, and keeps it so until the transaction ends; None if this process does.
    """
    record = (await lock(db, run_uid)).record
    if not record.status.terminal and record.cancel_requested is None:
        await db.run("UPDATE {schema}.runs SET cancel_requested = $2 WHERE uid = $1", run_uid, dump_words(reason))
        record = await records.get(db, run_uid)
    if record.status in _PENDING:
        return await close(db, record, Move.CANCEL, cancelled(record))
    if record.status is RunStatus.RUNNING and vacant is not None and await vacant(db):
        # Its process is dead, so nobody would act on the wish.
        return await close(db, record, Move.CANCEL, cancelled(record), attempt=record.attempt + 1)
    return record


async def close_run(db: Tables, run_uid: int, error: RunError, by: Move) -> RunRecord:
    """What `RunStore.close_run` does."""
    record = (await lock(db, run_uid)).record
    return await close(db, record, by, error) if record.status in _PENDING else record


async def requeue_lost(db: Tables, run_uid: int, ends: Callable[[RunRecord], bool] | None) -> RunRecord:
    """What `RunStore.requeue_lost` does."""
    record = (await lock(db, run_uid)).record
    if record.status is not RunStatus.RUNNING:
        return record
    status = move(record.status, Move.REQUEUE, run_id=record.id)
    await db.run(
        "UPDATE {schema}.runs SET status = $2, deaths = deaths + 1, version = version + 1 WHERE uid = $1", run_uid, status.value
    )
    record = await records.get(db, run_uid)
    if ends is not None and ends(record):
        await drop_interrupts(db, run_uid, Move.FAIL)
    return record


_BUSY_STATUS = (RunStatus.QUEUED, RunStatus.RUNNING)
_PENDING = (RunStatus.QUEUED, RunStatus.WAITING)


# -- answers ----------------------------------------------------------------------------------------------------------

_ANSWER = """
    UPDATE {schema}.interrupts SET status = 'answered', answer = $3, answered_at = $4 WHERE run_uid = $1 AND name = $2
"""
_ANSWERED = "UPDATE {schema}.runs SET status = $2, deaths = 0, attached = false, answered = true WHERE uid = $1"


async def answer(db: Tables, run_uid: int, interrupt_id: str, value: Any, entry: Entry) -> Answered:
    """What `RunStore.answer` does."""
    record, sid, count, _ = await lock(db, run_uid)
    name = indexed(interrupt_id)
    row = await db.one(_INTERRUPT, run_uid, name)
    if row is None:
        raise interrupt_not_found(record.id, interrupt_id)
    if not open_for(records.question_of(row, record.id, record.key), value):
        return Answered(record, False)
    status = record.status
    if status is RunStatus.WAITING:
        status = move(status, Move.ANSWER, run_id=record.id)
    now = platform.now()
    await log.write(db, sid, run_uid, Numbered(entry, count + 1, record.attempt))
    await db.run(_COUNT, sid, count + 1, now)
    await db.run(_ANSWER, run_uid, name, dump(value), now)
    await db.run(_ANSWERED, run_uid, status.value)
    return Answered(await records.get(db, run_uid), True)

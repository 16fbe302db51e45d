"""What happens to runs apart from what their attempts write, as operations on a connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from sojourn import platform
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Answered, Begun
from sojourn.run.types import RunError, RunRecord
from sojourn.store.numbering import Numbered
from sojourn.store.prepared import Entry, message_entry_of
from sojourn.store.recording import Repeat
from sojourn.store.rows import INTERRUPT, dump, dump_error, dump_words, interrupt_of
from sojourn.store.rules import cancelled, closed_by, found_state, interrupt_not_found, open_for
from sojourn.store.sqlite import log, records, repeats, sessions, state

# -- begin ------------------------------------------------------------------------------------------------------------


def begin(conn: sqlite3.Connection, run_uid: int) -> Begun:
    """What `RunStore.begin` does."""
    record = records.get(conn, run_uid)
    if record.status is RunStatus.QUEUED and record.cancel_requested is not None:
        record = close(conn, record, Move.CANCEL, cancelled(record))
    elif record.status in _BUSY_STATUS:
        move(record.status, Move.BEGIN, run_id=record.id)
        return _begin_first(conn, record) if record.attempt == 0 else _begin_again(conn, record)
    return Begun(record, sessions.get(conn, record.key, 0), [], [])


def _begin_first(conn: sqlite3.Connection, record: RunRecord) -> Begun:
    uid, key, now = record.uid, record.key, platform.now()
    sid, count, active_agent = conn.execute(
        "SELECT s.sid, s.event_count, s.active_agent FROM runs r JOIN sessions s ON s.sid = r.sid WHERE r.uid = ?", (uid,)
    ).fetchone()
    entry = message_entry_of(record.message)
    writes = state.encode(state.stage_delta(conn, sid, key, entry.delta), sid)

    if record.retry_of is not None:
        active_agent = repeats.take_place(conn, key, sid, Repeat(record.id, record.retry_of, uid), active_agent)
    state.store(conn, writes)
    log.write(conn, sid, uid, Numbered(entry, count + 1, 1, ordinal=0))
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (count + 1, now, sid))
    conn.execute(
        "UPDATE runs SET status = 'running', attempt = 1, agent = ?, start_agent = ?, first_seq = ?, message = NULL, "
        "last_pos = 1, started_at = ? WHERE uid = ?",
        (active_agent, active_agent, count + 1, now, uid),
    )
    return Begun(records.get(conn, uid), sessions.get(conn, key, 0), [], [])


def _begin_again(conn: sqlite3.Connection, record: RunRecord) -> Begun:
    uid, key = record.uid, record.key
    conn.execute("UPDATE runs SET status = 'running', attempt = attempt + 1, answered = 0 WHERE uid = ?", (uid,))
    record = records.get(conn, uid)
    session = sessions.get(conn, key, 0)
    undo = state.read_undo(conn, uid, key)
    if undo:
        session = session.model_copy(update={"state": found_state(session.state, undo)})
    rows = conn.execute(f"SELECT {INTERRUPT} FROM interrupts i WHERE i.run_uid = ? ORDER BY i.n", (uid,)).fetchall()
    return Begun(record, session, records.steps(conn, uid), [interrupt_of(row, record.id, key) for row in rows])


# -- closing ----------------------------------------------------------------------------------------------------------


def close(conn: sqlite3.Connection, record: RunRecord, by: Move, error: RunError, *, attempt: int | None = None) -> RunRecord:
    """Makes a terminal move that no attempt makes."""
    status = closed_by(record, by)
    conn.execute(
        "UPDATE runs SET status = ?, attempt = ?, error = ?, last_pos = last_pos + 1, finished_at = ? WHERE uid = ?",
        (status.value, record.attempt if attempt is None else attempt, dump_error(error), platform.now(), record.uid),
    )
    state.drop_undo(conn, record.uid)
    drop_interrupts(conn, record.uid, by)
    return records.get(conn, record.uid)


def drop_interrupts(conn: sqlite3.Connection, run_uid: int, by: Move) -> None:
    """Closes the questions of a run that has ended or is about to, as `rules.dropped` says."""
    if by is Move.EXPIRE:
        conn.execute(
            "UPDATE interrupts SET status = 'expired' WHERE run_uid = ? AND status = 'open' AND expires_at <= ?",
            (run_uid, platform.now()),
        )
    conn.execute("UPDATE interrupts SET status = 'dropped' WHERE run_uid = ? AND status = 'open'", (run_uid,))


def take_over(conn: sqlite3.Connection, run_uid: int, error: RunError, by: Move) -> RunRecord:
    """What `RunStore.take_over` does."""
    record = records.get(conn, run_uid)
    return close(conn, record, by, error, attempt=record.attempt + 1) if record.status is RunStatus.RUNNING else record


def request_cancel(conn: sqlite3.Connection, run_uid: int, reason: str) -> RunRecord:
    """What `RunStore.request_cancel` does."""
    record = records.get(conn, run_uid)
    if not record.status.terminal and record.cancel_requested is None:
        conn.execute("UPDATE runs SET cancel_requested = ? WHERE uid = ?", (dump_words(reason), run_uid))
        record = records.get(conn, run_uid)
    return close(conn, record, Move.CANCEL, cancelled(record)) if record.status in _PENDING else record


def close_run(conn: sqlite3.Connection, run_uid: int, error: RunError, by: Move) -> RunRecord:
    """What `RunStore.close_run` does."""
    record = records.get(conn, run_uid)
    return close(conn, record, by, error) if record.status in _PENDING else record


def requeue_lost(conn: sqlite3.Connection, run_uid: int, ends: Callable[[RunRecord], bool] | None) -> RunRecord:
    """What `RunStore.requeue_lost` does."""
    record = records.get(conn, run_uid)
    if record.status is not RunStatus.RUNNING:
        return record
    status = move(record.status, Move.REQUEUE, run_id=record.id)
    conn.execute("UPDATE runs SET status = ?, deaths = deaths + 1 WHERE uid = ?", (status.value, run_uid))
    record = records.get(conn, run_uid)
    if ends is not None and ends(record):
        drop_interrupts(conn, run_uid, Move.FAIL)
    return record


_BUSY_STATUS = (RunStatus.QUEUED, RunStatus.RUNNING)
_PENDING = (RunStatus.QUEUED, RunStatus.WAITING)


# -- answers ----------------------------------------------------------------------------------------------------------


def answer(conn: sqlite3.Connection, run_uid: int, interrupt_id: str, value: Any, entry: Entry) -> Answered:
    """What `RunStore.answer` does."""
    record = records.get(conn, run_uid)
    row = conn.execute(
        f"SELECT {INTERRUPT} FROM interrupts i WHERE i.run_uid = ? AND i.id = ?", (run_uid, interrupt_id)
    ).fetchone()
    if row is None:
        raise interrupt_not_found(record.id, interrupt_id)
    if not open_for(interrupt_of(row, record.id, record.key), value):
        return Answered(record, False)
    status = record.status
    if status is RunStatus.WAITING:
        status = move(status, Move.ANSWER, run_id=record.id)
    now = platform.now()
    sid, count = conn.execute(
        "SELECT s.sid, s.event_count FROM runs r JOIN sessions s ON s.sid = r.sid WHERE r.uid = ?", (run_uid,)
    ).fetchone()
    log.write(conn, sid, run_uid, Numbered(entry, count + 1, record.attempt))
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (count + 1, now, sid))
    conn.execute(
        "UPDATE interrupts SET status = 'answered', answer = ?, answered_at = ? WHERE run_uid = ? AND id = ?",
        (dump(value), now, run_uid, interrupt_id),
    )
    conn.execute("UPDATE runs SET status = ?, deaths = 0, attached = 0, answered = 1 WHERE uid = ?", (status.value, run_uid))
    return Answered(records.get(conn, run_uid), True)

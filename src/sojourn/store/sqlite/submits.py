"""Recording a run."""

from __future__ import annotations

import sqlite3

from sojourn import platform
from sojourn.run.store import Begun, Submitted
from sojourn.store.numbering import Numbered
from sojourn.store.prepared import Submission
from sojourn.store.recording import NEW_RUN, Place, Repeat, record_of_new, row_of_new
from sojourn.store.rows import session_of
from sojourn.store.rules import same_input, session_busy, session_not_found
from sojourn.store.sqlite import log, records, repeats, sessions, state
from sojourn.store.sqlite.messages import Messages

# One row, whether or not the session or the run exist.
_SUBMIT = """
    SELECT s.sid, s.uid, s.event_count, s.run_no, s.active_agent, s.created_at, s.trimmed_seq, r.uid
    FROM (SELECT 1)
    LEFT JOIN sessions s ON s.app_name = ? AND s.user_id = ? AND s.id = ?
    LEFT JOIN runs r ON r.app_name = ? AND r.id = ? AND r.user_id = ?
"""
_BUSY = """
    SELECT id FROM runs INDEXED BY runs_unfinished
    WHERE app_name = ? AND sid = ? AND finished_at IS NULL AND status IN ('queued', 'running') LIMIT 1
"""
_COUNT_EVENT = "UPDATE sessions SET run_no = ?, event_count = ?, updated_at = ? WHERE sid = ?"
_INSERT = f"INSERT INTO runs ({NEW_RUN}) VALUES ({', '.join('?' * len(NEW_RUN.split(',')))})"


def submit(conn: sqlite3.Connection, new: Submission, begin: bool, messages: Messages) -> Submitted:
    """What `RunStore.submit` does."""
    run = new.run
    app_name, user_id, _ = key = run.key
    sid, session_uid, event_count, run_no, active_agent, created_at, trimmed_seq, known = conn.execute(
        _SUBMIT, (*key, app_name, run.id, user_id)
    ).fetchone()
    if known is not None:
        record = records.get(conn, known)
        same_input(record, run)
        return Submitted(record, None, True)
    if sid is None and not run.create_session:
        raise session_not_found(key)
    if run.retry_of is not None:
        repeats.check(conn, key, sid, run.retry_of)
    if run.reject_if_busy and sid is not None:
        busy = conn.execute(_BUSY, (app_name, sid)).fetchone()
        if busy is not None:
            raise session_busy(key, busy[0])
    staged = state.stage_delta(conn, sid or 0, key, new.entry.delta) if begin and new.entry.delta else None

    # All checks are done: from here on, things are written.
    now = platform.now()
    if sid is None:
        sid, session_uid, *_ = sessions.insert(conn, key, event_count=int(begin), run_no=1)
        place = Place(sid, session_uid, None, now, 1, 1, 0)
    else:
        place = Place(sid, session_uid, active_agent, created_at, event_count + 1, run_no + 1, trimmed_seq)
        if begin:
            conn.execute(_COUNT_EVENT, (place.run_no, place.event_count, now, sid))
        else:
            conn.execute("UPDATE sessions SET run_no = ? WHERE sid = ?", (place.run_no, sid))
    if begin and run.retry_of is not None:
        agent = repeats.take_place(conn, key, sid, Repeat(run.id, run.retry_of), active_agent)
        place = place._replace(active_agent=agent)
    if staged is not None:
        state.store(conn, state.encode(staged, sid))
    uid = conn.execute(_INSERT, row_of_new(new, place, begin, now)).lastrowid or 0
    record = record_of_new(new, place, uid, begin, now)
    messages.put(uid, new.message)
    if not begin:
        return Submitted(record, None, False)
    log.write(conn, sid, uid, Numbered(new.entry, place.event_count, 1, ordinal=0))
    row = (sid, session_uid, *key, place.active_agent, place.event_count, place.trimmed_seq, place.created_at, now)
    session = session_of(row, state.read(conn, sid, app_name, user_id))
    return Submitted(record, Begun(record, session, [], []), False)

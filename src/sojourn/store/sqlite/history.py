"""Reading the log: windows of it, and pages."""

from __future__ import annotations

import sqlite3

from sojourn.event import Event
from sojourn.session.types import History, SessionKey
from sojourn.store.rules import run_not_found, session_not_found
from sojourn.store.sqlite.rows import EVENT, MAX_INTEGER, event_of

_SUMMARY = """
    SELECT seq, summary_until FROM events INDEXED BY events_summaries
    WHERE sid = ? AND summary_until IS NOT NULL AND superseded = 0 ORDER BY seq DESC LIMIT 1
"""
_NEWEST = f"SELECT {EVENT} FROM events WHERE sid = ? AND seq > ? AND superseded = 0 ORDER BY seq DESC LIMIT ?"
_OPEN_CALLS = "SELECT seq FROM calls INDEXED BY calls_open WHERE sid = ? AND seq < ? AND closed_by IS NULL"
_CALLED_BEFORE = "SELECT max(seq) FROM calls WHERE sid = ? AND call_id = ? AND seq < ?"
_ONE = f"SELECT {EVENT} FROM events WHERE sid = ? AND seq = ? AND superseded = 0"
_PAGE = f"SELECT {EVENT} FROM events WHERE sid = ? AND seq > ? AND superseded <= ? ORDER BY seq LIMIT ?"
_OF_RUN = f"SELECT {EVENT} FROM events INDEXED BY events_by_run WHERE run_uid = ? AND pos > ? ORDER BY pos LIMIT ?"


def newest(conn: sqlite3.Connection, sid: int, limit: int | None) -> list[Event]:
    """The newest events that count, oldest first, not reaching back into what the newest summary sums up."""
    return _newest(conn, sid, limit, _summary(conn, sid)[1])


def window(conn: sqlite3.Connection, key: SessionKey, limit: int | None) -> History:
    sid, event_count = _session(conn, key)
    summary_seq, floor = _summary(conn, sid)
    events = _newest(conn, sid, limit, floor)
    start = (events[0].seq or 0) if events else event_count + 1
    pinned = {seq for (seq,) in conn.execute(_OPEN_CALLS, (sid, start)).fetchall()}
    pinned.update(_calls_answered_in(conn, sid, events, start))
    if summary_seq is not None and summary_seq < start:
        pinned.add(summary_seq)
    rows = (conn.execute(_ONE, (sid, seq)).fetchone() for seq in sorted(pinned))
    return History(events, [event_of(row) for row in rows if row is not None])


def _calls_answered_in(conn: sqlite3.Connection, sid: int, events: list[Event], start: int) -> set[int]:
    """Where the calls stand that a window answers, as far as that is before it."""
    called: set[str | None] = set()
    found = set()
    for event in events:
        for response in event.get_function_responses():
            if response.id and response.id not in called:
                (seq,) = conn.execute(_CALLED_BEFORE, (sid, response.id, event.seq)).fetchone()
                if seq is not None and seq < start:
                    found.add(seq)
        called.update(call.id for call in event.get_function_calls())
    return found


def page(conn: sqlite3.Connection, key: SessionKey, after: int, limit: int, superseded: bool) -> list[Event]:
    sid, _ = _session(conn, key)
    rows = conn.execute(_PAGE, (sid, _bounded(after), int(superseded), limit)).fetchall()
    return [event_of(row) for row in rows]


def of_run(conn: sqlite3.Connection, run_uid: int, after: int, limit: int) -> list[Event]:
    if conn.execute("SELECT 1 FROM runs WHERE uid = ?", (run_uid,)).fetchone() is None:
        raise run_not_found(str(run_uid))
    rows = conn.execute(_OF_RUN, (run_uid, _bounded(after), max(limit, 0))).fetchall()
    return [event_of(row) for row in rows]


def _session(conn: sqlite3.Connection, key: SessionKey) -> tuple[int, int]:
    row: tuple[int, int] | None = conn.execute(
        "SELECT sid, event_count FROM sessions WHERE app_name = ? AND user_id = ? AND id = ?", key
    ).fetchone()
    if row is None:
        raise session_not_found(key)
    return row


def _summary(conn: sqlite3.Connection, sid: int) -> tuple[int | None, int]:
    """Where the newest summary stands, and up to where it sums up."""
    row: tuple[int, int] | None = conn.execute(_SUMMARY, (sid,)).fetchone()
    return (None, 0) if row is None else row


def _newest(conn: sqlite3.Connection, sid: int, limit: int | None, floor: int) -> list[Event]:
    rows = conn.execute(_NEWEST, (sid, floor, MAX_INTEGER if limit is None else max(limit, 0))).fetchall()
    rows.reverse()
    return [event_of(row) for row in rows]


def _bounded(number: int) -> int:
    return max(0, min(number, MAX_INTEGER))

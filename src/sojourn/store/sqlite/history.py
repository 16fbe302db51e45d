"""Reading the log: windows of it, and pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from sojourn.event import Event
from sojourn.session.types import History, SessionKey
from sojourn.store.rows import EVENT, EVENT_OF_RUN, MAX_INTEGER, Row, event_of
from sojourn.store.rules import events_trimmed, run_not_found, run_trimmed, session_not_found
from sojourn.store.sqlite import records

_SUMMARY = """
    SELECT seq, summary_until FROM events INDEXED BY events_summaries
    WHERE sid = ? AND summary_until IS NOT NULL AND superseded = 0 ORDER BY seq DESC LIMIT 1
"""
_NEWEST = f"SELECT {EVENT} FROM events WHERE sid = ? AND seq > ? AND superseded = 0 ORDER BY seq DESC LIMIT ?"
_PAGE = f"SELECT {EVENT} FROM events WHERE sid = ? AND seq > ? AND (superseded = 0 OR ?) ORDER BY seq LIMIT ?"
_OF_RUN = f"SELECT {EVENT_OF_RUN} FROM events INDEXED BY events_by_run WHERE run_uid = ? AND pos > ? ORDER BY pos LIMIT ?"
_ONE = f"SELECT {EVENT} FROM events WHERE sid = ? AND seq = ?"
_OPEN_CALLS = "SELECT seq FROM calls INDEXED BY calls_open WHERE sid = ? AND seq < ? AND open = 1"
_CALL_BEFORE = "SELECT max(seq) FROM calls WHERE sid = ? AND call_id = ? AND is_call = 1 AND seq < ?"
_CALL_AFTER = "SELECT min(seq) FROM calls WHERE sid = ? AND call_id = ? AND is_call = 1 AND seq > ?"
_RESPONSES = "SELECT seq FROM calls WHERE sid = ? AND call_id = ? AND is_call = 0 AND seq > ? AND seq <= ?"


def newest(conn: sqlite3.Connection, sid: int, limit: int | None, floor: int = 0) -> list[Event]:
    """The newest events that count, oldest first, of those with a `seq` beyond `floor`."""
    rows = conn.execute(_NEWEST, (sid, floor, MAX_INTEGER if limit is None else min(limit, MAX_INTEGER))).fetchall()
    rows.reverse()
    return [event_of(row) for row in rows]


def window(conn: sqlite3.Connection, key: SessionKey, limit: int | None) -> History:
    """What `history` gives."""
    sid, event_count, _ = _session(conn, key)
    summary: tuple[int, int] | None = conn.execute(_SUMMARY, (sid,)).fetchone()
    events = newest(conn, sid, limit, 0 if summary is None else summary[1])
    start = (events[0].seq or 0) if events else event_count + 1
    todo = [seq for (seq,) in conn.execute(_OPEN_CALLS, (sid, start)).fetchall()]
    if summary is not None:
        todo.append(summary[0])
    todo.extend(_called_by_window(conn, sid, events))
    return History(events, _closure(conn, sid, todo, start))


def _called_by_window(conn: sqlite3.Connection, sid: int, events: list[Event]) -> Iterator[int]:
    """The calls that a window's responses answer, other than those that stand in it before them."""
    called: set[str | None] = set()
    for event in events:
        for response in event.get_function_responses():
            if response.id and response.id not in called:
                yield from _call_before(conn, sid, response.id, event.seq or 0)
        called.update(call.id for call in event.get_function_calls())


def _closure(conn: sqlite3.Connection, sid: int, todo: list[int], start: int) -> list[Event]:
    """The events at these places before `start`, with whatever holds the other halves of their calls and responses."""
    found: dict[int, Event] = {}
    while todo:
        seq = todo.pop()
        if seq >= start or seq in found:
            continue
        event = found[seq] = event_of(conn.execute(_ONE, (sid, seq)).fetchone())
        for response in event.get_function_responses():
            if response.id:
                todo.extend(_call_before(conn, sid, response.id, seq))
        for call in event.get_function_calls():
            if call.id:
                (until,) = conn.execute(_CALL_AFTER, (sid, call.id, seq)).fetchone()
                rows = conn.execute(_RESPONSES, (sid, call.id, seq, MAX_INTEGER if until is None else until)).fetchall()
                todo.extend(answer for (answer,) in rows)
    return [found[seq] for seq in sorted(found)]


def _call_before(conn: sqlite3.Connection, sid: int, call_id: str, seq: int) -> Iterator[int]:
    (before,) = conn.execute(_CALL_BEFORE, (sid, call_id, seq)).fetchone()
    if before is not None:
        yield before


def page(conn: sqlite3.Connection, key: SessionKey, after: int, limit: int, superseded: bool) -> list[Event]:
    """What `list_events` gives."""
    sid, _, trimmed_seq = _session(conn, key)
    if 0 < after < trimmed_seq and conn.execute(_ONE, (sid, after)).fetchone() is None:
        raise events_trimmed(key, after, trimmed_seq + 1)
    rows = conn.execute(_PAGE, (sid, _bounded(after), int(superseded), limit)).fetchall()
    return [event_of(row) for row in rows]


def of_run(conn: sqlite3.Connection, run_uid: int, after: int, limit: int) -> list[Event]:
    """What `run_events` gives."""
    found = conn.execute("SELECT trimmed, last_pos FROM runs WHERE uid = ?", (run_uid,)).fetchone()
    if found is None:
        raise run_not_found(str(run_uid))
    trimmed, last_pos = found
    if trimmed and after < last_pos - 1:
        raise run_trimmed(records.get(conn, run_uid))
    rows = conn.execute(_OF_RUN, (run_uid, _bounded(after), limit)).fetchall()
    return [event_of(row) for row in rows]


def _session(conn: sqlite3.Connection, key: SessionKey) -> Row:
    row: Row | None = conn.execute(
        "SELECT sid, event_count, trimmed_seq FROM sessions WHERE app_name = ? AND user_id = ? AND id = ?", key
    ).fetchone()
    if row is None:
        raise session_not_found(key)
    return row


def _bounded(number: int) -> int:
    return max(0, min(number, MAX_INTEGER))

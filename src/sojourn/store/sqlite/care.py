"""Measuring what is kept, and erasing what is kept of users, as operations on a connection."""

from __future__ import annotations

import sqlite3
from typing import Any

from sojourn.page import Page, page_token
from sojourn.run.retention import DroppedSession, SessionSize
from sojourn.session.types import SessionKey
from sojourn.store.rows import Row, load
from sojourn.store.rules import key_after, user_active
from sojourn.store.sqlite import state

# -- sizes ------------------------------------------------------------------------------------------------------------

_SIZES = """
    SELECT s.sid, s.app_name, s.user_id, s.id, s.uid, s.created_at, s.updated_at
    FROM sessions s WHERE s.sid IN (SELECT sid FROM sessions {where} AND sid < ? ORDER BY sid DESC LIMIT ?) ORDER BY s.sid DESC
"""
_EVENTS = "SELECT count(*), total(length(CAST(body AS BLOB))) FROM events WHERE sid = ?"
_RUNS = """
    SELECT count(*), total(length(CAST(config AS BLOB)) + coalesce(length(CAST(message AS BLOB)), 0)
        + coalesce(length(CAST(custom_metadata AS BLOB)), 0) + coalesce(length(CAST(error AS BLOB)), 0))
    FROM runs INDEXED BY runs_by_session WHERE app_name = ? AND user_id = ? AND sid = ?
"""
_OF_RUNS = (
    "FROM runs r INDEXED BY runs_by_session JOIN {table} t ON t.run_uid = r.uid WHERE app_name = ? AND user_id = ? AND sid = ?"
)
_STEPS = f"SELECT total(length(CAST(t.result AS BLOB))) {_OF_RUNS.format(table='steps')}"
_QUESTIONS = f"""
    SELECT total(length(CAST(t.prompt AS BLOB)) + coalesce(length(CAST(t.schema AS BLOB)), 0)
        + coalesce(length(CAST(t.answer AS BLOB)), 0)) {_OF_RUNS.format(table="interrupts")}
"""
_STATE = "SELECT total(length(CAST(key AS BLOB)) + length(CAST(value AS BLOB))) FROM state WHERE owner = ?"


def sizes(conn: sqlite3.Connection, app_name: str, user_id: str | None, limit: int, after: str | None) -> Page[SessionSize]:
    """What `session_sizes` gives."""
    params: Row
    if user_id is None:
        where, params = "INDEXED BY sessions_by_app WHERE app_name = ?", (app_name,)
    else:
        where, params = "INDEXED BY sessions_by_key WHERE app_name = ? AND user_id = ?", (app_name, user_id)
    rows = conn.execute(_SIZES.format(where=where), (*params, key_after(after), limit + 1)).fetchall()
    items = [_size(conn, row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(items, page_token(items[-1].created_at, str(rows[limit - 1][0])) if more else None)


def _size(conn: sqlite3.Connection, row: Row) -> SessionSize:
    sid, app_name, user_id, id_, uid, created_at, updated_at = row
    of_runs = (app_name, user_id, sid)
    events, event_bytes = conn.execute(_EVENTS, (sid,)).fetchone()
    runs, run_bytes = conn.execute(_RUNS, of_runs).fetchone()
    more = [(_STEPS, of_runs), (_QUESTIONS, of_runs), (_STATE, (state.owner_text((), sid),))]
    rest = sum(conn.execute(query, params).fetchone()[0] for query, params in more)
    key = SessionKey(app_name, user_id, id_)
    return SessionSize(key, uid, events, runs, int(event_bytes + run_bytes + rest), created_at, updated_at)


# -- users ------------------------------------------------------------------------------------------------------------

# One look into an index per app that has sessions; what else is kept of users is small.
_APPS = """
    WITH RECURSIVE apps (name) AS (
        SELECT min(app_name) FROM sessions
        UNION ALL
        SELECT (SELECT min(app_name) FROM sessions WHERE app_name > name) FROM apps WHERE name IS NOT NULL
    )
    SELECT name FROM apps WHERE name IS NOT NULL AND EXISTS (SELECT 1 FROM sessions WHERE app_name = name AND user_id = ?)
    UNION SELECT app_name FROM user_usage WHERE user_id = ?
    UNION SELECT app_name FROM dropped_sessions WHERE user_id = ?
"""
# Owners are texts of `state.owner_text`: those of users are between these two.
_OWNERS = "SELECT DISTINCT owner FROM state WHERE owner >= 'u' AND owner < 'v'"


def apps_of_user(conn: sqlite3.Connection, user_id: str) -> list[str]:
    """What `apps_of_user` gives."""
    found = {name for (name,) in conn.execute(_APPS, (user_id, user_id, user_id))}
    for (owner,) in conn.execute(_OWNERS):
        app_name, _, user = owner[1:].partition("\x1f")
        if user == user_id:
            found.add(app_name)
    return sorted(found)


def user_state(conn: sqlite3.Connection, app_name: str, user_id: str) -> dict[str, Any]:
    """What `user_state` gives."""
    rows = conn.execute("SELECT key, value FROM state WHERE owner = ?", (_owner(app_name, user_id),))
    return {key: load(value) for key, value in rows}


def erase_user(conn: sqlite3.Connection, app_name: str, user_id: str) -> None:
    """What `erase_user` does."""
    who = app_name, user_id
    if conn.execute("SELECT 1 FROM sessions WHERE app_name = ? AND user_id = ? LIMIT 1", who).fetchone() is not None:
        raise user_active(app_name, user_id)
    conn.execute("DELETE FROM state WHERE owner = ?", (_owner(app_name, user_id),))
    conn.execute("DELETE FROM user_usage WHERE app_name = ? AND user_id = ?", who)
    conn.execute("DELETE FROM dropped_sessions WHERE app_name = ? AND user_id = ?", who)


def _owner(app_name: str, user_id: str) -> str:
    return state.owner_text((app_name, user_id), 0)


# -- dropped sessions -------------------------------------------------------------------------------------------------


def dropped(conn: sqlite3.Connection, app_name: str, user_id: str | None, limit: int) -> list[DroppedSession]:
    """What `dropped_sessions` gives."""
    rows = conn.execute(
        "SELECT app_name, user_id, id, uid FROM dropped_sessions WHERE app_name = ? AND (? IS NULL OR user_id = ?) "
        "ORDER BY n LIMIT ?",
        (app_name, user_id, user_id, limit),
    ).fetchall()
    return [DroppedSession(SessionKey(*row[:3]), row[3]) for row in rows]


def settle(conn: sqlite3.Connection, uid: str) -> None:
    """What `settle_dropped` does."""
    conn.execute("DELETE FROM dropped_sessions WHERE uid = ?", (uid,))

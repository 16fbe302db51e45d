"""What is done to sessions, as operations on a connection."""

from __future__ import annotations

import sqlite3

from sojourn import platform
from sojourn.page import Page, page_token
from sojourn.session.state import StateDelta
from sojourn.session.types import Session, SessionKey
from sojourn.store.rows import SESSION, Row, session_of
from sojourn.store.rules import key_after, session_exists, session_not_found
from sojourn.store.sqlite import history, state

_SELECT = f"SELECT {SESSION} FROM sessions WHERE app_name = ? AND user_id = ? AND id = ?"

_INSERT = """
    INSERT INTO sessions (uid, app_name, user_id, id, event_count, run_no, created_at, updated_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


def find(conn: sqlite3.Connection, key: SessionKey) -> Row:
    """The row of a session, as `SESSION`."""
    row: Row | None = conn.execute(_SELECT, key).fetchone()
    if row is None:
        raise session_not_found(key)
    return row


def insert(conn: sqlite3.Connection, key: SessionKey, *, event_count: int = 0, run_no: int = 0) -> Row:
    """Stores a session that does not exist, and gives its row."""
    uid, now = platform.new_id(), platform.now()
    sid = conn.execute(_INSERT, (uid, *key, event_count, run_no, now, now)).lastrowid
    return (sid, uid, *key, None, event_count, 0, now, now)


def create(conn: sqlite3.Connection, key: SessionKey, delta: StateDelta) -> Session:
    """What `create_session` does."""
    if conn.execute(_SELECT, key).fetchone() is not None:
        raise session_exists(key)
    staged = state.stage_delta(conn, 0, key, delta)
    row = insert(conn, key)
    state.store(conn, state.encode(staged, row[0]))
    return session_of(row, state.read(conn, row[0], key.app_name, key.user_id))


def get(conn: sqlite3.Connection, key: SessionKey, events: int) -> Session:
    """What `get_session` gives."""
    row = find(conn, key)
    found = tuple(history.newest(conn, row[0], events)) if events else ()
    return session_of(row, state.read(conn, row[0], key.app_name, key.user_id), found)


def list_page(conn: sqlite3.Connection, app_name: str, user_id: str | None, limit: int, after: str | None) -> Page[Session]:
    """What `list_sessions` gives."""
    params: Row
    if user_id is None:
        where, params = "INDEXED BY sessions_by_app WHERE app_name = ?", (app_name,)
    else:
        # The user's keys come from the index alone; only the page's rows are read.
        where, params = "INDEXED BY sessions_by_key WHERE app_name = ? AND user_id = ?", (app_name, user_id)
    rows = conn.execute(
        f"SELECT {SESSION} FROM sessions WHERE sid IN "
        f"(SELECT sid FROM sessions {where} AND sid < ? ORDER BY sid DESC LIMIT ?) ORDER BY sid DESC",
        (*params, key_after(after), limit + 1),
    ).fetchall()
    items = [session_of(row, {}) for row in rows[:limit]]
    return Page(items, page_token(items[-1].created_at, str(rows[limit - 1][0])) if len(rows) > limit else None)


# One look into the index per app: DISTINCT would read the entries of all sessions.
_APPS = """
    WITH RECURSIVE apps (name) AS (
        SELECT min(app_name) FROM sessions
        UNION ALL
        SELECT (SELECT min(app_name) FROM sessions WHERE app_name > name) FROM apps WHERE name IS NOT NULL
    )
    SELECT name FROM apps WHERE name IS NOT NULL
"""


def list_apps(conn: sqlite3.Connection) -> list[str]:
    """What `list_apps` gives."""
    return [name for (name,) in conn.execute(_APPS)]


def patch(conn: sqlite3.Connection, key: SessionKey, delta: StateDelta) -> Session:
    """What `patch_session` does."""
    row = find(conn, key)
    sid, now = row[0], platform.now()
    state.store(conn, state.encode(state.stage_delta(conn, sid, key, delta), sid))
    conn.execute("UPDATE sessions SET updated_at = ? WHERE sid = ?", (now, sid))
    return session_of((*row[:-1], now), state.read(conn, sid, key.app_name, key.user_id))


_RUNS_OF_SESSION = "SELECT uid FROM runs INDEXED BY runs_by_session WHERE app_name = ? AND user_id = ? AND sid = ?"


def delete(conn: sqlite3.Connection, key: SessionKey) -> tuple[Session, list[int]]:
    """What `delete_session` does; also gives the session's runs."""
    row = find(conn, key)
    sid = row[0]
    before = session_of(row, state.read(conn, sid, key.app_name, key.user_id))
    scope = (key.app_name, key.user_id, sid)
    uids = [uid for (uid,) in conn.execute(_RUNS_OF_SESSION, scope).fetchall()]
    for table in ("undo", "steps", "interrupts"):
        conn.execute(f"DELETE FROM {table} WHERE run_uid IN ({_RUNS_OF_SESSION})", scope)
    conn.execute(f"DELETE FROM runs WHERE uid IN ({_RUNS_OF_SESSION})", scope)
    conn.execute("DELETE FROM calls WHERE sid = ?", (sid,))
    conn.execute("DELETE FROM events WHERE sid = ?", (sid,))
    conn.execute("DELETE FROM state WHERE owner = ?", (state.owner_text((), sid),))
    conn.execute("DELETE FROM sessions WHERE sid = ?", (sid,))
    return before, uids

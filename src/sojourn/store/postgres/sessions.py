"""What is done to sessions, as operations on the tables."""

from __future__ import annotations

from typing import Any

from sojourn import platform
from sojourn.page import Page, page_token
from sojourn.postgres.tables import Record, Tables
from sojourn.session.state import StateDelta
from sojourn.session.types import Session, SessionKey
from sojourn.store.postgres import history, state
from sojourn.store.rows import SESSION, Row, load, session_of
from sojourn.store.rules import key_after, session_exists, session_not_found

_SELECT = f"SELECT {SESSION} FROM {{schema}}.sessions WHERE app_name = $1 AND user_id = $2 AND id = $3"
_LOCK = f"{_SELECT} FOR UPDATE"
_LOCK_OF_RUN = f"""
    SELECT {SESSION} FROM {{schema}}.sessions WHERE sid = (SELECT sid FROM {{schema}}.runs WHERE uid = $1) FOR UPDATE
"""
_INSERT = f"""
    INSERT INTO {{schema}}.sessions (uid, app_name, user_id, id, event_count, run_no, created_at, updated_at)
    VALUES ($1, $2, $3, $4, 0, 0, $5, $5) ON CONFLICT DO NOTHING RETURNING {SESSION}
"""
# State in the same statement: what it shows is of one moment.
_GET = f"""
    SELECT {SESSION}, x.keys, x.vals FROM {{schema}}.sessions CROSS JOIN LATERAL (
        SELECT array_agg(s.key) AS keys, array_agg(s.value) AS vals FROM {{schema}}.state s
        WHERE s.owner = ANY (ARRAY['s' || sid, 'a' || app_name, 'u' || app_name || E'\\x1f' || user_id])
    ) x WHERE app_name = $1 AND user_id = $2 AND id = $3
"""


async def lock(db: Tables, key: SessionKey) -> Record | None:
    """The row of a session, as `SESSION`, locked until the end of the transaction; None if there is none."""
    return await db.one(_LOCK, *key)


async def lock_of_run(db: Tables, run_uid: int) -> Record | None:
    """The same of a run's session. Who writes to a run has locked its session."""
    return await db.one(_LOCK_OF_RUN, run_uid)


async def insert(db: Tables, key: SessionKey) -> Record | None:
    """Stores a session and gives its row; None if it exists."""
    return await db.one(_INSERT, platform.new_id(), *key, platform.now())


async def create(db: Tables, key: SessionKey, delta: StateDelta) -> Session:
    """What `create_session` does."""
    row = await insert(db, key)
    if row is None:
        raise session_exists(key)
    sid = row["sid"]
    if delta:
        await state.store(db, sid, await state.stage_delta(db, sid, key, delta))
    return session_of(tuple(row), await state.read(db, sid, key.app_name, key.user_id))


async def get(db: Tables, key: SessionKey, events: int = 0) -> Session:
    """What `get_session` gives."""
    row = await db.one(_GET, *key)
    if row is None:
        raise session_not_found(key)
    found = tuple(await history.newest(db, row["sid"], events)) if events else ()
    *columns, keys, values = row
    return session_of(tuple(columns), state_of(keys, values), found)


def state_of(keys: list[str] | None, values: list[str] | None) -> dict[str, Any]:
    """State from its keys and their JSON."""
    return {key: load(value) for key, value in zip(keys or (), values or (), strict=True)}


async def list_page(db: Tables, app_name: str, user_id: str | None, limit: int, after: str | None) -> Page[Session]:
    """What `list_sessions` gives."""
    params: Row = (app_name, key_after(after), limit + 1)
    where = "app_name = $1 AND sid < $2"
    if user_id is not None:
        where, params = f"{where} AND user_id = $4", (*params, user_id)
    rows = await db.all(f"SELECT {SESSION} FROM {{schema}}.sessions WHERE {where} ORDER BY sid DESC LIMIT $3::bigint", *params)
    items = [session_of(tuple(row), {}) for row in rows[:limit]]
    return Page(items, page_token(items[-1].created_at, str(rows[limit - 1][0])) if len(rows) > limit else None)


# One look into the index per app: DISTINCT would read the entries of all sessions.
_APPS = """
    WITH RECURSIVE apps (name) AS (
        SELECT min(app_name) FROM {schema}.sessions
        UNION ALL
        SELECT (SELECT min(s.app_name) FROM {schema}.sessions s WHERE s.app_name > a.name) FROM apps a WHERE a.name IS NOT NULL
    )
    SELECT name FROM apps WHERE name IS NOT NULL
"""


async def list_apps(db: Tables) -> list[str]:
    """What `list_apps` gives."""
    return [name for (name,) in await db.all(_APPS)]


async def patch(db: Tables, key: SessionKey, delta: StateDelta) -> Session:
    """What `patch_session` does."""
    row = await lock(db, key)
    if row is None:
        raise session_not_found(key)
    sid, now = row["sid"], platform.now()
    await state.store(db, sid, await state.stage_delta(db, sid, key, delta))
    await db.run("UPDATE {schema}.sessions SET updated_at = $1 WHERE sid = $2", now, sid)
    return session_of((*tuple(row)[:-1], now), await state.read(db, sid, key.app_name, key.user_id))


_RUNS_OF_SESSION = "SELECT uid FROM {schema}.runs WHERE app_name = $1 AND user_id = $2 AND sid = $3"
_DELETES = (
    *(f"DELETE FROM {{schema}}.{t} WHERE run_uid = ANY ($1::bigint[])" for t in ("undo", "steps", "interrupts")),
    "DELETE FROM {schema}.runs WHERE uid = ANY ($1::bigint[])",
)
_DELETES_OF_SESSION = tuple(f"DELETE FROM {{schema}}.{table} WHERE sid = $1" for table in ("calls", "events", "sessions"))


async def delete(db: Tables, key: SessionKey) -> tuple[Session, list[int]]:
    """What `delete_session` does; also gives the session's runs."""
    row = await lock(db, key)
    if row is None:
        raise session_not_found(key)
    sid = row["sid"]
    before = session_of(tuple(row), await state.read(db, sid, key.app_name, key.user_id))
    uids = [uid for (uid,) in await db.all(_RUNS_OF_SESSION, key.app_name, key.user_id, sid)]
    for statement in _DELETES:
        await db.run(statement, uids)
    await db.run("DELETE FROM {schema}.state WHERE owner = $1", state.owner_text((), sid))
    for statement in _DELETES_OF_SESSION:
        await db.run(statement, sid)
    return before, uids

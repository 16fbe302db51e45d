"""Measuring what is kept, and erasing what is kept of users, as operations on the tables."""

from __future__ import annotations

from typing import Any

from sojourn.page import Page, page_token
from sojourn.postgres.tables import Tables
from sojourn.run.retention import DroppedSession, SessionSize
from sojourn.session.types import SessionKey
from sojourn.store.postgres import state
from sojourn.store.postgres.sessions import state_of
from sojourn.store.rows import Row
from sojourn.store.rules import key_after, user_active

_SIZES = """
    SELECT s.sid, s.app_name, s.user_id, s.id, s.uid, e.events, r.runs,
        e.bytes + r.bytes + t.bytes + q.bytes + k.bytes AS bytes, s.created_at, s.updated_at
    FROM (SELECT * FROM {schema}.sessions WHERE {where} ORDER BY sid DESC LIMIT $3::bigint) s
    CROSS JOIN LATERAL (
        SELECT count(*) AS events, coalesce(sum(octet_length(body)), 0)::bigint AS bytes
        FROM {schema}.events WHERE sid = s.sid
    ) e
    CROSS JOIN LATERAL (
        SELECT count(*) AS runs, coalesce(sum(octet_length(config) + coalesce(octet_length(message), 0)
            + coalesce(octet_length(custom_metadata), 0) + coalesce(octet_length(error), 0)), 0)::bigint AS bytes
        FROM {schema}.runs WHERE app_name = s.app_name AND user_id = s.user_id AND sid = s.sid
    ) r
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(octet_length(x.result)), 0)::bigint AS bytes
        FROM {schema}.runs o JOIN {schema}.steps x ON x.run_uid = o.uid
        WHERE o.app_name = s.app_name AND o.user_id = s.user_id AND o.sid = s.sid
    ) t
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(octet_length(x.prompt) + coalesce(octet_length(x.schema), 0)
            + coalesce(octet_length(x.answer), 0)), 0)::bigint AS bytes
        FROM {schema}.runs o JOIN {schema}.interrupts x ON x.run_uid = o.uid
        WHERE o.app_name = s.app_name AND o.user_id = s.user_id AND o.sid = s.sid
    ) q
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(octet_length(key) + octet_length(value)), 0)::bigint AS bytes
        FROM {schema}.state WHERE owner = 's' || s.sid
    ) k
    ORDER BY s.sid DESC
"""
_OF_APP = _SIZES.replace("{where}", "app_name = $1 AND sid < $2")
_OF_USER = _SIZES.replace("{where}", "app_name = $1 AND sid < $2 AND user_id = $4")


async def sizes(db: Tables, app_name: str, user_id: str | None, limit: int, after: str | None) -> Page[SessionSize]:
    """What `session_sizes` gives."""
    params: Row = (app_name, key_after(after), limit + 1)
    rows = await (db.all(_OF_APP, *params) if user_id is None else db.all(_OF_USER, *params, user_id))
    items = [SessionSize(SessionKey(*row[1:4]), *row[4:]) for row in rows[:limit]]
    return Page(items, page_token(items[-1].created_at, str(rows[limit - 1][0])) if len(rows) > limit else None)


_APPS = """
    SELECT app_name FROM {schema}.sessions WHERE user_id = $1
    UNION SELECT app_name FROM {schema}.user_usage WHERE user_id = $1
    UNION SELECT app_name FROM {schema}.dropped_sessions WHERE user_id = $1
    UNION SELECT split_part(substr(owner, 2), E'\\x1f', 1) FROM {schema}.state
        WHERE owner LIKE 'u%' AND split_part(owner, E'\\x1f', 2) = $1
"""


async def apps_of_user(db: Tables, user_id: str) -> list[str]:
    """What `apps_of_user` gives."""
    return sorted(name for (name,) in await db.all(_APPS, user_id))


_STATE = "SELECT array_agg(key), array_agg(value) FROM {schema}.state WHERE owner = $1"


async def user_state(db: Tables, app_name: str, user_id: str) -> dict[str, Any]:
    """What `user_state` gives."""
    row = await db.one(_STATE, _owner(app_name, user_id))
    return {} if row is None else state_of(*row)


async def erase_user(db: Tables, app_name: str, user_id: str) -> None:
    """What `erase_user` does."""
    who = app_name, user_id
    if await db.value("SELECT 1 FROM {schema}.sessions WHERE app_name = $1 AND user_id = $2 LIMIT 1", *who) is not None:
        raise user_active(app_name, user_id)
    await db.run("DELETE FROM {schema}.state WHERE owner = $1", _owner(app_name, user_id))
    await db.run("DELETE FROM {schema}.user_usage WHERE app_name = $1 AND user_id = $2", *who)
    await db.run("DELETE FROM {schema}.dropped_sessions WHERE app_name = $1 AND user_id = $2", *who)


def _owner(app_name: str, user_id: str) -> str:
    return state.owner_text((app_name, user_id), 0)


_DROPPED = """
    SELECT app_name, user_id, id, uid FROM {schema}.dropped_sessions
    WHERE app_name = $1 AND ($2::text IS NULL OR user_id = $2) ORDER BY n LIMIT $3::bigint
"""


async def dropped(db: Tables, app_name: str, user_id: str | None, limit: int) -> list[DroppedSession]:
    """What `dropped_sessions` gives."""
    rows = await db.all(_DROPPED, app_name, user_id, limit)
    return [DroppedSession(SessionKey(*row[:3]), row[3]) for row in rows]


async def settle(db: Tables, uid: str) -> None:
    """What `settle_dropped` does."""
    await db.run("DELETE FROM {schema}.dropped_sessions WHERE uid = $1", uid)

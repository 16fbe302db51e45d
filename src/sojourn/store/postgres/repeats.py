"""Runs that take the place of others: what `RunStore` says under "Repeating"."""

from __future__ import annotations

from sojourn.postgres.tables import Record, Tables
from sojourn.session.types import SessionKey
from sojourn.store.postgres import log, records
from sojourn.store.recording import Repeat
from sojourn.store.rows import BY_RUN
from sojourn.store.rules import run_not_finished, run_not_found, run_superseded

_FIND = "SELECT uid, sid, attempt, retry_of FROM {schema}.runs WHERE app_name = $1 AND user_id = $2 AND id = $3"
_UNFINISHED = """
    SELECT uid FROM {schema}.runs WHERE app_name = $1 AND sid = $2 AND finished_at IS NULL AND uid >= $3 ORDER BY uid LIMIT 1
"""
_REPLACED = "app_name = $1 AND user_id = $2 AND sid = $3 AND uid >= $4 AND uid < $5"
_START_AGENT = f"SELECT start_agent FROM {{schema}}.runs WHERE {_REPLACED} AND attempt > 0 ORDER BY uid LIMIT 1"
_COUNTING = f"""
    SELECT e.seq FROM {{schema}}.events e WHERE e.superseded = 0 AND e.run_uid IN (
        SELECT uid FROM {{schema}}.runs WHERE {_REPLACED} AND superseded_by IS NULL
    )
"""
_MARK = f"UPDATE {{schema}}.runs SET superseded_by = $6 WHERE {_REPLACED} AND superseded_by IS NULL"


async def check(db: Tables, key: SessionKey, sid: int | None, repeated: str) -> None:
    """Refuses to repeat a run that is none of the session's, or has others after it that go on, or does not count.

    Raises:
        NotFound: `run.not_found`.
        Conflict: `run.not_finished`, `run.superseded`.
    """
    row = await db.one(_FIND, key.app_name, key.user_id, repeated)
    if row is None or row["sid"] != sid:
        raise run_not_found(repeated)
    unfinished = await db.value(_UNFINISHED, key.app_name, sid, row["uid"])
    if unfinished is not None:
        raise run_not_finished(repeated, await records.get(db, unfinished))
    record = await records.get(db, row["uid"])
    if record.superseded_by is not None:
        raise run_superseded(record)


async def take_place(db: Tables, key: SessionKey, sid: int, run: Repeat, active_agent: str | None) -> str | None:
    """Lets a run that is about to begin take the place of the one it repeats, and of all between the two.

    Args:
        db: The tables; the session is locked.
        key: The session.
        sid: Its row.
        run: The run.
        active_agent: The session's.

    Returns:
        The session's active agent from now on.
    """
    first = await _found(db, key, run.retry_of)
    while first["attempt"] == 0 and first["retry_of"] is not None:
        first = await _found(db, key, first["retry_of"])
    replaced = (key.app_name, key.user_id, sid, first["uid"], run.uid)
    await log.supersede(db, sid, [seq for (seq,) in await db.all(_COUNTING, *replaced)], BY_RUN)
    await db.run(_MARK, *replaced, run.id)
    began = await db.one(_START_AGENT, *replaced)
    if began is None:
        return active_agent
    agent: str | None = began["start_agent"]
    await db.run("UPDATE {schema}.sessions SET active_agent = $1 WHERE sid = $2", agent, sid)
    return agent


async def _found(db: Tables, key: SessionKey, run_id: str) -> Record:
    row = await db.one(_FIND, key.app_name, key.user_id, run_id)
    if row is None:
        raise run_not_found(run_id)
    return row

"""Runs that take the place of others: what `RunStore` says under "Repeating"."""

from __future__ import annotations

import sqlite3

from sojourn.session.types import SessionKey
from sojourn.store.recording import Repeat
from sojourn.store.rows import BY_RUN
from sojourn.store.rules import run_not_finished, run_not_found, run_superseded
from sojourn.store.sqlite import log, records

_FIND = "SELECT uid, sid, attempt, retry_of FROM runs WHERE app_name = ? AND user_id = ? AND id = ?"
_UNFINISHED = """
    SELECT uid FROM runs INDEXED BY runs_unfinished
    WHERE app_name = ? AND sid = ? AND finished_at IS NULL AND uid >= ? ORDER BY uid LIMIT 1
"""
_REPLACED = "app_name = ? AND user_id = ? AND sid = ? AND uid >= ? AND uid < ?"
_START_AGENT = f"""
    SELECT start_agent FROM runs INDEXED BY runs_by_session WHERE {_REPLACED} AND attempt > 0 ORDER BY uid LIMIT 1
"""
_COUNTING = f"""
    SELECT e.seq FROM events e INDEXED BY events_by_run
    WHERE e.superseded = 0 AND e.run_uid IN (
        SELECT uid FROM runs INDEXED BY runs_by_session WHERE {_REPLACED} AND superseded_by IS NULL
    )
"""
_MARK = f"UPDATE runs INDEXED BY runs_by_session SET superseded_by = ? WHERE {_REPLACED} AND superseded_by IS NULL"


def check(conn: sqlite3.Connection, key: SessionKey, sid: int | None, repeated: str) -> None:
    """Refuses to repeat a run that is none of the session's, or has others after it that go on, or does not count.

    Raises:
        NotFound: `run.not_found`.
        Conflict: `run.not_finished`, `run.superseded`.
    """
    row = conn.execute(_FIND, (key.app_name, key.user_id, repeated)).fetchone()
    if row is None or row[1] != sid:
        raise run_not_found(repeated)
    unfinished = conn.execute(_UNFINISHED, (key.app_name, sid, row[0])).fetchone()
    if unfinished is not None:
        raise run_not_finished(repeated, records.get(conn, unfinished[0]))
    record = records.get(conn, row[0])
    if record.superseded_by is not None:
        raise run_superseded(record)


def take_place(conn: sqlite3.Connection, key: SessionKey, sid: int, run: Repeat, active_agent: str | None) -> str | None:
    """Lets a run that is about to begin take the place of the one it repeats, and of all between the two.

    Args:
        conn: The writer's connection.
        key: The session.
        sid: Its row.
        run: The run.
        active_agent: The session's.

    Returns:
        The session's active agent from now on.
    """
    first, _, attempt, earlier = conn.execute(_FIND, (key.app_name, key.user_id, run.retry_of)).fetchone()
    while attempt == 0 and earlier is not None:
        first, _, attempt, earlier = conn.execute(_FIND, (key.app_name, key.user_id, earlier)).fetchone()
    replaced = (key.app_name, key.user_id, sid, first, run.uid)
    log.supersede(conn, sid, [seq for (seq,) in conn.execute(_COUNTING, replaced).fetchall()], BY_RUN)
    conn.execute(_MARK, (run.id, *replaced))
    began = conn.execute(_START_AGENT, replaced).fetchone()
    if began is None:
        return active_agent
    conn.execute("UPDATE sessions SET active_agent = ? WHERE sid = ?", (began[0], sid))
    start_agent: str | None = began[0]
    return start_agent

"""Reading runs and what belongs to them."""

from __future__ import annotations

import sqlite3
from typing import Any

from sojourn.page import Page, page_token
from sojourn.run.types import Interrupt, RunQuery, RunRecord, Step
from sojourn.session.types import SessionKey
from sojourn.store.rows import INTERRUPT, RUN, RUNS, STEP, Row, interrupt_of, record_of, step_of
from sojourn.store.rules import key_after, run_ambiguous, run_not_found

_BY_UID = f"SELECT {RUN} FROM {RUNS} WHERE r.uid = ?"
_BY_ID = f"SELECT {RUN} FROM {RUNS} WHERE r.app_name = ? AND r.id = ? AND r.user_id = ?"


def get(conn: sqlite3.Connection, run_uid: int) -> RunRecord:
    """A run by the store's key."""
    row = conn.execute(_BY_UID, (run_uid,)).fetchone()
    if row is None:
        raise run_not_found(str(run_uid))
    return record_of(row)


def get_by_id(conn: sqlite3.Connection, app_name: str, run_id: str, user_id: str | None) -> RunRecord:
    """What `RunStore.get_run` gives."""
    if user_id is not None:
        rows = conn.execute(_BY_ID, (app_name, run_id, user_id)).fetchall()
    else:
        rows = conn.execute(
            f"SELECT {RUN} FROM {RUNS} WHERE r.app_name = ? AND r.id = ? LIMIT 2", (app_name, run_id)
        ).fetchall()
    if not rows:
        raise run_not_found(run_id)
    if len(rows) > 1:
        raise run_ambiguous(run_id)
    return record_of(rows[0])


def list_page(conn: sqlite3.Connection, query: RunQuery, limit: int, after: str | None) -> Page[RunRecord]:
    """What `RunStore.list_runs` gives."""
    found, params = _listing(query)
    marks = ", ".join("?" for _ in query.status)
    status = f" AND status IN ({marks})" if query.status else ""
    inner = f"{found} AND uid < ?{status} ORDER BY uid DESC LIMIT ?"
    rows = conn.execute(
        f"SELECT {RUN} FROM {RUNS} WHERE r.uid IN ({inner}) ORDER BY r.uid DESC",
        (*params, key_after(after), *(s.value for s in query.status), limit + 1),
    ).fetchall()
    records = [record_of(row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(records, page_token(records[-1].created_at, str(records[-1].uid)) if more else None)


def _listing(query: RunQuery) -> tuple[str, Row]:
    """The keys of the runs that a query asks for, whatever their status, by the index that finds them."""
    if query.status and not any(s.terminal for s in query.status):
        where = ["finished_at IS NULL", "app_name = ?"]
        index = "runs_unfinished"
    else:
        where = ["app_name = ?"]
        index = "runs_by_app" if query.user_id is None and query.session_id is None else "runs_by_session"
    params: list[Any] = [query.app_name]
    if query.user_id is not None:
        where.append("user_id = ?")
        params.append(query.user_id)
    if query.session_id is not None:
        where.append("sid IN (SELECT sid FROM sessions WHERE app_name = ? AND id = ?)")
        params += [query.app_name, query.session_id]
    return f"SELECT uid FROM runs INDEXED BY {index} WHERE {' AND '.join(where)}", tuple(params)


def unfinished(conn: sqlite3.Connection, app_name: str) -> list[RunRecord]:
    """What `RunStore.unfinished` gives."""
    rows = conn.execute(
        f"SELECT {RUN} FROM {RUNS} WHERE r.uid IN "
        "(SELECT uid FROM runs INDEXED BY runs_unfinished WHERE app_name = ? AND finished_at IS NULL)",
        (app_name,),
    ).fetchall()
    return sorted((record_of(row) for row in rows), key=lambda r: (r.key, r.no))


def steps(conn: sqlite3.Connection, run_uid: int) -> list[Step]:
    """The journal of a run."""
    rows = conn.execute(f"SELECT {STEP} FROM steps WHERE run_uid = ? ORDER BY id", (run_uid,)).fetchall()
    return [step_of(row) for row in rows]


def list_steps(conn: sqlite3.Connection, run_uid: int) -> list[Step]:
    """What `RunStore.list_steps` gives."""
    if conn.execute("SELECT 1 FROM runs WHERE uid = ?", (run_uid,)).fetchone() is None:
        raise run_not_found(str(run_uid))
    return steps(conn, run_uid)


def list_interrupts(
    conn: sqlite3.Connection,
    app_name: str,
    user_id: str | None,
    session_id: str | None,
    run_uid: int | None,
    open_only: bool,
) -> list[Interrupt]:
    """What `RunStore.list_interrupts` gives."""
    where = ["r.app_name = ?"]
    params: list[Any] = [app_name]
    for column, value in (("r.user_id", user_id), ("s.id", session_id), ("i.run_uid", run_uid)):
        if value is not None:
            where.append(f"{column} = ?")
            params.append(value)
    if open_only:
        where.append("i.status = 'open'")
    # The questions first: there are far fewer of them than of runs.
    rows = conn.execute(
        f"SELECT r.id, s.app_name, s.user_id, s.id, {INTERRUPT} FROM interrupts i CROSS JOIN runs r ON r.uid = i.run_uid "
        f"JOIN sessions s ON s.sid = r.sid WHERE {' AND '.join(where)} ORDER BY i.created_at, i.run_uid, i.n",
        params,
    ).fetchall()
    return [interrupt_of(row[4:], row[0], SessionKey(*row[1:4])) for row in rows]

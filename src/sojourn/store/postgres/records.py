"""Reading runs and what belongs to them."""

from __future__ import annotations

from typing import Any

from sojourn.page import Page, page_token
from sojourn.postgres.tables import Record, Tables
from sojourn.run.types import Interrupt, RunQuery, RunRecord, Step
from sojourn.session.types import SessionKey
from sojourn.store.postgres.text import maybe_text, text_of
from sojourn.store.rows import INTERRUPT, RUN, STEP, interrupt_of, record_of, step_of
from sojourn.store.rules import key_after, run_ambiguous, run_not_found

_RUNS = (
    "{schema}.runs r JOIN {schema}.sessions s ON s.sid = r.sid "
    "LEFT JOIN {schema}.events m ON m.sid = r.sid AND m.seq = r.first_seq"
)
_BY_UID = f"SELECT {RUN} FROM {_RUNS} WHERE r.uid = $1"
_BY_UIDS = f"SELECT {RUN} FROM {_RUNS} WHERE r.uid = ANY ($1::bigint[])"
_BY_ID = f"SELECT {RUN} FROM {_RUNS} WHERE r.app_name = $1 AND r.id = $2"
_BY_ID_AND_USER = f"{_BY_ID} AND r.user_id = $3"
_BY_ID_ALONE = f"{_BY_ID} LIMIT 2"
_UNFINISHED = f"SELECT {RUN} FROM {_RUNS} WHERE r.app_name = $1 AND r.finished_at IS NULL"
_STEPS = f"SELECT {STEP} FROM {{schema}}.steps WHERE run_uid = $1 ORDER BY id"
_INTERRUPTS = f"""
    SELECT r.id, s.app_name, s.user_id, s.id, {INTERRUPT} FROM {{schema}}.interrupts i
    JOIN {{schema}}.runs r ON r.uid = i.run_uid JOIN {{schema}}.sessions s ON s.sid = r.sid
"""


async def get(db: Tables, run_uid: int) -> RunRecord:
    """A run by the store's key."""
    row = await db.one(_BY_UID, run_uid)
    if row is None:
        raise run_not_found(str(run_uid))
    return record_of(row)


async def get_all(db: Tables, run_uids: list[int]) -> dict[int, RunRecord]:
    """Runs by the store's keys; what is gone is left out."""
    return {record.uid: record for record in map(record_of, await db.all(_BY_UIDS, run_uids))}


async def get_by_id(db: Tables, app_name: str, run_id: str, user_id: str | None) -> RunRecord:
    """What `RunStore.get_run` gives."""
    if user_id is not None:
        rows = await db.all(_BY_ID_AND_USER, app_name, run_id, user_id)
    else:
        rows = await db.all(_BY_ID_ALONE, app_name, run_id)
    if not rows:
        raise run_not_found(run_id)
    if len(rows) > 1:
        raise run_ambiguous(run_id)
    return record_of(rows[0])


async def list_page(db: Tables, query: RunQuery, limit: int, after: str | None) -> Page[RunRecord]:
    """What `RunStore.list_runs` gives."""
    params: list[Any] = [query.app_name, key_after(after), limit + 1]
    where = ["x.app_name = $1", "x.uid < $2"]
    if query.status and not any(s.terminal for s in query.status):
        where.append("x.finished_at IS NULL")
    if query.status:
        params.append([s.value for s in query.status])
        where.append(f"x.status = ANY (${len(params)}::text[])")
    if query.user_id is not None:
        params.append(query.user_id)
        where.append(f"x.user_id = ${len(params)}")
    if query.session_id is not None:
        params.append(query.session_id)
        where.append(f"x.sid IN (SELECT sid FROM {{schema}}.sessions WHERE app_name = $1 AND id = ${len(params)})")
    found = f"SELECT x.uid FROM {{schema}}.runs x WHERE {' AND '.join(where)} ORDER BY x.uid DESC LIMIT $3::bigint"
    rows = await db.all(f"SELECT {RUN} FROM {_RUNS} WHERE r.uid IN ({found}) ORDER BY r.uid DESC", *params)
    records = [record_of(row) for row in rows[:limit]]
    more = len(rows) > limit
    return Page(records, page_token(records[-1].created_at, str(records[-1].uid)) if more else None)


async def unfinished(db: Tables, app_name: str) -> list[RunRecord]:
    """What `RunStore.unfinished` gives."""
    return sorted((record_of(row) for row in await db.all(_UNFINISHED, app_name)), key=lambda r: (r.key, r.no))


async def steps(db: Tables, run_uid: int) -> list[Step]:
    """The journal of a run."""
    return [step_of((text_of(row[0]), *row[1:])) for row in map(tuple, await db.all(_STEPS, run_uid))]


async def list_steps(db: Tables, run_uid: int) -> list[Step]:
    """What `RunStore.list_steps` gives."""
    found = await steps(db, run_uid)
    if not found and await db.value("SELECT 1 FROM {schema}.runs WHERE uid = $1", run_uid) is None:
        raise run_not_found(str(run_uid))
    return found


def question_of(row: Record, run_id: str, key: SessionKey) -> Interrupt:
    """An interrupt from its columns `INTERRUPT`."""
    id_, name, digest, *middle, call_id = row
    return interrupt_of((text_of(id_), text_of(name), text_of(digest), *middle, maybe_text(call_id)), run_id, key)


async def list_interrupts(
    db: Tables,
    app_name: str,
    user_id: str | None,
    session_id: str | None,
    run_uid: int | None,
    open_only: bool,
) -> list[Interrupt]:
    """What `RunStore.list_interrupts` gives."""
    where = ["r.app_name = $1"]
    params: list[Any] = [app_name]
    for column, value in (("r.user_id", user_id), ("s.id", session_id), ("i.run_uid", run_uid)):
        if value is not None:
            params.append(value)
            where.append(f"{column} = ${len(params)}")
    if open_only:
        where.append("i.status = 'open'")
    rows = await db.all(f"{_INTERRUPTS} WHERE {' AND '.join(where)} ORDER BY i.created_at, i.run_uid, i.n", *params)
    return [question_of(row[4:], row[0], SessionKey(*row[1:4])) for row in map(tuple, rows)]

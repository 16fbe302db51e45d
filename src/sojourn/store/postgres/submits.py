"""Recording a run."""

from __future__ import annotations

from typing import NamedTuple

import asyncpg

from sojourn import platform
from sojourn.postgres.tables import Record, Tables
from sojourn.run.store import Begun, NewRun, Submitted
from sojourn.store.numbering import Numbered
from sojourn.store.postgres import log, records, repeats, sessions, state
from sojourn.store.postgres.text import indexed
from sojourn.store.prepared import Submission
from sojourn.store.recording import NEW_RUN, Place, Repeat, record_of_new, row_of_new
from sojourn.store.rows import session_of
from sojourn.store.rules import same_input, session_busy, session_not_found

AGAIN = (asyncpg.UniqueViolationError,)
"""What a statement raises if somebody else has just recorded a run of this id; the next try finds it."""


class Outcome(NamedTuple):
    """A run that was recorded, or found, and the row of its session if it was recorded."""

    submitted: Submitted
    sid: int | None = None


_SUBMIT = f"SELECT * FROM {{schema}}.submit({', '.join(f'${n}' for n in range(1, 17))})"


def is_plain(new: Submission) -> bool:
    """Whether one statement records the run: it takes nobody's place, and its message changes no state."""
    return new.run.retry_of is None and not new.entry.delta


async def submit_plain(db: Tables, new: Submission, begin: bool) -> Outcome:
    """What `RunStore.submit` does, as one statement where nothing has to be read besides."""
    run, entry, now = new.run, new.entry, platform.now()
    row = await db.one(
        _SUBMIT, *run.key, run.id, begin, run.create_session, run.reject_if_busy, run.attached, new.config, new.custom_metadata,
        entry.body, entry.summary_until, [is_call for is_call, _ in entry.links],
        [indexed(call_id) for _, call_id in entry.links], now, platform.new_id(),
    )  # fmt: skip
    assert row is not None
    outcome, known, busy, sid, session_uid, active_agent, trimmed_seq, created, uid, no, event_count, keys, values = row
    if outcome == "known":
        return await _known(db, known, run)
    if outcome == "absent":
        raise session_not_found(run.key)
    if outcome == "busy":
        raise session_busy(run.key, busy)
    place = Place(sid, session_uid, active_agent, created, event_count, no, trimmed_seq)
    record = record_of_new(new, place, uid, begin, now)
    if not begin:
        return Outcome(Submitted(record, None, False), sid)
    columns = (sid, session_uid, *run.key, active_agent, event_count, trimmed_seq, created, now)
    session = session_of(columns, sessions.state_of(keys, values))
    return Outcome(Submitted(record, Begun(record, session, [], []), False), sid)


async def _known(db: Tables, uid: int, run: NewRun) -> Outcome:
    record = await records.get(db, uid)
    same_input(record, run)
    return Outcome(Submitted(record, None, True))


_KNOWN = "SELECT uid FROM {schema}.runs WHERE app_name = $1 AND id = $2 AND user_id = $3"
_BUSY = """
    SELECT id FROM {schema}.runs
    WHERE app_name = $1 AND sid = $2 AND finished_at IS NULL AND status IN ('queued', 'running') LIMIT 1
"""
_COUNT_RUN = """
    UPDATE {schema}.sessions SET run_no = run_no + 1 WHERE sid = $1
    RETURNING uid, active_agent, created_at, event_count, run_no, trimmed_seq
"""
_COUNT_EVENT = "UPDATE {schema}.sessions SET event_count = event_count + 1, updated_at = $2 WHERE sid = $1"
_INSERT = f"""
    INSERT INTO {{schema}}.runs ({NEW_RUN})
    VALUES ({", ".join(f"${n}" for n in range(1, len(NEW_RUN.split(",")) + 1))}) RETURNING uid
"""


async def submit(db: Tables, new: Submission, begin: bool) -> Outcome:
    """What `RunStore.submit` does, in a transaction."""
    run = new.run
    app_name, user_id, _ = key = run.key
    known = await db.value(_KNOWN, app_name, run.id, user_id)
    if known is not None:
        return await _known(db, known, run)
    row: Record | None = await sessions.lock(db, key)
    if row is None and not run.create_session:
        raise session_not_found(key)
    if run.retry_of is not None:
        await repeats.check(db, key, None if row is None else row["sid"], run.retry_of)
    while row is None:
        row = await sessions.insert(db, key) or await sessions.lock(db, key)
    sid = row["sid"]
    known = await db.value(_KNOWN, app_name, run.id, user_id)
    if known is not None:
        return await _known(db, known, run)
    if run.reject_if_busy and (busy := await db.value(_BUSY, app_name, sid)) is not None:
        raise session_busy(key, busy)
    staged = await state.stage_delta(db, sid, key, new.entry.delta) if begin and new.entry.delta else None

    # All checks are done: from here on, things are written.
    now = platform.now()
    place = Place(sid, *await _counted(db, sid))
    if begin:
        await db.run(_COUNT_EVENT, sid, now)
        place = place._replace(event_count=place.event_count + 1)
        if run.retry_of is not None:
            agent = await repeats.take_place(db, key, sid, Repeat(run.id, run.retry_of), place.active_agent)
            place = place._replace(active_agent=agent)
        await state.store(db, sid, staged)
    uid = await db.value(_INSERT, *row_of_new(new, place, begin, now))
    record = record_of_new(new, place, uid, begin, now)
    if not begin:
        return Outcome(Submitted(record, None, False), sid)
    await log.write(db, sid, uid, Numbered(new.entry, place.event_count, 1, ordinal=0))
    return Outcome(Submitted(record, Begun(record, await sessions.get(db, key), [], []), False), sid)


async def _counted(db: Tables, sid: int) -> Record:
    row = await db.one(_COUNT_RUN, sid)
    assert row is not None
    return row

"""The append where what is stored has to be compared: later attempts, questions, hand-overs, whatever is said again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from sojourn import platform
from sojourn.event import Event
from sojourn.postgres.tables import Tables
from sojourn.run.status import RunStatus
from sojourn.run.store import Appended, Batch, Fence
from sojourn.session.state import StateDelta
from sojourn.store.heads import Head
from sojourn.store.numbering import number
from sojourn.store.planning import AppendPlan, Planner, countable, plan_append, tokens_of, undoable
from sojourn.store.postgres import heads, ledger, log, records, runs, sessions, state
from sojourn.store.postgres.state import NotLocked, Place
from sojourn.store.postgres.text import column, indexed, maybe_column
from sojourn.store.prepared import Prepared
from sojourn.store.rows import EVENT, Row, dump_error, event_of, path_of
from sojourn.store.rules import Undo, fenced
from sojourn.store.staging import StagedState


class Outcome(NamedTuple):
    """An append that was made, and the run as it left it."""

    appended: Appended
    head: Head


async def append(db: Tables, fence: Fence, new: Prepared) -> Outcome:
    """What `RunStore.append` does."""
    uid = fence.run_uid
    session = await sessions.lock_of_run(db, uid)
    head = None if session is None else await heads.read(db, uid)
    if head is None:
        raise fenced(None, fence)
    if head.status != "running" or head.attempt != fence.attempt:
        raise fenced(await records.get(db, uid), fence)
    batch = new.batch
    status = head.status_after(batch)
    change, locked = await _plan(db, head, uid, new, status)

    # All checks are done: from here on, things are written.
    if change.gone:
        await log.supersede(db, head.sid, change.gone)
    numbered, events = number(head, new.entries, change)
    for event in numbered:
        await log.write(db, head.sid, uid, event)
    await state.store(db, head.sid, change.staged, locked)
    hands_over = head.hands_over(batch)
    has_undo = await _write_undo(db, head, uid, change.staged, keep=not status.terminal and not hands_over)
    if new.steps:
        await _write_steps(db, uid, new.steps)
    for question in new.interrupts:
        await _ask(db, uid, question)
    counts = tokens_of(change.events)
    if spent := countable(counts):
        await ledger.add(db, head.app_name, head.user_id, platform.now(), spent)
    left = head.after(batch, change, status, hands_over=hands_over, has_undo=has_undo, counts=counts)
    await _write_run(db, left, uid, batch, status, hands_over)
    if status.terminal and batch.move is not None and left.has_asked:
        await runs.drop_interrupts(db, uid, batch.move)
    since = batch.usage_since
    usage = None if since is None else await ledger.read(db, head.app_name, head.user_id, since)
    return Outcome(Appended(events, await records.get(db, uid), usage), left)


# -- planning -----------------------------------------------------------------------------------------------------------


class _NotRead(Exception):
    """The plan needs something that has not been read: `events`, `answers` or `undo`."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class _Stored:
    """What a run has stored, as far as it has been read; the rules of planning do not wait for a database."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], Event] = {}
        self.read: dict[str, list[Any]] = {}
        self.locked: dict[Place, Any] = {}

    def find(self, branch: str | None, ordinal: int) -> Event | None:
        return self.found.get((path_of(branch), ordinal))

    def events(self) -> Sequence[Event]:
        return self._read("events")

    def answers(self) -> Sequence[Event]:
        return self._read("answers")

    def undo(self) -> list[Undo]:
        return list(self._read("undo"))

    def _read(self, what: str) -> list[Any]:
        try:
            return self.read[what]
        except KeyError:
            raise _NotRead(what) from None


_FIND = f"""
    SELECT {EVENT}, x.branch FROM {{schema}}.events
    JOIN unnest($2::bigint[], $3::text[], $4::text[]) AS x (o, p, branch) ON ordinal = x.o AND path = x.p
    WHERE run_uid = $1 AND superseded = 0
"""
_COUNTING = f"SELECT {EVENT} FROM {{schema}}.events WHERE run_uid = $1 AND superseded = 0 ORDER BY seq"
_ANSWERS = f"""
    SELECT {EVENT} FROM {{schema}}.events WHERE run_uid = $1 AND pos IS NULL AND ordinal IS NULL ORDER BY seq
"""


async def _plan(db: Tables, head: Head, uid: int, new: Prepared, status: RunStatus) -> tuple[AppendPlan, dict[Place, Any]]:
    """Works out what to write, and locks the keys it is about; everything that can be wrong with a batch shows here."""
    stored = _Stored()
    await _find(db, head, uid, new, stored)
    stored.locked = await state.lock(db, head.sid, _places(head, new))
    undo = stored.undo if undoable(head.attempt, status) else None
    while True:
        try:
            change = plan_append(
                Planner(head.id, head.attempt, stored),
                new.batch,
                [entry.delta for entry in new.entries],
                new.state,
                event_count=head.event_count,
                base_seq=head.base_seq,
                stage=partial(state.stage, head.key, stored.locked, undo),
            )
        except _NotRead as missing:
            await _read(db, head, uid, missing.what, stored)
        except NotLocked as missing:
            places = {missing.place, *((u.owner, u.key) for u in stored.read.get("undo", ()))} - stored.locked.keys()
            stored.locked |= await state.lock(db, head.sid, places)
        else:
            return change, stored.locked


def _places(head: Head, new: Prepared) -> set[Place]:
    deltas: list[StateDelta | None] = [entry.delta for entry in new.entries]
    return state.places_of(head.key, *deltas, new.state)


async def _find(db: Tables, head: Head, uid: int, new: Prepared, stored: _Stored) -> None:
    """Reads what is stored under the identities of a batch."""
    asked = {(path_of(e.branch), e.ordinal or 0) for e in new.batch.events if (e.ordinal or 0) <= head.top}
    if asked:
        paths, ordinals = [path for path, _ in asked], [ordinal for _, ordinal in asked]
        branches = [column(path) for path in paths]
        by_branch = dict(zip(branches, paths, strict=True))
        for *row, branch in await db.all(_FIND, uid, ordinals, [indexed(path) for path in paths], branches):
            event = event_of(tuple(row))
            stored.found[by_branch[branch], event.ordinal or 0] = event


async def _read(db: Tables, head: Head, uid: int, what: str, stored: _Stored) -> None:
    if what == "undo":
        stored.read[what] = await state.read_undo(db, uid, head.key)
    else:
        stored.read[what] = [event_of(row) for row in await db.all(_COUNTING if what == "events" else _ANSWERS, uid)]


# -- writing ------------------------------------------------------------------------------------------------------------


async def _write_undo(db: Tables, head: Head, uid: int, staged: StagedState | None, *, keep: bool) -> bool:
    """Keeps what can be put back; whether there is anything."""
    has_undo = head.has_undo
    if has_undo and (not keep or (staged is not None and staged.rewritten)):
        await state.drop_undo(db, uid)
        has_undo = False
    if keep and staged is not None and staged.undo:
        await state.write_undo(db, uid, staged.undo)
        has_undo = True
    return has_undo


_FORGET_STEP = "DELETE FROM {schema}.steps WHERE run_uid = $1 AND name = $2"
_STEP = """
    INSERT INTO {schema}.steps (run_uid, name, key, status, result, error, attempt, started_at, finished_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""


async def _write_steps(db: Tables, uid: int, steps: Sequence[Row]) -> None:
    # A step that is replaced goes to the end: the order is that of the last append.
    for key, *values in steps:
        await db.run(_FORGET_STEP, uid, indexed(key))
        await db.run(_STEP, uid, indexed(key), column(key), *values)


_DROP_OLDER = """
    UPDATE {schema}.interrupts SET status = 'dropped' WHERE run_uid = $1 AND key = $2 AND digest <> $3 AND status = 'open'
"""
_QUESTION = """
    INSERT INTO {schema}.interrupts (
        run_uid, name, id, key, digest, prompt, schema, status, answer, created_at, expires_at, answered_at, kind, call_id
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""


async def _ask(db: Tables, uid: int, question: Row) -> None:
    id_, key, digest, *values, call_id = question
    if await db.value("SELECT 1 FROM {schema}.interrupts WHERE run_uid = $1 AND name = $2", uid, indexed(id_)) is not None:
        return
    await db.run(_DROP_OLDER, uid, column(key), column(digest))
    await db.run(_QUESTION, uid, indexed(id_), column(id_), column(key), column(digest), *values, maybe_column(call_id))


_UPDATE = """
    UPDATE {schema}.runs SET
        status = $2, deaths = $3, agent = $4, base_ordinal = $5, base_seq = $6, transfers = $7, last_pos = $8, top = $9,
        usage = $10, has_undo = $11, has_asked = $12, error = $13, finished_at = $14, version = version + 1
    WHERE uid = $1
"""
_COUNT = "UPDATE {schema}.sessions SET event_count = $2, updated_at = $3 WHERE sid = $1"


async def _write_run(db: Tables, left: Head, uid: int, batch: Batch, status: RunStatus, hands_over: bool) -> None:
    """Stores what becomes of the run and its session."""
    now = platform.now()
    if hands_over:
        await db.run("UPDATE {schema}.sessions SET active_agent = $1 WHERE sid = $2", left.agent, left.sid)
    error, finished_at = (batch.error, now) if status.terminal else (None, None)
    await db.run(_UPDATE, uid, *left.changed(), dump_error(error), finished_at)
    await db.run(_COUNT, left.sid, left.event_count, now)

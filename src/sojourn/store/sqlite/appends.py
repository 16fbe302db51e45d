"""The append: what an attempt wrote, all or nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from sojourn import jsonvalue, platform
from sojourn.event import Event
from sojourn.run.status import RunStatus, move
from sojourn.run.store import Appended, Batch, Fence, Move
from sojourn.run.types import RunRecord
from sojourn.session.state import StateDelta
from sojourn.session.types import SessionKey
from sojourn.store.planning import CLOSING, Stored, add_usage, leftover, plan_events
from sojourn.store.rules import fenced
from sojourn.store.sqlite import log, runs, state
from sojourn.store.sqlite.log import Entry, entry_of
from sojourn.store.sqlite.messages import Messages
from sojourn.store.sqlite.rows import (
    EVENT,
    Row,
    branch_of,
    dump,
    dump_error,
    event_of,
    load,
    load_usage,
    load_words,
    path_of,
)
from sojourn.store.staging import Undo

# -- before the transaction -------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A batch ready to be stored: encoded and checked."""

    batch: Batch
    entries: Sequence[Entry]
    state: StateDelta | None
    changes_state: bool
    steps: Sequence[Row]
    interrupts: Sequence[Row]


def prepare(batch: Batch) -> Prepared:
    """Encodes and checks a batch.

    Raises:
        InvalidInput: `json.invalid`, `state.*`.
    """
    entries = [entry_of(event) for event in batch.events]
    delta = batch.state.durable() if batch.state else None
    return Prepared(
        batch,
        entries,
        delta,
        bool(delta) or any(entry.delta for entry in entries),
        [
            (s.key, s.status, jsonvalue.encode(s.result), dump_error(s.error), s.attempt, s.started_at, s.finished_at)
            for s in batch.steps
        ],
        [
            (
                i.id, i.key, i.digest, jsonvalue.encode(i.prompt), None if i.schema is None else jsonvalue.encode(i.schema),
                i.status, None if i.answer is None else jsonvalue.encode(i.answer), i.created_at, i.expires_at, i.answered_at,
            )
            for i in batch.interrupts
        ],
    )  # fmt: skip


# -- what is stored ---------------------------------------------------------------------------------------------------


class _Head(NamedTuple):
    """A run and its session, as far as an append needs them."""

    sid: int
    event_count: int
    app_name: str
    user_id: str
    session_id: str
    session_uid: str
    id: str
    no: int
    status: str
    attempt: int
    deaths: int
    agent: str | None
    base_ordinal: int
    base_seq: int
    transfers: int
    config: str
    attached: int
    cancel_requested: str | None
    last_pos: int
    top: int
    retry_of: str | None
    usage: str | None
    custom_metadata: str | None
    answered: int
    has_undo: int
    has_asked: int
    created_at: float
    started_at: float

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.app_name, self.user_id, self.session_id)


_HEAD = """
    SELECT
        s.sid, s.event_count, s.app_name, s.user_id, s.id, s.uid, r.id, r.no, r.status, r.attempt, r.deaths, r.agent,
        r.base_ordinal, r.base_seq, r.transfers, r.config, r.attached, r.cancel_requested, r.last_pos, r.top, r.retry_of,
        r.usage, r.custom_metadata, r.answered, r.has_undo, r.has_asked, r.created_at, r.started_at
    FROM runs r JOIN sessions s ON s.sid = r.sid WHERE r.uid = ?
"""
_COUNTED = """
    SELECT seq, pos, attempt, path, ordinal FROM events INDEXED BY events_by_run
    WHERE run_uid = ? AND superseded = 0 ORDER BY seq
"""
_FIND = f"""
    SELECT {EVENT} FROM events INDEXED BY events_by_identity
    WHERE run_uid = ? AND ordinal = ? AND path = ? AND superseded = 0
"""


class _Log:
    """What a run has stored, read as it is asked for."""

    def __init__(self, conn: sqlite3.Connection, run_uid: int) -> None:
        self._conn = conn
        self._run_uid = run_uid
        self._counted: list[Stored] | None = None

    def find(self, branch: str | None, ordinal: int) -> tuple[Stored, Event] | None:
        row = self._conn.execute(_FIND, (self._run_uid, ordinal, path_of(branch))).fetchone()
        if row is None:
            return None
        event = event_of(row)
        return Stored(row[0], event.pos, event.attempt, branch, ordinal), event

    def counted(self) -> list[Stored]:
        if self._counted is None:
            rows = self._conn.execute(_COUNTED, (self._run_uid,)).fetchall()
            self._counted = [Stored(seq, pos, attempt, branch_of(path), n) for seq, pos, attempt, path, n in rows]
        return self._counted


# -- the append -------------------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What an append will do.

    Attributes:
        entries: What to store, each with `Event.supersedes`; None in place of what is stored already.
        superseded: `seq` of what stops to count → index of the entry that causes it, or their number for what is left over.
        top: Highest ordinal of the run afterwards.
    """

    entries: Sequence[tuple[Entry, int | None] | None]
    superseded: dict[int, int]
    top: int


def append(conn: sqlite3.Connection, fence: Fence, new: Prepared, messages: Messages) -> Appended:
    uid = fence.run_uid
    row = conn.execute(_HEAD, (uid,)).fetchone()
    if row is None:
        raise fenced(None, fence)
    head = _Head._make(row)
    if head.status != "running" or head.attempt != fence.attempt:
        raise fenced(runs.get(conn, uid), fence)
    batch = new.batch
    status = RunStatus.RUNNING if batch.move is None else move(RunStatus.RUNNING, batch.move, run_id=head.id)
    plan = _plan(conn, head, fence, new)
    writes: Sequence[state.Write] = ()
    undo: Sequence[Undo] = ()
    if new.changes_state or (plan.superseded and head.has_undo):
        undoable = not status.terminal and batch.agent is None
        writes, undo = _stage(conn, head, uid, new, plan, undoable)

    # All checks are done: from here on, things are written.
    if plan.superseded:
        log.supersede(conn, head.sid, plan.superseded)
        if head.has_undo:
            state.drop_undo(conn, uid, plan.superseded)
    events, seq, last_pos = _write_events(conn, head, uid, plan)
    if writes:
        state.store(conn, writes)
    if undo:
        state.write_undo(conn, uid, undo)
    if new.steps:
        _write_steps(conn, uid, new.steps)
    if new.interrupts:
        _write_interrupts(conn, uid, new.interrupts)
    record = _write_run(conn, head, fence, new, plan, status, seq, last_pos, bool(undo), messages)
    return Appended(events, record)


def _plan(conn: sqlite3.Connection, head: _Head, fence: Fence, new: Prepared) -> _Plan:
    batch = new.batch
    top = head.top
    closing = head.attempt > 1 and batch.live is not None and batch.move in CLOSING
    for event in batch.events:
        if (event.ordinal or 0) <= top:
            break
        top = event.ordinal or 0
    else:
        # Nothing of that is stored yet, as in every first attempt without branches.
        if not closing:
            return _Plan([(entry, None) for entry in new.entries], {}, top)
    stored = _Log(conn, fence.run_uid)
    planned, superseded = plan_events(batch.events, fence.attempt, stored, run_id=head.id)
    if closing and batch.live is not None:
        for seq in leftover(batch.events, batch.live, fence.attempt, head.base_seq, stored.counted()):
            superseded.setdefault(seq, len(planned))
    return _Plan(
        [None if p.stored else (entry, p.supersedes) for entry, p in zip(new.entries, planned, strict=True)],
        superseded,
        max(head.top, max((e.ordinal or 0 for e in batch.events), default=0)),
    )


def _stage(
    conn: sqlite3.Connection, head: _Head, uid: int, new: Prepared, plan: _Plan, undoable: bool
) -> tuple[Sequence[state.Write], Sequence[Undo]]:
    """The state afterwards: what is superseded is put back, what is new comes on top."""
    staged = state.stage(conn, head.sid, head.key, undoable=undoable)
    stored = state.read_undo(conn, uid, head.key) if plan.superseded and head.has_undo else []

    def revert(cause: int) -> None:
        staged.revert([u for u in stored if plan.superseded.get(u.seq) == cause])

    seq = head.event_count
    for index, item in enumerate(plan.entries):
        if item is None:
            continue
        revert(index)
        seq += 1
        if item[0].delta:
            staged.apply(item[0].delta, seq)
    if new.state is not None:
        staged.apply(new.state, seq if seq > head.event_count else _last_seq(conn, uid))
    revert(len(plan.entries))
    return state.encode(staged, head.sid), staged.undo


def _last_seq(conn: sqlite3.Connection, uid: int) -> int:
    """The run's newest event: what is written without one goes with that."""
    (seq,) = conn.execute("SELECT max(seq) FROM events INDEXED BY events_by_run WHERE run_uid = ?", (uid,)).fetchone()
    return int(seq)


def _write_events(conn: sqlite3.Connection, head: _Head, uid: int, plan: _Plan) -> tuple[list[Event | None], int, int]:
    seq, pos = head.event_count, head.last_pos
    events: list[Event | None] = []
    for item in plan.entries:
        if item is None:
            events.append(None)
            continue
        entry, supersedes = item
        event = entry.event
        seq += 1
        pos += 1
        log.write(
            conn, head.sid, seq, uid, entry,
            pos=pos, ordinal=event.ordinal or 0, attempt=event.attempt, supersedes=supersedes,
        )  # fmt: skip
        events.append(event.evolve(seq=seq, pos=pos, supersedes=supersedes))
    return events, seq, pos


def _write_steps(conn: sqlite3.Connection, uid: int, steps: Sequence[Row]) -> None:
    # A step that failed before and is done now takes its place at the end: the order is that of completion.
    conn.executemany(
        "INSERT OR REPLACE INTO steps (run_uid, key, status, result, error, attempt, started_at, finished_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(uid, *step) for step in steps],
    )


def _write_interrupts(conn: sqlite3.Connection, uid: int, interrupts: Sequence[Row]) -> None:
    for row in interrupts:
        _, key, digest, *_ = row
        conn.execute(
            "UPDATE interrupts SET status = 'dropped' WHERE run_uid = ? AND key = ? AND digest <> ? AND status = 'open'",
            (uid, key, digest),
        )
        conn.execute(
            """
            INSERT INTO interrupts (
                run_uid, id, key, digest, prompt, schema, status, answer, created_at, expires_at, answered_at
            ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (run_uid, id) DO UPDATE SET
                key = excluded.key, digest = excluded.digest, prompt = excluded.prompt, schema = excluded.schema,
                status = excluded.status, answer = excluded.answer, created_at = excluded.created_at,
                expires_at = excluded.expires_at, answered_at = excluded.answered_at
            """,
            (uid, *row),
        )


_UPDATE = """
    UPDATE runs SET
        status = ?, deaths = ?, agent = ?, base_ordinal = ?, base_seq = ?, transfers = ?, last_pos = ?, top = ?, usage = ?,
        has_undo = ?, has_asked = ?
"""
_UPDATE_OPEN = f"{_UPDATE} WHERE uid = ?"
_UPDATE_CLOSED = f"{_UPDATE}, error = ?, finished_at = ? WHERE uid = ?"


def _write_run(
    conn: sqlite3.Connection,
    head: _Head,
    fence: Fence,
    new: Prepared,
    plan: _Plan,
    status: RunStatus,
    seq: int,
    last_pos: int,
    undone: bool,
    messages: Messages,
) -> RunRecord:
    """Stores what becomes of the run and its session."""
    uid, batch, now = fence.run_uid, new.batch, platform.now()
    deaths, agent, base_ordinal, base_seq, transfers = (
        head.deaths, head.agent, head.base_ordinal, head.base_seq, head.transfers
    )  # fmt: skip
    has_undo = undone or bool(head.has_undo)
    has_asked = bool(new.interrupts) or bool(head.has_asked)
    usage = load_usage(head.usage)
    for item in plan.entries:
        if item is not None and item[0].event.usage_metadata is not None:
            usage = add_usage(usage, item[0].event.usage_metadata)
    if batch.agent is not None:
        agent, base_seq, transfers = batch.agent, seq, transfers + 1
        base_ordinal = 1 + max((e.ordinal or 0 for e in batch.events), default=base_ordinal)
        if head.has_undo:
            state.drop_undo(conn, uid)
        has_undo = False
        conn.execute("UPDATE sessions SET active_agent = ? WHERE sid = ?", (agent, head.sid))
    if batch.move is Move.WAIT and head.answered:
        status = RunStatus.QUEUED
    elif batch.move is Move.REQUEUE and batch.died:
        deaths += 1
    error = finished_at = None
    if status.terminal:
        last_pos += 1
        error, finished_at = batch.error, now
    values = (
        status.value, deaths, agent, base_ordinal, base_seq, transfers, last_pos, plan.top, dump(usage) if usage else None,
        has_undo, has_asked,
    )  # fmt: skip
    if finished_at is None:
        conn.execute(_UPDATE_OPEN, (*values, uid))
    else:
        conn.execute(_UPDATE_CLOSED, (*values, dump_error(error), finished_at, uid))
        if has_undo or has_asked:
            runs.finish(conn, uid)
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (seq, now, head.sid))
    return RunRecord(
        uid, head.id, head.app_name, head.user_id, head.session_id, head.session_uid, head.no, status,
        messages.get(conn, uid), fence.attempt, deaths, agent, base_ordinal, transfers, load(head.config),
        bool(head.attached), load_words(head.cancel_requested), error, last_pos, head.retry_of, usage,
        None if head.custom_metadata is None else load(head.custom_metadata), head.created_at, head.started_at, finished_at,
    )  # fmt: skip

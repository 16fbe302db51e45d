"""The append: what an attempt wrote, all or nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from sojourn import jsonvalue, platform
from sojourn.event import Event
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Appended, Batch, Fence
from sojourn.run.types import RunRecord
from sojourn.session.state import StateDelta
from sojourn.session.types import SessionKey
from sojourn.store.planning import ENDING, Planned, Planner, add_usage
from sojourn.store.rules import check_delta, fenced
from sojourn.store.sqlite import log, records, runs, state
from sojourn.store.sqlite.log import Entry, entry_of
from sojourn.store.sqlite.messages import Messages
from sojourn.store.sqlite.rows import EVENT, Row, dump, dump_error, event_of, load, load_usage, load_words, path_of
from sojourn.store.staging import StagedState

# -- before the transaction -------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A batch ready to be stored: encoded and checked."""

    batch: Batch
    entries: Sequence[Entry]
    state: StateDelta | None
    steps: Sequence[Row]
    interrupts: Sequence[Row]


def prepare(batch: Batch) -> Prepared:
    """Encodes and checks a batch.

    Raises:
        InvalidInput: `json.invalid`, `state.*`.
    """
    return Prepared(
        batch,
        [entry_of(event) for event in batch.events],
        check_delta(batch.state) if batch.state else None,
        [
            (
                s.key, s.status, jsonvalue.encode(s.result, where=f"the result of step {s.key!r}"), dump_error(s.error),
                s.attempt, s.started_at, s.finished_at,
            )
            for s in batch.steps
        ],
        [
            (
                i.id, i.key, i.digest, jsonvalue.encode(i.prompt, where="prompt"),
                None if i.schema is None else jsonvalue.encode(i.schema, where="schema"), i.status,
                None if i.answer is None else jsonvalue.encode(i.answer, where="answer"), i.created_at, i.expires_at,
                i.answered_at,
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
_FIND = f"""
    SELECT {EVENT} FROM events INDEXED BY events_by_identity
    WHERE run_uid = ? AND ordinal = ? AND path = ? AND superseded = 0
"""
_COUNTING = f"SELECT {EVENT} FROM events INDEXED BY events_by_run WHERE run_uid = ? AND superseded = 0 ORDER BY seq"


class _Log:
    """What a run has stored, read when it is asked for."""

    def __init__(self, conn: sqlite3.Connection, run_uid: int) -> None:
        self._conn = conn
        self._run_uid = run_uid
        self._events: list[Event] | None = None

    def find(self, branch: str | None, ordinal: int) -> Event | None:
        row = self._conn.execute(_FIND, (self._run_uid, ordinal, path_of(branch))).fetchone()
        return None if row is None else event_of(row)

    def events(self) -> Sequence[Event]:
        if self._events is None:
            self._events = [event_of(row) for row in self._conn.execute(_COUNTING, (self._run_uid,)).fetchall()]
        return self._events


# -- what is to be done -----------------------------------------------------------------------------------------------


class _Change(NamedTuple):
    """What an append does to log and state.

    Attributes:
        events: What becomes of each event.
        top: The run's highest ordinal afterwards.
        gone: `seq` of what stops to count.
        staged: The state afterwards; None if it stays as it is.
    """

    events: Sequence[Planned]
    top: int
    gone: frozenset[int]
    staged: StagedState | None


_NONE: frozenset[int] = frozenset()


def _plan(conn: sqlite3.Connection, head: _Head, uid: int, new: Prepared, status: RunStatus) -> _Change:
    """Works out what to write; everything that can be wrong with a batch shows here."""
    batch = new.batch
    top = head.top
    ending = head.attempt > 1 and batch.live is not None and batch.move in ENDING
    for event in batch.events:
        if (event.ordinal or 0) <= top:
            return _plan_with_log(conn, head, uid, new, ending)
        top = event.ordinal or 0
    if ending:
        return _plan_with_log(conn, head, uid, new, ending)
    # Ordinals beyond the highest: nothing of that is stored, as in any first attempt outside of branches.
    staged: StagedState | None = None
    seq = head.event_count
    for entry in new.entries:
        seq += 1
        if entry.delta:
            staged = staged or _stage(conn, head, uid, undoable=not status.terminal)
            staged.apply(entry.delta, seq)
    if new.state:
        staged = staged or _stage(conn, head, uid, undoable=not status.terminal)
        staged.apply(new.state, seq if new.entries else Planner(head.id, head.attempt, _Log(conn, uid)).newest())
    return _Change([Planned(event, None, None, _NONE) for event in batch.events], top, _NONE, staged)


def _plan_with_log(conn: sqlite3.Connection, head: _Head, uid: int, new: Prepared, ending: bool) -> _Change:
    """The same where what is stored matters."""
    batch = new.batch
    planner = Planner(head.id, head.attempt, _Log(conn, uid))
    staged = _stage(conn, head, uid, undoable=True)
    events: list[Planned] = []
    gone = _NONE
    seq = head.event_count

    def drop(seqs: frozenset[int]) -> frozenset[int]:
        if seqs:
            staged.put_back(seqs)
        return gone | seqs

    for entry in new.entries:
        planned = planner.plan(entry.event)
        events.append(planned)
        gone = drop(planned.drops)
        if planned.stored is None:
            seq += 1
            if entry.delta:
                staged.apply(entry.delta, seq)
    if ending and batch.live is not None:
        gone = drop(planner.leftover(batch.live, head.base_seq))
    if new.state:
        staged.apply(new.state, seq if seq > head.event_count else planner.newest())
    top = max(head.top, max((e.ordinal or 0 for e in batch.events), default=0))
    return _Change(events, top, gone, staged)


def _stage(conn: sqlite3.Connection, head: _Head, uid: int, *, undoable: bool) -> StagedState:
    return state.stage(conn, head.sid, head.key, partial(state.read_undo, conn, uid, head.key) if undoable else None)


# -- the append -------------------------------------------------------------------------------------------------------


def append(conn: sqlite3.Connection, fence: Fence, new: Prepared, messages: Messages) -> Appended:
    """What `RunStore.append` does."""
    uid = fence.run_uid
    row = conn.execute(_HEAD, (uid,)).fetchone()
    if row is None:
        raise fenced(None, fence)
    head = _Head._make(row)
    if head.status != "running" or head.attempt != fence.attempt:
        raise fenced(records.get(conn, uid), fence)
    batch = new.batch
    status = RunStatus.RUNNING if batch.move is None else move(RunStatus.RUNNING, batch.move, run_id=head.id)
    if batch.move is Move.WAIT and head.answered:
        status = RunStatus.QUEUED
    change = _plan(conn, head, uid, new, status)
    writes = state.encode(change.staged, head.sid) if change.staged is not None else ()

    # All checks are done: from here on, things are written.
    if change.gone:
        log.supersede(conn, head.sid, change.gone)
    events = _write_events(conn, head, uid, new, change)
    state.store(conn, writes)
    has_undo = _write_undo(conn, head, uid, change.staged, keep=not status.terminal and batch.agent is None)
    if new.steps:
        _write_steps(conn, uid, new.steps)
    for question in new.interrupts:
        _ask(conn, uid, question)
    record = _write_run(conn, head, fence, batch, change, status, has_undo, messages)
    if status.terminal and batch.move is not None and (head.has_asked or batch.interrupts):
        runs.drop_interrupts(conn, uid, batch.move)
    return Appended(events, record)


def _write_events(conn: sqlite3.Connection, head: _Head, uid: int, new: Prepared, change: _Change) -> list[Event | None]:
    seq, pos = head.event_count, head.last_pos
    numbered: dict[int, Event] = {}
    events: list[Event | None] = []
    for entry, (event, stored, supersedes, _) in zip(new.entries, change.events, strict=True):
        if stored is None:
            seq += 1
            pos += 1
            ordinal = event.ordinal or 0
            log.write(conn, head.sid, seq, uid, entry, pos=pos, ordinal=ordinal, attempt=event.attempt, supersedes=supersedes)
            numbered[id(event)] = event.evolve(seq=seq, pos=pos, ordinal=ordinal, supersedes=supersedes)
            events.append(numbered[id(event)])
        else:
            # Of what is stored, the attempt's own comes with its numbers: its caller has not seen them.
            events.append(numbered.get(id(stored)) or (stored if stored.attempt == head.attempt else None))
    return events


def _write_undo(conn: sqlite3.Connection, head: _Head, uid: int, staged: StagedState | None, *, keep: bool) -> bool:
    """Keeps what can be put back; whether there is anything."""
    has_undo = bool(head.has_undo)
    if has_undo and (not keep or (staged is not None and staged.rewritten)):
        state.drop_undo(conn, uid)
        has_undo = False
    if keep and staged is not None and staged.undo:
        state.write_undo(conn, uid, staged.undo)
        has_undo = True
    return has_undo


def _write_steps(conn: sqlite3.Connection, uid: int, steps: Sequence[Row]) -> None:
    # A step that is replaced goes to the end: the order is that of the last append.
    conn.executemany(
        "INSERT OR REPLACE INTO steps (run_uid, key, status, result, error, attempt, started_at, finished_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(uid, *step) for step in steps],
    )


def _ask(conn: sqlite3.Connection, uid: int, question: Row) -> None:
    id_, key, digest, *_ = question
    if conn.execute("SELECT 1 FROM interrupts WHERE run_uid = ? AND id = ?", (uid, id_)).fetchone() is not None:
        return
    conn.execute(
        "UPDATE interrupts SET status = 'dropped' WHERE run_uid = ? AND key = ? AND digest <> ? AND status = 'open'",
        (uid, key, digest),
    )
    conn.execute(
        "INSERT INTO interrupts "
        "(run_uid, id, key, digest, prompt, schema, status, answer, created_at, expires_at, answered_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (uid, *question),
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
    batch: Batch,
    change: _Change,
    status: RunStatus,
    has_undo: bool,
    messages: Messages,
) -> RunRecord:
    """Stores what becomes of the run and its session."""
    uid, now = fence.run_uid, platform.now()
    new = [planned.event for planned in change.events if planned.stored is None]
    seq, last_pos = head.event_count + len(new), head.last_pos + len(new)
    usage = load_usage(head.usage)
    for event in new:
        if event.usage_metadata is not None:
            usage = add_usage(usage, event.usage_metadata)
    agent, base_ordinal, base_seq, transfers = head.agent, head.base_ordinal, head.base_seq, head.transfers
    if batch.agent is not None:
        agent, base_seq, transfers = batch.agent, seq, transfers + 1
        if batch.events:
            base_ordinal = (batch.events[-1].ordinal or 0) + 1
        conn.execute("UPDATE sessions SET active_agent = ? WHERE sid = ?", (agent, head.sid))
    deaths = head.deaths + (1 if batch.move is Move.REQUEUE and batch.died else 0)
    error = finished_at = None
    if status.terminal:
        last_pos += 1
        error, finished_at = batch.error, now
    values = (
        status.value, deaths, agent, base_ordinal, base_seq, transfers, last_pos, change.top, dump(usage) if usage else None,
        has_undo, bool(head.has_asked or batch.interrupts),
    )  # fmt: skip
    if finished_at is None:
        conn.execute(_UPDATE_OPEN, (*values, uid))
    else:
        conn.execute(_UPDATE_CLOSED, (*values, dump_error(error), finished_at, uid))
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (seq, now, head.sid))
    return RunRecord(
        uid, head.id, head.app_name, head.user_id, head.session_id, head.session_uid, head.no, status,
        messages.get(conn, uid), fence.attempt, deaths, agent, base_ordinal, transfers, load(head.config),
        bool(head.attached), load_words(head.cancel_requested), error, last_pos, head.retry_of, usage,
        None if head.custom_metadata is None else load(head.custom_metadata), head.created_at, head.started_at, finished_at,
    )  # fmt: skip

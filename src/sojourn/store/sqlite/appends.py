"""The append: what an attempt wrote, all or nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from sojourn import platform
from sojourn.event import Event
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Appended, Batch, Fence
from sojourn.run.types import RunRecord
from sojourn.store.planning import AppendPlan, add_counts, countable, tokens_of
from sojourn.store.prepared import Prepared, entry_of
from sojourn.store.rows import Row, dump, dump_error, load, load_usage, load_words
from sojourn.store.rules import fenced
from sojourn.store.sqlite import ledger, log, records, runs, state
from sojourn.store.sqlite.messages import Messages
from sojourn.store.sqlite.plans import HEAD, Head, plan
from sojourn.store.staging import StagedState


def append(conn: sqlite3.Connection, fence: Fence, new: Prepared, messages: Messages) -> Appended:
    """What `RunStore.append` does."""
    uid = fence.run_uid
    row = conn.execute(HEAD, (uid,)).fetchone()
    if row is None:
        raise fenced(None, fence)
    head = Head._make(row)
    if head.status != "running" or head.attempt != fence.attempt:
        raise fenced(records.get(conn, uid), fence)
    batch = new.batch
    status = RunStatus.RUNNING if batch.move is None else move(RunStatus.RUNNING, batch.move, run_id=head.id)
    if batch.move is Move.WAIT and head.answered:
        status = RunStatus.QUEUED
    change = plan(conn, head, uid, new, status)
    writes = state.encode(change.staged, head.sid) if change.staged is not None else ()

    # All checks are done: from here on, things are written.
    if change.gone:
        log.supersede(conn, head.sid, change.gone)
    events = _write_events(conn, head, uid, new, change)
    state.store(conn, writes)
    # An append that is repeated because its reply was lost hands over once.
    hands_over = batch.agent is not None and (batch.agent, _base_ordinal(head, batch)) != (head.agent, head.base_ordinal)
    has_undo = _write_undo(conn, head, uid, change.staged, keep=not status.terminal and not hands_over)
    if new.steps:
        _write_steps(conn, uid, new.steps)
    for question in new.interrupts:
        _ask(conn, uid, question)
    counts = tokens_of(change.events)
    if spent := countable(counts):
        ledger.add(conn, head.app_name, head.user_id, platform.now(), spent)
    record = _write_run(conn, head, fence, batch, change, status, hands_over, has_undo, counts, messages)
    if status.terminal and batch.move is not None and (head.has_asked or batch.interrupts):
        runs.drop_interrupts(conn, uid, batch.move)
    since = batch.usage_since
    usage = None if since is None else ledger.read(conn, head.app_name, head.user_id, since)
    return Appended(events, record, usage)


def _base_ordinal(head: Head, batch: Batch) -> int:
    """`RunRecord.base_ordinal` if the batch hands over."""
    return (batch.events[-1].ordinal or 0) + 1 if batch.events else head.base_ordinal


def _write_events(conn: sqlite3.Connection, head: Head, uid: int, new: Prepared, change: AppendPlan) -> list[Event | None]:
    seq, pos = head.event_count, head.last_pos
    numbered: dict[int, Event] = {}
    events: list[Event | None] = []
    for entry, (event, stored, supersedes, _, answers) in zip(new.entries, change.events, strict=True):
        if stored is None:
            seq += 1
            pos += 1
            ordinal = event.ordinal or 0
            log.write(conn, head.sid, seq, uid, entry, pos=pos, ordinal=ordinal, attempt=event.attempt, supersedes=supersedes)
            numbered[id(event)] = event.evolve(seq=seq, pos=pos, ordinal=ordinal, supersedes=supersedes)
            events.append(numbered[id(event)])
            for answer in answers:
                seq += 1
                log.write(conn, head.sid, seq, uid, entry_of(answer), pos=None, ordinal=None, attempt=answer.attempt)
        else:
            # Of what is stored, the attempt's own comes with its numbers: its caller has not seen them.
            events.append(numbered.get(id(stored)) or (stored if stored.attempt == head.attempt else None))
    return events


def _write_undo(conn: sqlite3.Connection, head: Head, uid: int, staged: StagedState | None, *, keep: bool) -> bool:
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
        "(run_uid, id, key, digest, prompt, schema, status, answer, created_at, expires_at, answered_at, kind, call_id) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
    head: Head,
    fence: Fence,
    batch: Batch,
    change: AppendPlan,
    status: RunStatus,
    hands_over: bool,
    has_undo: bool,
    counts: dict[str, int],
    messages: Messages,
) -> RunRecord:
    """Stores what becomes of the run and its session."""
    uid, now = fence.run_uid, platform.now()
    new = sum(planned.stored is None for planned in change.events)
    seq, last_pos = head.event_count + new + sum(len(p.answers) for p in change.events), head.last_pos + new
    usage = load_usage(head.usage)
    if counts:
        usage = add_counts(usage, counts)
    agent, base_ordinal, base_seq, transfers = head.agent, head.base_ordinal, head.base_seq, head.transfers
    if hands_over:
        agent, base_ordinal, base_seq, transfers = batch.agent, _base_ordinal(head, batch), seq, transfers + 1
        conn.execute("UPDATE sessions SET active_agent = ? WHERE sid = ?", (agent, head.sid))
    deaths = head.deaths + (1 if batch.move is Move.REQUEUE and batch.died else 0)
    error = finished_at = None
    if status.terminal:
        last_pos += 1
        error, finished_at = batch.error, now
    top = max([head.top, *(e.ordinal or 0 for e in batch.events)])
    values = (
        status.value, deaths, agent, base_ordinal, base_seq, transfers, last_pos, top, dump(usage) if usage else None,
        has_undo, bool(head.has_asked or batch.interrupts),
    )  # fmt: skip
    if finished_at is None:
        conn.execute(_UPDATE_OPEN, (*values, uid))
    else:
        conn.execute(_UPDATE_CLOSED, (*values, dump_error(error), finished_at, uid))
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (seq, now, head.sid))
    message = messages.get(conn, uid, last=status is not RunStatus.RUNNING)
    return RunRecord(
        uid, head.id, head.app_name, head.user_id, head.session_id, head.session_uid, head.no, status,
        message, fence.attempt, deaths, agent, base_ordinal, transfers, load(head.config),
        bool(head.attached), load_words(head.cancel_requested), error, last_pos, head.retry_of,
        head.start_agent, head.first_seq, None, usage,
        None if head.custom_metadata is None else load(head.custom_metadata), head.created_at, head.started_at, finished_at,
    )  # fmt: skip

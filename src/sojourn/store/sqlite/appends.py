"""The append: what an attempt wrote, all or nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from sojourn import platform
from sojourn.run.status import RunStatus
from sojourn.run.store import Appended, Batch, Fence
from sojourn.run.types import RunRecord
from sojourn.store.heads import Head
from sojourn.store.numbering import number
from sojourn.store.planning import countable, tokens_of
from sojourn.store.prepared import Prepared
from sojourn.store.rows import Row, dump_error
from sojourn.store.rules import fenced
from sojourn.store.sqlite import ledger, log, plans, records, runs, state
from sojourn.store.sqlite.messages import Messages
from sojourn.store.staging import StagedState


def append(conn: sqlite3.Connection, fence: Fence, new: Prepared, messages: Messages) -> Appended:
    """What `RunStore.append` does."""
    uid = fence.run_uid
    head = plans.read(conn, uid, messages)
    if head is None:
        raise fenced(None, fence)
    if head.status != "running" or head.attempt != fence.attempt:
        messages.forget(uid)
        raise fenced(records.get(conn, uid), fence)
    batch = new.batch
    status = head.status_after(batch)
    change = plans.plan(conn, head, uid, new, status)
    writes = state.encode(change.staged, head.sid) if change.staged is not None else ()

    # All checks are done: from here on, things are written.
    if change.gone:
        log.supersede(conn, head.sid, change.gone)
    numbered, events = number(head, new.entries, change)
    for event in numbered:
        log.write(conn, head.sid, uid, event)
    state.store(conn, writes)
    hands_over = head.hands_over(batch)
    has_undo = _write_undo(conn, head, uid, change.staged, keep=not status.terminal and not hands_over)
    if new.steps:
        _write_steps(conn, uid, new.steps)
    for question in new.interrupts:
        _ask(conn, uid, question)
    counts = tokens_of(change.events)
    if spent := countable(counts):
        ledger.add(conn, head.app_name, head.user_id, platform.now(), spent)
    left = head.after(batch, change, status, hands_over=hands_over, has_undo=has_undo, counts=counts)
    record = _write_run(conn, left, uid, batch, status, hands_over)
    if status is not RunStatus.RUNNING:
        messages.forget(uid)
    if status.terminal and batch.move is not None and left.has_asked:
        runs.drop_interrupts(conn, uid, batch.move)
    since = batch.usage_since
    usage = None if since is None else ledger.read(conn, head.app_name, head.user_id, since)
    return Appended(events, record, usage)


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


def _write_run(conn: sqlite3.Connection, left: Head, uid: int, batch: Batch, status: RunStatus, hands_over: bool) -> RunRecord:
    """Stores what becomes of the run and its session."""
    now = platform.now()
    if hands_over:
        conn.execute("UPDATE sessions SET active_agent = ? WHERE sid = ?", (left.agent, left.sid))
    conn.execute("UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?", (left.event_count, now, left.sid))
    if not status.terminal:
        conn.execute(_UPDATE_OPEN, (*left.changed(), uid))
        return left.record(uid, status)
    conn.execute(_UPDATE_CLOSED, (*left.changed(), dump_error(batch.error), now, uid))
    return left.record(uid, status, error=batch.error, finished_at=now)

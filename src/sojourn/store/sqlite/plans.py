"""What an append will write, worked out from what is stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.session.types import SessionKey
from sojourn.store.planning import AppendPlan, Planner, plan_append, undoable
from sojourn.store.prepared import Prepared
from sojourn.store.rows import EVENT, event_of, path_of
from sojourn.store.sqlite import state


class Head(NamedTuple):
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
    start_agent: str | None
    first_seq: int

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.app_name, self.user_id, self.session_id)


HEAD = """
    SELECT
        s.sid, s.event_count, s.app_name, s.user_id, s.id, s.uid, r.id, r.no, r.status, r.attempt, r.deaths, r.agent,
        r.base_ordinal, r.base_seq, r.transfers, r.config, r.attached, r.cancel_requested, r.last_pos, r.top, r.retry_of,
        r.usage, r.custom_metadata, r.answered, r.has_undo, r.has_asked, r.created_at, r.started_at, r.start_agent,
        r.first_seq
    FROM runs r JOIN sessions s ON s.sid = r.sid WHERE r.uid = ?
"""
_FIND = f"""
    SELECT {EVENT} FROM events INDEXED BY events_by_identity
    WHERE run_uid = ? AND ordinal = ? AND path = ? AND superseded = 0
"""
_COUNTING = f"SELECT {EVENT} FROM events INDEXED BY events_by_run WHERE run_uid = ? AND superseded = 0 ORDER BY seq"
_ANSWERS = f"""
    SELECT {EVENT} FROM events INDEXED BY events_by_run
    WHERE run_uid = ? AND pos IS NULL AND ordinal IS NULL ORDER BY seq
"""


class _Log:
    """What a run has stored, read when it is asked for."""

    def __init__(self, conn: sqlite3.Connection, run_uid: int, top: int) -> None:
        self._conn = conn
        self._run_uid = run_uid
        self._top = top
        self._events: list[Event] | None = None

    def find(self, branch: str | None, ordinal: int) -> Event | None:
        if ordinal > self._top:
            # Beyond the highest ordinal: nothing of that is stored, as in any first attempt outside of branches.
            return None
        row = self._conn.execute(_FIND, (self._run_uid, ordinal, path_of(branch))).fetchone()
        return None if row is None else event_of(row)

    def events(self) -> Sequence[Event]:
        if self._events is None:
            self._events = [event_of(row) for row in self._conn.execute(_COUNTING, (self._run_uid,)).fetchall()]
        return self._events

    def answers(self) -> Sequence[Event]:
        return [event_of(row) for row in self._conn.execute(_ANSWERS, (self._run_uid,)).fetchall()]


def plan(conn: sqlite3.Connection, head: Head, uid: int, new: Prepared, status: RunStatus) -> AppendPlan:
    """Works out what to write; everything that can be wrong with a batch shows here."""
    undo = partial(state.read_undo, conn, uid, head.key) if undoable(head.attempt, status) else None
    return plan_append(
        Planner(head.id, head.attempt, _Log(conn, uid, head.top)),
        new.batch,
        [entry.delta for entry in new.entries],
        new.state,
        event_count=head.event_count,
        base_seq=head.base_seq,
        stage=partial(state.stage, conn, head.sid, head.key, undo),
    )

"""What an append finds stored, and what it will write, worked out from that."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.store.heads import HEAD, Head, head_of
from sojourn.store.planning import AppendPlan, Planner, plan_append, undoable
from sojourn.store.prepared import Prepared
from sojourn.store.rows import EVENT, event_of, path_of
from sojourn.store.sqlite import state
from sojourn.store.sqlite.messages import Messages

_HEAD = f"SELECT {HEAD} FROM runs r JOIN sessions s ON s.sid = r.sid WHERE r.uid = ?"


def read(conn: sqlite3.Connection, run_uid: int, messages: Messages) -> Head | None:
    """What is stored of a run; None if it is gone."""
    row = conn.execute(_HEAD, (run_uid,)).fetchone()
    return None if row is None else head_of(row, messages.get(conn, run_uid))


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

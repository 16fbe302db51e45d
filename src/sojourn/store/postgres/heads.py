"""What this process knows of the runs it executes, so that an append need not read it first."""

from __future__ import annotations

import asyncio

from sojourn.postgres.tables import Tables
from sojourn.run.types import RunRecord
from sojourn.store.heads import HEAD, Head, head_of
from sojourn.store.prepared import Submission
from sojourn.store.rows import message_of

MAX_HEADS = 4096
"""Runs known at once."""


_HEAD = f"""
    SELECT {HEAD}, coalesce(r.message, m.body), r.version
    FROM {{schema}}.runs r JOIN {{schema}}.sessions s ON s.sid = r.sid
    LEFT JOIN {{schema}}.events m ON m.sid = r.sid AND m.seq = r.first_seq
    WHERE r.uid = $1
"""


async def read(db: Tables, run_uid: int) -> Head | None:
    """What is stored of a run; None if it is gone."""
    row = await db.one(_HEAD, run_uid)
    if row is None:
        return None
    *columns, message, version = row
    return head_of(columns, message_of(message), version)


def of_new(sid: int, new: Submission, record: RunRecord, event_count: int) -> Head:
    """The head of a run that has just begun for the first time."""
    return Head(
        sid, event_count, *record.key, record.session_uid, record.id, record.no, record.status.value, record.attempt, 0,
        record.agent, 0, 0, 0, new.config, record.attached, None, record.last_pos, 0, record.retry_of, {},
        new.custom_metadata, False, False, False, record.created_at, record.started_at, record.start_agent,
        record.message_seq or 0, new.message,
    )  # fmt: skip


class Known:
    """A run that is under way here.

    Attributes:
        head: The run as it was left.
        turn: Held by the append that is under way: each has to know what the one before made of the run.
    """

    __slots__ = ("head", "turn")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.turn = asyncio.Lock()


class Heads:
    """The runs under way, with what is known of each."""

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}

    def put(self, run_uid: int, head: Head) -> None:
        """Notes a run as it was left."""
        known = self._known.get(run_uid)
        if known is not None:
            known.head = head
            return
        self._known[run_uid] = Known(head)
        if len(self._known) > MAX_HEADS:
            del self._known[next(iter(self._known))]

    def get(self, run_uid: int) -> Known | None:
        """What is known of a run; None if nothing is."""
        return self._known.get(run_uid)

    def forget(self, run_uid: int) -> None:
        """Notes that a run is not as it was left, or not under way any more."""
        self._known.pop(run_uid, None)

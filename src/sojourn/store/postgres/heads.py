"""What this process knows of the runs it executes, so that an append need not read it first."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.run.types import RunRecord
from sojourn.session.types import SessionKey
from sojourn.store.postgres.connection import Tables
from sojourn.store.rows import dump, load, load_usage, load_words, message_of

MAX_HEADS = 4096
"""Runs known at once."""


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
    version: int
    deaths: int
    agent: str | None
    base_ordinal: int
    base_seq: int
    transfers: int
    config: str
    attached: bool
    cancel_requested: str | None
    last_pos: int
    top: int
    retry_of: str | None
    usage: dict[str, int]
    custom_metadata: str | None
    answered: bool
    has_undo: bool
    has_asked: bool
    created_at: float
    started_at: float | None
    start_agent: str | None
    first_seq: int
    message: Event

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.app_name, self.user_id, self.session_id)

    def record(self, uid: int, status: RunStatus, **changes: Any) -> RunRecord:
        """The record of the run, with its status and whatever else has changed."""
        metadata = self.custom_metadata
        return RunRecord(
            uid, self.id, self.app_name, self.user_id, self.session_id, self.session_uid, self.no, status,
            self.message.snapshot(), self.attempt, self.deaths, self.agent, self.base_ordinal, self.transfers,
            load(self.config), self.attached, load_words(self.cancel_requested), changes.get("error"), self.last_pos,
            self.retry_of, self.start_agent, self.first_seq, None, dict(self.usage),
            None if metadata is None else load(metadata), self.created_at, self.started_at, changes.get("finished_at"),
        )  # fmt: skip


_HEAD = """
    SELECT
        s.sid, s.event_count, s.app_name, s.user_id, s.id, s.uid, r.id, r.no, r.status, r.attempt, r.version, r.deaths, r.agent,
        r.base_ordinal, r.base_seq, r.transfers, r.config, r.attached, r.cancel_requested, r.last_pos, r.top, r.retry_of,
        r.usage, r.custom_metadata, r.answered, r.has_undo, r.has_asked, r.created_at, r.started_at, r.start_agent,
        r.first_seq, coalesce(r.message, m.body)
    FROM {schema}.runs r JOIN {schema}.sessions s ON s.sid = r.sid
    LEFT JOIN {schema}.events m ON m.sid = r.sid AND m.seq = r.first_seq
    WHERE r.uid = $1
"""


async def read(db: Tables, run_uid: int) -> Head | None:
    """What is stored of a run; None if it is gone."""
    row = await db.one(_HEAD, run_uid)
    if row is None:
        return None
    values = list(row)
    values[_USAGE] = load_usage(values[_USAGE])
    values[-1] = message_of(values[-1])
    return Head._make(values)


_USAGE = Head._fields.index("usage")


def of_new(sid: int, record: RunRecord, event_count: int) -> Head:
    """The head of a run that has just begun for the first time."""
    metadata = record.custom_metadata
    return Head(
        sid, event_count, *record.key, record.session_uid, record.id, record.no, record.status.value, record.attempt, 0, 0,
        record.agent, 0, 0, 0, dump(record.config), record.attached, None, record.last_pos, 0, record.retry_of, {},
        None if metadata is None else dump(metadata), False, False, False, record.created_at, record.started_at,
        record.start_agent, record.message_seq or 0, record.message.snapshot(),
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

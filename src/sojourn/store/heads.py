"""A run and its session as an append finds them, and as it leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sojourn.event import Event
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Batch
from sojourn.run.types import RunError, RunRecord
from sojourn.session.types import SessionKey
from sojourn.store.planning import AppendPlan, add_counts
from sojourn.store.rows import Row, dump, load, load_usage, load_words

HEAD = """
    s.sid, s.event_count, s.app_name, s.user_id, s.id, s.uid, r.id, r.no, r.status, r.attempt, r.deaths, r.agent,
    r.base_ordinal, r.base_seq, r.transfers, r.config, r.attached, r.cancel_requested, r.last_pos, r.top, r.retry_of, r.usage,
    r.custom_metadata, r.answered, r.has_undo, r.has_asked, r.created_at, r.started_at, r.start_agent, r.first_seq
"""
"""The columns that `head_of` takes."""


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
    version: int = 0

    @property
    def key(self) -> SessionKey:
        return SessionKey(self.app_name, self.user_id, self.session_id)

    def status_after(self, batch: Batch) -> RunStatus:
        """The status that a batch leaves the run in.

        Raises:
            Conflict: `run.illegal_move`.
        """
        if batch.move is Move.WAIT and self.answered:
            # Somebody has answered meanwhile: it is ready to go on.
            return RunStatus.QUEUED
        return RunStatus.RUNNING if batch.move is None else move(RunStatus.RUNNING, batch.move, run_id=self.id)

    def hands_over(self, batch: Batch) -> bool:
        """Whether a batch hands over to another agent: one that is repeated because its reply was lost does so once."""
        return batch.agent is not None and (batch.agent, self._base_ordinal(batch)) != (self.agent, self.base_ordinal)

    def _base_ordinal(self, batch: Batch) -> int:
        return (batch.events[-1].ordinal or 0) + 1 if batch.events else self.base_ordinal

    def after(
        self, batch: Batch, change: AppendPlan, status: RunStatus, *, hands_over: bool, has_undo: bool, counts: dict[str, int]
    ) -> Head:
        """The head as a batch leaves it.

        Args:
            batch: The batch.
            change: What it does.
            status: What `status_after` gave.
            hands_over: What `hands_over` gave.
            has_undo: Whether there are changes of state that can be put back.
            counts: The tokens that its new events tell of.
        """
        new = sum(planned.stored is None for planned in change.events)
        seq = self.event_count + new + sum(len(planned.answers) for planned in change.events)
        agent, base_ordinal, base_seq, transfers = self.agent, self.base_ordinal, self.base_seq, self.transfers
        if hands_over:
            agent, base_ordinal, base_seq, transfers = batch.agent, self._base_ordinal(batch), seq, transfers + 1
        return self._replace(
            event_count=seq,
            status=status.value,
            deaths=self.deaths + (batch.move is Move.REQUEUE and batch.died),
            agent=agent,
            base_ordinal=base_ordinal,
            base_seq=base_seq,
            transfers=transfers,
            last_pos=self.last_pos + new + status.terminal,
            top=self.top_after(batch),
            usage=add_counts(self.usage, counts) if counts else self.usage,
            has_undo=has_undo,
            has_asked=bool(self.has_asked or batch.interrupts),
            version=self.version + 1,
        )

    def top_after(self, batch: Batch) -> int:
        """The highest ordinal of the run's events with those of a batch."""
        return max([self.top, *(event.ordinal or 0 for event in batch.events)])

    def changed(self) -> Row:
        """The values of the columns that an append changes: from `status` to `has_asked`, in the order of `after`."""
        return (
            self.status, self.deaths, self.agent, self.base_ordinal, self.base_seq, self.transfers, self.last_pos, self.top,
            dump(self.usage) if self.usage else None, self.has_undo, self.has_asked,
        )  # fmt: skip

    def record(
        self, uid: int, status: RunStatus, *, error: RunError | None = None, finished_at: float | None = None
    ) -> RunRecord:
        """The record of the run."""
        metadata = self.custom_metadata
        return RunRecord(
            uid, self.id, self.app_name, self.user_id, self.session_id, self.session_uid, self.no, status,
            self.message.snapshot(), self.attempt, self.deaths, self.agent, self.base_ordinal, self.transfers,
            load(self.config), bool(self.attached), load_words(self.cancel_requested), error, self.last_pos, self.retry_of,
            self.start_agent, self.first_seq, None, dict(self.usage), None if metadata is None else load(metadata),
            self.created_at, self.started_at, finished_at,
        )  # fmt: skip


_USAGE = Head._fields.index("usage")


def head_of(columns: Sequence[Any], message: Event, version: int = 0) -> Head:
    """A head from its columns `HEAD`, the message that opened the run, and how often attempts wrote, if that is counted."""
    values = [*columns, message, version]
    values[_USAGE] = load_usage(values[_USAGE])
    return Head._make(values)

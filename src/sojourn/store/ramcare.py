"""The care of data in RAM: which runs may go, and how much is kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sojourn import jsonvalue
from sojourn.run.retention import SessionSize
from sojourn.store.ramlog import GONE
from sojourn.store.ramrecords import StoredRun, StoredSession
from sojourn.store.trimming import Candidate


class TrimmableSession:
    """A session, for who chooses what of it is removed."""

    def __init__(self, session: StoredSession, keep_events: int | None, ended_before: float | None) -> None:
        self._session = session
        self._owners = {seq: run for run in session.runs.values() for seq in run.seqs}
        self._floor = -1 if keep_events is None else len(session.events) - keep_events
        self._ended_before = float("-inf") if ended_before is None else ended_before
        self._pinned = {self._owners[seq].record.uid for seq in session.pins()}
        self._oldest_kept = 0
        if keep_events is not None:
            kept = next((seq for seq in sorted(self._owners) if seq > self._floor), None)
            newest = max(session.runs, default=0)
            self._oldest_kept = newest + 1 if kept is None else self._owners[kept].record.uid

    def candidates(self) -> Iterator[Candidate]:
        for run in self._session.runs.values():
            found = self._checked(run)
            if found is not None:
                yield found

    def candidate(self, run_uid: int) -> Candidate | None:
        return self._checked(self._session.runs[run_uid])

    def partners(self, run_uid: int) -> Iterable[int]:
        for seq in self._session.runs[run_uid].seqs:
            for other in self._session.linked(seq):
                yield self._owners[other].record.uid

    def _checked(self, run: StoredRun) -> Candidate | None:
        record = run.record
        if record.finished_at is None or record.trimmed or record.uid in self._pinned:
            return None
        aged = record.finished_at < self._ended_before
        old = max(run.seqs) <= self._floor if run.seqs else record.uid < self._oldest_kept
        return Candidate(record.uid, len(run.seqs)) if aged or old else None


def size_of(session: StoredSession) -> SessionSize:
    """How much a session takes up: the bytes of its parts as JSON."""
    events = [event for event in session.events if event is not GONE]
    texts = [event.to_json() for event in events]
    for run in session.runs.values():
        texts += [run.record.message.to_json(), *(_json(step.result) for step in run.steps.values())]
        texts += [_json([i.prompt, i.schema, i.answer]) for i in run.interrupts.values()]
    texts += [_json([name, value]) for name, value in session.state.items()]
    count = sum(len(text.encode()) for text in texts)
    return SessionSize(session.key, session.uid, len(events), len(session.runs), count, session.created_at, session.updated_at)


def _json(value: Any) -> str:
    return jsonvalue.encode(value)

"""What other processes do to the runs that this one executes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from sojourn.run.status import RunStatus
from sojourn.run.store import Change
from sojourn.run.types import RunRecord
from sojourn.store.postgres import records
from sojourn.store.postgres.connection import Record, Tables

_Kind = Literal["cancel", "queued", "closed"]

_ACTIVE = """
    SELECT uid, id, status, cancel_requested IS NOT NULL FROM {schema}.runs
    WHERE finished_at IS NULL AND status IN ('queued', 'running')
"""


class Watch:
    """Compares the runs as they are stored with what this process did to them.

    What this process writes while a look is under way may or may not be seen by it: the runs that are touched meanwhile are
    left to the next look.
    """

    def __init__(self) -> None:
        self.started = False
        # What the executor has been told, or has done itself.
        self._queued: set[int] = set()
        self._running: set[int] = set()
        self._cancelled: set[int] = set()
        # By a write that is under way, and by those that ended since the look under way began.
        self._writing: dict[int, int] = {}
        self._submitting: dict[str, int] = {}
        self._touched: set[int] = set()
        self._submitted: set[str] = set()

    @contextmanager
    def writing(self, uid: int) -> Iterator[None]:
        """While this process writes to a run."""
        self._writing[uid] = self._writing.get(uid, 0) + 1
        try:
            yield
        finally:
            self._touched.add(uid)
            _less(self._writing, uid)

    @contextmanager
    def submitting(self, run_id: str) -> Iterator[None]:
        """While this process records a run."""
        self._submitting[run_id] = self._submitting.get(run_id, 0) + 1
        try:
            yield
        finally:
            self._submitted.add(run_id)
            _less(self._submitting, run_id)

    async def start(self, db: Tables) -> None:
        """Takes what is queued as known: the executor asks for the runs that are unfinished when it starts."""
        if not self.started:
            self._queued |= {uid for uid, _, status, _ in await db.all(_ACTIVE) if status == "queued"}
            self.started = True

    async def look(self, db: Tables) -> list[Change]:
        """What others did since the last look."""
        self._touched.clear()
        self._submitted.clear()
        rows = await db.all(_ACTIVE)
        found = self._compare(rows)
        uids = [uid for _, some in found for uid in some]
        stored = await records.get_all(db, uids) if uids else {}
        # From here on nothing is waited for: all of it is told and noted, but for what was touched while we waited.
        found = self._compare(rows)
        ours = self._touched | self._writing.keys()
        queued = {uid for uid, _, status, _ in rows if status == "queued"}
        running = {uid for uid, _, status, _ in rows if status == "running"}
        cancelled = {uid for uid, _, _, cancel in rows if cancel} & running
        unknown = {uid for uid, run_id, _, _ in rows if run_id in self._submitted or run_id in self._submitting}
        self._queued = (queued - ours - unknown) | (self._queued & (ours | unknown))
        self._running &= running | ours
        self._cancelled = (cancelled - ours) | (self._cancelled & ours)
        return [Change(kind, uid, stored.get(uid)) for kind, some in found for uid in sorted(some)]

    def _compare(self, rows: Sequence[Record]) -> list[tuple[_Kind, set[int]]]:
        ours = self._touched | self._writing.keys()
        new = self._submitted | self._submitting.keys()
        seen = [(uid, status, cancel) for uid, run_id, status, cancel in rows if uid not in ours and run_id not in new]
        queued = {uid for uid, status, _ in seen if status == "queued"}
        cancelled = {uid for uid, status, cancel in seen if cancel and status == "running"}
        running = {uid for uid, _, status, _ in rows if status == "running"}
        return [
            ("queued", queued - self._queued),
            ("cancel", cancelled - self._cancelled),
            ("closed", self._running - running - ours),
        ]

    def saw(self, record: RunRecord) -> None:
        """Notes a run as a call of this process left it."""
        if not self.started:
            return
        uid = record.uid
        if record.status is RunStatus.RUNNING:
            self._queued.discard(uid)
            self._running.add(uid)
            return
        self.forget((uid,))
        if record.status is RunStatus.QUEUED:
            self._queued.add(uid)

    def asked(self, record: RunRecord) -> None:
        """Notes a run that this process asked to cancel."""
        if record.status is not RunStatus.RUNNING:
            self.saw(record)
        elif self.started:
            self._cancelled.add(record.uid)

    def listed(self, found: list[RunRecord]) -> None:
        """Notes runs that the executor was given as unfinished."""
        if self.started:
            self._queued.update(r.uid for r in found if r.status is RunStatus.QUEUED)

    def forget(self, uids: Iterable[int]) -> None:
        """Notes runs that this process deleted."""
        for uid in uids:
            self._queued.discard(uid)
            self._running.discard(uid)
            self._cancelled.discard(uid)
            self._touched.add(uid)


def _less(counts: dict[int, int] | dict[str, int], key: int | str) -> None:
    counts[key] -= 1  # type: ignore[index]
    if not counts[key]:  # type: ignore[index]
        del counts[key]  # type: ignore[arg-type]

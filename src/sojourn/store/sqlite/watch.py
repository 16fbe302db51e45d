"""What other processes do to the runs that this one executes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Set
from typing import Literal, NamedTuple

from sojourn.run.status import RunStatus
from sojourn.run.store import Change
from sojourn.run.types import RunRecord
from sojourn.store.rows import RUN, RUNS, record_of

_ACTIVE = """
    SELECT uid, status, cancel_requested IS NOT NULL FROM runs INDEXED BY runs_unfinished
    WHERE finished_at IS NULL AND status IN ('queued', 'running')
"""


class Seen(NamedTuple):
    """What a look at the database found.

    Attributes:
        version: Of the database.
        changes: What is to be told.
        queued: The runs that are queued; None if nobody else has written since the last look.
        running: The runs that are running.
        cancelled: Those of them that are to be cancelled.
    """

    version: int
    changes: list[Change]
    queued: set[int] | None = None
    running: Set[int] = frozenset()
    cancelled: Set[int] = frozenset()


class Watch:
    """Compares the runs as they are stored with what this process did to them.

    All of it happens in the writer's thread, on the writer's connection: `PRAGMA data_version` changes there only by what
    others commit, so that a look costs next to nothing as long as nobody else writes.
    """

    def __init__(self) -> None:
        self._version: int | None = None
        # What the executor has been told, or has done itself.
        self._queued: set[int] = set()
        self._running: set[int] = set()
        self._cancelled: set[int] = set()

    @property
    def started(self) -> bool:
        """Whether there is something to compare with."""
        return self._version is not None

    def start(self, conn: sqlite3.Connection) -> Seen:
        """Takes what is queued as known: the executor asks for the runs that are unfinished when it starts."""
        return Seen(_version(conn), [], {uid for uid, status, _ in conn.execute(_ACTIVE).fetchall() if status == "queued"})

    def look(self, conn: sqlite3.Connection) -> Seen:
        """What others did since the last look."""
        version = _version(conn)
        if version == self._version:
            return Seen(version, [])
        rows = conn.execute(_ACTIVE).fetchall()
        queued = {uid for uid, status, _ in rows if status == "queued"}
        running = {uid for uid, status, _ in rows if status == "running"}
        cancelled = {uid for uid, _, cancel in rows if cancel} & running
        found: list[tuple[Literal["cancel", "queued", "closed"], Set[int]]] = [
            ("queued", queued - self._queued),
            ("cancel", cancelled - self._cancelled),
            ("closed", self._running - running),
        ]
        changes = [Change(kind, uid, _record(conn, uid)) for kind, uids in found for uid in sorted(uids)]
        return Seen(version, changes, queued, running, cancelled)

    def told(self, seen: Seen) -> None:
        """Notes that the executor is told what a look found."""
        self._version = seen.version
        if seen.queued is not None:
            self._queued = seen.queued
            self._running &= seen.running
            self._cancelled = set(seen.cancelled)

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

    def listed(self, records: list[RunRecord]) -> None:
        """Notes runs that the executor was given as unfinished."""
        if self.started:
            self._queued.update(r.uid for r in records if r.status is RunStatus.QUEUED)

    def forget(self, uids: Iterable[int]) -> None:
        """Notes runs that this process deleted."""
        for uid in uids:
            self._queued.discard(uid)
            self._running.discard(uid)
            self._cancelled.discard(uid)


def _version(conn: sqlite3.Connection) -> int:
    (version,) = conn.execute("PRAGMA data_version").fetchone()
    return int(version)


def _record(conn: sqlite3.Connection, uid: int) -> RunRecord | None:
    row = conn.execute(f"SELECT {RUN} FROM {RUNS} WHERE r.uid = ?", (uid,)).fetchone()
    return None if row is None else record_of(row)

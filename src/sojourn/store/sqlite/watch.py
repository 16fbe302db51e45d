"""What other processes do to the runs that this one executes."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from sojourn.run.status import RunStatus
from sojourn.run.store import Change
from sojourn.run.types import RunRecord
from sojourn.store.sqlite.rows import RUN, RUNS, record_of

_ACTIVE = """
    SELECT uid, status, cancel_requested IS NOT NULL FROM runs INDEXED BY runs_unfinished
    WHERE finished_at IS NULL AND status IN ('queued', 'running')
"""


class Seen(NamedTuple):
    """What a look at the database found: its version, and what is to be told."""

    version: int
    changes: list[Change]


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

    def start(self, conn: sqlite3.Connection) -> Seen:
        """Takes what is stored as known: the executor asks for the runs that are unfinished when it starts."""
        queued = (uid for uid, status, _ in conn.execute(_ACTIVE).fetchall() if status == "queued")
        self._queued.update(queued)
        return Seen(_version(conn), [])

    def look(self, conn: sqlite3.Connection) -> Seen:
        """What others did since the last look."""
        version = _version(conn)
        if version == self._version:
            return Seen(version, [])
        changes: list[Change] = []
        running = set()
        for uid, status, cancel in conn.execute(_ACTIVE).fetchall():
            if status == "queued":
                if uid not in self._queued:
                    changes.append(Change("queued", uid, _record(conn, uid)))
            else:
                running.add(uid)
                if cancel and uid not in self._cancelled:
                    changes.append(Change("cancel", uid, _record(conn, uid)))
        changes.extend(Change("closed", uid, _record(conn, uid)) for uid in sorted(self._running - running))
        return Seen(version, changes)

    def told(self, seen: Seen) -> None:
        """Notes that the executor is told what a look found."""
        self._version = seen.version
        for change in seen.changes:
            if change.kind == "queued":
                self._queued.add(change.run_uid)
            elif change.kind == "cancel":
                self._cancelled.add(change.run_uid)
            else:
                self._forget(change.run_uid)

    def saw(self, record: RunRecord) -> None:
        """Notes a run as a call of this process left it."""
        uid = record.uid
        if record.status is RunStatus.RUNNING:
            self._queued.discard(uid)
            self._running.add(uid)
            return
        self._forget(uid)
        if record.status is RunStatus.QUEUED:
            self._queued.add(uid)

    def asked(self, record: RunRecord) -> None:
        """Notes a run that this process asked to cancel."""
        if record.status is RunStatus.RUNNING:
            self._cancelled.add(record.uid)
        else:
            self.saw(record)

    def listed(self, records: list[RunRecord]) -> None:
        """Notes runs that the executor was given as unfinished."""
        self._queued.update(r.uid for r in records if r.status is RunStatus.QUEUED)

    def _forget(self, uid: int) -> None:
        self._queued.discard(uid)
        self._running.discard(uid)
        self._cancelled.discard(uid)


def _version(conn: sqlite3.Connection) -> int:
    (version,) = conn.execute("PRAGMA data_version").fetchone()
    return int(version)


def _record(conn: sqlite3.Connection, uid: int) -> RunRecord | None:
    row = conn.execute(f"SELECT {RUN} FROM {RUNS} WHERE r.uid = ?", (uid,)).fetchone()
    return None if row is None else record_of(row)

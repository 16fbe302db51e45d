"""What other processes do to the runs that this one executes."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from sojourn.run.store import Change
from sojourn.run.types import RunRecord
from sojourn.store.rows import RUN, RUNS, record_of
from sojourn.store.watching import Active, Watching

_ACTIVE = """
    SELECT uid, status, attempt, cancel_requested IS NOT NULL FROM runs INDEXED BY runs_unfinished
    WHERE finished_at IS NULL AND status IN ('queued', 'running')
"""


class Seen(NamedTuple):
    """What a look at the database found.

    Attributes:
        version: Of the database.
        changes: What is to be told.
        stored: The runs that are queued or running; None if nobody else has written since the last look.
    """

    version: int
    changes: list[Change]
    stored: Active | None = None


class Watch(Watching):
    """Compares the runs as they are stored with what this process did to them.

    All of it happens in the writer's thread, on the writer's connection: `PRAGMA data_version` changes there only by what
    others commit, so that a look costs next to nothing as long as nobody else writes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._version: int | None = None

    def first(self, conn: sqlite3.Connection) -> Seen:
        """What there is to compare with later."""
        return Seen(_version(conn), [], Active.of(conn.execute(_ACTIVE).fetchall()))

    def start(self, seen: Seen) -> None:
        """Takes what a first look found as known."""
        self._version = seen.version
        if seen.stored is not None:
            self.start_with(seen.stored)

    def look(self, conn: sqlite3.Connection) -> Seen:
        """What others did since the last look."""
        version = _version(conn)
        if version == self._version:
            return Seen(version, [])
        stored = Active.of(conn.execute(_ACTIVE).fetchall())
        changes = [Change(kind, uid, _record(conn, uid)) for kind, uids in self.news(stored) for uid in uids]
        return Seen(version, changes, stored)

    def note(self, seen: Seen) -> None:
        """Notes that the executor is told what a look found."""
        self._version = seen.version
        if seen.stored is not None:
            self.told(seen.stored)


def _version(conn: sqlite3.Connection) -> int:
    (version,) = conn.execute("PRAGMA data_version").fetchone()
    return int(version)


def _record(conn: sqlite3.Connection, uid: int) -> RunRecord | None:
    row = conn.execute(f"SELECT {RUN} FROM {RUNS} WHERE r.uid = ?", (uid,)).fetchone()
    return None if row is None else record_of(row)

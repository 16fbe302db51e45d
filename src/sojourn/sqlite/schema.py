"""How a database file gets from one version of its tables to the next."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sojourn.errors import Unsupported
from sojourn.sqlite.faults import BUSY_TIMEOUT, is_busy

APPLICATION_ID = 0x536F6A72
"""Marks a database file as ours (`PRAGMA application_id`): "Sojr"."""

_POLL = 0.01


class Migration(NamedTuple):
    """One step from the version before to `version`."""

    version: int
    why: str
    statements: tuple[str, ...]


class Schema:
    """The tables of one service. Several services may have theirs in the same file, each with a version of its own.

    Args:
        migrations: All steps, oldest first.
        version: Reads the version from a file that is ours; 0 if none of the tables is there.
        set_version: Writes it, in the transaction of the steps.
    """

    def __init__(
        self,
        migrations: Sequence[Migration],
        version: Callable[[sqlite3.Connection], int],
        set_version: Callable[[sqlite3.Connection, int], None],
    ) -> None:
        self._migrations = migrations
        self._read_version = version
        self._set_version = set_version

    def prepare(self, conn: sqlite3.Connection, path: str) -> None:
        """Makes sure that a database file is ours and has the newest tables; creates them in an empty file.

        Any number of processes may do so at once.

        Args:
            conn: A connection in autocommit mode.
            path: The file, for messages.

        Raises:
            Unsupported: `store.foreign` if the file belongs to another program; `store.schema_newer` if a newer version of
                Sojourn wrote it.
        """
        conn.execute("BEGIN")
        try:
            version = self._version(conn, path)
        finally:
            conn.execute("COMMIT")
        _use_wal(conn)
        if version < self._migrations[-1].version:
            self._migrate(conn, path)

    def _version(self, conn: sqlite3.Connection, path: str) -> int:
        newest = self._migrations[-1].version
        (application,) = conn.execute("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            if application or version or conn.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
                raise Unsupported(
                    f"{path} is a database of another program; name another file, or an absent one to have it created",
                    code="store.foreign",
                )
            return 0
        version = self._read_version(conn)
        if version > newest:
            raise Unsupported(
                f"database {path} has schema version {version}, this version of Sojourn knows {newest}; "
                "upgrade Sojourn, or use another database",
                code="store.schema_newer",
            )
        return version

    def _migrate(self, conn: sqlite3.Connection, path: str) -> None:
        conn.execute("BEGIN IMMEDIATE")
        try:
            version = self._version(conn, path)
            for step in self._migrations:
                if step.version > version:
                    for statement in step.statements:
                        conn.execute(statement)
            self._set_version(conn, self._migrations[-1].version)
            conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            conn.execute("COMMIT")
        except BaseException:
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise


def _use_wal(conn: sqlite3.Connection) -> None:
    # SQLite does not wait by itself for the lock that a change of the journal mode takes.
    for left in range(int(BUSY_TIMEOUT / _POLL), -1, -1):
        try:
            conn.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or not left:
                raise
            threading.Event().wait(_POLL)
        else:
            return

"""Group commit: the calls that wait share one transaction, and one wait for the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from sojourn.errors import Unavailable
from sojourn.sqlite.worker import Call, Worker, fail


class Writer(Worker):
    """Runs waiting calls together in one transaction, and tells their outcome once that is committed.

    A call does all its checks before its first write, so one that is refused has written nothing, and the others go on.
    If one fails in any other way, the transaction is rolled back and each call gets one of its own: only the culprit fails.
    """

    def _run(self, conn: sqlite3.Connection, calls: Sequence[Call]) -> None:
        writes = [call for call in calls if call.writes]
        if writes:
            try:
                self._check_file()
                self._run_together(conn, writes)
            except BaseException as error:
                fail(writes, error, self._path)
        if len(writes) < len(calls):
            # Only now: they see what was written, and those who note it have done so.
            super()._run(conn, [call for call in calls if not call.writes])

    def _check_file(self) -> None:
        # What is written to a file that nobody finds any more is lost, however durable it is.
        if self._file_there() != self._file:
            raise Unavailable(
                f"database {self._path} was removed or replaced under this process; put it back, or restart the process",
                code="store.gone",
                retryable=False,
            )

    def _run_together(self, conn: sqlite3.Connection, calls: Sequence[Call]) -> None:
        conn.execute("BEGIN IMMEDIATE")
        for call in calls:
            written = conn.total_changes
            try:
                call.error = None
                call.result = call.op(conn)
            except BaseException as error:
                if isinstance(error, sqlite3.Error) or conn.total_changes != written:
                    _rollback(conn)
                    self._run_alone(conn, calls, error)
                    return
                fail([call], error, self._path)
        try:
            conn.execute("COMMIT")
        except BaseException:
            _rollback(conn)
            raise
        for call in calls:
            call.done()

    def _run_alone(self, conn: sqlite3.Connection, calls: Sequence[Call], error: BaseException) -> None:
        if len(calls) == 1:
            raise error
        for call in calls:
            try:
                self._run_together(conn, [call])
            except BaseException as failure:
                fail([call], failure, self._path)


def _rollback(conn: sqlite3.Connection) -> None:
    # SQLite has done so itself after some errors, a full disk among them.
    if conn.in_transaction:
        conn.execute("ROLLBACK")

"""Backups of a SQLite store, while it is in use."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from sojourn.errors import Unsupported
from sojourn.run.store import Store
from sojourn.store.sqlite import backup
from sojourn.store.sqlite.service import SqliteSessionService

T = TypeVar("T")

_AGAIN = 0.05


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was written.

    Attributes:
        path: The file.
        size: Its bytes.
    """

    path: str
    size: int


async def back_up(store: Store, target: str | os.PathLike[str], *, overwrite: bool) -> Backup:
    """See `DataCare.backup`."""
    if not isinstance(store, SqliteSessionService):
        raise unsupported(type(store).__name__)
    path = os.fspath(target)
    size = await _interruptible(lambda watch: backup.back_up(store.path, path, overwrite=overwrite, watch=watch))
    return Backup(path, size)


def unsupported(what: str) -> Unsupported:
    """The error for what is not in a SQLite file."""
    return Unsupported(
        f"backups are for SQLite; {what} is backed up and restored with the tools of its database",
        code="data.backup_unsupported",
    )


async def restore_backup(source: str | os.PathLike[str], database: str | os.PathLike[str]) -> None:
    """Puts what is in a backup in the place of what is in a SQLite database.

    The database has what it had until all of the backup is in it; a crash in between leaves what was there before. Other
    processes may have it open, but none may execute its runs. A database that does not exist is made.

    Args:
        source: A file that `DataCare.backup` wrote.
        database: The database file.

    Raises:
        NotFound: `store.not_found` if there is no such backup.
        Conflict: `store.in_use` if a process executes the runs of the database; the message names its pid.
        Unsupported: `store.foreign` if one of the two is no database of Sojourn's; `store.schema_newer` if a newer version
            wrote the backup.
        Unavailable: `store.corrupt` if one of the two is damaged; `store.unavailable` if it cannot be written.
        InvalidInput: `data.same_file`.
    """
    await _interruptible(lambda watch: backup.restore(os.fspath(source), os.fspath(database), watch=watch))


async def _interruptible(work: Callable[[backup.Watch], T]) -> T:
    """Does something long in a thread. If it is cancelled, SQLite breaks off, and this waits until it has tidied up."""
    working: list[sqlite3.Connection] = []
    future = asyncio.get_running_loop().run_in_executor(None, work, working.append)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future], timeout=None if cancelled is None else _AGAIN)
        except asyncio.CancelledError as error:
            cancelled = error
        if cancelled is not None:
            # Between two statements there is nothing to interrupt: the next one is.
            for conn in working:
                with suppress(sqlite3.Error):
                    conn.interrupt()
    if cancelled is None:
        return future.result()
    # Looked at, so that asyncio does not report the error as never retrieved.
    future.exception()
    raise cancelled

"""Copies of a database file that is in use, and bringing them back."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from sojourn import platform
from sojourn.errors import AlreadyExists, InvalidInput, NotFound, SojournError, Unavailable, Unsupported
from sojourn.newfile import partial_file, put_in_place, remove_partial
from sojourn.sqlite.faults import BUSY_TIMEOUT, fault
from sojourn.sqlite.schema import APPLICATION_ID
from sojourn.store.sqlite.executor import ExecutorRole
from sojourn.store.sqlite.schema import MIGRATIONS

_OWN = ("", "-wal", "-shm", "-journal", ".executor")
"""How the names of the files of a database end."""

Watch = Callable[[sqlite3.Connection], None]
"""Told which connection does the work: who wants it to stop may interrupt that from another thread."""


def back_up(database: str, target: str, *, overwrite: bool = False, watch: Watch | None = None) -> int:
    """Writes a copy of a database as it is at this moment, while others read and write it.

    The copy is a file of its own that needs no other beside it; it has no room for what was removed, and nothing of that. It
    appears under its name whole, checked and on the disk, or not at all.

    Args:
        database: The file.
        target: The copy. Its directory must exist.
        overwrite: Whether to replace a file of that name.
        watch: Told of the connection.

    Returns:
        The size of the copy in bytes.

    Raises:
        NotFound: `store.not_found` if there is no database.
        AlreadyExists: `data.target_exists`.
        Unsupported: `store.foreign`, `store.schema_newer`.
        Unavailable: It could not be written; `store.corrupt` if the database is damaged.
    """
    if not os.path.exists(database):
        raise NotFound(f"there is no database {database!r}", code="store.not_found")
    _check_target(target, database, overwrite)
    with _faults(database, target), partial_file(target) as partial:
        with closing(_opened(database)) as source:
            if watch is not None:
                watch(source)
            _check(source, database)
            source.execute("VACUUM INTO ?", (partial,))
        _check_copy(partial, database)
        os.chmod(partial, os.stat(database).st_mode & 0o777)
        size = os.stat(partial).st_size
        try:
            put_in_place(partial, target, overwrite=overwrite)
        except FileExistsError:
            raise _target_exists(target) from None
    return size


def restore(backup: str, database: str, *, watch: Watch | None = None) -> None:
    """Puts what is in a copy in the place of what is in a database, or makes a database of it.

    The database has what it had until all of the copy is in it, and all of that from then on, also for other processes that
    have it open; a crash in between leaves what was there before. Nobody may execute its runs meanwhile.

    Args:
        backup: What `back_up` wrote.
        database: The file to restore; made if there is none.
        watch: Told of the connection.

    Raises:
        NotFound: `store.not_found` if there is no such copy.
        Unsupported: `store.foreign` if the copy, or what is at `database`, is no database of Sojourn's; `store.schema_newer`.
        Unavailable: `store.corrupt` if the copy is damaged; if the database is, it says what to move away.
        Conflict: `store.in_use` if a process executes the runs of the database.
    """
    if not os.path.exists(backup):
        raise NotFound(f"there is no backup {backup!r}", code="store.not_found")
    if os.path.exists(database) and os.path.samefile(backup, database):
        raise InvalidInput(f"{backup!r} is the database itself; name a backup of it", code="data.same_file")
    role = ExecutorRole(os.path.realpath(database))
    role.claim()
    try:
        with _faults(backup, database), closing(_opened(backup)) as source:
            _check(source, backup)
            _check_whole(source, backup)
            if watch is not None:
                watch(source)
            if os.path.exists(database) and os.stat(database).st_size:
                remove_partial(os.path.realpath(database))
                _replace_content(source, os.path.realpath(database))
            else:
                _make(source, os.path.realpath(database))
    finally:
        role.release()


# -- parts ------------------------------------------------------------------------------------------------------------


def _opened(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)


def _check_target(target: str, database: str, overwrite: bool) -> None:
    """Refuses to replace what is not to be replaced: least of all the database, and what belongs to it."""
    own = {os.path.realpath(f"{os.path.realpath(database)}{ending}") for ending in _OWN}
    if os.path.realpath(target) in own or (os.path.lexists(target) and not (overwrite and os.path.isfile(target))):
        raise _target_exists(target)


def _target_exists(target: str) -> AlreadyExists:
    return AlreadyExists(f"{target!r} exists; name another file, or have a file replaced", code="data.target_exists")


def _check(conn: sqlite3.Connection, path: str) -> None:
    """Refuses what is no database of ours, or one of a newer version."""
    (application,) = conn.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise Unsupported(f"{path} is no database of Sojourn's; name another file", code="store.foreign")
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    if version > MIGRATIONS[-1].version:
        raise Unsupported(
            f"{path} has schema version {version}, this version of Sojourn knows {MIGRATIONS[-1].version}; upgrade Sojourn",
            code="store.schema_newer",
        )


def _check_whole(conn: sqlite3.Connection, path: str) -> None:
    (found,) = conn.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise _damaged(path, found)


def _damaged(path: str, found: str) -> SojournError:
    return Unavailable(f"{path} is damaged ({found}); use another backup", code="store.corrupt", retryable=False)


def _check_copy(partial: str, database: str) -> None:
    with closing(_opened(partial)) as copy:
        _check(copy, database)
        _check_whole(copy, database)


def _replace_content(source: sqlite3.Connection, database: str) -> None:
    """Overwrites a database in one transaction of it."""
    try:
        target = sqlite3.connect(database, timeout=BUSY_TIMEOUT, isolation_level=None)
        with closing(target):
            _check(target, database)
            target.execute("PRAGMA synchronous = FULL")
            _copy(source, target, database)
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (sqlite3.Error, Unsupported) as error:
        if isinstance(error, sqlite3.Error) and not _is_damage(error):
            raise
        raise Unavailable(
            f"{database} cannot be overwritten ({error}); move it away, with {database}-wal and {database}-shm if they are "
            "there, and restore again",
            code=error.code if isinstance(error, Unsupported) else "store.corrupt",
            retryable=False,
        ) from error


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, database: str) -> None:
    # In one step: what is between two steps, others could write over.
    deadline = platform.monotonic() + BUSY_TIMEOUT

    def progress(status: int, remaining: int, total: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and platform.monotonic() > deadline:
            raise Unavailable(
                f"{database} has been locked by another process for more than {BUSY_TIMEOUT:g} s; end that, and restore again"
            )

    source.backup(target, pages=-1, progress=progress, sleep=0.05)


def _make(source: sqlite3.Connection, database: str) -> None:
    """Makes a database where none is."""
    for log in (f"{database}-wal", f"{database}-journal"):
        if os.path.exists(log):
            raise Unavailable(
                f"there is {log} without {database}, which would be taken for a part of what is restored; move it away",
                code="store.corrupt",
                retryable=False,
            )
    with partial_file(database) as partial:
        with closing(sqlite3.connect(partial, isolation_level=None)) as target:
            _copy(source, target, database)
        put_in_place(partial, database, overwrite=True)


@contextmanager
def _faults(*paths: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise fault(error, " or ".join(paths)) from error

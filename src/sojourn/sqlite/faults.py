"""What SQLite's errors mean to a caller."""

from __future__ import annotations

import sqlite3

from sojourn.errors import InvalidInput, SojournError, Unavailable, Unsupported

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process that holds a lock of the database."""

_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_LOCKED = f"has been locked by another process for more than {BUSY_TIMEOUT:g} s; find out what holds it, or try again"
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; its directory must exist and be writable by this user",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full or a size limit is reached; make room and try again",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk or file system failed; check it and try again",
    sqlite3.SQLITE_PERM: "cannot be written: permission denied; the file and its directory must be writable by this user",
    sqlite3.SQLITE_READONLY: "cannot be written: it is read-only; the file and its directory must be writable by this user",
}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds the lock."""
    return _primary_code(error) in _BUSY


Driven = sqlite3.Error | OSError | OverflowError | UnicodeEncodeError
"""What SQLite, its driver and the operating system raise."""


def fault(error: Driven, path: str) -> SojournError:
    """The error to raise in place of a driver's; the driver's is its `__cause__`.

    Args:
        error: What SQLite or the operating system said.
        path: The database file.
    """
    result = _fault(error, path)
    result.__cause__ = error
    return result


def _fault(error: Driven, path: str) -> SojournError:
    if isinstance(error, OverflowError):
        return InvalidInput("a number is beyond what a column of 64 bits holds", code="store.too_big")
    if isinstance(error, UnicodeEncodeError):
        return InvalidInput("a name holds a lone surrogate, which is not text", code="id.invalid")
    if isinstance(error, OSError):
        return Unavailable(f"{path} cannot be used: {error.strerror or error}; check the file and its directory")
    code = _primary_code(error)
    if code == sqlite3.SQLITE_NOTADB:
        return Unsupported(f"{path} is not a SQLite database; name another file", code="store.foreign")
    if code == sqlite3.SQLITE_CORRUPT:
        return Unavailable(
            f"database {path} is damaged ({error}); restore it from a backup", code="store.corrupt", retryable=False
        )
    if code == sqlite3.SQLITE_TOOBIG:
        return InvalidInput(f"a value is too large for database {path}", code="store.too_big")
    return Unavailable(f"database {path} {_UNAVAILABLE.get(code, f'failed: {error}')}")


def _primary_code(error: sqlite3.Error) -> int:
    # Errors that the driver itself raises have no code.
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF

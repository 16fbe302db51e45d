"""Opening a database file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Literal

from sojourn.sqlite.faults import BUSY_TIMEOUT

Synchronous = Literal["full", "normal"]

CACHE_KIB = 16_384
"""Page cache of one connection."""

CHECKPOINT_PAGES = 4_000
"""Pages in the write-ahead log after which a commit copies them into the database file (16 MB)."""


def connect(
    path: str,
    prepare: Callable[[sqlite3.Connection, str], None],
    *,
    synchronous: Synchronous = "full",
    read_only: bool = False,
) -> sqlite3.Connection:
    """Opens a database file, in autocommit mode, and brings its tables up to date.

    Args:
        path: The file; it is created if missing, its directory is not.
        prepare: Brings the tables up to date.
        synchronous: When a commit counts as done: `full` once the disk has it, `normal` once the operating system has.
        read_only: Whether to refuse writes through this connection.
    """
    conn = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, cached_statements=256)
    try:
        prepare(conn, path)
        conn.execute(f"PRAGMA synchronous = {synchronous}")
        # Only macOS knows these: there a plain fsync leaves data in the drive's cache.
        conn.execute(f"PRAGMA fullfsync = {int(synchronous == 'full')}")
        conn.execute(f"PRAGMA checkpoint_fullfsync = {int(synchronous == 'full')}")
        conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        conn.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        if read_only:
            conn.execute("PRAGMA query_only = 1")
    except BaseException:
        conn.close()
        raise
    return conn

"""Leaving nothing in a file of what was removed from its tables."""

from __future__ import annotations

import sqlite3


def scrub(conn: sqlite3.Connection) -> bool:
    """Rewrites the file and empties the write-ahead log; whether nobody who reads from before kept it from that.

    Outside of a transaction: the one that is open is ended first.
    """
    if conn.in_transaction:
        conn.execute("COMMIT")
    # What is overwritten in a page, or moved to another one, leaves traces in the first.
    conn.execute("VACUUM")
    (busy, _, _) = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy

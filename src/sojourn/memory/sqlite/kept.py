"""What of a user is kept in RAM, or read from the file if that has changed: how long the entries are, and their vectors."""

from __future__ import annotations

import sqlite3

from sojourn.memory.kept import ENTRY_BYTES, Kept, Vectors
from sojourn.memory.sqlite.rows import Scope


class Lengths:
    """How many words each entry of one user has."""

    def __init__(self, conn: sqlite3.Connection, scope: Scope) -> None:
        self.changes = scope.changes
        self.by_key: dict[int, int] = dict(_lengths(conn, scope.number))
        self.size = len(self.by_key) * ENTRY_BYTES


KeptUsers = Kept[int, Lengths | Vectors]
"""By the numbers of the users."""


def lengths_of(conn: sqlite3.Connection, kept: KeptUsers, scope: Scope) -> Lengths:
    """The lengths of a user's entries, as the connection's transaction sees them."""
    found = kept.get(scope.number)
    if not isinstance(found, Lengths) or found.changes != scope.changes:
        found = Lengths(conn, scope)
        kept.keep(scope.number, found)
    return found


def read_vectors(conn: sqlite3.Connection, kept: KeptUsers, scope: Scope, model: int, dimensions: int) -> Vectors:
    """The vectors of a user's entries, as the connection's transaction sees them."""
    found = kept.get(scope.number)
    before = found if isinstance(found, Vectors) else None
    if before is not None and before.changes == scope.changes and before.model == model:
        return before
    read = _read(conn, scope, model, dimensions, before)
    kept.keep(scope.number, read)
    return read


def _read(conn: sqlite3.Connection, scope: Scope, model: int, dimensions: int, before: Vectors | None) -> Vectors:
    """The vectors of a user; of the file, only those are read that were not read before."""
    import numpy as np

    rows = np.array(_lengths(conn, scope.number), dtype=np.int64).reshape(-1, 2)
    keys, lengths = np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1])
    vectors = Vectors(scope.changes, model, dimensions, keys, lengths, before)
    stored = conn.execute(
        "SELECT key FROM memory_vectors WHERE scope = ? AND model = ? ORDER BY key", (scope.number, model)
    ).fetchall()
    missing = vectors.missing(np.array(stored, dtype=np.int64).reshape(-1))
    if not len(missing):
        return vectors
    found = conn.execute(
        "SELECT key, vector FROM memory_vectors WHERE scope = ? AND model = ? AND key >= ? AND length(vector) = ?"
        if len(missing) * 4 > len(stored)
        else f"SELECT key, vector FROM memory_vectors WHERE scope = ? AND model = ? AND key >= ? AND length(vector) = ? "
        f"AND key IN ({','.join(str(key) for key in missing)})",
        (scope.number, model, int(missing[0]), 4 * dimensions),
    )
    while some := found.fetchmany(1024):
        matrix = np.frombuffer(b"".join(vector for _, vector in some), dtype="<f4").reshape(-1, dimensions)
        vectors.put(np.array([key for key, _ in some], dtype=np.int64), matrix)
    return vectors


def _lengths(conn: sqlite3.Connection, scope: int) -> list[tuple[int, int]]:
    return conn.execute("SELECT key, length FROM memory_entries WHERE scope = ? ORDER BY key", (scope,)).fetchall()

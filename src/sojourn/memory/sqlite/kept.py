"""What is kept in RAM of users whose memory is searched: how long their entries are, and their vectors."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict

from sojourn.memory.sqlite.rows import Scope

MAX_KEPT = 256 * 2**20
"""Bytes, about: users beyond, least recently searched first, are read from the file again."""

_ENTRY_BYTES = 100


class Lengths:
    """How many words each entry of one user has."""

    def __init__(self, conn: sqlite3.Connection, scope: Scope) -> None:
        self.changes = scope.changes
        self.by_key: dict[int, int] = dict(_lengths(conn, scope.number))
        self.size = len(self.by_key) * _ENTRY_BYTES


class Vectors:
    """The vectors of one user's entries, in the order of the entries' keys; zeros where there is none.

    Attributes:
        keys: The keys of all entries, rising.
        lengths: How many words each has.
        matrix: A row for each.
    """

    def __init__(
        self, conn: sqlite3.Connection, scope: Scope, model: int, dimensions: int, before: Vectors | None = None
    ) -> None:
        import numpy as np

        self.changes = scope.changes
        self.model = model
        rows = np.array(_lengths(conn, scope.number), dtype=np.int64).reshape(-1, 2)
        self.keys = np.ascontiguousarray(rows[:, 0])
        self.lengths = np.ascontiguousarray(rows[:, 1])
        self.matrix = np.zeros((len(self.keys), dimensions), dtype=np.float32)
        self._has = np.zeros(len(self.keys), dtype=bool)
        if before is not None and before.model == model:
            _, here, there = np.intersect1d(self.keys, before.keys[before._has], assume_unique=True, return_indices=True)
            self.matrix[here] = before.matrix[before._has][there]
            self._has[here] = True
        self._read(conn, scope.number, dimensions)
        self.size = self.matrix.nbytes + len(self.keys) * _ENTRY_BYTES

    def _read(self, conn: sqlite3.Connection, scope: int, dimensions: int) -> None:
        """Reads what was not kept."""
        import numpy as np

        stored = conn.execute(
            "SELECT key FROM memory_vectors WHERE scope = ? AND model = ? ORDER BY key", (scope, self.model)
        ).fetchall()
        places = np.searchsorted(self.keys, np.array(stored, dtype=np.int64).reshape(-1))
        missing = places[~self._has[places]]
        if not len(missing):
            return
        rows = conn.execute(
            "SELECT key, vector FROM memory_vectors WHERE scope = ? AND model = ? AND key >= ? AND length(vector) = ?"
            if len(missing) * 4 > len(stored)
            else f"SELECT key, vector FROM memory_vectors WHERE scope = ? AND model = ? AND key >= ? AND length(vector) = ? "
            f"AND key IN ({','.join(str(key) for key in self.keys[missing])})",
            (scope, self.model, int(self.keys[missing[0]]), 4 * dimensions),
        )
        while some := rows.fetchmany(1024):
            at = np.searchsorted(self.keys, np.array([key for key, _ in some], dtype=np.int64))
            self.matrix[at] = np.frombuffer(b"".join(vector for _, vector in some), dtype="<f4").reshape(-1, dimensions)
            self._has[at] = True


def _lengths(conn: sqlite3.Connection, scope: int) -> list[tuple[int, int]]:
    return conn.execute("SELECT key, length FROM memory_entries WHERE scope = ? ORDER BY key", (scope,)).fetchall()


class Kept:
    """Keeps what was read of users, for as long as it is what the file has, and for as many as there is room for.

    It belongs to the one thread that reads.
    """

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max = max_kept
        self._size = 0
        self._of: OrderedDict[int, Lengths | Vectors] = OrderedDict()

    def lengths(self, conn: sqlite3.Connection, scope: Scope) -> Lengths:
        """The lengths of a user's entries, as the connection's transaction sees them."""
        found = self._of.get(scope.number)
        if not isinstance(found, Lengths) or found.changes != scope.changes:
            found = Lengths(conn, scope)
        self._keep(scope.number, found)
        return found

    def vectors(self, conn: sqlite3.Connection, scope: Scope, model: int, dimensions: int) -> Vectors:
        """The vectors of a user's entries, as the connection's transaction sees them."""
        found = self._of.get(scope.number)
        before = found if isinstance(found, Vectors) else None
        if before is None or before.changes != scope.changes or before.model != model:
            before = Vectors(conn, scope, model, dimensions, before)
        self._keep(scope.number, before)
        return before

    def _keep(self, number: int, found: Lengths | Vectors) -> None:
        replaced = self._of.pop(number, None)
        self._of[number] = found
        self._size += found.size - (replaced.size if replaced is not None else 0)
        while self._size > self._max and len(self._of) > 1:
            _, dropped = self._of.popitem(last=False)
            self._size -= dropped.size

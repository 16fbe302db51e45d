"""Entries as rows: what is written, listed and forgotten, inside a transaction that somebody else begins and ends."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sojourn.memory.embedder import Embedder, check_dimensions
from sojourn.memory.pending import WINDOW, Pending
from sojourn.memory.rules import marks_of
from sojourn.memory.stored import Owner, Prepared, memory_of
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.memory.words import words_of

Vectors = Mapping[str, bytes]
"""Vectors by the text they are of."""

MAX_WORD = 64
"""Characters; a longer word is kept as its beginning and a hash."""


class Scope(NamedTuple):
    """What is known of all entries of one user."""

    number: int
    entries: int
    length: int
    changes: int


def index_words(text: str) -> list[str]:
    """The words of a text, as the index keeps them."""
    return [word if len(word) <= MAX_WORD else _shortened(word) for word in words_of(text)]


def _shortened(word: str) -> str:
    return f"{word[:16]}{hashlib.sha256(word.encode()).hexdigest()}"


def token(scope: int, word: str) -> str:
    """A word of one user's entries: each user's words are words of their own, so that nobody's are ever looked up."""
    return f"{scope}x{word}"


def scope_of(conn: sqlite3.Connection, owner: Owner) -> Scope | None:
    """What is known of a user's entries; None if there never were any."""
    row = conn.execute(
        "SELECT scope, entries, length, changes FROM memory_scopes WHERE app_name = ? AND user_id = ?", owner
    ).fetchone()
    return None if row is None else Scope(*row)


def model_of(conn: sqlite3.Connection, embedder: Embedder, *, add: bool = False) -> int | None:
    """The number of an embedder's model; None if no vector of it was ever written.

    Args:
        conn: The connection.
        embedder: The embedder.
        add: Whether to give it a number if it has none.

    Raises:
        InvalidInput: `memory.wrong_dimensions` if its vectors had another size before.
    """
    row = conn.execute("SELECT model, dimensions FROM memory_models WHERE name = ?", (embedder.name,)).fetchone()
    if row is not None:
        model, dimensions = row
        check_dimensions(embedder, dimensions)
        return int(model)
    if not add:
        return None
    return conn.execute(
        "INSERT INTO memory_models (name, dimensions) VALUES (?, ?)", (embedder.name, embedder.dimensions)
    ).lastrowid


class Writing:
    """What one transaction changes of one user's entries.

    Args:
        conn: The connection, in a transaction that writes.
        owner: The user.
        model: The model of the vectors that it is given.
        vectors: Vectors of the texts that are written; entries whose text has none are written without.
    """

    def __init__(self, conn: sqlite3.Connection, owner: Owner, model: int | None, vectors: Vectors) -> None:
        self._conn = conn
        self._model = model
        self._vectors = vectors
        self._entries = self._length = 0
        self._changed = False
        self._owner = owner
        scope = scope_of(conn, owner)
        self._scope = None if scope is None else scope.number
        self.without_vector = 0

    def put(self, new: Prepared) -> None:
        """Writes an entry, in place of the one with its id, unless it is there already."""
        scope = self._made_scope()
        there = self._conn.execute(
            "SELECT key, body, from_event FROM memory_entries WHERE scope = ? AND id = ?", (scope, new.entry.id)
        ).fetchone()
        if there is not None and there[1] == new.body:
            key = there[0]
            if bool(there[2]) != new.from_event:
                self._conn.execute("UPDATE memory_entries SET from_event = ? WHERE key = ?", (new.from_event, key))
        else:
            if there is not None:
                self._remove("key = ?", there[0])
            key = self._insert(scope, new)
        if self._model is not None:
            self._put_vector(scope, key, self._vectors.get(new.entry.text))

    def remove_event(self, entry_id: str) -> None:
        """Removes the entry that an event became, if it is there."""
        if self._scope is not None:
            self._remove("scope = ? AND id = ? AND from_event", self._scope, entry_id)

    def keep_of_session(self, session_id: str, ids: Iterable[str]) -> None:
        """Removes the entries that events of a session became, except those with these ids."""
        if self._scope is None:
            return
        kept = set(ids)
        found = self._conn.execute(
            "SELECT key, id FROM memory_entries WHERE scope = ? AND session_id = ? AND from_event", (self._scope, session_id)
        ).fetchall()
        for key, entry_id in found:
            if entry_id not in kept:
                self._remove("key = ?", key)

    def forget(self, session_id: str | None, ids: Sequence[str] | None) -> None:
        """Removes entries; see `MemoryService.forget`."""
        if self._scope is None:
            return
        if ids is not None:
            for entry_id in ids:
                self._remove(
                    "scope = ? AND id = ? AND session_id IS coalesce(?, session_id)", self._scope, entry_id, session_id
                )
        elif session_id is not None:
            self._remove("scope = ? AND session_id = ?", self._scope, session_id)
        else:
            self._remove("scope = ?", self._scope)
            self._conn.execute("DELETE FROM memory_scopes WHERE scope = ?", (self._scope,))
            self._changed = False

    def finish(self) -> None:
        """Counts what has changed."""
        if self._changed:
            self._conn.execute(
                "UPDATE memory_scopes SET entries = entries + ?, length = length + ?, changes = changes + 1 WHERE scope = ?",
                (self._entries, self._length, self._scope),
            )

    def _made_scope(self) -> int:
        if self._scope is None:
            self._scope = self._conn.execute(
                "INSERT INTO memory_scopes (app_name, user_id, entries, length, changes) VALUES (?, ?, 0, 0, 0)", self._owner
            ).lastrowid
        assert self._scope is not None
        return self._scope

    def _insert(self, scope: int, new: Prepared) -> int:
        entry = new.entry
        words = index_words(entry.text)
        row = (
            scope, entry.id, entry.session_id, new.from_event, entry.author, entry.timestamp,
            " ".join(sorted(marks_of(entry.metadata))), " ".join(words), len(words), new.body,
        )  # fmt: skip
        key = self._conn.execute(
            "INSERT INTO memory_entries (scope, id, session_id, from_event, author, timestamp, marks, words, length, body) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        ).lastrowid
        assert key is not None
        self._conn.execute("INSERT INTO memory_words (rowid, words) VALUES (?, ?)", (key, _tokens(scope, words)))
        self._entries += 1
        self._length += len(words)
        self._changed = True
        return key

    def _remove(self, condition: str, *values: object) -> None:
        found = self._conn.execute(f"SELECT key, scope, words, length FROM memory_entries WHERE {condition}", values).fetchall()
        for key, scope, words, length in found:
            self._conn.execute(
                "INSERT INTO memory_words (memory_words, rowid, words) VALUES ('delete', ?, ?)",
                (key, _tokens(scope, words.split())),
            )
            self._conn.execute("DELETE FROM memory_vectors WHERE key = ?", (key,))
            self._conn.execute("DELETE FROM memory_entries WHERE key = ?", (key,))
            self._entries -= 1
            self._length -= length
            self._changed = True

    def _put_vector(self, scope: int, key: int, vector: bytes | None) -> None:
        there = self._conn.execute("SELECT 1 FROM memory_vectors WHERE key = ? AND model = ?", (key, self._model)).fetchone()
        if there is not None:
            return
        if vector is None:
            self.without_vector += 1
            return
        self._conn.execute("REPLACE INTO memory_vectors VALUES (?, ?, ?, ?)", (key, scope, self._model, vector))
        self._changed = True


def _tokens(scope: int, words: Iterable[str]) -> str:
    return " ".join(token(scope, word) for word in words)


def texts_to_embed(conn: sqlite3.Connection, owner: Owner, model: int | None, new: Sequence[Prepared]) -> list[str]:
    """The texts of those entries that are not there yet, or have no vector of the model."""
    scope = scope_of(conn, owner)
    if scope is None or model is None:
        return [one.entry.text for one in new]
    found = []
    for one in new:
        there = conn.execute(
            "SELECT 1 FROM memory_entries e JOIN memory_vectors v ON v.key = e.key AND v.model = ? "
            "WHERE e.scope = ? AND e.id = ? AND e.body = ?",
            (model, scope.number, one.entry.id, one.body),
        ).fetchone()
        if there is None:
            found.append(one.entry.text)
    return found


def pending(conn: sqlite3.Connection, embedder: Embedder, after: int, limit: int) -> Pending:
    """The next entries that have no vector of the embedder, in the order of their keys.

    It looks at a part of the entries only, so that others who wait for the connection get their turn.
    """
    until = after + WINDOW
    rows = conn.execute(
        "SELECT e.key, e.body FROM memory_entries e LEFT JOIN memory_vectors v ON v.key = e.key AND v.model = ? "
        "WHERE e.key > ? AND e.key <= ? AND v.key IS NULL ORDER BY e.key LIMIT ?",
        (model_of(conn, embedder), after, until, limit),
    ).fetchall()
    seen = rows[-1][0] if len(rows) == limit else until
    more = conn.execute("SELECT 1 FROM memory_entries WHERE key > ? LIMIT 1", (seen,)).fetchone()
    return Pending([(key, memory_of(body).text) for key, body in rows], seen if more else None)


def add_vectors(conn: sqlite3.Connection, embedder: Embedder, vectors: Mapping[int, bytes]) -> None:
    """Adds vectors to those of the entries, by their key, that are still there."""
    model = model_of(conn, embedder, add=True)
    scopes = set()
    for key, vector in vectors.items():
        row = conn.execute("SELECT scope FROM memory_entries WHERE key = ?", (key,)).fetchone()
        if row is not None:
            conn.execute("REPLACE INTO memory_vectors VALUES (?, ?, ?, ?)", (key, row[0], model, vector))
            scopes.add(row[0])
    for scope in scopes:
        conn.execute("UPDATE memory_scopes SET changes = changes + 1 WHERE scope = ?", (scope,))


def list_page(conn: sqlite3.Connection, owner: Owner, limit: int, position: tuple[float, str] | None) -> list[Memory]:
    """A user's entries from a position on, newest first, then by id."""
    scope = scope_of(conn, owner)
    if scope is None:
        return []
    condition = "" if position is None else "AND timestamp <= ?1 AND (timestamp < ?1 OR id > ?2)"
    rows = conn.execute(
        f"SELECT body FROM memory_entries WHERE scope = ?3 {condition} ORDER BY timestamp DESC, id LIMIT ?4",
        (*(position or (None, None)), scope.number, limit),
    )
    return [memory_of(body) for (body,) in rows]


def keys_that_meet(conn: sqlite3.Connection, scope: int, filter: MemoryFilter) -> set[int]:
    """The keys of a user's entries that meet a filter."""
    conditions, values = ["scope = ?"], [scope]  # type: tuple[list[str], list[object]]
    for condition, value in _conditions(filter):
        conditions.append(condition)
        values.append(value)
    rows = conn.execute(f"SELECT key FROM memory_entries WHERE {' AND '.join(conditions)}", values)
    return {key for (key,) in rows}


def _conditions(filter: MemoryFilter) -> Iterator[tuple[str, object]]:
    for condition, value in (
        ("author = ?", filter.author),
        ("session_id = ?", filter.session_id),
        ("timestamp >= ?", filter.since),
        ("timestamp < ?", filter.until),
    ):
        if value is not None:
            yield condition, value
    for mark in marks_of(filter.metadata):
        yield "instr(marks, ?)", mark

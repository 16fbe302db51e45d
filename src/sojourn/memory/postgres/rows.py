"""Entries as rows: what is written, listed and forgotten, inside a transaction that somebody else begins and ends."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sojourn.memory.embedder import Embedder, check_dimensions
from sojourn.memory.pending import WINDOW, Pending
from sojourn.memory.rules import marks_of
from sojourn.memory.stored import Owner, Prepared, memory_of
from sojourn.memory.types import Memory
from sojourn.memory.words import words_of
from sojourn.postgres.tables import Tables

Vectors = Mapping[str, str]
"""Vectors, as text, by the text they are of."""


def number_of(word: str) -> int:
    """The number that stands for a word, which may be of any length."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big", signed=True)


def counts_of(text: str) -> Counter[int]:
    """The words of a text, by their numbers, and how often it has each."""
    return Counter(number_of(word) for word in words_of(text))


def author_bytes(author: str | None) -> bytes | None:
    """An author as it is compared: as text it could not hold a NUL."""
    return None if author is None else author.encode()


async def model_of(db: Tables, embedder: Embedder, *, add: bool = False) -> int | None:
    """The number of an embedder's model; None if no vector of it was ever written.

    Args:
        db: The tables.
        embedder: The embedder.
        add: Whether to give it a number if it has none.

    Raises:
        InvalidInput: `memory.wrong_dimensions` if its vectors had another size before.
    """
    row = await db.one("SELECT model, dimensions FROM {schema}.memory_models WHERE name = $1", embedder.name)
    if row is None and add:
        row = await db.one(_ADD_MODEL, embedder.name, embedder.dimensions)
    if row is None:
        return None
    check_dimensions(embedder, row["dimensions"])
    return int(row["model"])


_ADD_MODEL = """
    INSERT INTO {schema}.memory_models (name, dimensions) VALUES ($1, $2)
    ON CONFLICT (name) DO UPDATE SET name = excluded.name
    RETURNING model, dimensions
"""


async def texts_to_embed(db: Tables, owner: Owner, model: int | None, new: Sequence[Prepared]) -> list[str]:
    """The texts of those entries that are not there yet, or have no vector of the model."""
    rows = await db.all(_EMBEDDED, *owner, [one.entry.id for one in new], model) if model is not None else []
    there = {row["id"]: row["body"] for row in rows}
    return [one.entry.text for one in new if there.get(one.entry.id) != one.body]


_EMBEDDED = """
    SELECT e.id, e.body
    FROM {schema}.memory_scopes s
    JOIN {schema}.memory_entries e USING (scope)
    JOIN {schema}.memory_vectors v ON v.scope = s.scope AND v.entry = e.entry AND v.model = $4
    WHERE s.app_name = $1 AND s.user_id = $2 AND e.id = ANY ($3)
"""


class Writing:
    """What one transaction changes of one user's entries, whom it keeps from other writers until it ends.

    Args:
        db: The tables, in a transaction.
        owner: The user.
        model: The model of the vectors that it is given; None without an embedder.
        vectors: Vectors of the texts that are written; entries whose text has none are written without.
    """

    def __init__(self, db: Tables, owner: Owner, model: int | None, vectors: Vectors) -> None:
        self._db = db
        self._owner = owner
        self._model = model
        self._vectors = vectors
        self._scope = 0
        self.without_vector = 0

    async def begin(self) -> None:
        """Waits for other writers of the user."""
        self._scope = await self._db.value(_HOLD, *self._owner)

    async def put(self, new: Sequence[Prepared]) -> None:
        """Writes entries, each in place of the one with its id, unless that is the same. Their ids are distinct."""
        if not new:
            return
        rows = await self._db.all(_THERE, self._scope, [one.entry.id for one in new])
        there = {row["id"]: row for row in rows}
        same = [one for one in new if one.entry.id in there and there[one.entry.id]["body"] == one.body]
        by_id = {one.entry.id: there[one.entry.id]["entry"] for one in same}
        moved = [one for one in same if there[one.entry.id]["from_event"] != one.from_event]
        if moved:
            entries = [by_id[one.entry.id] for one in moved]
            await self._db.run(_MOVE, self._scope, entries, [one.from_event for one in moved])
        await self._remove([row["entry"] for id, row in there.items() if id not in by_id])
        by_id |= await self._insert([one for one in new if one.entry.id not in by_id])
        if self._model is not None:
            await self._put_vectors({by_id[one.entry.id]: one.entry.text for one in new})

    async def remove_events(self, ids: Sequence[str]) -> None:
        """Removes those of these entries that events became."""
        await self._remove(await self._db.column(_OF_EVENTS, self._scope, list(ids)))

    async def keep_of_session(self, session_id: str, ids: Sequence[str]) -> None:
        """Removes the entries that events of a session became, except those with these ids."""
        await self._remove(await self._db.column(_OF_SESSION, self._scope, session_id, list(ids)))

    async def forget(self, session_id: str | None, ids: Sequence[str] | None) -> None:
        """Removes entries; see `MemoryService.forget`."""
        if session_id is None and ids is None:
            for table in ("memory_words", "memory_entries", "memory_scopes"):
                await self._db.run(f"DELETE FROM {{schema}}.{table} WHERE scope = $1", self._scope)
        else:
            named = None if ids is None else list(ids)
            await self._remove(await self._db.column(_CHOSEN, self._scope, session_id, named))

    async def _insert(self, new: Sequence[Prepared]) -> dict[str, int]:
        """Inserts entries, and gives their numbers by their ids."""
        if not new:
            return {}
        counts = [counts_of(one.entry.text) for one in new]
        lengths = [words.total() for words in counts]
        entries = [one.entry for one in new]
        rows = await self._db.all(
            _INSERT,
            self._scope,
            [entry.id for entry in entries],
            [entry.session_id for entry in entries],
            [one.from_event for one in new],
            [author_bytes(entry.author) for entry in entries],
            [entry.timestamp for entry in entries],
            # Arrays within an array would have to have one length.
            [_array(sorted(marks_of(entry.metadata))) for entry in entries],
            [_array(map(str, sorted(words))) for words in counts],
            lengths,
            [one.body for one in new],
        )
        by_id = {row["id"]: row["entry"] for row in rows}
        found: list[tuple[int, int, int, int]] = [
            (word, by_id[entry.id], count, length)
            for entry, words, length in zip(entries, counts, lengths, strict=True)
            for word, count in words.items()
        ]
        await self._db.run(_INSERT_WORDS, self._scope, *_columns(found))
        await self._db.run(_COUNT, self._scope, len(new), sum(lengths))
        return by_id

    async def _remove(self, entries: Sequence[int]) -> None:
        if entries:
            await self._db.run(_REMOVE, self._scope, list(entries))

    async def _put_vectors(self, texts: Mapping[int, str]) -> None:
        with_vector = set(await self._db.column(_WITH_VECTOR, self._scope, list(texts), self._model))
        missing = {entry: self._vectors.get(text) for entry, text in texts.items() if entry not in with_vector}
        found = {entry: vector for entry, vector in missing.items() if vector is not None}
        self.without_vector += len(missing) - len(found)
        if found:
            await self._db.run(_INSERT_VECTORS, self._scope, self._model, list(found), list(found.values()))


def _columns(rows: Sequence[tuple[int, int, int, int]]) -> list[list[int]]:
    return [[row[n] for row in rows] for n in range(4)]


def _array(items: Any) -> str:
    return "{" + ",".join(items) + "}"


_HOLD = """
    INSERT INTO {schema}.memory_scopes AS s (app_name, user_id) VALUES ($1, $2)
    ON CONFLICT (app_name, user_id) DO UPDATE SET changes = s.changes + 1
    RETURNING scope
"""
_THERE = "SELECT id, entry, body, from_event FROM {schema}.memory_entries WHERE scope = $1 AND id = ANY ($2)"
_MOVE = """
    UPDATE {schema}.memory_entries e SET from_event = given.from_event
    FROM unnest($2::bigint[], $3::boolean[]) AS given (entry, from_event)
    WHERE e.scope = $1 AND e.entry = given.entry
"""
_OF_EVENTS = "SELECT entry FROM {schema}.memory_entries WHERE scope = $1 AND id = ANY ($2) AND from_event"
_OF_SESSION = """
    SELECT entry FROM {schema}.memory_entries WHERE scope = $1 AND session_id = $2 AND from_event AND id <> ALL ($3)
"""
_CHOSEN = """
    SELECT entry FROM {schema}.memory_entries
    WHERE scope = $1 AND ($2::text IS NULL OR session_id = $2) AND ($3::text[] IS NULL OR id = ANY ($3))
"""
_INSERT = """
    INSERT INTO {schema}.memory_entries
        (scope, id, session_id, from_event, author, "timestamp", marks, words, length, body)
    SELECT $1, id, session_id, from_event, author, "timestamp", marks::text[], words::bigint[], length, body
    FROM unnest(
        $2::text[], $3::text[], $4::boolean[], $5::bytea[], $6::float8[], $7::text[], $8::text[], $9::integer[], $10::text[]
    ) AS given (id, session_id, from_event, author, "timestamp", marks, words, length, body)
    RETURNING id, entry
"""
_INSERT_WORDS = """
    INSERT INTO {schema}.memory_words (scope, word, entry, count, length)
    SELECT $1, word, entry, count, length
    FROM unnest($2::bigint[], $3::bigint[], $4::integer[], $5::integer[]) AS given (word, entry, count, length)
"""
_COUNT = "UPDATE {schema}.memory_scopes SET entries = entries + $2, length = length + $3 WHERE scope = $1"
_REMOVE = """
    WITH gone AS (
        DELETE FROM {schema}.memory_entries WHERE scope = $1 AND entry = ANY ($2) RETURNING entry, words, length
    ), words_gone AS (
        DELETE FROM {schema}.memory_words w
        USING (SELECT entry, unnest(words) AS word FROM gone) AS g
        WHERE w.scope = $1 AND w.word = g.word AND w.entry = g.entry
    )
    UPDATE {schema}.memory_scopes
    SET entries = entries - (SELECT count(*) FROM gone), length = length - coalesce((SELECT sum(length) FROM gone), 0)
    WHERE scope = $1
"""
_WITH_VECTOR = "SELECT entry FROM {schema}.memory_vectors WHERE scope = $1 AND entry = ANY ($2) AND model = $3"
# Entries that are embedded in the background may have got theirs meanwhile.
_INSERT_VECTORS = """
    INSERT INTO {schema}.memory_vectors (scope, model, entry, vector)
    SELECT $1, $2, entry, vector::halfvec FROM unnest($3::bigint[], $4::text[]) AS given (entry, vector)
    ON CONFLICT DO NOTHING
"""


async def list_page(db: Tables, owner: Owner, limit: int, position: tuple[float, str] | None) -> list[Memory]:
    """A user's entries from a position on, newest first, then by id."""
    time, entry_id = position or (None, None)
    return [memory_of(body) for body in await db.column(_LIST if position is None else _LIST_AFTER, *owner, limit, *(
        () if position is None else (time, entry_id)
    ))]  # fmt: skip


_LIST = """
    SELECT e.body FROM {schema}.memory_scopes s JOIN {schema}.memory_entries e USING (scope)
    WHERE s.app_name = $1 AND s.user_id = $2
    ORDER BY e."timestamp" DESC, e.id LIMIT $3
"""
_LIST_AFTER = """
    SELECT e.body FROM {schema}.memory_scopes s JOIN {schema}.memory_entries e USING (scope)
    WHERE s.app_name = $1 AND s.user_id = $2 AND e."timestamp" <= $4 AND (e."timestamp" < $4 OR e.id > $5)
    ORDER BY e."timestamp" DESC, e.id LIMIT $3
"""


async def pending(db: Tables, embedder: Embedder, after: int, limit: int) -> Pending:
    """The next entries, of any user, that have no vector of the embedder, in the order of their numbers.

    It looks at a part of the entries only: however many there are, no statement takes long.
    """
    rows = await db.all(_PENDING, await model_of(db, embedder), after, limit, WINDOW)
    found = [(row["entry"], memory_of(row["body"]).text) for row in rows if row["entry"] is not None]
    if len(found) == limit:
        return Pending(found, found[-1][0])
    return Pending(found, rows[0]["until"] if rows[0]["looked"] == WINDOW else None)


_PENDING = """
    WITH looked AS MATERIALIZED (
        SELECT entry, scope FROM {schema}.memory_entries WHERE entry > $2 ORDER BY entry LIMIT $4
    ),
    found AS (
        SELECT l.entry, l.scope FROM looked l
        WHERE NOT EXISTS (
            SELECT FROM {schema}.memory_vectors v WHERE v.scope = l.scope AND v.entry = l.entry AND v.model = $1
        )
        ORDER BY l.entry LIMIT $3
    ),
    bounds AS (SELECT count(*) AS looked, max(entry) AS until FROM looked)
    SELECT looked, until, found.entry, e.body
    FROM bounds LEFT JOIN found ON true
    LEFT JOIN {schema}.memory_entries e ON e.scope = found.scope AND e.entry = found.entry
    ORDER BY found.entry
"""


async def add_vectors(db: Tables, embedder: Embedder, vectors: Mapping[int, str]) -> None:
    """Adds vectors to those of the entries, by their number, that are still there; other writers of their users wait."""
    model = await model_of(db, embedder, add=True)
    scopes = await db.column(_HOLD_ALL, list(vectors))
    await db.run(_ADD_VECTORS, model, list(vectors), list(vectors.values()), scopes)


# In the order of their numbers: two that hold several users never wait for each other.
_HOLD_ALL = """
    SELECT scope FROM {schema}.memory_scopes
    WHERE scope IN (SELECT scope FROM {schema}.memory_entries WHERE entry = ANY ($1))
    ORDER BY scope FOR NO KEY UPDATE
"""
_ADD_VECTORS = """
    WITH added AS (
        INSERT INTO {schema}.memory_vectors (scope, model, entry, vector)
        SELECT e.scope, $1, e.entry, given.vector::halfvec
        FROM unnest($2::bigint[], $3::text[]) AS given (entry, vector)
        JOIN {schema}.memory_entries e USING (entry)
        WHERE e.scope = ANY ($4)
        ON CONFLICT DO NOTHING
        RETURNING scope
    )
    UPDATE {schema}.memory_scopes SET changes = changes + 1 WHERE scope IN (SELECT scope FROM added)
"""

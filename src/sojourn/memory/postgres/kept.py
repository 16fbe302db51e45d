"""The vectors of users, read from the database if they are not in RAM as the database has them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from sojourn.memory.kept import Kept, Vectors
from sojourn.memory.postgres.computing import Computing
from sojourn.memory.postgres.ranking import Weights
from sojourn.postgres.tables import Tables

if TYPE_CHECKING:
    from sojourn.memory.kept import Numbers

_BATCH = 2**22
"""Bytes of vectors that are read at once."""

_UNPACKING = 4
"""How many times as long a byte that is sent takes as one that is compared, at least."""

_HEADER = 4
"""Bytes before the numbers of a vector as pgvector sends it: their count, and two that are not used."""

User = tuple[tuple[datetime, int], int]
"""Which tables (`Weights.tables`), and the user's number in them."""


class KeptVectors:
    """Keeps the vectors of the users who were searched last, and reads what is missing. Any event loop may use it.

    Args:
        computing: Where it works on vectors.
    """

    def __init__(self, computing: Computing) -> None:
        self._computing = computing
        self._kept: Kept[User, Vectors] = Kept()
        self._reading: dict[tuple[asyncio.AbstractEventLoop, User], asyncio.Event] = {}

    async def read(
        self, db: Tables, weights: Weights, model: int, dimensions: int, *, patient: bool
    ) -> Vectors | asyncio.Event:
        """The vectors of a user's entries, as the connection's transaction sees them.

        Args:
            db: The tables, in a transaction that sees one state of them.
            weights: What was read of the user in it.
            model: The model.
            dimensions: How many numbers its vectors have.
            patient: Whether to read nothing while somebody else reads the user's vectors in this event loop, but to return an
                event that is set once that has ended: most are here then, and no connection is needed until then.
        """
        user = weights.tables, weights.scope
        found = self._kept.get(user)
        if found is not None and found.changes == weights.changes and found.model == model:
            return found
        place = asyncio.get_running_loop(), user
        others = self._reading.get(place)
        if others is not None and patient:
            return others
        ended = asyncio.Event()
        self._reading.setdefault(place, ended)
        try:
            vectors = await self._read(db, weights, model, dimensions, found)
        finally:
            if self._reading.get(place) is ended:
                del self._reading[place]
            ended.set()
        return vectors

    async def _read(self, db: Tables, weights: Weights, model: int, dimensions: int, before: Vectors | None) -> Vectors:
        run = self._computing.run
        row = await db.one(_ENTRIES, weights.scope, model)
        assert row is not None
        keys = numbers_from(row["entries"])
        vectors = await run(
            4 * dimensions * len(keys),
            partial(Vectors, weights.changes, model, dimensions, keys, counts_from(row["lengths"]), before),
        )
        missing = vectors.missing(numbers_from(row["stored"]))
        step = max(1, _BATCH // (2 * dimensions))
        for start in range(0, len(missing), step):
            row = await db.one(_VECTORS, weights.scope, model, missing[start : start + step].tolist())
            assert row is not None
            await run(_UNPACKING * len(row["vectors"]), partial(_put, vectors, row["entries"], row["vectors"]))
        newest = self._kept.get((weights.tables, weights.scope))
        if newest is None or newest.model != model or newest.changes <= weights.changes:
            self._kept.keep((weights.tables, weights.scope), vectors)
        return vectors


def numbers_from(sent: bytes | None) -> Numbers:
    """The numbers that `int8send` gave, one after the other; None stands for none."""
    return _integers(sent, 8)


def counts_from(sent: bytes | None) -> Numbers:
    """The same of `int4send`."""
    return _integers(sent, 4)


def _integers(sent: bytes | None, size: int) -> Numbers:
    import numpy as np

    return np.frombuffer(sent or b"", dtype=f">i{size}").astype(np.int64)


def _put(vectors: Vectors, entries: bytes, sent: bytes) -> None:
    import numpy as np

    width = _HEADER + 2 * vectors.matrix.shape[1]
    rows = np.frombuffer(sent, dtype=np.uint8).reshape(-1, width)
    vectors.put(numbers_from(entries), rows[:, _HEADER:].view(">f2"))


_ENTRIES = """
    SELECT there.entries, there.lengths, embedded.stored
    FROM (
        SELECT string_agg(int8send(entry), '') AS entries, string_agg(int4send(length), '') AS lengths
        FROM (SELECT entry, length FROM {schema}.memory_entries WHERE scope = $1 ORDER BY entry) AS rising
    ) AS there, (
        SELECT string_agg(int8send(entry), '') AS stored FROM {schema}.memory_vectors WHERE scope = $1 AND model = $2
    ) AS embedded
"""
_VECTORS = """
    SELECT string_agg(int8send(entry), '') AS entries, string_agg(halfvec_send(vector), '') AS vectors
    FROM {schema}.memory_vectors WHERE scope = $1 AND model = $2 AND entry = ANY ($3)
"""

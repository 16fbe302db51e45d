"""Which entries fit a query best by its words and by what it means: exactly, and with few of them read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sojourn.memory.kept import Vectors
from sojourn.memory.postgres.computing import Computing
from sojourn.memory.postgres.kept import KeptVectors, counts_from, numbers_from
from sojourn.memory.postgres.ranking import Question, Weights, allowed_from, best_of, conditions_of, weights_of
from sojourn.memory.postgres.rows import number_of
from sojourn.memory.stored import Owner
from sojourn.memory.tally import Postings, Term, VectorTally
from sojourn.memory.types import Memory
from sojourn.postgres.tables import Tables

if TYPE_CHECKING:
    from sojourn.memory.kept import Numbers

_Found = Mapping[Term, Postings]


class Meaning:
    """Finds entries by words and vectors. These are compared in this process, which keeps those of the users searched last."""

    def __init__(self) -> None:
        self._computing = Computing()
        self._kept = KeptVectors(self._computing)

    async def best(
        self, db: Tables, owner: Owner, question: Question, query: Sequence[float], model: int, *, patient: bool
    ) -> list[Memory] | asyncio.Event:
        """The entries that fit best, in their order.

        Words are counted without the most common ones at first. If that leaves open which entries are the best, all are.

        Args:
            db: The tables, in a transaction that sees one state of them.
            owner: The user.
            question: What is to be found.
            query: The query's vector.
            model: Its model.
            patient: Whether to return, while another search reads the user's vectors, an event that is set once it has ended.
        """
        weights = await weights_of(db, owner, question.words)
        if weights is None:
            return []
        vectors = await self._kept.read(db, weights, model, len(query), patient=patient)
        if isinstance(vectors, asyncio.Event):
            return vectors
        allowed = None
        if question.filter is not None:
            allowed = numbers_from(await db.value(_ALLOWED, weights.scope, *conditions_of(question.filter)))
        rare = weights.rare()
        common = weights.there[len(rare) :]
        found = await _postings(db, weights, rare)
        rest = math.fsum(weights.rarities[word] for word in common)
        size, limit = vectors.matrix.nbytes, question.limit
        tally, keys = await self._computing.run(size, partial(_tallied, vectors, query, weights, allowed, found, limit, rest))
        if keys is None:
            found = await _postings(db, weights, common)
            keys = await self._computing.run(size, partial(_counted, tally, found, limit, 0.0))
        rows = await db.all(_BODIES, weights.scope, keys)
        return best_of(weights, question, [(row["body"], tally.cosine(row["entry"])) for row in rows])

    def close(self) -> None:
        """Lets the thread end that compares."""
        self._computing.close()


def _tallied(
    vectors: Vectors,
    query: Sequence[float],
    weights: Weights,
    allowed: Numbers | None,
    found: _Found,
    limit: int,
    rest: float,
) -> tuple[VectorTally, Sequence[int] | None]:
    """The scores by the vectors and some words, and the keys of those that may be among the best."""
    tally = VectorTally(vectors, query, weights.average, weights.most, allowed)
    return tally, _counted(tally, found, limit, rest)


def _counted(tally: VectorTally, found: _Found, limit: int, rest: float) -> Sequence[int] | None:
    for term, postings in found.items():
        tally.add(term, postings)
    return tally.best(limit, rest)


async def _postings(db: Tables, weights: Weights, words: Sequence[str]) -> _Found:
    """The entries that have these words."""
    if not words:
        return {}
    numbers = {number_of(word): word for word in words}
    found = {}
    for row in await db.all(_HAVING, weights.scope, list(numbers)):
        word, keys = numbers[row["word"]], numbers_from(row["entries"])
        found[Term(word, weights.rarities[word], len(keys))] = Postings(keys, counts_from(row["counts"]))
    return found


_ALLOWED = f"SELECT string_agg(int8send(entry), '') FROM ({allowed_from(2)}) AS allowed"
_HAVING = """
    SELECT asked.word, having_it.entries, having_it.counts
    FROM unnest($2::bigint[]) AS asked (word), LATERAL (
        SELECT string_agg(int8send(entry), '') AS entries, string_agg(int4send(count), '') AS counts
        FROM {schema}.memory_words w WHERE w.scope = $1 AND w.word = asked.word
    ) AS having_it
"""
_BODIES = "SELECT entry, body FROM {schema}.memory_entries WHERE scope = $1 AND entry = ANY ($2)"

"""Which entries fit a query best, exactly, and without fetching more than is needed to know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sojourn.memory.bm25 import handicap, rarity
from sojourn.memory.fusion import fused
from sojourn.memory.postgres.rows import author_bytes, number_of
from sojourn.memory.rules import marks_of
from sojourn.memory.stored import Owner, memory_of
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.memory.words import words_of
from sojourn.postgres.tables import Tables

_FIRST = 128
"""Entries of which it is looked at, at first, whether they are among the best."""

_MORE = 4
"""How many times as many are when these do not settle it."""

_COMMON = 0.05
"""How much of what the words of a query can add to a score the most common ones may add that are left out at first."""

_COSINE_DIGITS = 5
"""Digits that count of a cosine: embedders round equal texts differently."""

_CLOSE = 1e-4
"""More than a score can be changed by that, or by adding its parts in another order."""


class Question(NamedTuple):
    """What is to be found.

    Attributes:
        words: The query's words, each once.
        vector: Its vector; None if only words count.
        model: The model of the vector.
        limit: At most this many.
        min_score: Only such with at least this score.
        filter: What entries must meet.
    """

    words: Sequence[str]
    vector: Sequence[float] | None
    model: int | None
    limit: int
    min_score: float | None
    filter: MemoryFilter | None

    @property
    def by_vector(self) -> bool:
        """Whether there is a vector to compare with."""
        return self.vector is not None and self.model is not None


class _Weights(NamedTuple):
    """What the scores of one user's entries depend on.

    Attributes:
        scope: The user's number.
        rarities: How rare each word of the query is.
        there: Those of its words that any entry has, the rarest first.
        average: How many words an entry has on average.
    """

    scope: int
    rarities: Mapping[str, float]
    there: Sequence[str]
    average: float

    @property
    def most(self) -> float:
        """What an entry would have that is all of the query."""
        return math.fsum(self.rarities.values())

    def rare(self) -> Sequence[str]:
        """The words that are there without the most common ones, which many entries have and none gains much by."""
        left = _COMMON * math.fsum(self.rarities[word] for word in self.there)
        count = len(self.there)
        while count and (gain := self.rarities[self.there[count - 1]]) <= left:
            count -= 1
            left -= gain
        return self.there[:count]


async def best(db: Tables, owner: Owner, question: Question) -> list[Memory]:
    """The entries that fit best, in their order.

    They are ranked without the most common words at first. If that leaves open which are the best, all words count; and if so
    many are equally good that it is still open, more entries are looked at.
    """
    weights = await _weights(db, owner, question.words)
    if weights is None:
        return []
    words, size = weights.rare(), max(_FIRST, 2 * question.limit)
    while (rows := await _candidates(db, weights, question, words, size)) is None:
        if len(words) == len(weights.there):
            size *= _MORE
        words = weights.there
    entries = _scored(weights, question, rows)
    entries.sort(key=lambda entry: (-(entry.score or 0.0), -entry.timestamp, entry.id))
    return entries[: question.limit]


async def _weights(db: Tables, owner: Owner, words: Sequence[str]) -> _Weights | None:
    """What the scores depend on; None if the user has no entries."""
    numbers = {number_of(word): word for word in words}
    rows = await db.all(_KNOWN, *owner, list(numbers))
    if not rows or not rows[0]["entries"]:
        return None
    entries, length = rows[0]["entries"], rows[0]["length"]
    having = {numbers[row["word"]]: row["texts"] for row in rows}
    there = sorted((word for word in words if having[word]), key=lambda word: having[word])
    rarities = {word: rarity(having[word], entries) for word in words}
    return _Weights(rows[0]["scope"], rarities, there, length / entries if length else 1.0)


async def _candidates(db: Tables, weights: _Weights, question: Question, words: Sequence[str], size: int) -> list[Any] | None:
    """The entries that may be among the best, or None if others may be, too.

    Args:
        db: The tables.
        weights: What the scores depend on.
        question: What is to be found.
        words: The words that count: the first of those that are there.
        size: How many entries are looked at: the first in the order by these words and by meaning.
    """
    most = weights.most
    # A score is the length of a vector, of what an entry has by words and by meaning, divided by this. So it grows by no more
    # than what words that do not count would add.
    unit = math.sqrt(2) if question.by_vector else 1.0
    missing = math.fsum(weights.rarities[word] for word in weights.there[len(words) :]) / most
    args: list[Any] = [
        weights.scope,
        [number_of(word) for word in words],
        [weights.rarities[word] / most for word in words],
        handicap(0, 1.0),
        (handicap(1, 1.0) - handicap(0, 1.0)) / weights.average,
        size,
        question.limit,
        unit * (question.min_score or 0.0),
        missing + unit * _CLOSE,
        len(words) == len(weights.there),
    ]
    if question.by_vector:
        args += [question.vector, question.model]
    filter = question.filter
    if filter is not None:
        args += [author_bytes(filter.author), filter.session_id, filter.since, filter.until, sorted(marks_of(filter.metadata))]
    rows = await db.all(_STATEMENTS[question.by_vector, filter is not None], *args)
    return [row for row in rows if row["body"] is not None] if rows[0]["settled"] else None


def _scored(weights: _Weights, question: Question, rows: Sequence[Any]) -> list[Memory]:
    """These entries with their scores, as far as these are enough."""
    least, found = question.min_score, []
    for row in rows:
        entry = memory_of(row["body"])
        counts = Counter(words_of(entry.text))
        held = handicap(counts.total(), weights.average)
        gains = (rare * counts[word] / (counts[word] + held) for word, rare in weights.rarities.items() if counts[word])
        score = math.fsum(gains) / weights.most
        if question.by_vector:
            score = fused(score, round(row["cosine"] or 0.0, _COSINE_DIGITS))
        if score > 0 and (least is None or score >= least):
            found.append(entry.model_copy(update={"score": score}))
    return found


_KNOWN = """
    SELECT s.scope, s.entries, s.length, asked.word,
        (SELECT count(*) FROM {schema}.memory_words w WHERE w.scope = s.scope AND w.word = asked.word) AS texts
    FROM {schema}.memory_scopes s, unnest($3::bigint[]) AS asked (word)
    WHERE s.app_name = $1 AND s.user_id = $2
"""
_ALLOWED = """
    allowed AS MATERIALIZED (
        SELECT entry FROM {schema}.memory_entries
        WHERE scope = $1
            AND (%(author)s::bytea IS NULL OR author = %(author)s)
            AND (%(session)s::text IS NULL OR session_id = %(session)s)
            AND (%(since)s::float8 IS NULL OR "timestamp" >= %(since)s)
            AND (%(until)s::float8 IS NULL OR "timestamp" < %(until)s)
            AND marks @> %(marks)s::text[]
    ),
"""
_BY_WORDS = """
    by_words AS MATERIALIZED (
        SELECT w.entry, sum(asked.rarity * w.count / (w.count + $4::float8 + $5::float8 * w.length)) AS words
        FROM unnest($2::bigint[], $3::float8[]) AS asked (word, rarity)
        JOIN {schema}.memory_words w ON w.scope = $1 AND w.word = asked.word
        %(where)s
        GROUP BY w.entry
    ),
"""
# The vector of the query is made in a query of its own: otherwise a prepared statement would make it for each row.
_BY_VECTOR = """
    by_vector AS (
        SELECT entry, greatest(-(vector <#> (SELECT $11::real[]::halfvec)), 0) AS cosine FROM {schema}.memory_vectors
        WHERE scope = $1 AND model = $12 %(and)s
    ),
"""
_FIRST_BY_WORDS = "SELECT entry, words AS norm, NULL::float8 AS cosine FROM by_words ORDER BY words DESC LIMIT $6"
_FIRST_BY_BOTH = """
    SELECT entry, sqrt(coalesce(words * words, 0) + coalesce(cosine * cosine, 0)) AS norm, cosine
    FROM by_vector FULL JOIN by_words USING (entry)
    ORDER BY norm DESC LIMIT $6
"""
_CHOSEN = """
    first AS MATERIALIZED (%(first)s),
    bounds AS (
        SELECT CASE WHEN count(*) < $6 THEN 0 ELSE min(norm) END AS last,
            greatest($8::float8, (SELECT norm FROM first ORDER BY norm DESC OFFSET $7 - 1 LIMIT 1)) AS wanted
        FROM first
    ),
    decided AS MATERIALIZED (
        SELECT last + $9::float8 < wanted OR (last <= 0 AND $10::boolean) AS settled, wanted FROM bounds
    ),
    chosen AS MATERIALIZED (
        SELECT entry, cosine FROM decided JOIN first ON settled AND norm + $9::float8 >= wanted
    )
    SELECT settled, cosine, body
    FROM decided LEFT JOIN chosen ON true LEFT JOIN {schema}.memory_entries e ON e.scope = $1 AND e.entry = chosen.entry
"""


def _statement(by_vector: bool, filtered: bool) -> str:
    first = 13 if by_vector else 11
    places = {name: f"${first + n}" for n, name in enumerate(("author", "session", "since", "until", "marks"))}
    allowed = "entry IN (SELECT entry FROM allowed)"
    return "".join(
        (
            "WITH ",
            _ALLOWED % places if filtered else "",
            _BY_WORDS % {"where": f"WHERE w.{allowed}" if filtered else ""},
            _BY_VECTOR % {"and": f"AND {allowed}" if filtered else ""} if by_vector else "",
            _CHOSEN % {"first": _FIRST_BY_BOTH if by_vector else _FIRST_BY_WORDS},
        )
    )


_STATEMENTS = {(vector, filtered): _statement(vector, filtered) for vector in (False, True) for filtered in (False, True)}

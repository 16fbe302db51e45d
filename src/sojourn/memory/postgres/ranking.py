"""Which entries fit a query best, exactly, and without fetching more than is needed to know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sojourn.memory.bm25 import handicap, rarity
from sojourn.memory.fusion import fused
from sojourn.memory.postgres.rows import Owner, author_bytes, counts_of, memory_of
from sojourn.memory.rules import marks_of
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.postgres.tables import Tables

_FIRST = 128
"""Entries that are fetched at first, of the order by words and of that by meaning."""

_MORE = 4
"""How many times as many are fetched when these do not settle it."""

_COSINE_DIGITS = 5
"""Digits that count of a cosine: embedders round equal texts differently."""

_CLOSE = 1e-4
"""More than a score can be changed by that, or by adding its parts in another order."""


class Question(NamedTuple):
    """What is to be found.

    Attributes:
        words: The numbers of the query's words, each once.
        vector: Its vector, as text; None if only words count.
        model: The model of the vector.
        limit: At most this many.
        min_score: Only such with at least this score.
        filter: What entries must meet.
    """

    words: Sequence[int]
    vector: str | None
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
        average: How many words an entry has on average.
    """

    scope: int
    rarities: Mapping[int, float]
    average: float

    @property
    def most(self) -> float:
        """What an entry would have that is all of the query."""
        return math.fsum(self.rarities.values())


async def best(db: Tables, owner: Owner, question: Question) -> list[Memory]:
    """The entries that fit best, in their order.

    The first entries are fetched by words and by meaning, and more of them until none that is in neither can be among the best:
    what it has is at most what the last ones have.
    """
    rows = await db.all(_KNOWN, *owner, list(question.words))
    if not rows or not rows[0]["entries"]:
        return []
    entries, length = rows[0]["entries"], rows[0]["length"]
    having = {row["word"]: row["texts"] for row in rows}
    rarities = {word: rarity(having.get(word, 0), entries) for word in question.words}
    weights = _Weights(rows[0]["scope"], rarities, length / entries if length else 1.0)
    least, size = question.min_score, max(_FIRST, 2 * question.limit)
    while True:
        found, beyond = await _candidates(db, weights, question, size)
        scores = sorted(found.values(), reverse=True)
        wanted = max(scores[question.limit - 1] if len(scores) >= question.limit else 0.0, least or 0.0) - _CLOSE
        if beyond <= 0 or beyond < wanted:
            break
        size *= _MORE
    chosen = [entry for entry, score in found.items() if score >= wanted]
    entries_found = await _scored(db, weights, question, chosen)
    entries_found.sort(key=lambda entry: (-(entry.score or 0.0), -entry.timestamp, entry.id))
    return entries_found[: question.limit]


async def _candidates(db: Tables, weights: _Weights, question: Question, size: int) -> tuple[dict[int, float], float]:
    """The first entries by words and by meaning, with about their scores; and the most that any other entry can have."""
    args: list[Any] = [
        weights.scope,
        list(weights.rarities),
        list(weights.rarities.values()),
        handicap(0, 1.0),
        (handicap(1, 1.0) - handicap(0, 1.0)) / weights.average,
        size,
    ]
    if question.by_vector:
        args += [question.vector, question.model]
    filter = question.filter
    if filter is not None:
        args += [author_bytes(filter.author), filter.session_id, filter.since, filter.until, sorted(marks_of(filter.metadata))]
    rows = await db.all(_STATEMENTS[question.by_vector, filter is not None], *args)
    most = weights.most
    if not question.by_vector:
        return {row["entry"]: row["words"] / most for row in rows}, rows[-1]["words"] / most if len(rows) >= size else 0.0
    by_words = [row["words"] for row in rows if row["by_words"]]
    by_vector = [row["cosine"] for row in rows if row["by_vector"]]
    beyond = fused(
        min(by_words) / most if len(by_words) >= size else 0.0,
        min(by_vector) if len(by_vector) >= size else 0.0,
    )
    return {row["entry"]: fused((row["words"] or 0.0) / most, row["cosine"] or 0.0) for row in rows}, beyond


async def _scored(db: Tables, weights: _Weights, question: Question, entries: Sequence[int]) -> list[Memory]:
    """These entries with their scores, as far as these are enough."""
    vector = (question.vector, question.model) if question.by_vector else ()
    rows = await db.all(_WITH_COSINE if question.by_vector else _WHOLE, weights.scope, list(entries), *vector)
    least, found = question.min_score, []
    for row in rows:
        entry = memory_of(row["body"])
        counts = counts_of(entry.text)
        held = handicap(counts.total(), weights.average)
        gains = (rare * counts[word] / (counts[word] + held) for word, rare in weights.rarities.items() if counts[word])
        score = math.fsum(gains) / weights.most
        if question.by_vector:
            score = fused(score, round(row["cosine"] or 0.0, _COSINE_DIGITS))
        if score > 0 and (least is None or score >= least):
            found.append(entry.model_copy(update={"score": score}))
    return found


_KNOWN = """
    SELECT s.scope, s.entries, s.length, w.word, count(w.word) AS texts
    FROM {schema}.memory_scopes s
    LEFT JOIN {schema}.memory_words w ON w.scope = s.scope AND w.word = ANY ($3::bigint[])
    WHERE s.app_name = $1 AND s.user_id = $2
    GROUP BY s.scope, w.word
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
    with_words AS MATERIALIZED (
        SELECT w.entry, sum(asked.rarity * w.count / (w.count + $4::float8 + $5::float8 * w.length)) AS words
        FROM unnest($2::bigint[], $3::float8[]) AS asked (word, rarity)
        JOIN {schema}.memory_words w ON w.scope = $1 AND w.word = asked.word
        %(where)s
        GROUP BY w.entry
    ),
    first_by_words AS (SELECT entry, words FROM with_words ORDER BY words DESC LIMIT $6)
"""
_BY_VECTOR = """
    , first_by_vector AS (
        SELECT entry, -(vector <#> $7::text::halfvec) AS cosine FROM {schema}.memory_vectors
        WHERE scope = $1 AND model = $8 %(and)s
        ORDER BY cosine DESC LIMIT $6
    ),
    found AS MATERIALIZED (
        SELECT entry, w.words, v.cosine, w.entry IS NOT NULL AS by_words, v.entry IS NOT NULL AS by_vector
        FROM first_by_words w FULL JOIN first_by_vector v USING (entry)
    )
    SELECT found.entry, found.by_words, found.by_vector, coalesce(found.words, other_words.words) AS words,
        coalesce(found.cosine, -(other_vectors.vector <#> $7::text::halfvec)) AS cosine
    FROM found
    LEFT JOIN with_words other_words ON other_words.entry = found.entry AND NOT found.by_words
    LEFT JOIN {schema}.memory_vectors other_vectors
        ON other_vectors.scope = $1 AND other_vectors.entry = found.entry AND other_vectors.model = $8 AND NOT found.by_vector
"""
_WORDS_ALONE = "SELECT entry, words FROM first_by_words ORDER BY words DESC"
_WHOLE = "SELECT body FROM {schema}.memory_entries WHERE scope = $1 AND entry = ANY ($2)"
_WITH_COSINE = """
    SELECT e.body, -(v.vector <#> $3::text::halfvec) AS cosine
    FROM {schema}.memory_entries e
    LEFT JOIN {schema}.memory_vectors v ON v.scope = $1 AND v.entry = e.entry AND v.model = $4
    WHERE e.scope = $1 AND e.entry = ANY ($2)
"""


def _statement(by_vector: bool, filtered: bool) -> str:
    first = 9 if by_vector else 7
    places = {name: f"${first + n}" for n, name in enumerate(("author", "session", "since", "until", "marks"))}
    allowed = "entry IN (SELECT entry FROM allowed)"
    return "".join(
        (
            "WITH ",
            _ALLOWED % places if filtered else "",
            _BY_WORDS % {"where": f"WHERE w.{allowed}" if filtered else ""},
            _BY_VECTOR % {"and": f"AND {allowed}" if filtered else ""} if by_vector else _WORDS_ALONE,
        )
    )


_STATEMENTS = {(vector, filtered): _statement(vector, filtered) for vector in (False, True) for filtered in (False, True)}

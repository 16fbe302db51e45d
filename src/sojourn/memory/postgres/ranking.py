"""Which entries fit a query best by its words: exactly, and without fetching more than is needed to know."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
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

_CLOSE = 1e-4
"""More than a score can be changed by adding its parts in another order."""


class Question(NamedTuple):
    """What is to be found.

    Attributes:
        words: The query's words, each once.
        limit: At most this many.
        min_score: Only such with at least this score.
        filter: What entries must meet.
    """

    words: Sequence[str]
    limit: int
    min_score: float | None
    filter: MemoryFilter | None


class Weights(NamedTuple):
    """What the scores of one user's entries depend on.

    Attributes:
        scope: The user's number.
        changes: The user's counter, which each write raises.
        tables: Which tables it is a number in: when their server was started, and the database's number of the one of users.
            Those of a server that was restored or took another's place, and such as were made anew, count from the start.
        rarities: How rare each word of the query is.
        there: Those of its words that any entry has, the rarest first.
        average: How many words an entry has on average.
    """

    scope: int
    changes: int
    tables: tuple[datetime, int]
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


async def best_by_words(db: Tables, owner: Owner, question: Question) -> list[Memory]:
    """The entries that fit best by their words, in their order.

    They are ranked without the most common words at first. If that leaves open which are the best, all words count; and if so
    many are equally good that it is still open, more entries are looked at.
    """
    weights = await weights_of(db, owner, question.words)
    if weights is None:
        return []
    words, size = weights.rare(), max(_FIRST, 2 * question.limit)
    while (rows := await _candidates(db, weights, question, words, size)) is None:
        if len(words) == len(weights.there):
            size *= _MORE
        words = weights.there
    return best_of(weights, question, [(row["body"], None) for row in rows])


async def weights_of(db: Tables, owner: Owner, words: Sequence[str]) -> Weights | None:
    """What the scores depend on; None if the user has no entries."""
    numbers = {number_of(word): word for word in words}
    rows = await db.all(_KNOWN, *owner, list(numbers))
    if not rows or not rows[0]["entries"]:
        return None
    entries, length = rows[0]["entries"], rows[0]["length"]
    having = {numbers[row["word"]]: row["texts"] for row in rows}
    there = sorted((word for word in words if having[word]), key=lambda word: having[word])
    rarities = {word: rarity(having[word], entries) for word in words}
    known = rows[0]
    tables = known["started"], known["tableoid"]
    return Weights(known["scope"], known["changes"], tables, rarities, there, length / entries if length else 1.0)


async def _candidates(db: Tables, weights: Weights, question: Question, words: Sequence[str], size: int) -> list[Any] | None:
    """The entries that may be among the best, or None if others may be, too.

    Args:
        db: The tables.
        weights: What the scores depend on.
        question: What is to be found.
        words: The words that count: the first of those that are there.
        size: How many entries are looked at: the first in the order by these words.
    """
    most = weights.most
    missing = math.fsum(weights.rarities[word] for word in weights.there[len(words) :]) / most
    args: list[Any] = [
        weights.scope,
        [number_of(word) for word in words],
        [weights.rarities[word] / most for word in words],
        handicap(0, 1.0),
        (handicap(1, 1.0) - handicap(0, 1.0)) / weights.average,
        size,
        question.limit,
        question.min_score or 0.0,
        missing + _CLOSE,
        len(words) == len(weights.there),
    ]
    filter = question.filter
    if filter is not None:
        args += conditions_of(filter)
    rows = await db.all(_BEST if filter is None else _BEST_ALLOWED, *args)
    return [row for row in rows if row["body"] is not None] if rows[0]["settled"] else None


def conditions_of(filter: MemoryFilter) -> list[Any]:
    """The arguments of `allowed_from` for a filter."""
    return [author_bytes(filter.author), filter.session_id, filter.since, filter.until, sorted(marks_of(filter.metadata))]


def best_of(weights: Weights, question: Question, candidates: Iterable[tuple[str, float | None]]) -> list[Memory]:
    """The best of some entries, with their scores.

    Args:
        weights: What the scores depend on.
        question: What is to be found.
        candidates: The entries' bodies and cosines; None where vectors do not count.
    """
    least, found = question.min_score, []
    for body, cosine in candidates:
        entry = memory_of(body)
        counts = Counter(words_of(entry.text))
        held = handicap(counts.total(), weights.average)
        gains = (rare * counts[word] / (counts[word] + held) for word, rare in weights.rarities.items() if counts[word])
        score = math.fsum(gains) / weights.most
        if cosine is not None:
            score = fused(score, cosine)
        if score > 0 and (least is None or score >= least):
            found.append(entry.model_copy(update={"score": score}))
    found.sort(key=lambda entry: (-(entry.score or 0.0), -entry.timestamp, entry.id))
    return found[: question.limit]


_KNOWN = """
    SELECT s.scope, s.entries, s.length, s.changes, s.tableoid, pg_postmaster_start_time() AS started, asked.word,
        (SELECT count(*) FROM {schema}.memory_words w WHERE w.scope = s.scope AND w.word = asked.word) AS texts
    FROM {schema}.memory_scopes s, unnest($3::bigint[]) AS asked (word)
    WHERE s.app_name = $1 AND s.user_id = $2
"""
_ALLOWED = """
    SELECT entry FROM {schema}.memory_entries
    WHERE scope = $1
        AND (%(author)s::bytea IS NULL OR author = %(author)s)
        AND (%(session)s::text IS NULL OR session_id = %(session)s)
        AND (%(since)s::float8 IS NULL OR "timestamp" >= %(since)s)
        AND (%(until)s::float8 IS NULL OR "timestamp" < %(until)s)
        AND marks @> %(marks)s::text[]
"""


def allowed_from(first: int) -> str:
    """A query for the entries of user `$1` that meet a filter, whose conditions are the arguments from number `first` on."""
    return _ALLOWED % {name: f"${first + n}" for n, name in enumerate(("author", "session", "since", "until", "marks"))}


_RANKED = """
    by_words AS MATERIALIZED (
        SELECT w.entry, sum(asked.rarity * w.count / (w.count + $4::float8 + $5::float8 * w.length)) AS words
        FROM unnest($2::bigint[], $3::float8[]) AS asked (word, rarity)
        JOIN {schema}.memory_words w ON w.scope = $1 AND w.word = asked.word
        %(where)s
        GROUP BY w.entry
    ),
    first AS MATERIALIZED (SELECT entry, words FROM by_words ORDER BY words DESC LIMIT $6),
    bounds AS (
        SELECT CASE WHEN count(*) < $6 THEN 0 ELSE min(words) END AS last,
            greatest($8::float8, (SELECT words FROM first ORDER BY words DESC OFFSET $7 - 1 LIMIT 1)) AS wanted
        FROM first
    ),
    decided AS MATERIALIZED (
        SELECT last + $9::float8 < wanted OR (last <= 0 AND $10::boolean) AS settled, wanted FROM bounds
    ),
    chosen AS MATERIALIZED (
        SELECT entry FROM decided JOIN first ON settled AND words + $9::float8 >= wanted
    )
    SELECT settled, body
    FROM decided LEFT JOIN chosen ON true LEFT JOIN {schema}.memory_entries e ON e.scope = $1 AND e.entry = chosen.entry
"""
_BEST = "WITH" + _RANKED % {"where": ""}
_BEST_ALLOWED = f"WITH allowed AS MATERIALIZED ({allowed_from(11)})," + _RANKED % {
    "where": "WHERE w.entry IN (SELECT entry FROM allowed)"
}

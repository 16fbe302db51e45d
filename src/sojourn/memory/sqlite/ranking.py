"""Which entries fit a query best: exactly, and without looking at more than is needed to know."""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from sojourn.memory.bm25 import handicap, rarity
from sojourn.memory.fusion import fused
from sojourn.memory.sqlite.kept import Lengths
from sojourn.memory.sqlite.rows import Scope, token
from sojourn.memory.tally import FEW, ROUNDING, Postings, Term

_AT_ONCE = 500


class Tally(Protocol):
    """The scores of a user's entries as far as they are known; more words can only raise them."""

    def add(self, term: Term, found: Postings) -> None:
        """Counts a word."""

    def best(self, limit: int, rest: float) -> Sequence[int] | None:
        """The keys of all entries that may be among the best, or None if those are not few or not known.

        Args:
            limit: How many are wanted.
            rest: The rarity of all words together that were not counted.
        """

    def cosine(self, key: int) -> float | None:
        """That of an entry; None if vectors do not count."""


class WordTally:
    """By words alone."""

    def __init__(self, lengths: Lengths, average: float, allowed: set[int] | None) -> None:
        self._lengths = lengths.by_key
        self._average = average
        self._allowed = allowed
        self._scores: dict[int, float] = {}

    def add(self, term: Term, found: Postings) -> None:
        """See `Tally`."""
        scores, lengths, allowed = self._scores, self._lengths, self._allowed
        for key, count in zip(*found, strict=True):
            if allowed is None or key in allowed:
                gain = term.rarity * count / (count + handicap(lengths[key], self._average))
                scores[key] = scores.get(key, 0.0) + gain

    def best(self, limit: int, rest: float) -> Sequence[int] | None:
        """See `Tally`."""
        if not rest and len(self._scores) <= limit:
            return list(self._scores)
        if len(self._scores) < limit:
            return None
        least = heapq.nlargest(limit, self._scores.values())[-1] - ROUNDING
        if rest and rest >= least:
            # An entry that has none of the words so far may have all others.
            return None
        chosen = [key for key, score in self._scores.items() if score + rest >= least]
        return chosen if not rest or len(chosen) <= FEW + 2 * limit else None

    def cosine(self, key: int) -> float | None:
        """See `Tally`."""
        return None


class Found(NamedTuple):
    """An entry that fits, in the order that counts: best first, then newest, then by id."""

    negative_score: float
    negative_timestamp: float
    id: str
    key: int


def terms_of(conn: sqlite3.Connection, scope: Scope, words: Sequence[str]) -> list[Term]:
    """The words of a query, each once."""
    terms = []
    for word in dict.fromkeys(words):
        row = conn.execute("SELECT doc FROM temp.memory_terms WHERE term = ?", (token(scope.number, word),)).fetchone()
        having = 0 if row is None else row[0]
        terms.append(Term(word, rarity(having, scope.entries), having))
    return terms


def average_of(scope: Scope) -> float:
    """How many words an entry has on average; 1 if none has any."""
    return scope.length / scope.entries if scope.length else 1.0


def rank(
    conn: sqlite3.Connection, scope: Scope, terms: Sequence[Term], tally: Tally, limit: int, min_score: float | None
) -> list[Found]:
    """The best entries.

    Words are counted from the rarest on, until it is known which entries can still be among the best. These are read and
    scored exactly, the common words in them included.
    """
    there = sorted((term for term in terms if term.having), key=lambda term: term.having)
    rest = sum(term.rarity for term in there)
    for term in there:
        if (keys := tally.best(limit, rest)) is not None:
            break
        tally.add(term, _postings(conn, token(scope.number, term.word)))
        rest -= term.rarity
    else:
        keys = tally.best(limit, 0.0) or []
    found = heapq.nsmallest(limit, _scored(conn, scope, terms, tally, keys))
    return [one for one in found if min_score is None or -one.negative_score >= min_score]


def _postings(conn: sqlite3.Connection, term: str) -> Postings:
    rows = conn.execute("SELECT doc, count(*) FROM temp.memory_places WHERE term = ? GROUP BY doc", (term,)).fetchall()
    keys, counts = zip(*rows, strict=True) if rows else ((), ())
    return Postings(keys, counts)


def _scored(conn: sqlite3.Connection, scope: Scope, terms: Sequence[Term], tally: Tally, keys: Sequence[int]) -> list[Found]:
    average = average_of(scope)
    most = sum(term.rarity for term in terms)
    found = []
    for start in range(0, len(keys), _AT_ONCE):
        some = ",".join(str(key) for key in keys[start : start + _AT_ONCE])
        rows = conn.execute(f"SELECT key, id, timestamp, words, length FROM memory_entries WHERE key IN ({some})")
        for key, entry_id, timestamp, words, length in rows:
            counts = Counter(words.split())
            held = handicap(length, average)
            score = 0.0
            for term in terms:
                if count := counts.get(term.word, 0):
                    score += term.rarity * count / (count + held)
            score /= most
            cosine = tally.cosine(key)
            if cosine is not None:
                score = fused(score, cosine)
            if score > 0:
                found.append(Found(-score, -timestamp, entry_id, key))
    return found

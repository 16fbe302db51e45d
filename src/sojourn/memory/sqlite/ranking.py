"""Which entries fit a query best: exactly, and without looking at more than is needed to know."""

from __future__ import annotations

import heapq
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sojourn.memory.bm25 import handicap, rarity
from sojourn.memory.fusion import fused
from sojourn.memory.sqlite.kept import Lengths, Vectors
from sojourn.memory.sqlite.rows import Scope, token

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FEW = 128
"""So many entries are read rather than to go on counting who has a word."""

_COSINE_DIGITS = 5
"""Digits that count of a cosine: embedders round equal texts differently."""

_ROUNDING = 1e-4
"""More than a score can be changed by that, or by adding its parts in another order."""

_AT_ONCE = 500


class Term(NamedTuple):
    """A word of the query."""

    word: str
    rarity: float
    having: int


class Postings(NamedTuple):
    """The entries that have a word, and how often."""

    keys: Sequence[int]
    counts: Sequence[int]


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
        least = heapq.nlargest(limit, self._scores.values())[-1] - _ROUNDING
        if rest and rest >= least:
            # An entry that has none of the words so far may have all others.
            return None
        chosen = [key for key, score in self._scores.items() if score + rest >= least]
        return chosen if not rest or len(chosen) <= _FEW + 2 * limit else None

    def cosine(self, key: int) -> float | None:
        """See `Tally`."""
        return None


class VectorTally:
    """By words and vectors."""

    def __init__(self, vectors: Vectors, query: Sequence[float], average: float, most: float, allowed: set[int] | None) -> None:
        import numpy as np

        self._np = np
        self._vectors = vectors
        self._handicaps = _handicaps(vectors, average)
        self._most = most
        self._words = np.zeros(len(vectors.keys))
        self._least = 0.0
        # Row by row: a product of matrices is given to several threads, which wait for each other on a busy machine, and has
        # another sum for the same row in another place.
        self._cosines = np.vecdot(vectors.matrix, np.asarray(query, dtype=np.float32))
        self._squares = np.maximum(self._cosines, 0.0) ** 2
        self._allowed = None if allowed is None else np.isin(vectors.keys, np.fromiter(allowed, np.int64, len(allowed)))

    def add(self, term: Term, found: Postings) -> None:
        """See `Tally`."""
        np = self._np
        places = np.searchsorted(self._vectors.keys, np.array(found.keys, dtype=np.int64))
        counts = np.array(found.counts, dtype=np.float64)
        self._words[places] += term.rarity * counts / (counts + self._handicaps[places])

    def best(self, limit: int, rest: float) -> Sequence[int] | None:
        """See `Tally`."""
        np = self._np
        scores = self._scores(0.0)
        # They only rise: those that were below the least of the best are not among the best now.
        self._least = _nth_largest(scores[scores >= self._least], limit)
        # Cosines are rounded afterwards.
        chosen = np.flatnonzero(self._scores(rest) >= max(self._least - _ROUNDING, 0.0))
        return self._vectors.keys[chosen].tolist() if not rest or len(chosen) <= _FEW + 2 * limit else None

    def _scores(self, rest: float) -> npt.NDArray[np.floating]:
        """Twice the square of each entry's score if it had all words that were not counted; -1 if it is not allowed."""
        scores = self._squares + ((self._words + rest) / self._most) ** 2
        return scores if self._allowed is None else self._np.where(self._allowed, scores, -1.0)

    def cosine(self, key: int) -> float | None:
        """See `Tally`."""
        place = self._np.searchsorted(self._vectors.keys, key)
        return round(float(self._cosines[place]), _COSINE_DIGITS)


def _nth_largest(scores: npt.NDArray[np.floating], n: int) -> float:
    """The nth largest of some numbers, whose order it changes; 0 if there are fewer."""
    if len(scores) < n:
        return 0.0
    scores.partition(len(scores) - n)
    return float(scores[-n])


def _handicaps(vectors: Vectors, average: float) -> npt.NDArray[np.floating]:
    """The handicap of each entry."""
    least = handicap(0, 1.0)
    return least + (handicap(1, 1.0) - least) / average * vectors.lengths


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

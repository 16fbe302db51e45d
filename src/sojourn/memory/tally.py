"""The scores of one user's entries by words and vectors, as far as they are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sojourn.memory.bm25 import handicap
from sojourn.memory.kept import Vectors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sojourn.memory.kept import Numbers

FEW = 128
"""So many entries are read rather than to go on counting who has a word."""

ROUNDING = 1e-4
"""More than a score can be changed by rounding its cosine, or by adding its parts in another order."""

_COSINE_DIGITS = 5
"""Digits that count of a cosine: embedders round equal texts differently."""


class Term(NamedTuple):
    """A word of the query."""

    word: str
    rarity: float
    having: int


class Postings(NamedTuple):
    """The entries that have a word, and how often."""

    keys: Sequence[int] | Numbers
    counts: Sequence[int] | Numbers


class VectorTally:
    """By words and vectors."""

    def __init__(self, vectors: Vectors, query: Sequence[float], average: float, most: float, allowed: Numbers | None) -> None:
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
        self._allowed = None if allowed is None else np.isin(vectors.keys, allowed)

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
        chosen = np.flatnonzero(self._scores(rest) > max(self._least - ROUNDING, 0.0))
        return self._vectors.keys[chosen].tolist() if not rest or len(chosen) <= FEW + 2 * limit else None

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

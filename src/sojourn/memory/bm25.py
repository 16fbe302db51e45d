"""An inverted index that ranks texts by BM25."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable

_SATURATION = 1.2
"""How soon another occurrence of a word in a text stops counting (`k1`)."""

_LENGTH_WEIGHT = 0.75
"""How much long texts are held back, from 0 to 1 (`b`)."""


def rarity(having: int, total: int) -> float:
    """How much a word tells that `having` of `total` texts have; above 0."""
    return math.log1p((total - having + 0.5) / (having + 0.5))


def handicap(length: int, average: float) -> float:
    """What holds a text of `length` words back: one that has a word `n` times gets `n / (n + handicap)` of its rarity."""
    return _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * length / average)


class Bm25Index:
    """Which texts have which words, by the key of the text.

    Adding, removing and searching cost in proportion to the words and the texts that have them, not to all texts.
    """

    def __init__(self) -> None:
        self._occurrences: defaultdict[str, dict[str, int]] = defaultdict(dict)
        self._words: dict[str, tuple[str, ...]] = {}
        self._lengths: dict[str, int] = {}
        self._total_length = 0

    def add(self, key: str, words: Iterable[str]) -> None:
        """Adds a text, in place of the one that has the key."""
        self.remove(key)
        counts = Counter(words)
        for word, count in counts.items():
            self._occurrences[word][key] = count
        self._words[key] = tuple(counts)
        self._lengths[key] = counts.total()
        self._total_length += counts.total()

    def remove(self, key: str) -> None:
        """Removes a text, if it is there."""
        for word in self._words.pop(key, ()):
            keys = self._occurrences[word]
            del keys[key]
            if not keys:
                del self._occurrences[word]
        self._total_length -= self._lengths.pop(key, 0)

    def scores(self, words: Iterable[str]) -> dict[str, float]:
        """How well each text that has any of the words fits them, above 0 and below 1.

        It is BM25 divided by the most that any text could reach: rare words weigh more, and words that no text has count
        as missing, so that a query of which a text has one word in ten does not fit it well.
        """
        best = 0.0
        scores: defaultdict[str, float] = defaultdict(float)
        average = self._total_length / max(len(self._lengths), 1)
        for word in dict.fromkeys(words):
            having = self._occurrences.get(word, {})
            rare = rarity(len(having), len(self._lengths))
            best += rare
            for key, count in having.items():
                scores[key] += rare * count / (count + handicap(self._lengths[key], average))
        return {key: score / best for key, score in scores.items()}

"""How much a text has of each of its words, for stores that weigh one text at a time."""

from __future__ import annotations

from collections import Counter

from sojourn.memory.bm25 import handicap
from sojourn.memory.words import words_of

_USUAL_LENGTH = 16
"""Words of a usual text. A constant, so that no text has to be weighed again when others come and go."""


def weights_of(text: str) -> dict[str, float]:
    """How much the text has of each of its words, above 0 and below 1: the part of BM25 that depends on this text alone."""
    counts = Counter(words_of(text))
    held = handicap(counts.total(), _USUAL_LENGTH)
    return {word: count / (count + held) for word, count in counts.items()}

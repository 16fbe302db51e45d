"""Embedders that do what a test wants."""

from __future__ import annotations

import asyncio
import hashlib
import math
from functools import cache

from sojourn.errors import Unavailable
from sojourn.memory.words import words_of


@cache
def _direction(meaning, dimensions):
    return [number - 127.5 for number in hashlib.shake_128(meaning.encode()).digest(dimensions)]


class WordEmbedder:
    """A vector of a text is the sum of those of its words, which point anywhere; words of `SAME` point to one place."""

    SAME = ({"dog", "hound"}, {"tea", "brew"}, {"car", "automobile"})

    def __init__(self, name="words", dimensions=16):
        self.name = name
        self.dimensions = dimensions
        self.given = []
        self.errors = []
        self.is_away = False
        self.held = None

    def hold(self):
        """Holds the next call until the second of two events is set; the first one says that it has come."""
        self.held = asyncio.Event(), asyncio.Event()
        return self.held

    async def embed(self, texts):
        self.given.append(list(texts))
        if self.held is not None:
            (come, going), self.held = self.held, None
            come.set()
            await going.wait()
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        if self.is_away:
            raise Unavailable("the embedder is away", code="embedding.unavailable")
        return [self.vector(text) for text in texts]

    def vector(self, text):
        total = [0.0] * self.dimensions
        for word in words_of(text):
            meaning = min(next((group for group in self.SAME if word in group), {word}))
            total = [a + b for a, b in zip(total, _direction(meaning, self.dimensions), strict=True)]
        return total

    def cosine(self, a, b):
        x, y = self.vector(a), self.vector(b)
        return sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))

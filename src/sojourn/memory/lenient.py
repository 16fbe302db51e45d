"""Embedding for services that go on without vectors while the embedder is away."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence

from sojourn import telemetry
from sojourn.errors import SojournError
from sojourn.memory.embedder import Embedder, embed

logger = logging.getLogger("sojourn.memory")

FAULTY = ("embedding.wrong_size", "embedding.invalid")
"""Codes of embedders that are not what they say, which no service works without telling."""


async def vectors_of(embedder: Embedder, texts: Sequence[str]) -> dict[str, array[float]]:
    """The vectors of what is remembered, by text; none at all if they cannot be made now, which is logged.

    Raises:
        ModelError: `embedding.wrong_size`, `embedding.invalid`.
    """
    try:
        vectors = await embed(embedder, texts)
    except SojournError as error:
        if error.code in FAULTY:
            raise
        logger.warning("%d entries of memory are added without vectors, which follow: %s", len(texts), error)
        return {}
    return dict(zip(texts, vectors, strict=True))


async def vectors_of_each(embedder: Embedder, texts: Sequence[str]) -> dict[str, array[float]]:
    """The vectors of texts, by text, but for what the embedder rejects, which is logged and keeps no other from its vector.

    Raises:
        SojournError: What else the embedder raises, and `embed`.
    """
    try:
        vectors = await embed(embedder, texts)
    except SojournError as error:
        if error.code != "embedding.rejected":
            raise
        if len(texts) == 1:
            logger.warning("an entry of memory stays without a vector: %s", error)
            return {}
        half = len(texts) // 2
        return await vectors_of_each(embedder, texts[:half]) | await vectors_of_each(embedder, texts[half:])
    return dict(zip(texts, vectors, strict=True))


async def vector_of(embedder: Embedder, query: str) -> array[float] | None:
    """The vector of a query; None if it cannot be made now, which is logged and told to the span.

    Raises:
        ModelError: `embedding.wrong_size`, `embedding.invalid`.
    """
    try:
        (vector,) = await embed(embedder, [query])
    except SojournError as error:
        if error.code in FAULTY:
            raise
        logger.warning("memory is searched by words alone, since the query could not be embedded: %s", error)
        telemetry.annotate({"sojourn.memory.words_only": True, "sojourn.memory.error": error.code})
        return None
    return vector

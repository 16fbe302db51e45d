"""The seam for embeddings: texts as vectors that are near each other if the texts mean the same."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Sequence, Sized
from typing import Protocol, runtime_checkable

from sojourn.errors import InvalidInput, ModelError, SojournError, Unavailable


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of texts.

    A memory service keeps the vectors of what it remembers, and compares them with that of a query by their angle; their
    lengths do not matter.

    Attributes:
        name: Which model it is, in which version. Vectors are only compared with those of the same name: who changes the model,
            or how texts are put to it, changes the name, and services embed again what they have.
        dimensions: How many numbers its vectors have.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def dimensions(self) -> int: ...  # noqa: D102

    async def embed(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """Makes a vector of each text, in their order.

        Any text is taken; what is too long for the model is cut. Equal texts have vectors that are equal but for rounding.
        Any number of tasks may call it at once. It does not keep the event loop from other tasks, and returns in bounded
        time: what another process does has a timeout, and was repeated as often as makes sense when this raises.

        Raises:
            SojournError: `retryable` if the same texts may be embedded later, with `retry_after` if that is known.
        """
        ...


async def embed(embedder: Embedder, texts: Sequence[str]) -> list[array[float]]:
    """Makes a vector of length 1 of each text; texts that are equal are embedded once.

    A vector of zeros stays one.

    Raises:
        ModelError: `embedding.wrong_size` if a vector, or how many there are, is not what the embedder says;
            `embedding.invalid` if one holds what is no finite number.
        Unavailable: `embedding.unavailable` if the embedder raises an error without a code.
        SojournError: What the embedder raises.
    """
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    try:
        vectors = await embedder.embed(distinct)
    except SojournError:
        raise
    except Exception as error:
        raise Unavailable(f"embedder {embedder.name!r} failed: {type(error).__name__}", code="embedding.unavailable") from error
    if not isinstance(vectors, Sized):
        raise ModelError(f"embedder {embedder.name!r} gave no vectors, but {vectors!r:.60}", code="embedding.invalid")
    if len(vectors) != len(distinct):
        raise ModelError(
            f"embedder {embedder.name!r} gave {len(vectors)} vectors for {len(distinct)} texts", code="embedding.wrong_size"
        )
    by_text = {text: _unit(embedder, vector) for text, vector in zip(distinct, vectors, strict=True)}
    return [by_text[text] for text in texts]


def _unit(embedder: Embedder, vector: Sequence[float]) -> array[float]:
    if isinstance(vector, Sized) and len(vector) != embedder.dimensions:
        raise ModelError(
            f"embedder {embedder.name!r} gave a vector of {len(vector)} numbers and says it gives {embedder.dimensions}; set"
            " its dimensions to those of the model",
            code="embedding.wrong_size",
        )
    try:
        length = math.hypot(*vector)
        if math.isfinite(length):
            return array("f", [number / length for number in vector] if length else vector)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ModelError(f"embedder {embedder.name!r} gave a vector that is not all finite numbers", code="embedding.invalid")


def check_dimensions(embedder: Embedder, before: int) -> None:
    """Checks that an embedder makes vectors of the size of those that are kept under its name.

    Raises:
        InvalidInput: `memory.wrong_dimensions`.
    """
    if embedder.dimensions != before:
        raise InvalidInput(
            f"vectors of embedder {embedder.name!r} had {before} numbers before, and now have {embedder.dimensions};"
            " give another model another name",
            code="memory.wrong_dimensions",
        )


def packed(vector: array[float]) -> bytes:
    """A vector as bytes: float32, little-endian."""
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return vector.tobytes()

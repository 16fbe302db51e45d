"""What may be wrong with a collection."""

from __future__ import annotations

from sojourn.errors import InvalidInput, SojournError, Unsupported


def other_dimensions(place: str, there: int, wanted: int) -> SojournError:
    """The vectors there have another size than those of the embedder."""
    return InvalidInput(
        f"the memory in {place} has vectors of {there} numbers, the embedder makes such of {wanted}; use the embedder that"
        " it was made with, or another collection",
        code="memory.wrong_dimensions",
    )


def without_vectors(place: str) -> SojournError:
    """It was made without an embedder, and has no room for vectors."""
    return InvalidInput(
        f"the memory in {place} was made without an embedder and keeps no vectors; use another collection, or no embedder",
        code="memory.wrong_dimensions",
    )


def not_installed(error: ModuleNotFoundError) -> Exception:
    """The error to raise in place of one that misses a library."""
    if error.name is None or error.name.partition(".")[0] not in ("qdrant_client", "qdrant_edge"):
        return error
    return Unsupported('memory in Qdrant needs its libraries: pip install "sojourn[qdrant]"', code="memory.not_installed")

"""Picks the engine by what was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sojourn.errors import InvalidInput
from sojourn.memory.qdrant.engine import Engine
from sojourn.memory.qdrant.faults import not_installed

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

Synchronous = Literal["full", "normal"]

_MAX_NAME = 255


class Place(NamedTuple):
    """Where the points are.

    Attributes:
        place: A URL, a path, or a client.
        collection: Which collection there.
        api_key: The key of the server.
        timeout: Seconds that it may take to answer.
        synchronous: What a directory is to survive.
    """

    place: str | Path | AsyncQdrantClient
    collection: str
    api_key: str | None
    timeout: float
    synchronous: Synchronous


def opened(where: Place, dimensions: int | None) -> Engine:
    """The engine; nothing is opened before its first call.

    Raises:
        InvalidInput: `memory.invalid_option`.
        Unsupported: `memory.not_installed`.
    """
    place, collection, api_key, timeout, synchronous = where
    if not isinstance(collection, str) or not _is_name(collection):
        raise InvalidInput(
            f"collection is {collection!r}; use a name of 1 to {_MAX_NAME} letters, digits, '_', '-' and '.'",
            code="memory.invalid_option",
        )
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise InvalidInput(f"timeout is {timeout!r}; use seconds greater than 0", code="memory.invalid_option")
    if synchronous not in ("full", "normal"):
        raise InvalidInput(f"synchronous is {synchronous!r}; use 'full' or 'normal'", code="memory.invalid_option")
    try:
        if isinstance(place, str) and place.lower().startswith(("http://", "https://")):
            from sojourn.memory.qdrant.server import ServerEngine

            return ServerEngine(place, collection, dimensions, api_key=api_key, timeout=timeout)
        if isinstance(place, str | Path):
            return _in_directory(place, collection, dimensions, flushes=synchronous == "full")
        from sojourn.memory.qdrant.server import ServerEngine, is_client

        if is_client(place):
            return ServerEngine(place, collection, dimensions, timeout=timeout)
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    raise InvalidInput(
        f"memory in Qdrant is at a URL, in a directory or behind an AsyncQdrantClient, not a {type(place).__name__}",
        code="memory.invalid_option",
    )


def _in_directory(place: str | Path, collection: str, dimensions: int | None, *, flushes: bool) -> Engine:
    name = str(place)
    if not name or "\0" in name or "://" in name or name == ":memory:":
        raise InvalidInput(
            "memory in Qdrant is at a URL that begins with http:// or https://, or in a directory; for memory in RAM use"
            " InMemoryMemoryService()",
            code="memory.invalid_option",
        )
    from sojourn.memory.qdrant.edge import EdgeEngine

    return EdgeEngine(Path(name) / collection, dimensions, flushes=flushes)


def _is_name(collection: str) -> bool:
    plain = collection.replace("_", "").replace("-", "").replace(".", "")
    return 0 < len(collection) <= _MAX_NAME and plain.isascii() and plain.isalnum()

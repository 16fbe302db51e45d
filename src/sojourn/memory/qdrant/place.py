"""The memory in Qdrant that a URL names."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from sojourn.errors import InvalidInput
from sojourn.memory.embedder import Embedder
from sojourn.memory.qdrant.service import QdrantMemoryService

SCHEMES = ("qdrant://", "qdrant+http://", "qdrant+https://")
"""How such URLs begin."""

_FORMS = "use 'qdrant+https://:key@host:6333/collection' for a server, or 'qdrant:///directory'"
_DEFAULT_PORT = 6333


def qdrant_memory_at(url: str, *, directory: Path | None = None, embedder: Embedder | None = None) -> QdrantMemoryService:
    """Memory in Qdrant.

    Args:
        url: `qdrant+http://host:6333/collection` or `qdrant+https://…`, with the API key as password if there is one, the port
            6333 if it has none, and the usual collection if it names none; or `qdrant:///relative/directory` and
            `qdrant:////absolute/directory`.
        directory: What a relative directory is relative to; the working directory if omitted.
        embedder: Makes vectors of texts; None finds by words alone.

    Raises:
        InvalidInput: `memory.invalid_url`, `memory.invalid_option`.
        Unsupported: `memory.not_installed`.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORT
    except ValueError:
        raise _invalid() from None
    if parts.query or parts.fragment:
        raise _invalid()
    if parts.scheme == "qdrant":
        if parts.netloc or len(parts.path) < 2:
            raise _invalid()
        return QdrantMemoryService((directory or Path()) / unquote(parts.path[1:]), embedder=embedder)
    if not parts.hostname or parts.username:
        raise _invalid()
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    server = urlunsplit(SplitResult(parts.scheme.removeprefix("qdrant+"), f"{host}:{port}", "", "", ""))
    key = unquote(parts.password) if parts.password else None
    collection = unquote(parts.path.strip("/"))
    if collection:
        return QdrantMemoryService(server, embedder=embedder, api_key=key, collection=collection)
    return QdrantMemoryService(server, embedder=embedder, api_key=key)


def _invalid() -> InvalidInput:
    # What the URL holds is not repeated: it may be a key.
    return InvalidInput(f"the URL of the memory cannot be used; {_FORMS}", code="memory.invalid_url")

"""Services that a config names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.artifact.place import artifact_service_at
from sojourn.builder.schema import AppConfig
from sojourn.builder.source import Source
from sojourn.memory.database import DatabaseMemoryService
from sojourn.memory.embedder import Embedder
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.minilm import MiniLmEmbedder
from sojourn.memory.openai import OpenAIEmbedder
from sojourn.memory.qdrant.place import SCHEMES, qdrant_memory_at
from sojourn.runner.config import DEFAULT
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService

MEMORY = ("memory", "memory:")
"""How services in the process's memory are named."""

MINILM = "minilm"
"""How the embedding model on this machine is named."""

NONE = "none"
"""How a service that is turned off is named."""

_BUCKETS = ("s3://", "gs://", "az://")

Shared = Callable[[str, Callable[[], Any]], Any]
"""Gives what was made under a name before, or makes it."""


def session_service(config: AppConfig, shared: Shared) -> Any:
    """The store of sessions and runs; the default if the config leaves it open.

    Raises:
        ConfigError: `config.unknown_service`.
        InvalidInput, Unsupported: What `DatabaseSessionService` raises.
    """
    url = config.services.session
    if url is None:
        return DEFAULT
    if url in MEMORY:
        return shared(f"session {config.app_name}", InMemorySessionService)
    if "://" not in url:
        raise _unknown(config.source, "session", "sqlite:///app.db, postgresql://… or memory")
    url = _in_directory(config.source, url)
    return shared(f"session {url}", lambda: DatabaseSessionService(url))


def artifact_service(config: AppConfig, shared: Shared) -> Any:
    """The service for artifacts; the default if the config leaves it open, None if it is turned off.

    Raises:
        ConfigError: `config.unknown_service`.
        InvalidInput, Unsupported: What `FileArtifactService` and `S3ArtifactService` raise.
    """
    directory = config.source.directory

    def elsewhere(place: str) -> Any:
        if not place or ("://" in place and not place.startswith(_BUCKETS)):
            raise _unknown(config.source, "artifacts", "the path of a directory, s3://bucket/prefix, memory or none")
        name = place if "://" in place else directory / Path(place).expanduser()
        return shared(f"artifacts {name}", lambda: artifact_service_at(place, directory))

    in_memory = partial(shared, f"artifacts {config.app_name}", InMemoryArtifactService)
    return _optional(config.services.artifacts, in_memory, elsewhere)


def memory_service(config: AppConfig, shared: Shared) -> Any:
    """The service for memory; the default if the config leaves it open, None if it is turned off.

    Raises:
        ConfigError: `config.unknown_service`, `config.invalid`.
        InvalidInput, Unsupported: What `DatabaseMemoryService`, `QdrantMemoryService` and the embedders raise.
    """

    def in_memory() -> Any:
        if config.services.embedder is not None:
            raise _invalid(config.source, "embedder", "memory in RAM has no use for it; name another memory, or leave it out")
        return shared(f"memory {config.app_name}", InMemoryMemoryService)

    def elsewhere(place: str) -> Any:
        if "://" not in place:
            forms = "sqlite:///app.db, postgresql://…, qdrant+http://host:6333, qdrant:///directory, memory or none"
            raise _unknown(config.source, "memory", forms)
        url = _in_directory(config.source, place)
        embedder = _embedder(config, shared)
        if url.startswith(SCHEMES):
            directory = config.source.directory
            return shared(f"memory {url}", lambda: qdrant_memory_at(url, directory=directory, embedder=embedder))
        return shared(f"memory {url}", lambda: DatabaseMemoryService(url, embedder=embedder))

    return _optional(config.services.memory, in_memory, elsewhere)


def _embedder(config: AppConfig, shared: Shared) -> Embedder | None:
    wanted = config.services.embedder
    if wanted is None:
        return None
    if wanted.model == MINILM and wanted.base_url is None:
        minilm: Embedder = shared(f"embedder {MINILM}", MiniLmEmbedder)
        return minilm
    dimensions = wanted.dimensions
    if dimensions is None:
        raise _invalid(config.source, "embedder", "say how many dimensions the model's vectors have")
    key = wanted.api_key.get_secret_value() if wanted.api_key is not None else None
    made: Embedder = shared(
        f"embedder {wanted.model} {dimensions} {wanted.base_url} {config.app_name}",
        lambda: OpenAIEmbedder(
            wanted.model, dimensions=dimensions, base_url=wanted.base_url, api_key=key, timeout=wanted.timeout
        ),
    )
    return made


def _in_directory(source: Source, url: str) -> str:
    """The URL of a database; the path of a file is relative to the config's directory."""
    scheme, _, rest = url.partition(":///")
    if scheme.lower() == "sqlite" and rest and not rest.startswith(("/", ":")):
        return f"sqlite:///{source.directory / rest}"
    return url


def _optional(place: str | None, in_memory: Callable[[], Any], elsewhere: Callable[[str], Any]) -> Any:
    """The service at a place: the default if none is named, None if it is turned off."""
    if place is None:
        return DEFAULT
    if place == NONE:
        return None
    return in_memory() if place in MEMORY else elsewhere(place)


def _invalid(source: Source, key: str, text: str) -> Exception:
    return source.error(("services", key), text, code="config.invalid")


def _unknown(source: Source, key: str, forms: str) -> Exception:
    return source.error(("services", key), f"there is no such service; write {forms}", code="config.unknown_service")

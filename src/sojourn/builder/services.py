"""Services that a config names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.builder.schema import AppConfig
from sojourn.builder.source import Source
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.runner.config import DEFAULT
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService

MEMORY = ("memory", "memory:")
"""How services in the process's memory are named."""

NONE = "none"
"""How a service that is turned off is named."""

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
        raise _unknown(config.source, "session", "sqlite:///app.db or memory")
    scheme, _, rest = url.partition(":///")
    if scheme.lower() == "sqlite" and rest and not rest.startswith(("/", ":")):
        url = f"sqlite:///{config.source.directory / rest}"
    return shared(f"session {url}", lambda: DatabaseSessionService(url))


def artifact_service(config: AppConfig, shared: Shared) -> Any:
    """The service for artifacts; the default if the config leaves it open, None if it is turned off.

    Raises:
        ConfigError: `config.unknown_service`.
        Unsupported: What `FileArtifactService` raises.
    """
    place = config.services.artifacts
    if place is None:
        return DEFAULT
    if place == NONE:
        return None
    if place in MEMORY:
        return shared(f"artifacts {config.app_name}", InMemoryArtifactService)
    if "://" in place or not place:
        raise _unknown(config.source, "artifacts", "the path of a directory, memory or none")
    directory = config.source.directory / Path(place).expanduser()
    return shared(f"artifacts {directory}", lambda: FileArtifactService(directory))


def memory_service(config: AppConfig, shared: Shared) -> Any:
    """The service for memory; the default if the config leaves it open, None if it is turned off.

    Raises:
        ConfigError: `config.unknown_service`.
    """
    place = config.services.memory
    if place is None:
        return DEFAULT
    if place == NONE:
        return None
    if place in MEMORY:
        return shared(f"memory {config.app_name}", InMemoryMemoryService)
    raise _unknown(config.source, "memory", "memory or none")


def _unknown(source: Source, key: str, forms: str) -> Exception:
    return source.error(("services", key), f"there is no such service; write {forms}", code="config.unknown_service")

"""Picks the backend of memory by the URL of a database."""

from __future__ import annotations

import re

from sojourn.errors import InvalidInput, Unsupported
from sojourn.memory.embedder import Embedder
from sojourn.memory.service import MemoryService
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.postgres import not_installed

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)
_FORMS = "use 'sqlite:///relative.db', 'sqlite:////absolute/path.db' or 'postgresql://user:password@host/database'"


def DatabaseMemoryService(url: str, *, embedder: Embedder | None = None) -> MemoryService:
    """Memory in a database, which may be the one of the sessions.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute/path.db` or `postgresql://user:password@host:port/database`.
        embedder: Makes vectors of texts; None finds by words alone.

    Raises:
        InvalidInput: `memory.invalid_url`, `store.invalid_url`.
        Unsupported: `memory.unsupported_url` for a database there is no backend for; `embedding.not_installed`;
            `postgres.not_installed`.
    """
    # The URL may hold a password, so no message repeats it.
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise InvalidInput(f"the database URL has no scheme; {_FORMS}", code="memory.invalid_url")
    if scheme.lower() in ("postgresql", "postgres"):
        return _in_postgres(url, embedder)
    if scheme.lower() != "sqlite":
        raise Unsupported(f"there is no memory in {scheme}:// URLs; {_FORMS}", code="memory.unsupported_url")
    if rest in ("", "/", "/:memory:"):
        raise InvalidInput(
            f"the database URL names no file; {_FORMS}; for memory in RAM use InMemoryMemoryService()",
            code="memory.invalid_url",
        )
    if not rest.startswith("/"):
        raise InvalidInput(f"the database URL names a host, which SQLite has not; {_FORMS}", code="memory.invalid_url")
    if "?" in rest:
        raise InvalidInput(f"a SQLite URL takes no options; {_FORMS}, and pass options by name", code="memory.invalid_url")
    return SqliteMemoryService(rest[1:], embedder=embedder)


def _in_postgres(url: str, embedder: Embedder | None) -> MemoryService:
    try:
        from sojourn.memory.postgres.service import PostgresMemoryService
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    return PostgresMemoryService(url, embedder=embedder)

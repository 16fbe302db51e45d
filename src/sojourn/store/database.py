"""Picks the backend of the store by its URL."""

from __future__ import annotations

import re

from sojourn.errors import InvalidInput, Unsupported
from sojourn.run.store import Store
from sojourn.store.sqlite.connection import Synchronous
from sojourn.store.sqlite.executor import Role
from sojourn.store.sqlite.service import SqliteSessionService

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)
_FORMS = "use 'sqlite:///relative.db' or 'sqlite:////absolute/path.db'"


def DatabaseSessionService(url: str, *, synchronous: Synchronous = "full", role: Role = "executor") -> Store:
    """Sessions and runs in a database.

    Args:
        url: `sqlite:///relative.db` or `sqlite:////absolute/path.db`.
        synchronous: Of a SQLite file: `full` survives a loss of power, `normal` the death of the process; see
            `SqliteSessionService`.
        role: `executor` executes runs as soon as it is asked to. `client` never does: it reads, creates, changes and deletes
            sessions, asks for cancels and answers questions; starting a run raises `Conflict`, `store.client_only`.

    Raises:
        InvalidInput: `store.invalid_url`, `store.invalid_option`.
        Unsupported: `store.unsupported_url` for a database there is no backend for.
    """
    # The URL may hold a password, so no message repeats it.
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise InvalidInput(f"the database URL has no scheme; {_FORMS}", code="store.invalid_url")
    if scheme.lower() != "sqlite":
        raise Unsupported(f"there is no backend for {scheme}:// URLs; {_FORMS}", code="store.unsupported_url")
    if rest in ("", "/", "/:memory:"):
        raise InvalidInput(
            f"the database URL names no file; {_FORMS}; for sessions in memory use InMemorySessionService()",
            code="store.invalid_url",
        )
    if not rest.startswith("/"):
        raise InvalidInput(f"the database URL names a host, which SQLite has not; {_FORMS}", code="store.invalid_url")
    if "?" in rest:
        raise InvalidInput(f"a SQLite URL takes no options; {_FORMS}, and pass options by name", code="store.invalid_url")
    return SqliteSessionService(rest[1:], synchronous=synchronous, role=role)

"""Picks the backend of the store by its URL."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypedDict

from sojourn.errors import InvalidInput, Unsupported
from sojourn.postgres import not_installed
from sojourn.run.store import Store
from sojourn.sqlite.connection import Synchronous
from sojourn.store.role import Role
from sojourn.store.sqlite.service import SqliteSessionService

if TYPE_CHECKING:
    from asyncpg import Pool
    from typing_extensions import Unpack

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)
POSTGRES = ("postgresql", "postgres")
"""Schemes of the URLs of PostgreSQL databases."""

_FILES = "'sqlite:///relative.db' or 'sqlite:////absolute/path.db'"
_FORMS = f"use {_FILES}, or 'postgresql://user:password@host:5432/database'"


class PostgresOptions(TypedDict, total=False):
    """Options of a PostgreSQL database; see `PostgresSessionService`."""

    schema: str
    pool_size: int
    acquire_timeout: float
    statement_timeout: float
    statement_cache_size: int
    direct_url: str | None
    create: bool


def DatabaseSessionService(
    source: str | Pool, *, synchronous: Synchronous = "full", role: Role = "executor", **options: Unpack[PostgresOptions]
) -> Store:
    """Sessions and runs in a database.

    Args:
        source: `sqlite:///relative.db`, `sqlite:////absolute/path.db`, `postgresql://user:password@host:5432/database`, or an
            `asyncpg.Pool`, which is never closed.
        synchronous: Of a SQLite file: `full` survives a loss of power, `normal` the death of the process; see
            `SqliteSessionService`.
        role: `executor` executes runs as soon as it is asked to. `client` never does: it reads, creates, changes and deletes
            sessions, asks for cancels and answers questions; starting a run raises `Conflict`, `store.client_only`.
        **options: Of a PostgreSQL database: `schema`, `pool_size`, `acquire_timeout`, `statement_timeout`,
            `statement_cache_size`, `direct_url`, `create`; see `PostgresSessionService`.

    Raises:
        InvalidInput: `store.invalid_url`, `store.invalid_option`.
        Unsupported: `store.unsupported_url` for a database there is no backend for; `postgres.not_installed` without the
            extra `sojourn[postgres]`.
    """
    # The URL may hold a password, so no message repeats it.
    scheme = _scheme_of(source)
    if scheme is None or scheme in POSTGRES:
        if synchronous != "full":
            raise InvalidInput(
                "synchronous is for SQLite files; a PostgreSQL server has its own synchronous_commit",
                code="store.invalid_option",
            )
        return _postgres(source, role, options)
    if options:
        raise InvalidInput(f"{', '.join(sorted(options))}: a SQLite file has no such option", code="store.invalid_option")
    return _sqlite(str(source), scheme, synchronous, role)


def _scheme_of(source: Any) -> str | None:
    """The scheme of a URL; None for a pool."""
    if not isinstance(source, str) and hasattr(source, "acquire"):
        return None
    scheme, separator, _ = source.partition("://") if isinstance(source, str) else ("", "", "")
    if not separator or not _SCHEME.fullmatch(scheme):
        raise InvalidInput(f"the database URL has no scheme; {_FORMS}", code="store.invalid_url")
    return scheme.lower()


def _postgres(source: str | Pool, role: Role, options: PostgresOptions) -> Store:
    try:
        from sojourn.store.postgres.service import PostgresSessionService
    except ModuleNotFoundError as error:
        raise not_installed(error) from error
    return PostgresSessionService(source, role=role, **options)


def _sqlite(url: str, scheme: str, synchronous: Synchronous, role: Role) -> Store:
    rest = url.partition("://")[2]
    if scheme != "sqlite":
        raise Unsupported(f"there is no backend for {scheme}:// URLs; {_FORMS}", code="store.unsupported_url")
    if rest in ("", "/", "/:memory:"):
        raise InvalidInput(
            f"the database URL names no file; use {_FILES}; for sessions in memory use InMemorySessionService()",
            code="store.invalid_url",
        )
    if not rest.startswith("/"):
        raise InvalidInput(f"the database URL names a host, which SQLite has not; use {_FILES}", code="store.invalid_url")
    if "?" in rest:
        raise InvalidInput(f"a SQLite URL takes no options; use {_FILES}, and pass options by name", code="store.invalid_url")
    return SqliteSessionService(rest[1:], synchronous=synchronous, role=role)

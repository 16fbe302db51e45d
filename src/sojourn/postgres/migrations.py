"""The tables of a service, and how a schema gets from one version of them to the next."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sojourn.errors import InvalidInput, NotFound, Unsupported

if TYPE_CHECKING:
    from asyncpg import Connection

PATIENCE = 3600.0
"""Seconds that one step may take, or the wait for another process that takes it."""

OLDEST_SERVER = 14
"""The oldest version of PostgreSQL that is known to do."""


class Migration(NamedTuple):
    """One step from the version before to `version`.

    Attributes:
        version: Counts from 1.
        why: What it is for.
        sql: Statements; `{schema}` in them stands for the schema's name.
    """

    version: int
    why: str
    sql: str


class Place(NamedTuple):
    """Where the tables of a service are.

    Attributes:
        schema: The schema, which other services may share.
        service: Whose tables they are.
        database: What to call the database in messages.
    """

    schema: str
    service: str
    database: str

    def __str__(self) -> str:
        return f"schema {self.schema!r} of {self.database}"


def check_schema(schema: object) -> str:
    """Returns `schema` if it may name a schema: text of 1 to 63 bytes, without `$`.

    Raises:
        InvalidInput: `store.invalid_option`.
    """
    if not isinstance(schema, str) or set("\0$") & set(schema) or not 0 < len(schema.encode(errors="replace")) < 64:
        raise InvalidInput(f"schema is {schema!r}; use a name of 1 to 63 bytes, without '$'", code="store.invalid_option")
    return schema


def quoted(name: str) -> str:
    """A name as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'


def in_schema(sql: str, schema: str) -> str:
    """A statement with the schema's name in place of `{schema}`."""
    return sql.replace("{schema}", quoted(schema))


def lock_key(*names: str) -> int:
    """The number of an advisory lock that stands for some names."""
    digest = hashlib.sha256("\0".join(("sojourn", *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


async def migrate(conn: Connection, place: Place, migrations: Sequence[Migration], *, create: bool = True) -> None:
    """Makes sure that a schema is ours and has the newest tables of a service.

    It is done as a whole or not at all, and any number of processes may do so at once.

    Args:
        conn: A connection outside of any transaction.
        place: Where the tables are, or are to be.
        migrations: All steps, oldest first.
        create: Whether to create the tables, and the schema, if there are none of the service.

    Raises:
        NotFound: `store.not_found` if there are none, and none are to be created.
        Unsupported: `store.foreign` if the schema holds another program's tables; `store.schema_newer` if a newer version of
            Sojourn wrote them; `store.unsupported_server`.
    """
    await _check_server(conn, place)
    newest = migrations[-1].version
    version = await _version(conn, place, newest)
    if version == newest:
        return
    if not (version or create):
        raise NotFound(f"there are no {place.service} in {place}; name another database (--db)", code="store.not_found")
    async with conn.transaction(isolation="read_committed"):
        await conn.execute("SET LOCAL statement_timeout = 0")
        await conn.execute("SELECT pg_advisory_xact_lock($1)", lock_key("migrate", place.schema), timeout=PATIENCE)
        version = await _version(conn, place, newest)
        if not await conn.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", place.schema):
            await conn.execute(in_schema("CREATE SCHEMA {schema}", place.schema))
        await conn.execute(in_schema(_VERSIONS, place.schema))
        for step in migrations:
            if step.version > version:
                await conn.execute(in_schema(step.sql, place.schema), timeout=PATIENCE)
        await conn.execute(in_schema(_NOTE, place.schema), place.service, newest)


_VERSIONS = """
    CREATE TABLE IF NOT EXISTS {schema}.sojourn_versions (
        service text COLLATE "C" PRIMARY KEY,
        version integer NOT NULL
    )
"""
_NOTE = """
    INSERT INTO {schema}.sojourn_versions (service, version) VALUES ($1, $2)
    ON CONFLICT (service) DO UPDATE SET version = excluded.version
"""
_LOOK = """
    SELECT
        EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = 'sojourn_versions'
        ) AS ours,
        EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v')
        ) AS used
"""


async def _version(conn: Connection, place: Place, newest: int) -> int:
    found = await conn.fetchrow(_LOOK, place.schema)
    if not found["ours"]:
        if found["used"]:
            raise Unsupported(
                f"{place} holds tables of another program; name another schema, or an absent one to have it created",
                code="store.foreign",
            )
        return 0
    version: Any = await conn.fetchval(
        in_schema("SELECT version FROM {schema}.sojourn_versions WHERE service = $1", place.schema), place.service
    )
    if version is not None and version > newest:
        raise Unsupported(
            f"the {place.service} in {place} have version {version}, this version of Sojourn knows {newest}; "
            "upgrade Sojourn, or use another schema",
            code="store.schema_newer",
        )
    return int(version or 0)


async def _check_server(conn: Connection, place: Place) -> None:
    number = await conn.fetchval("SELECT current_setting('server_version_num')::int")
    if number < OLDEST_SERVER * 10_000:
        raise Unsupported(
            f"{place.database} runs PostgreSQL {number // 10_000}; use {OLDEST_SERVER} or newer",
            code="store.unsupported_server",
        )
    encoding = await conn.fetchval("SELECT current_setting('server_encoding')")
    if encoding != "UTF8":
        raise Unsupported(
            f"{place.database} has the encoding {encoding}; create one with ENCODING 'UTF8'", code="store.unsupported_server"
        )

"""Statements on the tables of a schema."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sojourn.postgres.migrations import in_schema
from sojourn.postgres.pool import Database

if TYPE_CHECKING:
    from asyncpg import Connection

T = TypeVar("T")

Record = Any
"""A row: a tuple whose values also have the names of their columns."""


class Tables:
    """A connection that knows in which schema the tables are. In statements, `{schema}` stands for it."""

    __slots__ = ("_conn", "_texts")

    def __init__(self, conn: Connection, texts: Texts) -> None:
        self._conn = conn
        self._texts = texts

    async def all(self, sql: str, *args: Any) -> list[Record]:
        """All rows of a statement."""
        rows: list[Record] = await self._conn.fetch(self._texts[sql], *args)
        return rows

    async def one(self, sql: str, *args: Any) -> Record | None:
        """The first row of a statement; None if there is none."""
        return await self._conn.fetchrow(self._texts[sql], *args)

    async def value(self, sql: str, *args: Any) -> Any:
        """The first value of the first row; None if there is none."""
        return await self._conn.fetchval(self._texts[sql], *args)

    async def run(self, sql: str, *args: Any) -> None:
        """Runs a statement that gives nothing."""
        await self._conn.execute(self._texts[sql], *args)

    async def run_all(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement for each of some rows."""
        await self._conn.executemany(self._texts[sql], rows)


class Texts(dict[str, str]):
    """Statements with the name of a schema filled in."""

    def __init__(self, schema: str) -> None:
        super().__init__()
        self._schema = schema

    def __missing__(self, sql: str) -> str:
        self[sql] = text = in_schema(sql, self._schema)
        return text


Op = Callable[[Tables], Awaitable[T]]
"""Work on the tables."""


class Base:
    """The tables of a schema in a database.

    Args:
        database: The database.
        schema: The schema.
    """

    def __init__(self, database: Database, schema: str) -> None:
        self.database = database
        self._texts = Texts(schema)

    def tables(self, conn: Connection) -> Tables:
        """The tables, through a connection."""
        return Tables(conn, self._texts)

    async def read(self, op: Op[T]) -> T:
        """Runs one statement that only reads."""
        return await self.database.read(lambda conn: op(Tables(conn, self._texts)))

    async def snapshot(self, op: Op[T]) -> T:
        """Runs statements that only read and see the same state of the tables."""
        return await self.database.snapshot(lambda conn: op(Tables(conn, self._texts)))

    async def write(self, op: Op[T]) -> T:
        """Runs one statement that writes, to its end."""
        return await self.database.write(lambda conn: op(Tables(conn, self._texts)))

    async def transact(self, op: Op[T]) -> T:
        """Runs statements in one transaction, to its end."""
        return await self.database.transact(lambda conn: op(Tables(conn, self._texts)))

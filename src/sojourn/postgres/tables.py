"""Statements on the tables of a schema."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sojourn.postgres.migrations import in_schema

if TYPE_CHECKING:
    from asyncpg import Connection

Record = Any
"""A row: a tuple whose values also have the names of their columns."""


class Texts(dict[str, str]):
    """Statements with the name of a schema filled in."""

    def __init__(self, schema: str) -> None:
        super().__init__()
        self._schema = schema

    def __missing__(self, sql: str) -> str:
        self[sql] = text = in_schema(sql, self._schema)
        return text


class Tables:
    """A connection that knows in which schema the tables are. In statements, `{schema}` stands for it."""

    __slots__ = ("_conn", "_texts")

    def __init__(self, conn: Connection, texts: Texts) -> None:
        self._conn = conn
        self._texts = texts

    def all(self, sql: str, *args: Any) -> Awaitable[list[Record]]:
        """All rows of a statement."""
        rows: Awaitable[list[Record]] = self._conn.fetch(self._texts[sql], *args)
        return rows

    def one(self, sql: str, *args: Any) -> Awaitable[Record | None]:
        """The first row of a statement; None if there is none."""
        row: Awaitable[Record | None] = self._conn.fetchrow(self._texts[sql], *args)
        return row

    async def column(self, sql: str, *args: Any) -> list[Any]:
        """The first value of each row."""
        return [row[0] for row in await self.all(sql, *args)]

    def value(self, sql: str, *args: Any) -> Awaitable[Any]:
        """The first value of the first row; None if there is none."""
        value: Awaitable[Any] = self._conn.fetchval(self._texts[sql], *args)
        return value

    def run(self, sql: str, *args: Any) -> Awaitable[Any]:
        """Runs a statement whose rows, if it gives any, are not wanted."""
        done: Awaitable[Any] = self._conn.execute(self._texts[sql], *args)
        return done

    def run_all(self, sql: str, rows: Iterable[Sequence[Any]]) -> Awaitable[Any]:
        """The same for each of some rows of arguments."""
        done: Awaitable[Any] = self._conn.executemany(self._texts[sql], rows)
        return done

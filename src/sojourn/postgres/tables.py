"""Statements on the tables of a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sojourn.postgres.migrations import in_schema

if TYPE_CHECKING:
    from asyncpg import Connection


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

    async def all(self, sql: str, *args: Any) -> list[Any]:
        """All rows of a statement."""
        rows: list[Any] = await self._conn.fetch(self._texts[sql], *args)
        return rows

    async def one(self, sql: str, *args: Any) -> Any | None:
        """The first row of a statement; None if there is none."""
        return await self._conn.fetchrow(self._texts[sql], *args)

    async def column(self, sql: str, *args: Any) -> list[Any]:
        """The first value of each row."""
        return [row[0] for row in await self.all(sql, *args)]

    async def value(self, sql: str, *args: Any) -> Any:
        """The first value of the first row; None if there is none."""
        return await self._conn.fetchval(self._texts[sql], *args)

    async def run(self, sql: str, *args: Any) -> None:
        """Runs a statement that gives nothing."""
        await self._conn.execute(self._texts[sql], *args)

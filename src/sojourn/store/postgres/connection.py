"""What is run on the tables of a schema."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from sojourn.postgres.pool import Database
from sojourn.postgres.tables import Tables, Texts

if TYPE_CHECKING:
    from asyncpg import Connection

T = TypeVar("T")

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

    def read(self, op: Op[T]) -> Awaitable[T]:
        """Runs one statement that only reads."""
        return self.database.read(lambda conn: op(Tables(conn, self._texts)))

    def snapshot(self, op: Op[T]) -> Awaitable[T]:
        """Runs statements that only read and see the same state of the tables."""
        return self.database.snapshot(lambda conn: op(Tables(conn, self._texts)))

    def write(self, op: Op[T]) -> Awaitable[T]:
        """Runs one statement that writes, to its end."""
        return self.database.write(lambda conn: op(Tables(conn, self._texts)))

    def transact(self, op: Op[T]) -> Awaitable[T]:
        """Runs statements in one transaction, to its end."""
        return self.database.transact(lambda conn: op(Tables(conn, self._texts)))

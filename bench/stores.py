"""The stores that are measured, each one empty and gone afterwards."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from sojourn import InMemorySessionService
from sojourn.run.store import Store
from sojourn.sqlite.connection import Synchronous
from sojourn.store.database import DatabaseSessionService


class Opened(NamedTuple):
    """A store, and its file if it has one."""

    store: Store
    path: Path | None = None

    def rows(self) -> tuple[int, int, int]:
        """How many sessions, runs and events its file holds, read past the store."""
        assert self.path is not None
        conn = sqlite3.connect(self.path)
        try:
            return rows_in(conn)
        finally:
            conn.close()


Opener = Callable[[], AbstractAsyncContextManager[Opened]]


@asynccontextmanager
async def in_memory() -> AsyncIterator[Opened]:
    """A store in RAM."""
    yield Opened(InMemorySessionService())


def on_sqlite(synchronous: Synchronous) -> Opener:
    """Stores in files of the temporary directory (`TMPDIR`), whose disk is the one that is measured."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Opened]:
        with directory() as path:
            file = path / "bench.db"
            store = DatabaseSessionService(f"sqlite:///{file}", synchronous=synchronous)
            try:
                yield Opened(store, file)
            finally:
                await store.close()

    return opened


@contextmanager
def directory() -> Iterator[Path]:
    """A directory that is removed with its files."""
    with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as name:
        yield Path(name)


def rows_in(conn: sqlite3.Connection) -> tuple[int, int, int]:
    """How many sessions, runs and events a database holds."""
    found: tuple[int, int, int] = conn.execute(
        "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM runs), (SELECT count(*) FROM events)"
    ).fetchone()
    return found

"""The shared suite on SQLite, and the stateful comparison with the store in RAM."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from sojourn.run.store import Store
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.stateful import make_store_machine
from sojourn.testing.store_conformance import StoreConformance


class Disk(sqlite3.Connection):
    """A connection whose disk can break: every statement fails then, as SQLite reports it."""

    broken = False

    def execute(self, *args: Any) -> sqlite3.Cursor:
        if Disk.broken:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
            raise error
        return super().execute(*args)


class TestSQLite(StoreConformance):
    durable = True
    can_fail = True

    @pytest.fixture
    async def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Disk))
        self.path = tmp_path / "store.db"
        self.opened = [SqliteSessionService(self.path, synchronous="normal")]
        yield self.opened[0]
        for store in self.opened:
            await store.close()

    async def reopen(self, store: Store) -> Store:
        await store.close()
        self.opened.append(SqliteSessionService(self.path, synchronous="normal"))
        return self.opened[-1]

    @asynccontextmanager
    async def failing(self, store: Store) -> AsyncIterator[None]:
        Disk.broken = True
        try:
            yield
        finally:
            Disk.broken = False


async def open_sqlite(directory: Path) -> Store:
    store = SqliteSessionService(directory / "store.db", synchronous="normal")
    # Without an executor, a cancel would close a running run at once.
    await store.become_executor()
    return store


TestSQLiteAgainstRAM = make_store_machine(open_sqlite).TestCase
TestSQLiteAgainstRAM.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)

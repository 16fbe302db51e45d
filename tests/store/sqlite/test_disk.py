"""Disks that are full, read-only or busy."""

import asyncio
import sqlite3
import tempfile
from pathlib import Path

import pytest

from sojourn.errors import Unavailable
from sojourn.sqlite import connection
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import event, finished, start, write
from tests.store.sqlite.processes import said_by

pytestmark = pytest.mark.anyio


async def test_a_file_that_may_not_grow(path: Path) -> None:
    error, stored, again = said_by("append_until_full", path, 400_000)
    _, code, cause, message = error.split(" ", 3)
    assert (code, cause) == ("store.unavailable", "OperationalError")
    assert str(path) in message
    _, acknowledged, events = stored.split()
    assert int(events) == int(acknowledged) + 1 > 5
    assert again == "again"


async def test_a_full_database_fails_what_does_not_fit(store: SqliteSessionService) -> None:
    run = await start(store)

    def limit(conn: sqlite3.Connection) -> None:
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages + 3}")

    await store._writer.call(limit)
    with pytest.raises(Unavailable, match="disk is full") as caught:
        await write(store, run, event(run, 1, "x" * 100_000))
    assert caught.value.code == "store.unavailable"
    assert store.path in caught.value.message
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    [stored] = (await write(store, run, event(run, 1, "small"))).events
    assert stored is not None
    assert stored.seq == 2


@pytest.mark.parametrize("directory_mode", [0o777, 0o555], ids=["file", "directory"])
def test_a_file_that_may_only_be_read(directory_mode: int) -> None:
    async def fill(path: Path) -> None:
        store = SqliteSessionService(path)
        await finished(store)
        await store.close()

    # Not in pytest's directory, which only its owner may enter.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store.db")
        asyncio.run(fill(path))
        path.chmod(0o444)
        path.parent.chmod(directory_mode)
        lines = said_by("create_as_nobody", path)
        path.parent.chmod(0o777)
    # To read, SQLite needs to put its index of the log beside the file.
    assert (lines[0] == "read s1") == (directory_mode == 0o777)
    assert lines[-1].startswith("error store.unavailable")
    assert str(path) in lines[-1]
    assert "writable by this user" in lines[-1]


async def test_a_lock_of_another_process_is_reported_in_the_end(path: Path, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT", 0.01)
    store = opened()
    await finished(store)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked by another process") as caught:
        await store.create_session(app_name="shop", user_id="alice", session_id="s2")
    assert (caught.value.code, caught.value.retryable) == ("store.unavailable", True)
    assert (await store.get_run("shop", "r1")).id == "r1"
    holder.execute("ROLLBACK")
    holder.close()
    await store.create_session(app_name="shop", user_id="alice", session_id="s2")


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    store = SqliteSessionService(tmp_path)
    with pytest.raises(Unavailable, match="cannot be opened"):
        await store.list_sessions(app_name="shop")
    await store.close()

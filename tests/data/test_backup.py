"""Backups of a SQLite store while it is in use, and bringing them back."""

import asyncio
import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from sojourn.data import DataCare, restore_backup
from sojourn.errors import AlreadyExists, Conflict, InvalidInput, NotFound, Unavailable, Unsupported
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite import backup
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import event, finished, session_key, start, write
from sojourn.testing.suite import raises
from sojourn.testing.world import assert_same_world, read_world
from tests.data.support import APP, converse, files_with

pytestmark = pytest.mark.anyio


@pytest.fixture
async def opened():
    """Opens stores and closes them in the end."""
    stores = []

    def open_store(path, role="executor"):
        stores.append(SqliteSessionService(path, synchronous="normal", role=role))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


async def fill(store, word="w"):
    for n in (1, 2):
        await converse(store, session_key(f"s{n}"), word=word)


async def test_a_backup_is_what_there_was(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    made = await DataCare(store).backup(tmp_path / "copy.db")
    assert (made.path, made.size) == (str(tmp_path / "copy.db"), (tmp_path / "copy.db").stat().st_size)
    assert not list(tmp_path.glob("copy.db?*"))
    assert_same_world(await read_world(opened(tmp_path / "copy.db"), [APP]), await read_world(store, [APP]))


async def test_a_backup_while_others_write(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    run = await start(store, "now", session_key("now"))
    ordinals = iter(range(1, 10_000))
    stop = asyncio.Event()

    async def speak():
        while not stop.is_set():
            await write(store, run, event(run, next(ordinals), "x" * 200))

    speaking = asyncio.create_task(speak())
    counts = []
    for n in range(5):
        await DataCare(store).backup(tmp_path / f"copy{n}.db")
        with closing(sqlite3.connect(tmp_path / f"copy{n}.db")) as copy:
            (events, last) = copy.execute("SELECT count(*), max(seq) FROM events WHERE run_uid = ?", (run.uid,)).fetchone()
            (told,) = copy.execute("SELECT last_pos FROM runs WHERE uid = ?", (run.uid,)).fetchone()
            assert events == last == told
            counts.append(events)
    stop.set()
    await speaking
    assert counts == sorted(counts)
    assert counts[-1] > 1


async def test_a_backup_holds_nothing_that_was_removed(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store, "secret-words")
    await DataCare(store).erase("alice", scrub=False)
    (tmp_path / "backups").mkdir()
    await DataCare(store).backup(tmp_path / "backups" / "copy.db")
    assert files_with(tmp_path / "backups", "secret-words") == []


async def test_a_file_is_replaced_only_if_that_is_wanted(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    (tmp_path / "copy.db").write_text("mine")
    care = DataCare(store)
    with raises(AlreadyExists, "data.target_exists"):
        await care.backup(tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "mine"
    await care.backup(tmp_path / "copy.db", overwrite=True)
    assert (tmp_path / "copy.db").read_bytes()[:6] == b"SQLite"
    with raises(AlreadyExists, "data.target_exists"):
        await care.backup(tmp_path / "store.db", overwrite=True)


async def test_a_backup_is_as_private_as_the_database(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    for mode in (0o600, 0o640):
        os.chmod(tmp_path / "store.db", mode)
        await DataCare(store).backup(tmp_path / "copy.db", overwrite=True)
        assert (tmp_path / "copy.db").stat().st_mode & 0o777 == mode


async def test_what_cannot_be_backed_up(opened, tmp_path):
    with raises(Unsupported, "data.backup_unsupported"):
        await DataCare(InMemorySessionService()).backup(tmp_path / "copy.db")
    store = opened(tmp_path / "store.db")
    with raises(NotFound, "store.not_found"):
        await DataCare(store).backup(tmp_path / "copy.db")
    await fill(store)
    with raises(Unavailable, "store.unavailable"):
        await DataCare(store).backup(tmp_path / "missing" / "copy.db")
    assert sorted(path.name for path in tmp_path.iterdir() if "copy" in path.name) == []


async def test_what_died_is_tidied_up(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    gone = 2**22 + 1
    for left in (f"copy.db.{gone}.a1.partial", f"copy.db.{gone}.a1.partial-journal", f"copy.db.{os.getpid()}.a1.partial"):
        (tmp_path / left).write_text("half")
    others = {f"other.db.{gone}.a1.partial", f"copy.db.{os.getppid()}.a1.partial"}
    for other in others:
        (tmp_path / other).write_text("not ours")
    await DataCare(store).backup(tmp_path / "copy.db")
    assert {path.name for path in tmp_path.glob("*.partial*")} == others


async def test_two_backups_to_one_name_at_once(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    care = DataCare(store)
    await asyncio.gather(*(care.backup(tmp_path / "copy.db", overwrite=True) for _ in range(4)))
    assert_same_world(await read_world(opened(tmp_path / "copy.db"), [APP]), await read_world(store, [APP]))
    made = await asyncio.gather(*(care.backup(tmp_path / "other.db") for _ in range(3)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in made) == ["AlreadyExists", "AlreadyExists", "Backup"]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal", ".executor"])
async def test_the_files_of_the_database_are_not_replaced(opened, tmp_path, ending):
    store = opened(tmp_path / "store.db")
    await store.become_executor()
    await fill(store)
    (tmp_path / "link.db").symlink_to(tmp_path / f"store.db{ending}")
    for name in (f"store.db{ending}", "link.db"):
        with raises(AlreadyExists, "data.target_exists"):
            await DataCare(store).backup(tmp_path / name, overwrite=True)
    await finished(store, "later", None, "a")


async def test_what_is_no_file_is_not_replaced(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    os.mkfifo(tmp_path / "pipe")
    with raises(AlreadyExists, "data.target_exists"):
        await DataCare(store).backup(tmp_path / "pipe", overwrite=True)
    assert (tmp_path / "pipe").is_fifo()


async def test_a_backup_that_is_cancelled_leaves_nothing(opened, tmp_path, monkeypatch):
    store = opened(tmp_path / "store.db")
    await fill(store)
    begun = threading.Event()

    def endless(conn, path):
        conn.create_function("tick", 0, begun.set)
        conn.execute("WITH RECURSIVE c (n) AS (SELECT tick() UNION ALL SELECT n FROM c) SELECT count(*) FROM c").fetchone()

    monkeypatch.setattr(backup, "_check", endless)
    backing = asyncio.create_task(DataCare(store).backup(tmp_path / "copy.db"))
    await asyncio.to_thread(begun.wait, 20)
    assert list(tmp_path.glob("copy.db.*.partial"))
    backing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await backing
    assert not list(tmp_path.glob("copy*"))


# -- restoring --------------------------------------------------------------------------------------------------------


async def backed_up(opened, tmp_path):
    store = opened(tmp_path / "store.db")
    await fill(store)
    world = await read_world(store, [APP])
    await DataCare(store).backup(tmp_path / "copy.db")
    return store, world


async def test_a_restored_database_is_what_it_was(opened, tmp_path):
    store, world = await backed_up(opened, tmp_path)
    await finished(store, "later", None, "a" * 100_000)
    await store.create_session(app_name="other", user_id="bob")
    await store.close()
    await restore_backup(tmp_path / "copy.db", tmp_path / "store.db")
    store = opened(tmp_path / "store.db")
    assert_same_world(await read_world(store, [APP]), world)
    assert await store.list_apps() == [APP]
    await finished(store, "again", None, "a")
    assert (tmp_path / "copy.db").exists()


async def test_a_database_that_is_gone_is_made(opened, tmp_path):
    store, world = await backed_up(opened, tmp_path)
    await store.close()
    await restore_backup(tmp_path / "copy.db", tmp_path / "new.db")
    assert_same_world(await read_world(opened(tmp_path / "new.db"), [APP]), world)
    assert not list(tmp_path.glob("*.partial"))


async def test_what_died_while_it_restored_is_tidied_up(opened, tmp_path):
    store, _ = await backed_up(opened, tmp_path)
    await store.close()
    (tmp_path / f"store.db.{2**22 + 1}.a1.partial").write_text("half")
    await restore_backup(tmp_path / "copy.db", tmp_path / "store.db")
    assert not list(tmp_path.glob("*.partial"))


async def test_clients_see_what_was_restored(opened, tmp_path):
    store, world = await backed_up(opened, tmp_path)
    await finished(store, "later", None, "a")
    await store.close()
    client = opened(tmp_path / "store.db", role="client")
    assert (await client.get_run(APP, "later")).id == "later"
    await restore_backup(tmp_path / "copy.db", tmp_path / "store.db")
    with raises(NotFound, "run.not_found"):
        await client.get_run(APP, "later")
    assert_same_world(await read_world(client, [APP]), world)
    await client.create_session(app_name=APP, user_id="carol")


async def test_an_executor_keeps_its_database(opened, tmp_path):
    store, _ = await backed_up(opened, tmp_path)
    with raises(Conflict, "store.in_use"):
        await restore_backup(tmp_path / "copy.db", tmp_path / "store.db")
    await finished(store, "later", None, "a")
    await store.close()
    await restore_backup(tmp_path / "copy.db", tmp_path / "store.db")


async def test_what_cannot_be_restored(opened, tmp_path):
    store, _ = await backed_up(opened, tmp_path)
    await store.close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    with raises(NotFound, "store.not_found"):
        await restore_backup(tmp_path / "missing.db", tmp_path / "store.db")
    with raises(InvalidInput, "data.same_file"):
        await restore_backup(tmp_path / "store.db", tmp_path / "store.db")
    (tmp_path / "text").write_text("something else, and long enough for a header" * 50)
    with raises(Unsupported, "store.foreign"):
        await restore_backup(tmp_path / "text", tmp_path / "store.db")
    (tmp_path / "text").unlink()
    for name, script in (
        ("foreign", "CREATE TABLE t (x)"),
        ("newer", f"PRAGMA application_id={0x536F6A72}; PRAGMA user_version=99"),
    ):
        with closing(sqlite3.connect(tmp_path / name)) as other:
            other.executescript(script)
        with raises(Unsupported, "store.foreign" if name == "foreign" else "store.schema_newer"):
            await restore_backup(tmp_path / name, tmp_path / "store.db")
        (tmp_path / name).unlink()
    whole = (tmp_path / "copy.db").read_bytes()
    (tmp_path / "torn.db").write_bytes(whole[: len(whole) // 2])
    with raises(Unavailable, "store.corrupt"):
        await restore_backup(tmp_path / "torn.db", tmp_path / "store.db")
    (tmp_path / "torn.db").unlink()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


async def test_what_is_no_database_of_ours_is_not_overwritten(opened, tmp_path):
    store, _ = await backed_up(opened, tmp_path)
    await store.close()
    (tmp_path / "text").write_text("something else, and long enough for a header" * 50)
    with raises(Unavailable, "store.corrupt"):
        await restore_backup(tmp_path / "copy.db", tmp_path / "text")
    with closing(sqlite3.connect(tmp_path / "foreign")) as other:
        other.executescript("CREATE TABLE t (x)")
    with raises(Unavailable, "store.foreign"):
        await restore_backup(tmp_path / "copy.db", tmp_path / "foreign")
    for log in ("gone.db-wal", "gone.db-journal"):
        (tmp_path / log).write_text("left over")
        with raises(Unavailable, "store.corrupt"):
            await restore_backup(tmp_path / "copy.db", tmp_path / "gone.db")
        (tmp_path / log).unlink()
    assert (tmp_path / "text").read_text().startswith("something")
    assert not (tmp_path / "gone.db").exists()


async def test_a_backup_of_an_older_version_is_brought_up_to_date(opened, tmp_path):
    with closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.executescript((Path(__file__).parents[1] / "store/sqlite/version1.sql").read_text())
    await restore_backup(tmp_path / "old.db", tmp_path / "store.db")
    store = opened(tmp_path / "store.db")
    assert await store.list_apps()
    assert (await store.list_sessions(app_name=(await store.list_apps())[0])).items[0].first_seq == 1

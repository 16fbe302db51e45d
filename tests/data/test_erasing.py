"""Erasing a user leaves nothing of theirs, not even in the unused parts of files."""

import asyncio
import sqlite3
from contextlib import closing

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.data import DataCare, erasing
from sojourn.errors import Conflict, Fenced, NotFound, Unavailable
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.runner.runner import Runner
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import event, finished, session_key, start, write
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.faults import FaultyRetainingStore, hold
from sojourn.testing.loop import simulate
from sojourn.testing.suite import raises
from sojourn.testing.world import assert_same_world, read_world
from tests.data.support import APP, archive_of, beside, check_strange_users, files_with, fill

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def noticed_at_once(monkeypatch):
    """No other process executes what is erased here."""
    monkeypatch.setattr(erasing, "NOTICE_SECONDS", 0.0)


@pytest.fixture
async def store(tmp_path):
    opened = SqliteSessionService(tmp_path / "store.db", synchronous="normal")
    yield opened
    await opened.close()


async def test_nothing_is_left(store, tmp_path):
    artifacts, memory = beside(tmp_path)
    await fill(store, artifacts, memory, "bob", word="bobs-words", apps=("bank", APP))
    before = await read_world(store, ["bank", APP])
    await fill(store, artifacts, memory, "alice", word="secret-words", apps=("bank", APP))
    # Values that were overwritten, and rows that were moved, leave traces where they were.
    chance = ManualPlatform(seed=7)
    for n in range(150):
        key = SessionKey(APP, "alice", f"s{int(chance.random() * 6)}")
        await finished(store, f"x{n}", key, "secret-words " * (1 + int(chance.random() * 90)))
        await store.patch_session(
            app_name=APP, user_id="alice", session_id=key.session_id,
            state_delta={f"user:k{int(chance.random() * 9)}": "secret-words" * int(chance.random() * 40), "a": "secret-words" * n},
        )  # fmt: skip
        await finished(store, f"y{n}", SessionKey("other", "bob", "s1"), "b" * int(chance.random() * 900))
    care = DataCare(store, artifacts=artifacts, memory=memory)
    assert files_with(tmp_path, "secret-words")
    erased = await care.erase("alice")
    assert (erased.apps, erased.sessions, erased.runs) == (["bank", "other", APP], 8, 162)
    assert files_with(tmp_path, "secret-words") == []
    assert files_with(tmp_path, "alice") == []
    assert not [path for path in tmp_path.rglob("*") if "alice" in path.name]
    assert (await memory.list_memories(APP, "alice")).items == []
    assert set(await archive_of(care.export("alice"))) == {"manifest.json", "end.json"}
    assert_same_world(await read_world(store, ["bank", APP]), before)
    assert len((await memory.list_memories(APP, "bob")).items) == 4
    assert (await care.erase("alice")).sessions == 0


@pytest.mark.parametrize("kind", ["ram", "sqlite"])
async def test_users_with_strange_ids(kind, store, tmp_path):
    await check_strange_users(store if kind == "sqlite" else InMemorySessionService(), tmp_path)


# Of each table, the file of the archive that tells what is in it. What is told by none is the store's own.
TABLES = {
    "sessions": "session.json",
    "runs": "runs.jsonl",
    "events": "events.jsonl",
    "steps": "runs.jsonl",
    "interrupts": "runs.jsonl",
    "state": "app.json",
    "user_usage": "app.json",
    "memory_scopes": "memories.jsonl",
    "memory_entries": "memories.jsonl",
    "calls": None,
    "undo": None,
    "dropped_sessions": None,
    "memory_vectors": None,
}
# Of nobody, and an index that cannot be counted: that the words are gone from the bytes of the file is tested above.
NOT_COUNTED = {"memory_schema", "memory_models", "memory_words"}


async def test_every_table_is_exported_and_erased(store, tmp_path):
    """A table that is new has to be named here, and in both."""
    artifacts, memory = FileArtifactService(tmp_path / "artifacts"), SqliteMemoryService(tmp_path / "store.db")
    await fill(store, artifacts, memory, "alice", word="words")
    care = DataCare(store, artifacts=artifacts, memory=memory)
    files = await archive_of(care.export("alice"))
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        names = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type <> 'shadow' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
        tables = {name for (name,) in db.execute(names)}
        assert tables == TABLES.keys() | NOT_COUNTED
        for table, file in TABLES.items():
            if file is not None:
                assert db.execute(f"SELECT count(*) FROM {table}").fetchone()[0], table
                assert [name for name in files if name.endswith(file) and files[name]], table
    await care.erase("alice")
    await memory.close()
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        for table in TABLES:
            assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.name == "data"]


async def test_one_app_alone(store, tmp_path):
    artifacts, memory = beside(tmp_path)
    await fill(store, artifacts, memory, "alice", word="w", apps=("bank", APP), sessions=1)
    await DataCare(store, artifacts=artifacts, memory=memory).erase("alice", apps=[APP])
    assert await store.apps_of_user("alice") == ["bank"]
    assert len((await memory.list_memories("bank", "alice")).items) == 2
    assert len(list((tmp_path / "artifacts").rglob("data"))) == 4


@pytest.mark.parametrize("kind", ["ram", "sqlite"])
async def test_a_run_under_way_is_stopped_by_its_runner(kind, store):
    given = store if kind == "sqlite" else InMemorySessionService()
    artifacts, memory = InMemoryArtifactService(), InMemoryMemoryService()
    ended = asyncio.Event()

    @agent
    async def slow(ctx):
        await ctx.artifacts.save("a.txt", b"a")
        yield "so"
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    services = {"session_service": given, "artifact_service": artifacts, "memory_service": memory}
    async with Runner(app_name=APP, agent=slow, **services) as runner:
        run = await runner.start("alice", "s1", "Hi")
        queued = await runner.start("alice", "s1", "Hi again")
        async for _ in run.events():
            break
        await runner.data.erase("alice")
        await ended.wait()
        for one in (run, queued):
            await one.settled()
            with raises(NotFound, "run.not_found"):
                await one.refresh()
    assert await given.apps_of_user("alice") == []
    assert artifacts._users == {}


def test_what_an_agent_saves_while_it_is_stopped_is_not_kept():
    async def scenario():
        store, artifacts, memory = InMemorySessionService(), InMemoryArtifactService(), InMemoryMemoryService()
        refused = []

        @agent
        async def thorough(ctx):
            yield "so"
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(1)
                for late in (
                    lambda: ctx.artifacts.save("user:late.txt", b"a"),
                    lambda: ctx.artifacts.save("late.txt", b"a"),
                    lambda: ctx.memory.add("late"),
                ):
                    try:
                        await late()
                    except asyncio.CancelledError:
                        refused.append(late)
                await ctx.artifacts.save("user:later.txt", b"a")

        services = {"session_service": store, "artifact_service": artifacts, "memory_service": memory}
        async with Runner(app_name=APP, agent=thorough, **services) as runner:
            runs = [await runner.start("alice", session, "Hi") for session in ("s1", "s2")]
            for run in runs:
                async for _ in run.events():
                    break
            # Also where somebody has cancelled it before.
            await runs[1].cancel()
            await runner.data.erase("alice")
            for run in runs:
                await run.settled()
        assert len(refused) == 6
        assert artifacts._users == {}
        assert (await memory.list_memories(APP, "alice")).items == []

    simulate(scenario, seed=1)


def test_what_another_process_saves_until_it_notices_goes_too(monkeypatch):
    """A run that begins once the erasing has begun is waited for as well."""
    monkeypatch.setattr(erasing, "NOTICE_SECONDS", 2.0)

    class Shared(InMemorySessionService):
        shared = True

    async def scenario():
        inner, artifacts = Shared(), InMemoryArtifactService()
        await inner.create_session(app_name=APP, user_id="alice", session_id="s1")
        held = hold("drop_session")
        store = FaultyRetainingStore(inner, [held])
        care = DataCare(store, artifacts=artifacts)
        erased = asyncio.create_task(care.erase("alice"))
        await held.reached.wait()
        run = await start(inner, "r1")
        held.go.set()
        await asyncio.sleep(1)
        await artifacts.save_artifact(ArtifactScope(APP, "alice", "s1", run.session_uid), "late.txt", b"a")
        await erased
        assert artifacts._users == {}

    simulate(scenario, seed=1)


async def test_another_process_is_fenced(store, tmp_path):
    client = SqliteSessionService(tmp_path / "store.db", synchronous="normal", role="client")
    run = await start(store, "r1")
    await store.changes()
    await DataCare(client).erase("alice", scrub=False)
    assert [(c.kind, c.run_uid) for c in await store.changes()] == [("closed", run.uid)]
    with raises(Fenced, "run.fenced"):
        await write(store, run, event(run, 1, "a"))
    await client.close()


async def test_who_goes_on_writing_is_told(store):
    await finished(store, "r1", None, "a")

    class Writing(InMemoryArtifactService):
        async def delete_user_artifacts(self, app_name, user_id):
            await super().delete_user_artifacts(app_name, user_id)
            if not await store.list_apps():
                await store.create_session(app_name=app_name, user_id=user_id)

    care = DataCare(store, artifacts=Writing())
    with raises(Conflict, "data.user_active"):
        await care.erase("alice", apps=[APP])
    await DataCare(store).erase("alice")
    assert await store.apps_of_user("alice") == []


async def test_what_failed_is_done_by_the_next_call(store, tmp_path):
    artifacts, memory = beside(tmp_path)
    await fill(store, artifacts, memory, "alice", word="secret-words")
    broken = ["delete_session_artifacts", "delete_user_artifacts"]

    class Failing:
        def __getattr__(self, name):
            if name in broken:
                broken.remove(name)
                raise Unavailable("away", code="artifact.unavailable")
            return getattr(artifacts, name)

    care = DataCare(store, artifacts=Failing(), memory=memory)
    for _ in range(2):
        with raises(Unavailable, "artifact.unavailable"):
            await care.erase("alice")
    await care.erase("alice")
    assert files_with(tmp_path, "secret-words") == []


@pytest.mark.slow
async def test_a_reader_that_stays_keeps_the_log_and_is_told_of(store, tmp_path):
    await finished(store, "r1", None, "secret-words")
    reader = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchone()
    with raises(Unavailable, "store.unavailable"):
        await DataCare(store).erase("alice")
    reader.close()
    await DataCare(store).erase("alice")
    assert files_with(tmp_path, "secret-words") == []


async def test_in_memory():
    store = InMemorySessionService()
    await finished(store, "r1", None, "a")
    await finished(store, "r2", session_key("s2"), "a")
    erased = await DataCare(store).erase("alice")
    assert (erased.sessions, erased.runs, erased.events) == (2, 2, 4)
    assert await store.apps_of_user("alice") == []

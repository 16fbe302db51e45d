"""Erasing a user leaves nothing of theirs, not even in the unused parts of files."""

import asyncio
import sqlite3

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.data import DataCare, erasing
from sojourn.errors import Conflict, Fenced, NotFound, Unavailable
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.runner.runner import Runner
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import event, finished, session_key, start, write
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.suite import raises
from sojourn.testing.world import assert_same_world, read_world
from tests.data.support import APP, archive_of, beside, files_with, fill

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

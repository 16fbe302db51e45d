"""How long data is kept: by hand, and by a Runner in the background."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.data import DataCare, Pruned, Retention, services
from sojourn.errors import Gone, InvalidInput, NotFound, Unavailable, Unsupported
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import ask, finished, new_run, session_key, start
from sojourn.testing.faults import FaultyStore
from sojourn.testing.loop import simulate
from sojourn.testing.suite import manual_clock, raises
from tests.data.support import APP, beside, fill

pytestmark = pytest.mark.anyio

DAY = 86_400.0


@pytest.fixture(params=["ram", "sqlite"])
async def store(request, tmp_path):
    if request.param == "ram":
        yield InMemorySessionService()
        return
    opened = SqliteSessionService(tmp_path / "store.db", synchronous="normal")
    yield opened
    await opened.close()


async def left(store, app_name=APP):
    page = await store.list_sessions(app_name=app_name)
    return sorted((s.user_id, s.id) for s in page.items)


async def test_sessions_that_nobody_uses_go(store, tmp_path):
    artifacts, memory = beside(tmp_path)
    with manual_clock() as clock:
        await fill(store, artifacts, memory, "alice", word="old")
        clock.advance(DAY)
        await fill(store, artifacts, memory, "bob", word="new", sessions=1)
        care = DataCare(store, artifacts=artifacts, memory=memory)
        pruned = await care.prune(APP, Retention(ttl=DAY))
        assert pruned == Pruned()
        clock.advance(1)
        pruned = await care.prune(APP, Retention(ttl=DAY))
    assert (pruned.sessions, pruned.runs, pruned.events) == (2, 6, 30)
    assert await left(store) == [("bob", "s1")]
    files = [path.read_bytes() for path in (tmp_path / "artifacts").rglob("data")]
    assert sorted(data[:3] for data in files) == [b"new"] * 4 + [b"old"] * 4
    assert await store.dropped_sessions(APP) == []
    assert len((await memory.list_memories(APP, "alice")).items) == 4


async def test_artifacts_of_sessions_go_also_after_a_crash(store, tmp_path):
    artifacts, memory = beside(tmp_path)
    await fill(store, artifacts, memory, "alice", word="old", sessions=1)
    await store.drop_session(session_key())
    assert len(list((tmp_path / "artifacts").rglob("data"))) == 4
    await DataCare(store, artifacts=artifacts).prune(APP, Retention(ttl=1e9))
    assert {path.parts[-5] for path in (tmp_path / "artifacts").rglob("data")} == {"alice"}
    assert len(list((tmp_path / "artifacts").rglob("data"))) == 2
    assert await store.dropped_sessions(APP) == []


async def test_artifacts_that_cannot_be_removed_hold_up_no_others(store):
    class Stubborn(InMemoryArtifactService):
        async def delete_session_artifacts(self, scope):
            if scope.session_id == "s2":
                raise Unavailable("a directory is in the way", code="artifact.unavailable", retryable=False)
            await super().delete_session_artifacts(scope)

    artifacts = Stubborn()
    await fill(store, artifacts, InMemoryMemoryService(), "alice", word="old", sessions=3)
    for n in (2, 1, 3):
        await store.drop_session(session_key(f"s{n}"))
    with raises(Unavailable, "artifact.unavailable"):
        await DataCare(store, artifacts=artifacts).prune(APP, Retention(ttl=1e9))
    assert [dropped.key.session_id for dropped in await store.dropped_sessions(APP)] == ["s2"]
    assert len([owner for owner in artifacts._users["shop", "alice"] if owner is not None]) == 1


async def test_very_many_artifacts_that_cannot_be_removed_hold_up_no_others(store, monkeypatch):
    class Stubborn(InMemoryArtifactService):
        async def delete_session_artifacts(self, scope):
            if scope.session_id != "s9":
                raise Unavailable("a directory is in the way", code="artifact.unavailable", retryable=False)

    monkeypatch.setattr(services, "_SETTLED_AT_ONCE", 3)
    for n in range(10):
        await finished(store, f"r{n}", session_key(f"s{n}"))
        await store.drop_session(session_key(f"s{n}"))
    with raises(Unavailable, "artifact.unavailable"):
        await DataCare(store, artifacts=Stubborn()).prune(APP, Retention(ttl=1e9))
    assert [dropped.key.session_id for dropped in await store.dropped_sessions(APP)] == [f"s{n}" for n in range(9)]


async def test_waiting_runs_keep_their_session(store):
    with manual_clock() as clock:
        await ask(store, await start(store, "r1"), 1)
        clock.advance(10 * DAY)
        assert await DataCare(store).prune(APP, Retention(ttl=DAY, max_age=DAY, max_events=0)) == Pruned()
    assert (await store.get_run(APP, "r1")).status is RunStatus.WAITING


async def test_old_runs_go_and_new_ones_stay(store):
    with manual_clock() as clock:
        for n in range(6):
            await finished(store, f"r{n}", None, "a")
            clock.advance(DAY)
        await finished(store, "other", session_key("s2", user_id="bob"), "a")
        care = DataCare(store)
        assert await care.prune(APP, Retention(max_age=4.5 * DAY), user_id="bob") == Pruned()
        assert await care.prune(APP, Retention(max_age=4.5 * DAY)) == Pruned(0, 2, 4)
        assert await care.prune(APP, Retention(max_events=2)) == Pruned(0, 3, 6)
        assert await care.prune("bank", Retention(max_events=0)) == Pruned()
    assert len(await store.list_events(app_name=APP, user_id="alice", session_id="s1")) == 2


async def test_runs_that_never_began_go_too(store):
    await store.create_session(app_name=APP, user_id="alice", session_id="s1")
    never = (await store.submit(new_run("r1", text="words"), begin=False)).record
    await store.request_cancel(never.uid, "enough")
    assert await DataCare(store).prune(APP, Retention(max_events=1)) == Pruned()
    assert await DataCare(store).prune(APP, Retention(max_events=0)) == Pruned(0, 1, 0)
    assert (await store.get_run(APP, "r1")).trimmed


async def test_without_bounds_everything_stays(store):
    await finished(store, "r1", None, "a")
    assert await DataCare(store).prune(APP, Retention()) == Pruned()


async def test_pruning_can_be_stopped(store):
    for n in range(5):
        await finished(store, f"r{n}", session_key(f"s{n}"), "a")
    asked = iter([False, False, True, True, True, True])
    pruned = await DataCare(store).prune(APP, Retention(max_events=0), stopped=lambda: next(asked, True))
    assert pruned.runs == 1


@pytest.mark.parametrize(
    "fields",
    [{"ttl": -1}, {"ttl": float("nan")}, {"ttl": "30d"}, {"max_events": 1.5}, {"max_age": True}, {"every": 0}, {"every": None}],
)
def test_bounds_are_checked(fields):
    with raises(InvalidInput, "retention.invalid"):
        Retention(**fields)


def test_a_store_without_retention_is_refused():
    store = FaultyStore(InMemorySessionService())
    with raises(Unsupported, "data.unsupported"):
        DataCare(store)
    with raises(Unsupported, "data.unsupported"):
        Runner(app_name=APP, agent=echo, session_service=store, retention=Retention(ttl=1))
    with raises(InvalidInput, "runner.invalid"):
        Runner(app_name=APP, agent=echo, retention=30)
    Runner(app_name=APP, agent=echo, session_service=store)


# -- by a Runner ------------------------------------------------------------------------------------------------------


@agent
async def echo(ctx):
    return ctx.user_content.text


def test_a_runner_prunes_in_the_background():
    async def scenario():
        store = InMemorySessionService()
        async with Runner(app_name=APP, agent=echo, session_service=store, retention=Retention(ttl=3600, every=600)) as runner:
            run = await runner.start("alice", "s1", "Hi")
            await run.result()
            await asyncio.sleep(3000)
            assert await left(store) == [("alice", "s1")]
            await (await runner.start("alice", "s2", "Hi")).result()
            await asyncio.sleep(1300)
            assert await left(store) == [("alice", "s2")]
            with raises(NotFound, "run.not_found"):
                await run.refresh()
        await asyncio.sleep(20_000)
        assert await left(store) == [("alice", "s2")]

    simulate(scenario, seed=1)


def test_a_runner_that_is_not_entered_prunes_too():
    async def scenario():
        store = InMemorySessionService()
        runner = Runner(app_name=APP, agent=echo, session_service=store, retention=Retention(max_events=0, every=600))
        run = await runner.start("alice", "s1", "Hi")
        assert await run.result() == "Hi"
        await asyncio.sleep(60)
        with raises(Gone, "cursor.trimmed"):
            [frame async for frame in run.frames()]
        again = await runner.follow(run.id)
        with raises(Gone, "cursor.trimmed"):
            await again.result()
        frames = [frame.kind async for frame in again.frames(after=again.record.last_pos - 1)]
        assert frames == ["run.completed"]
        with raises(Gone, "run.trimmed"):
            await runner.retry(run.id)
        assert await (await runner.retry(run.id, "again")).result() == "again"
        await runner.close()

    simulate(scenario, seed=1)


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a bug")])
def test_what_fails_is_tried_again(caplog, error):
    class Failing(InMemorySessionService):
        broken = True

        async def list_sessions(self, **which):
            if self.broken:
                raise error
            return await super().list_sessions(**which)

    async def scenario():
        store = Failing()
        async with Runner(
            app_name=APP, agent=echo, session_service=store, retention=Retention(max_events=0, every=600)
        ) as runner:
            await (await runner.start("alice", "s1", "Hi")).result()
            await asyncio.sleep(100)
            store.broken = False
            await asyncio.sleep(1000)
            assert (await store.list_events(app_name=APP, user_id="alice", session_id="s1")) == []

    simulate(scenario, seed=1)
    assert "is tried again" in caplog.text


async def test_a_client_process_prunes_while_the_executor_runs(tmp_path):
    executor = SqliteSessionService(tmp_path / "store.db", synchronous="normal")
    client = SqliteSessionService(tmp_path / "store.db", synchronous="normal", role="client")
    go = asyncio.Event()

    @agent
    async def slow(ctx):
        yield "so"
        await go.wait()
        yield " far"

    async with Runner(app_name=APP, agent=slow, session_service=executor) as runner:
        for n in range(20):
            await finished(executor, f"r{n}", None, "a")
        run = await runner.start("alice", "s1", "Hi")
        assert await DataCare(client).prune(APP, Retention(max_events=0)) == Pruned(0, 20, 40)
        go.set()
        assert await run.result() == "so far"
        assert [e.seq for e in await executor.list_events(app_name=APP, user_id="alice", session_id="s1")] == [41, 42]
    await client.close()
    await executor.close()


async def test_two_prune_at_once(store, tmp_path):
    with manual_clock() as clock:
        for n in range(20):
            await finished(store, f"r{n}", session_key(f"s{n % 4}"), "a")
        clock.advance(DAY)
        await finished(store, "last", SessionKey(APP, "alice", "s0"), "a")
        cares = [DataCare(store) for _ in range(3)]
        done = await asyncio.gather(*(care.prune(APP, Retention(ttl=DAY / 2, max_age=DAY / 2)) for care in cares))
    assert sum(one.runs for one in done) == 20
    assert sum(one.events for one in done) == 40
    assert await left(store) == [("alice", "s0")]

import asyncio
import inspect

import pytest

from sojourn.errors import Unavailable
from sojourn.run.retention import SupportsRetention
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import RunStore, Store
from sojourn.session.service import SessionService
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import event, start, write
from sojourn.testing.faults import FaultyRetainingStore, FaultyStore, fail_after, fail_before, hold

pytestmark = pytest.mark.anyio


@pytest.fixture
def inner() -> Store:
    return InMemorySessionService()


@pytest.fixture
def store(inner: Store) -> FaultyStore:
    return FaultyStore(inner)


async def test_without_a_plan_it_is_the_store(store: FaultyStore, inner: Store) -> None:
    run = await start(store)
    await write(store, run, event(run, 1, "Hi."), move=Move.COMPLETE)
    assert (await inner.get_run("shop", "r1")).status is RunStatus.COMPLETED
    assert isinstance(store, Store)
    assert store.shared is inner.shared


@pytest.mark.parametrize(
    ("faulty", "seams"), [(FaultyStore, (SessionService, RunStore)), (FaultyRetainingStore, (SupportsRetention,))]
)
async def test_every_method_of_the_seams_is_passed_on(faulty: type[FaultyStore], seams: tuple[type, ...]) -> None:
    methods = {name for seam in seams for name, _ in inspect.getmembers(seam, inspect.isfunction) if not name.startswith("_")}
    assert methods <= set(vars(faulty))
    for name in methods:
        assert inspect.signature(getattr(faulty, name)) == inspect.signature(getattr(InMemorySessionService, name))


async def test_only_the_one_for_retention_supports_it(store: FaultyStore) -> None:
    assert not isinstance(store, SupportsRetention)
    retaining = FaultyRetainingStore(InMemorySessionService(), [fail_after("drop_session", 1)])
    assert isinstance(retaining, SupportsRetention)
    await retaining.create_session(app_name="shop", user_id="alice", session_id="s1")
    with pytest.raises(Unavailable):
        await retaining.drop_session(SessionKey("shop", "alice", "s1"))
    assert [dropped.key.session_id for dropped in await retaining.dropped_sessions("shop")] == ["s1"]
    assert retaining.calls == {"create_session": 1, "drop_session": 1, "dropped_sessions": 1}


async def test_failing_before_writes_nothing(store: FaultyStore, inner: Store) -> None:
    run = await start(store)
    store.plan.append(fail_before("append"))
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await write(store, run, event(run, 1, "Hi."))
        assert (caught.value.code, caught.value.retryable) == ("store.unavailable", True)
    assert await inner.run_events(run.uid) == []
    store.plan.clear()
    await write(store, run, event(run, 1, "Hi."))
    assert len(await inner.run_events(run.uid)) == 1


async def test_failing_after_loses_only_the_reply(store: FaultyStore, inner: Store) -> None:
    run = await start(store)
    store.plan.append(fail_after("append", 1))
    with pytest.raises(Unavailable):
        await write(store, run, event(run, 1, "Hi."))
    [stored] = await inner.run_events(run.uid)
    appended = await write(store, run, event(run, 1, "Hi."))
    assert appended.events == [stored]


async def test_failing_on_some_calls_only(store: FaultyStore) -> None:
    run = await start(store)
    store.plan.append(fail_before("append", 2, 4))
    outcomes = []
    for ordinal in range(1, 6):
        try:
            await write(store, run, event(run, ordinal, "x"))
            outcomes.append(True)
        except Unavailable:
            outcomes.append(False)
    assert outcomes == [True, False, True, False, True]


async def test_failing_on_any_method_but_close(store: FaultyStore) -> None:
    store.plan.append(fail_before())
    with pytest.raises(Unavailable):
        await start(store)
    with pytest.raises(Unavailable):
        await store.list_sessions(app_name="shop")
    await store.close()


async def test_calls_are_counted(store: FaultyStore) -> None:
    run = await start(store)
    store.plan.append(fail_before("append", 1))
    with pytest.raises(Unavailable):
        await write(store, run)
    await write(store, run)
    assert store.calls == {"submit": 1, "append": 2}
    assert store.calls["begin"] == 0


async def test_a_held_call_waits_before_it_writes(store: FaultyStore, inner: Store) -> None:
    run = await start(store)
    held = hold("append")
    store.plan.append(held)
    writing = asyncio.create_task(write(store, run, event(run, 1, "Hi.")))
    await held.reached.wait()
    assert not writing.done()
    assert await inner.run_events(run.uid) == []
    held.go.set()
    assert (await writing).record.last_pos == 2


async def test_a_reply_can_be_held_too(store: FaultyStore, inner: Store) -> None:
    run = await start(store)
    go = asyncio.Event()
    held = hold("append", 1, after=True, until=go)
    store.plan.append(held)
    writing = asyncio.create_task(write(store, run, event(run, 1, "Hi.")))
    await held.reached.wait()
    assert not writing.done()
    assert len(await inner.run_events(run.uid)) == 1
    go.set()
    await writing


async def test_a_held_call_can_be_cancelled(store: FaultyStore, inner: Store) -> None:
    run = await start(store)
    held = hold("append")
    store.plan.append(held)
    writing = asyncio.create_task(write(store, run, event(run, 1, "Hi.")))
    await held.reached.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await inner.run_events(run.uid) == []


async def test_held_and_then_failed(store: FaultyStore, inner: Store) -> None:
    run = await start(store)
    held = hold("append")
    store.plan += [held, fail_after("append")]
    writing = asyncio.create_task(write(store, run, event(run, 1, "Hi.")))
    await held.reached.wait()
    held.go.set()
    with pytest.raises(Unavailable):
        await writing
    assert len(await inner.run_events(run.uid)) == 1

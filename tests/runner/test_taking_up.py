"""Taking up what an earlier process left, while the store fails or is slow, others do the same, or the Runner is closed."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.errors import Unavailable
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import fail_after, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    APP,
    SESSION,
    USER,
    SharedStore,
    assert_at_rest,
    dropped,
    idle,
    make_runner,
    outcome_of,
    process,
)

LOST = ("lost-1", "lost-2", "lost-3")


@agent
async def helper(ctx):
    """Hangs in its first attempt if it is to be lost with its process."""
    if ctx.user_content.text == "lost" and ctx.attempt == 1:
        await asyncio.Event().wait()
    return f"attempt {ctx.attempt}"


async def leave_lost(store):
    """Leaves runs behind whose process has died."""
    async with process(helper, store) as dead:
        for session_id in LOST:
            await dead.runner.start(USER, session_id, "lost", run_id=session_id)
        await idle()
        dead.die()


async def outcomes(runner):
    return [await outcome_of(await runner.follow(run_id)) for run_id in LOST]


@pytest.mark.parametrize("method", ["unfinished", "requeue_lost"])
@pytest.mark.parametrize("fail", [fail_before, fail_after])
def test_what_the_store_broke_off_is_made_up_for_by_the_next_run(method, fail):
    @for_seeds(5)
    async def case():
        store = SharedStore()
        await leave_lost(store.inner)
        store.plan.append(fail(method, 2 if method == "requeue_lost" else 1))
        runner = make_runner(helper, store)
        with raises(Unavailable, "store.unavailable"):
            await runner.start(USER, SESSION, "hi")
        assert await (await runner.start(USER, SESSION, "hi")).result() == "attempt 1"
        async with asyncio.timeout(60):
            assert await outcomes(runner) == ["attempt 2"] * 3
        assert [(await store.get_run(APP, run_id)).deaths for run_id in LOST] == [1, 1, 1]
        await idle()
        assert_at_rest(runner)

    case()


@for_seeds(10)
async def test_two_runners_that_take_up_at_once_take_up_each_run_once():
    store = SharedStore()
    await leave_lost(store.inner)
    slow = [hold("requeue_lost", 1), hold("requeue_lost", 2)]
    store.plan += slow
    one, two = make_runner(helper, store), make_runner(helper, store)
    first = asyncio.ensure_future(one.recover())
    await slow[0].reached.wait()
    second = asyncio.ensure_future(two.recover())
    await idle()
    slow[0].go.set()
    await idle()
    slow[1].go.set()
    assert len(await first) + len(await second) == 3
    async with asyncio.timeout(60):
        assert await outcomes(one) == ["attempt 2"] * 3
    assert store.calls["requeue_lost"] == 3
    assert [(await store.get_run(APP, run_id)).deaths for run_id in LOST] == [1, 1, 1]


@for_seeds(10)
async def test_a_run_does_not_overtake_what_is_just_being_taken_up():
    store = SharedStore()
    await leave_lost(store.inner)
    slow = hold("requeue_lost", 1)
    store.plan.append(slow)
    runner = make_runner(helper, store)
    starting = [asyncio.ensure_future(runner.start(USER, LOST[2], f"{n}")) for n in range(2)]
    await slow.reached.wait()
    await idle()
    assert store.calls["submit"] == 0
    slow.go.set()
    runs = [await task for task in starting]
    for run in runs:
        await run.result()
    assert (await store.get_run(APP, LOST[2])).finished_at <= min(run.record.started_at for run in runs)


@for_seeds(5)
async def test_a_session_that_is_deleted_meanwhile_does_not_keep_the_others_waiting():
    store = SharedStore()
    await leave_lost(store.inner)
    slow = hold("requeue_lost", 1)
    store.plan.append(slow)
    runner = make_runner(helper, store)
    entering = asyncio.ensure_future(runner.recover())
    await slow.reached.wait()
    await store.inner.delete_session(app_name=APP, user_id=USER, session_id=LOST[0])
    slow.go.set()
    assert [record.id for record in await entering] == [*LOST[1:]]
    assert [await outcome_of(await runner.follow(run_id)) for run_id in LOST[1:]] == ["attempt 2"] * 2


@pytest.mark.parametrize("method", ["unfinished", "requeue_lost"])
def test_a_runner_that_is_closed_meanwhile_takes_up_nothing(method):
    @for_seeds(5)
    async def case():
        store = SharedStore()
        await leave_lost(store.inner)
        slow = hold(method, 1, after=True)
        store.plan.append(slow)
        runner = make_runner(helper, store)
        entering = asyncio.ensure_future(runner.recover())
        await slow.reached.wait()
        await runner.close()
        slow.go.set()
        with raises(Unavailable, "runner.closed"):
            await entering
        await idle()
        assert_at_rest(runner)
        async with make_runner(helper, store) as following:
            assert await outcomes(following) == ["attempt 2"] * 3

    case()


# -- answers and runs that come while the Runner is closed ---------------------------------------------------------------


@agent
async def asking(ctx):
    """Asks, and says what it was told."""
    return await ctx.ask("q", "which?")


@pytest.mark.parametrize("other", [False, True])
def test_an_answer_that_is_stored_while_its_runner_closes_counts(other):
    @for_seeds(5)
    async def case():
        store = SharedStore()
        runner, following = make_runner(asking, store), make_runner(asking, store)
        run = await runner.start(USER, SESSION, "go")
        await run.wait()
        await idle()
        [question] = await run.interrupts()
        slow = hold("answer", after=True)
        store.plan.append(slow)
        answering = asyncio.ensure_future(runner.answer(run.id, question.id, "this"))
        await slow.reached.wait()
        if other:
            await following.recover()
        else:
            await following.close()
        await runner.close()
        slow.go.set()
        answered = await answering
        await idle()
        if other:
            assert await outcome_of(answered) == "this"
        assert runner.limiter.queued == runner.limiter.active == 0
        assert (await store.get_run(APP, run.id)).status is (RunStatus.COMPLETED if other else RunStatus.QUEUED)
        async with make_runner(asking, store) as last:
            assert await outcome_of(await last.follow(run.id)) == "this"

    case()


class Slow(Plugin):
    """Takes its time with messages."""

    def __init__(self, gate):
        self.gate = gate

    async def on_user_message(self, key, message):
        await self.gate.wait()


@for_seeds(5)
async def test_a_run_that_is_prepared_while_its_runner_closes_is_refused_before_it_is_recorded():
    store = InMemorySessionService()
    runner = make_runner(helper, store, plugins=[Slow(gate := asyncio.Event())])
    starting = asyncio.ensure_future(runner.start(USER, SESSION, "hi"))
    await idle()
    await runner.close()
    gate.set()
    with raises(Unavailable, "runner.closed"):
        await starting
    assert await store.unfinished(APP) == []


# -- one id, twice at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["gone", "told"])
def test_a_run_that_is_sent_twice_at_once_is_left_to_whoever_recorded_it(first):
    @for_seeds(5)
    async def case():
        store = SharedStore()
        attempts = []

        @agent
        async def once(ctx):
            attempts.append(ctx.attempt)
            await asyncio.sleep(1)
            return "done"

        runner = make_runner(once, store)
        await runner.recover()
        slow = hold("submit", 1, after=True)
        store.plan.append(slow)
        recording = asyncio.ensure_future(runner.start(USER, SESSION, "go", run_id="r1"))
        await slow.reached.wait()
        if first == "told":
            again = await runner.start(USER, SESSION, "go", run_id="r1")
            assert again.id == "r1"
        else:
            also_slow = hold("submit", 2, after=True)
            store.plan.append(also_slow)
            again = asyncio.ensure_future(runner.start(USER, SESSION, "go", run_id="r1"))
            await also_slow.reached.wait()
            await dropped(again)
            await idle()
        await runner.recover()
        slow.go.set()
        assert await (await recording).result() == "done"
        assert attempts == [1]
        assert (await store.get_run(APP, "r1")).deaths == 0
        await idle()
        assert_at_rest(runner)

    case()

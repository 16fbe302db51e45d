"""Closing a Runner: drain, then suspend, then report."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.errors import Unavailable
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.delivery.lifecycle import CloseReport
from sojourn.runner.observe import Observer
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before, hold
from sojourn.testing.loop import for_seeds, simulate
from sojourn.testing.suite import raises
from tests.runner.support import (
    APP,
    SESSION,
    USER,
    assert_at_rest,
    dropped,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_events,
    state_of,
)


def timed():
    """An agent that takes as many seconds as its message says, with a step and some state at the start."""
    effects = []

    @agent
    async def helper(ctx):
        await ctx.step("pay", lambda: effects.append(ctx.run_id))
        ctx.state.increment("count")
        yield "working "
        await asyncio.sleep(float(ctx.user_content.text))
        yield "done"

    return helper, effects


@for_seeds(10)
async def test_closing_drains_suspends_and_reports():
    store = InMemorySessionService()
    helper, effects = timed()
    runner = make_runner(helper, store, max_concurrency=3)
    quick = await runner.start(USER, "quick", "5")
    slow = await runner.start(USER, "slow", "60")
    attached = asyncio.ensure_future(read_events(runner.run(USER, "attached", "60")))
    await idle()
    queued = await runner.start(USER, "queued", "5")
    queued_attached = asyncio.ensure_future(read_events(runner.run(USER, "queued attached", "5")))
    await idle()
    report = await runner.close(grace=10)
    assert report == CloseReport(drained=1, suspended=1, queued=1, cancelled=2, abandoned=0)
    assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.1)
    assert await quick.result() == "working done"
    assert await outcome_of(slow) == await outcome_of(queued) == "run.suspended"
    assert (await attached).error.code == (await queued_attached).error.code == "run.cancelled"
    assert_at_rest(runner)

    records = {r.session_id: r for r in (await make_runner(helper, store).list_runs()).items}
    assert {k: r.status for k, r in records.items()} == {
        "quick": RunStatus.COMPLETED, "slow": RunStatus.QUEUED, "queued": RunStatus.QUEUED,
        "attached": RunStatus.CANCELLED, "queued attached": RunStatus.CANCELLED,
    }  # fmt: skip
    async with make_runner(helper, store) as second:
        assert await (await second.follow(slow.id)).result() == "working done"
        assert await (await second.follow(queued.id)).result() == "working done"
    record = await store.get_run(APP, slow.id)
    assert (record.attempt, record.deaths) == (2, 0), "a shutdown is not a death"
    assert effects.count(slow.id) == 1
    assert await state_of(store, "slow") == {"count": 1}
    assert [e.text for e in await log_of(store, "slow")] == ["60", "working done"]


@for_seeds(5)
async def test_closing_twice_is_fine_and_a_closed_runner_refuses():
    helper, _ = timed()
    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "1")
    reports = await asyncio.gather(runner.close(), runner.close())
    assert sorted(reports, key=lambda r: -r.drained)[0] == CloseReport(drained=1)
    assert await runner.close() == CloseReport()
    assert await run.result() == "working done"
    with raises(Unavailable, "runner.closed"):
        await runner.start(USER, SESSION, "1")
    with raises(Unavailable, "runner.closed"):
        async for _ in runner.run(USER, SESSION, "1"):
            pass


@for_seeds(5)
async def test_leaving_the_block_closes():
    store = InMemorySessionService()
    helper, _ = timed()
    async with make_runner(helper, store) as runner:
        run = await runner.start(USER, SESSION, "5")
    assert (await store.get_run(APP, run.id)).status is RunStatus.COMPLETED


@for_seeds(5)
async def test_closing_without_grace_interrupts_at_once():
    store = InMemorySessionService()
    helper, _ = timed()
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "5")
    await idle()
    assert (await runner.close(grace=0)).suspended == 1
    assert (await store.get_run(APP, run.id)).status is RunStatus.QUEUED
    assert asyncio.get_running_loop().time() < 1


@for_seeds(5)
async def test_code_that_does_not_end_is_abandoned_and_its_run_goes_on_elsewhere():
    store = InMemorySessionService()

    @agent
    async def stubborn(ctx):
        if ctx.attempt > 1:
            return "second attempt"
        while True:
            try:
                await asyncio.sleep(1000)
                return "too late"
            except asyncio.CancelledError:
                pass

    runner = make_runner(stubborn, store, run_config=RunConfig(cancel_grace=1))
    run = await runner.start(USER, SESSION, "go")
    await idle()
    report = await runner.close(grace=1)
    assert (report.abandoned, report.suspended) == (1, 1)
    async with make_runner(stubborn, store) as second:
        assert await (await second.follow(run.id)).result() == "second attempt"
    await asyncio.sleep(3000)
    assert [e.text for e in await log_of(store)] == ["go", "second attempt"]


@for_seeds(5)
async def test_a_run_that_is_just_beginning_is_suspended_and_not_cancelled():
    store = FaultyStore(InMemorySessionService())
    helper, _ = timed()
    runner = make_runner(helper, store)
    first = await runner.start(USER, SESSION, "1")
    second = await runner.start(USER, SESSION, "60")
    held = hold("begin", 1)
    store.plan.append(held)
    await first.wait()
    await held.reached.wait()
    closing = asyncio.ensure_future(runner.close(grace=0))
    await idle()
    held.go.set()
    await closing
    assert (await store.get_run(APP, second.id)).status is RunStatus.QUEUED


@for_seeds(5)
async def test_a_run_that_is_just_being_recorded_does_not_slip_through():
    store = FaultyStore(InMemorySessionService())
    helper, effects = timed()
    runner = make_runner(helper, store)
    held = hold("submit", 1, after=True)
    store.plan.append(held)
    starting = asyncio.ensure_future(runner.start(USER, SESSION, "60", run_id="r1"))
    await held.reached.wait()
    closing = asyncio.ensure_future(runner.close(grace=1))
    await asyncio.sleep(0.5)
    held.go.set()
    await closing
    await asyncio.gather(starting, return_exceptions=True)
    await asyncio.sleep(30)
    assert_at_rest(runner)
    assert (await store.get_run(APP, "r1")).status in (RunStatus.QUEUED, RunStatus.CANCELLED)


@for_seeds(5)
async def test_closing_while_the_store_is_away_ends():
    store = FaultyStore(InMemorySessionService())
    helper, _ = timed()
    runner = make_runner(helper, store, max_concurrency=1)
    run = await runner.start(USER, SESSION, "60")
    queued = asyncio.ensure_future(read_events(runner.run(USER, "queued", "1")))
    await idle()
    store.plan.append(fail_before())
    await asyncio.gather(runner.close(grace=1), return_exceptions=True)
    assert asyncio.get_running_loop().time() < 60
    assert isinstance(await outcome_of(run), str)
    store.plan.clear()
    await dropped(queued)
    async with make_runner(helper, store.inner) as second:
        record = (await second.follow(run.id)).record
        assert record.status in (RunStatus.RUNNING, RunStatus.QUEUED, RunStatus.FAILED)
        await (await second.follow(run.id)).wait()


@pytest.mark.parametrize("fail", [fail_before, fail_after])
def test_readers_of_queued_runs_are_told_even_if_the_store_is_away(fail):
    @for_seeds(5)
    async def case():
        store = FaultyStore(InMemorySessionService())
        helper, _ = timed()
        runner = make_runner(helper, store, max_concurrency=1)
        running = await runner.start(USER, SESSION, "1")
        readers = [asyncio.ensure_future(read_events(runner.run(USER, f"attached-{n}", "1"))) for n in range(3)]
        await idle()
        detached = await runner.start(USER, "detached", "1")
        store.plan.append(fail("close_run", 2))
        assert await runner.close(grace=10) == CloseReport(drained=1, queued=2, cancelled=2)
        assert await running.result() == "working done"
        async with asyncio.timeout(60):
            codes = sorted([(await reader).error.code for reader in readers])
            assert codes == ["run.cancelled", "run.cancelled", "store.unavailable"]
            assert await outcome_of(detached) == "run.suspended"
        assert_at_rest(runner)

    case()


@for_seeds(5)
async def test_a_queued_run_that_is_cancelled_while_its_runner_closes_ends_once():
    store = FaultyStore(InMemorySessionService())
    helper, _ = timed()
    runner = make_runner(helper, store, max_concurrency=1)
    runner.add_observer(seen := Ends())
    await runner.start(USER, SESSION, "1")
    reading = asyncio.ensure_future(read_events(runner.run(USER, "queued", "1", run_id="r1")))
    await idle()
    slow = hold("close_run", 1)
    store.plan.append(slow)
    closing = asyncio.ensure_future(runner.close(grace=10))
    await slow.reached.wait()
    await runner.cancel("r1")
    slow.go.set()
    await closing
    assert (await reading).error.code == "run.cancelled"
    assert seen.ends.count("r1") == 1


class Ends(Observer):
    """Counts the ends of runs."""

    def __init__(self):
        self.ends = []

    def run_ended(self, record, seconds):
        self.ends.append(record.id)


@pytest.mark.parametrize("attached", [False, True])
def test_a_run_that_is_recorded_late_does_not_start_in_a_runner_that_is_closed(attached):
    @for_seeds(5)
    async def case():
        store = FaultyStore(InMemorySessionService())
        helper, effects = timed()
        runner = make_runner(helper, store, max_concurrency=1)
        await runner.start(USER, SESSION, "1")
        slow = hold("submit", 2, after=True)
        store.plan.append(slow)
        if attached:
            starting = asyncio.ensure_future(read_events(runner.run(USER, "late", "60", run_id="r1")))
        else:
            starting = asyncio.ensure_future(runner.start(USER, "late", "60", run_id="r1"))
        await slow.reached.wait()
        await runner.close(grace=3)
        before = list(effects)
        slow.go.set()
        async with asyncio.timeout(60):
            code = (await starting).error.code if attached else await outcome_of(await starting)
        assert code == ("run.cancelled" if attached else "run.suspended")
        await asyncio.sleep(100)
        assert effects == before
        assert_at_rest(runner)
        assert (await store.get_run(APP, "r1")).status is (RunStatus.CANCELLED if attached else RunStatus.QUEUED)

    case()


@for_seeds(5)
async def test_a_cancelled_close_may_be_repeated_elsewhere():
    store = InMemorySessionService()
    helper, _ = timed()
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "5")
    closing = asyncio.ensure_future(runner.close(grace=100))
    await idle()
    await dropped(closing)
    assert await outcome_of(run) in ("working done", "run.suspended")
    with raises(Unavailable, "runner.closed"):
        await runner.start(USER, SESSION, "5")


@for_seeds(5)
async def test_waiting_runs_are_left_waiting():
    store = InMemorySessionService()

    @agent
    async def asker(ctx):
        return await ctx.ask("q", "?")

    async with make_runner(asker, store) as runner:
        run = await runner.start(USER, SESSION, "go")
        await run.wait()
    assert (await store.get_run(APP, run.id)).status is RunStatus.WAITING
    async with make_runner(asker, store) as second:
        interrupt = (await second.list_interrupts())[0]
        assert await (await second.answer(run.id, interrupt.id, "yes")).result() == "yes"


@for_seeds(5)
async def test_services_that_were_given_are_not_closed():
    store = FaultyStore(InMemorySessionService())
    helper, _ = timed()
    async with make_runner(helper, store) as runner:
        await (await runner.start(USER, SESSION, "0")).result()
    assert store.calls["close"] == 0


def test_an_event_loop_that_ends_cancels_its_tasks_and_detached_runs_go_on_in_the_next():
    """`asyncio.run` cancels what is left: for the runs that is a shutdown."""
    store = InMemorySessionService()
    helper, effects = timed()

    async def before():
        runner = make_runner(helper, store, max_concurrency=1)
        run = await runner.start(USER, SESSION, "60")
        await runner.start(USER, "queued", "1")
        await idle()
        return run.id

    async def after():
        async with make_runner(helper, store) as runner:
            results = [await (await runner.follow(r.id)).result() for r in (await runner.list_runs()).items]
            return results, [r.deaths for r in (await runner.list_runs()).items]

    for seed in range(5):
        store = InMemorySessionService()
        effects.clear()
        simulate(before, seed=seed)
        assert simulate(after, seed=seed) == (["working done"] * 2, [0, 0])
        assert len(effects) == 2


@for_seeds(10)
async def test_closing_again_leaves_no_more_time_than_it_says():
    store = InMemorySessionService()
    helper, _ = timed()
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "60")
    await idle()
    began = asyncio.get_running_loop().time()
    closing = asyncio.ensure_future(runner.close(grace=100))
    await asyncio.sleep(2)
    again = await runner.close(grace=3)
    assert (await closing) == again
    assert again.suspended == 1
    assert asyncio.get_running_loop().time() - began == pytest.approx(5, abs=0.01)
    assert (await store.get_run(APP, run.id)).status is RunStatus.QUEUED


@for_seeds(10)
async def test_closing_again_waits_as_well():
    helper, _ = timed()
    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "2")
    await idle()
    closing = asyncio.ensure_future(runner.close(grace=100))
    await asyncio.sleep(1)
    assert (await runner.close(grace=100)).drained == 1
    assert (await closing).drained == 1
    assert run.status is RunStatus.COMPLETED

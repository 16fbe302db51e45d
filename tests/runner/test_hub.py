"""What Runners on one store share, and what becomes of it."""

import asyncio
import gc
import weakref
from collections import Counter

import pytest

from sojourn.agents.function import agent
from sojourn.errors import Conflict, Unavailable
from sojourn.run.live import LiveRun
from sojourn.run.status import RunStatus
from sojourn.run.store import Change
from sojourn.runner.attempt.execution import Execution
from sojourn.runner.delivery.hub import Job
from sojourn.runner.delivery.lifecycle import Load
from sojourn.runner.handle import Run
from sojourn.runner.runner import Runner
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import new_run
from sojourn.testing.faults import fail_before
from sojourn.testing.loop import SimLoop, for_seeds, simulate
from sojourn.testing.suite import raises
from tests.runner.support import APP, KEY, SESSION, USER, SharedStore, assert_at_rest, idle, make_runner, outcome_of


@agent
async def quick(ctx):
    """Answers at once."""
    return "done"


def test_two_runners_on_one_store_share_its_hub():
    store = InMemorySessionService()
    assert make_runner(quick, store).hub is make_runner(quick, store).hub
    assert make_runner(quick).hub is not make_runner(quick).hub


def test_a_store_that_nobody_uses_any_more_is_freed():
    async def main():
        runner = make_runner(quick)
        await (await runner.start(USER, SESSION, "hi")).result()
        return weakref.ref(runner.store)

    store = simulate(main, seed=1)
    gc.collect()
    assert store() is None


def test_a_runner_may_be_used_in_one_event_loop_after_the_other():
    runner = make_runner(quick, max_concurrency=1)

    async def main():
        assert await (await runner.start(USER, SESSION, "hi")).result() == "done"
        assert_at_rest(runner)

    for seed in range(3):
        simulate(main, seed=seed)


def test_a_slot_that_was_taken_in_a_loop_that_has_ended_is_free_in_the_next():
    @agent
    async def helper(ctx):
        if ctx.user_content.text == "hang":
            await asyncio.Event().wait()
        return "done"

    runner = make_runner(helper, max_concurrency=1)

    async def hang():
        await runner.start(USER, SESSION, "hang")
        await asyncio.sleep(1)

    async def go_on():
        return await (await runner.start(USER, "other", "hi")).result()

    simulate(hang, seed=1)
    assert simulate(go_on, seed=2) == "done"


@for_seeds(3)
async def test_a_second_event_loop_at_the_same_time_is_refused():
    @agent
    async def helper(ctx):
        await asyncio.sleep(1)

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")

    async def intrude():
        with raises(Conflict, "runner.other_loop"):
            await runner.start(USER, "other", "hi")

    loop = asyncio.get_running_loop()
    other = SimLoop(1)
    try:
        asyncio._set_running_loop(None)
        other.run_until_complete(intrude())
    finally:
        asyncio._set_running_loop(loop)
        other.close()
    assert await run.result() is None


@for_seeds(1)
async def test_nothing_of_a_finished_run_is_kept_in_memory():
    def alive():
        gc.collect()
        return Counter(type(o).__name__ for o in gc.get_objects() if isinstance(o, LiveRun | Execution | Job | Run))

    runner = make_runner(quick)
    before = alive()
    for n in range(50):
        await (await runner.start(USER, f"s{n}", "hi")).result()
    await idle()
    assert alive() == before
    assert_at_rest(runner)


# -- watching what others do --------------------------------------------------------------------------------------------


@agent
async def impatient(ctx):
    """Asks, and does not wait for ever."""
    await ctx.ask("q", "?", expires=60)


@for_seeds(5)
async def test_closing_one_runner_does_not_stop_the_clocks_of_another():
    store = InMemorySessionService()
    one, two = make_runner(quick, store), make_runner(impatient, store)
    run = await two.start(USER, SESSION, "hi")
    await run.wait()
    await one.close()
    await asyncio.sleep(100)
    assert await outcome_of(await two.follow(run.id)) == "interrupt.expired"


@agent
async def hanging(ctx):
    """Hangs."""
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "trouble",
    [Unavailable("away"), pytest.param(RuntimeError("a bug in a driver"))],
)
def test_the_watch_survives_its_troubles(trouble):
    @for_seeds(3)
    async def case():
        store = SharedStore()
        runner = make_runner(hanging, store)
        run = await runner.start(USER, SESSION, "hi")
        store.news.append(trouble)
        await asyncio.sleep(5)
        record = await store.request_cancel(run.record.uid, "from elsewhere")
        store.news.append(Change("cancel", run.record.uid, record))
        async with asyncio.timeout(60):
            assert await outcome_of(run) == "run.cancelled"
        assert run.record.error.message == "from elsewhere"

    case()


@for_seeds(3)
async def test_closing_one_runner_does_not_end_the_watch_of_another_that_was_entered():
    store = SharedStore()
    one, two = make_runner(quick, store), make_runner(quick, store)
    async with two:
        await one.close()
        before = store.calls["changes"]
        await asyncio.sleep(10)
        assert store.calls["changes"] > before
    before = store.calls["changes"]
    await asyncio.sleep(10)
    assert store.calls["changes"] == before, "nobody is left to act on changes"


@for_seeds(3)
async def test_a_run_that_another_process_has_made_ready_is_executed_by_the_runner_of_its_app():
    store = SharedStore()
    other = Runner(app_name="other", agent=hanging, session_service=store)
    runner = make_runner(quick, store)
    async with runner, other:
        submitted = await store.submit(new_run("r1", KEY), begin=False)
        store.news.append(Change("queued", submitted.record.uid, submitted.record))
        store.news.append(Change("queued", submitted.record.uid, submitted.record))
        store.news.append(Change("cancel", 77, None))
        await asyncio.sleep(5)
        assert (await store.get_run(APP, "r1")).status is RunStatus.COMPLETED


@for_seeds(5)
async def test_of_several_changes_none_is_lost_when_the_store_fails_at_one():
    store = SharedStore()
    runner = make_runner(hanging, store)
    runs = [await runner.start(USER, f"s{n}", "hi") for n in range(2)]
    await idle()
    deleted = await store.inner.get_run(APP, runs[0].id)
    await store.inner.delete_session(app_name=APP, user_id=USER, session_id="s0")
    record = await store.inner.request_cancel(runs[1].record.uid, "from elsewhere")
    store.plan.append(fail_before("get_run", store.calls["get_run"] + 1))
    store.news += [Change("closed", deleted.uid), Change("cancel", record.uid, record)]
    async with asyncio.timeout(60):
        assert [await outcome_of(run) for run in runs] == ["session.deleted", "run.cancelled"]
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_run_that_another_process_has_made_ready_is_left_to_a_runner_that_is_open():
    store = SharedStore()
    closed, runner = make_runner(quick, store), make_runner(quick, store)
    await closed.close()
    async with runner:
        submitted = await store.submit(new_run("r1", KEY), begin=False)
        store.news.append(Change("queued", submitted.record.uid, submitted.record))
        await asyncio.sleep(5)
        assert (await store.get_run(APP, "r1")).status is RunStatus.COMPLETED
        assert closed.load == Load(0, 0, 0)
        closed.hub.dispatchers.discard(runner.dispatcher)
        submitted = await store.submit(new_run("r2", KEY), begin=False)
        store.news.append(Change("queued", submitted.record.uid, submitted.record))
        await asyncio.sleep(5)
        assert (await store.get_run(APP, "r2")).status is RunStatus.QUEUED, "there it is found by who comes next"

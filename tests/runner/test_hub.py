"""What Runners on one store share, and what becomes of it."""

import asyncio
import gc
import weakref
from collections import Counter

from sojourn.agents.function import agent
from sojourn.errors import Conflict
from sojourn.run.live import LiveRun
from sojourn.runner.execution import Execution
from sojourn.runner.handle import Run
from sojourn.runner.hub import Job
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import SimLoop, for_seeds, simulate
from sojourn.testing.suite import raises
from tests.runner.support import SESSION, USER, assert_at_rest, idle, make_runner


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

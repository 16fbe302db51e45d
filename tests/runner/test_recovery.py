"""C1: a process may die at any point, and what it leaves behind is taken up by the next one.

A process is a Runner with a store object of its own in front of the common store; dead, nothing of it gets through.
"""

import asyncio
import gc

import pytest

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.run.store import MAX_DEATHS
from sojourn.runner.runner import Runner
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, hold
from sojourn.testing.loop import SimLoop, SimPlatform, for_seeds
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
    process,
    read_events,
    read_frames,
    said_in,
    state_of,
)


def stubborn():
    """An agent of three messages, two steps and some state; the log of its effects outlives the process."""
    effects = []

    @agent
    async def helper(ctx):
        yield Content("model").with_text("one")
        effects.append(f"attempt {ctx.attempt} finds {ctx.state.get('count', 0)}")
        ctx.state.increment("count")
        ctx.state["list"] = [*ctx.state.get("list", []), "x"]
        paid = await ctx.step("pay", lambda: effects.append("paid") or {"receipt": 7})
        yield f"paid {paid['receipt']}. "
        await asyncio.sleep(0)
        await ctx.step("mail", lambda: effects.append("mailed"))
        yield "Done."
        yield Content("model").with_text("three")

    return helper, effects


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 6))
def test_a_run_survives_the_death_of_its_process_at_every_append(call, after):
    @for_seeds(5)
    async def case():
        store = InMemorySessionService()
        helper, effects = stubborn()
        async with process(helper, store) as first:
            first.die_at("append", call, after=after)
            run = await first.runner.start(USER, SESSION, "go")
            before = asyncio.ensure_future(read_events(run.events()))
            await idle()
            acknowledged = await log_of(store)
            async with process(helper, store, enter=True) as second:
                run = await second.runner.follow(run.id)
                assert await run.result() == "three"
                reading = await read_frames(run)
                assert reading.kinds[-1] == "run.completed"
                assert_at_rest(second.runner)
            log = await log_of(store, superseded=True)
            assert log[: len(acknowledged)] == acknowledged, "what was acknowledged is there, and counts"
            assert [e.text for e in log] == ["go", "one", "paid 7. Done.", "three"]
            assert [e.seq for e in log] == [1, 2, 3, 4]
            assert effects.count("paid") == (2 if (call, after) == (2, False) else 1), "only the step in flight is done again"
            assert effects.count("mailed") == (2 if (call, after) == (3, False) else 1)
            assert await state_of(store) == {"count": 1, "list": ["x"]}
            finished = call == 5 and after
            assert run.record.deaths == (0 if finished else 1)
            assert "finds 1" not in "".join(effects), "each attempt sees the state that the run found"
        await dropped(before)

    case()


@for_seeds(10)
async def test_a_run_whose_process_died_while_it_was_recorded_is_taken_up_or_was_never_there():
    store = InMemorySessionService()
    helper, effects = stubborn()
    async with process(helper, store) as first:
        first.die_at("submit", 1, after=True)
        starting = asyncio.ensure_future(first.runner.start(USER, SESSION, "go", run_id="r1"))
        await idle()
        assert effects == []
        async with process(helper, store, enter=True) as second:
            assert await (await second.runner.follow("r1")).result() == "three"
    await dropped(starting)


@for_seeds(10)
async def test_queued_runs_are_started_in_their_order_by_the_next_process():
    store = InMemorySessionService()
    order = []

    @agent
    async def helper(ctx):
        order.append((ctx.session_id, ctx.user_content.text))
        if ctx.attempt == 1 and ctx.user_content.text == "first":
            await asyncio.Event().wait()
        return ctx.user_content.text

    async with process(helper, store, max_concurrency=1) as first:
        runs = [await first.runner.start(USER, SESSION, text) for text in ("first", "second", "third")]
        await idle()
        first.die()
        order.clear()
        async with process(helper, store, enter=True) as second:
            results = [await (await second.runner.follow(r.id)).result() for r in runs]
            assert results == ["first", "second", "third"]
            assert order == [(SESSION, "first"), (SESSION, "second"), (SESSION, "third")]
            assert_at_rest(second.runner)


@for_seeds(5)
async def test_three_deaths_end_a_run_and_answers_reset_the_count():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Content("model").with_text("said")
        await ctx.ask("ok", "ok?")
        await asyncio.Event().wait()

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        assert (await run.wait()).status is RunStatus.WAITING
        await first.runner.answer(run.id, (await run.interrupts())[0].id, True)
        await idle()
        first.die()
        for death in range(1, MAX_DEATHS):
            async with process(helper, store, enter=True) as later:
                await idle()
                record = (await later.runner.follow(run.id)).record
                assert (record.status, record.deaths) == (RunStatus.RUNNING, death)
                later.die()
        async with process(helper, store, enter=True) as last:
            run = await last.runner.follow(run.id)
            assert await outcome_of(run) == "run.crash_loop"
            assert run.record.status is RunStatus.FAILED
            reading = await read_frames(run)
            assert reading.kinds[-1] == "run.failed"
            assert_at_rest(last.runner)
            assert await (await last.runner.start(USER, "other", "go")).wait()


@pytest.mark.parametrize("begun", [True, False])
def test_an_attached_run_is_lost_with_its_process(begun):
    @for_seeds(5)
    async def case():
        store = InMemorySessionService()
        helper, _ = stubborn()

        @agent
        async def hanging(ctx):
            await asyncio.Event().wait()

        async with process(hanging, store) as first:
            if not begun:
                await first.runner.start(USER, SESSION, "before", run_config=RunConfig(on_crash="fail"))
            reading = asyncio.ensure_future(read_events(first.runner.run(USER, SESSION, "go", run_id="r1")))
            await idle()
            first.die()
            async with process(helper, store, enter=True) as second:
                run = await second.runner.follow("r1")
                assert await outcome_of(run) == "run.lost"
                assert run.record.error.retryable
                await idle()
                assert_at_rest(second.runner)
        await dropped(reading)

    case()


@for_seeds(5)
async def test_on_crash_fail_ends_the_run_instead_of_resuming_it():
    store = InMemorySessionService()
    ran = []

    @agent
    async def helper(ctx):
        ran.append(ctx.attempt)
        await asyncio.Event().wait()

    config = RunConfig(on_crash="fail")
    async with process(helper, store) as first:
        running = await first.runner.start(USER, SESSION, "go", run_config=config)
        queued = await first.runner.start(USER, SESSION, "next", run_config=config)
        await idle()
        first.die()

        @agent(name="helper")
        async def quick(ctx):
            return "quick"

        async with process(quick, store, enter=True) as second:
            assert await outcome_of(await second.runner.follow(running.id)) == "run.lost"
            assert await outcome_of(await second.runner.follow(queued.id)) == "quick"
    assert ran == [1]


@pytest.mark.parametrize("answered", ["before", "at", "after"])
@pytest.mark.parametrize("why", ["attached", "on_crash", "crash_loop"])
def test_an_answer_to_a_lost_run_counts_or_is_refused(why, answered):
    @for_seeds(5)
    async def case():
        store = InMemorySessionService()

        @agent
        async def helper(ctx):
            return await ctx.ask("q", "which?")

        config = RunConfig(on_crash="fail" if why == "on_crash" else "resume")
        async with process(helper, store) as first:
            first.die_at("append", 1, after=True)
            if why == "attached":
                reading = asyncio.ensure_future(read_events(first.runner.run(USER, SESSION, "go", run_id="r1")))
            else:
                run = await first.runner.start(USER, SESSION, "go", run_id="r1", run_config=config)
                reading = asyncio.ensure_future(run.result())
            await idle()
        await dropped(reading)
        record = await store.get_run(APP, "r1")
        [question] = await store.list_interrupts(APP)
        if why == "crash_loop":
            for _ in range(MAX_DEATHS - 1):
                await store.requeue_lost(record.uid)
                record = (await store.begin(record.uid)).record

        async def answer():
            event = Event(id=f"answer-{platform.new_id()}", run_id="r1", author="user", timestamp=platform.now())
            return await store.answer(record.uid, question.id, "this one", event)

        if answered == "before":
            await answer()
        async with process(helper, store) as recovering:
            released = asyncio.Event()
            recovering.store.plan.append(hold("requeue_lost" if answered == "at" else "begin", 1, until=released))
            entering = asyncio.ensure_future(recovering.runner.recover())
            await idle()
            outcome = None
            if answered != "before":
                outcome = (await asyncio.gather(answer(), return_exceptions=True))[0]
            released.set()
            await entering
            ended = await outcome_of(await recovering.runner.follow("r1"))
        lost = "run.crash_loop" if why == "crash_loop" else "run.lost"
        if answered == "after":
            assert (outcome.code, ended) == ("interrupt.closed", lost)
        elif why == "on_crash":
            assert ended == lost
        else:
            assert ended == "this one"

    case()


@for_seeds(5)
async def test_a_run_that_was_to_end_with_its_process_ends_however_often_that_dies():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        await asyncio.Event().wait()

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go", run_config=RunConfig(on_crash="fail"))
        await idle()
        first.die()
    async with process(helper, store) as second:
        second.die_at("begin", 1, after=False)
        await second.runner.recover()
        await idle()
    async with process(helper, store, enter=True) as third:
        assert await outcome_of(await third.runner.follow(run.id)) == "run.lost"


@for_seeds(5)
async def test_a_cancel_that_was_asked_for_before_the_crash_is_carried_out_after_it():
    store = InMemorySessionService()
    ran = []

    @agent
    async def helper(ctx):
        ran.append(ctx.attempt)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        await first.runner.cancel(run.id, reason="enough")
        first.die()
        async with process(helper, store, enter=True) as second:
            run = await second.runner.follow(run.id)
            assert await outcome_of(run) == "run.cancelled"
            assert run.record.error.message == "enough"
            await idle()
            assert_at_rest(second.runner)
    assert ran == [1]


@for_seeds(5)
async def test_a_zombie_is_fenced_and_tells_its_readers():
    store = InMemorySessionService()
    wake = asyncio.Event()

    @agent
    async def helper(ctx):
        yield Content("model").with_text(f"start {ctx.attempt}")
        if ctx.attempt == 1:
            await wake.wait()
        yield Content("model").with_text(f"end {ctx.attempt}")

    zombie = make_runner(helper, FaultyStore(store))
    run = await zombie.start(USER, SESSION, "go")
    reading = asyncio.ensure_future(read_events(run.events()))
    await idle()
    async with process(helper, store, enter=True) as second:
        assert await (await second.runner.follow(run.id)).result() == "end 2"
        wake.set()
        got = await reading
        assert got.error is None
        assert await said_in(store) == [("user", "go"), ("helper", "start 2"), ("helper", "end 2")]
    await idle()
    assert_at_rest(zombie)


@for_seeds(5)
async def test_runs_of_other_apps_are_left_to_theirs():
    store = InMemorySessionService()
    ran = []

    @agent
    async def helper(ctx):
        ran.append((ctx.app_name, ctx.attempt))
        await asyncio.Event().wait()

    async with process(helper, store) as first:
        other = Runner(app_name="other", agent=helper, session_service=first.store)
        await other.start(USER, SESSION, "go")
        await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            await idle()
            assert sorted(ran) == [(APP, 1), (APP, 2), ("other", 1)]
            second.die()
        other.dispatcher.admission.closed = True


@for_seeds(5)
async def test_a_process_takes_up_each_run_once():
    store = InMemorySessionService()
    ran = []

    @agent
    async def helper(ctx):
        ran.append((ctx.app_name, ctx.attempt))
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return "done"

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            await second.runner.recover()
            await second.runner.recover()
            assert await (await second.runner.follow(run.id)).result() == "done"
    assert ran == [(APP, 1), (APP, 2)]


@pytest.mark.parametrize("busy", [False, True])
def test_entering_while_a_run_is_being_recorded_leaves_it_to_whoever_records_it(busy):
    @for_seeds(5)
    async def case():
        attempts = []

        @agent
        async def helper(ctx):
            attempts.append((ctx.user_content.text, ctx.attempt))
            await asyncio.sleep(1)
            return ctx.user_content.text

        store = FaultyStore(InMemorySessionService())
        runner = make_runner(helper, store)
        expected = [("go", 1)]
        if busy:
            await runner.start(USER, SESSION, "first")
            expected.insert(0, ("first", 1))
        held = hold("submit", store.calls["submit"] + 1, after=True)
        store.plan.append(held)
        starting = asyncio.ensure_future(runner.start(USER, SESSION, "go"))
        await held.reached.wait()
        await runner.__aenter__()
        await asyncio.sleep(0.5)
        held.go.set()
        run = await starting
        assert await run.result() == "go"
        assert attempts == expected
        await idle()
        assert_at_rest(runner)

    case()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_event_loop_that_is_dropped_with_its_tasks_is_a_crash(seed):
    """Nobody cancels the tasks; they are collected as garbage, which must not be taken for the agent's end."""
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Content("model").with_text("said")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield "done"

    def in_loop(main, number):
        loop = SimLoop(number)
        with platform.use(SimPlatform(loop, number)):
            try:
                return loop.run_until_complete(main())
            finally:
                loop.close()

    async def before():
        run = await make_runner(helper, store).start(USER, SESSION, "go")
        await idle()
        return run.id

    run_id = in_loop(before, seed)
    gc.collect()

    async def after():
        runner = make_runner(helper, store)
        await runner.follow(run_id)
        gc.collect()
        async with runner:
            run = await runner.follow(run_id)
            result = await run.result()
            return result, run.record.attempt, await said_in(store)

    assert in_loop(after, seed + 1) == ("done", 2, [("user", "go"), ("helper", "said"), ("helper", "done")])

"""R5: a cancel, at every status and at every point of a run."""

import asyncio
import logging

import pytest

from sojourn.agents.base import Agent
from sojourn.agents.function import agent
from sojourn.agents.workflow import LoopAgent, ParallelAgent, SequentialAgent
from sojourn.content import Content, Part
from sojourn.errors import Conflict, NotFound, RunCancelled
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    KEY,
    SESSION,
    USER,
    assert_at_rest,
    assert_whole,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_frames,
    said_in,
)


@agent
async def hanging(ctx):
    """Speaks, then hangs."""
    yield "so far"
    await asyncio.Event().wait()


# -- in every status ----------------------------------------------------------------------------------------------------


@for_seeds(20)
async def test_a_queued_run_is_cancelled_at_once_and_never_starts():
    ran = []

    @agent
    async def helper(ctx):
        ran.append(ctx.user_content.text)
        await asyncio.sleep(5)

    runner = make_runner(helper)
    first = await runner.start(USER, SESSION, "first")
    second = await runner.start(USER, SESSION, "second")
    third = await runner.start(USER, SESSION, "third")
    record = await second.cancel("changed my mind")
    assert (record.status, record.error.code, record.error.message) == (RunStatus.CANCELLED, "run.cancelled", "changed my mind")
    assert await outcome_of(second) == "run.cancelled"
    await asyncio.gather(first.wait(), third.wait())
    assert ran == ["first", "third"]
    await idle()
    assert_at_rest(runner)


@for_seeds(20)
async def test_a_running_run_gets_one_cancelled_error_and_time_to_clean_up():
    seen = []
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        try:
            yield "so far"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            await asyncio.sleep(1)
            seen.append("cleaned")
            raise

    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "hi")
    reading = asyncio.ensure_future(read_frames(run))
    await idle()
    assert (await run.cancel("enough")).status is RunStatus.RUNNING
    await run.cancel("again")
    await runner.cancel(run.id, reason="and again")
    with raises(RunCancelled, "run.cancelled"):
        await run.result()
    assert seen == ["cancelled", "cleaned"]
    assert (run.status, run.record.error.message) == (RunStatus.CANCELLED, "enough")
    assert_whole(await reading)
    last = (await log_of(store))[-1]
    assert (last.text, last.interrupted) == ("so far", True)
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_waiting_run_is_cancelled_at_once_and_its_question_dropped():
    @agent
    async def helper(ctx):
        await ctx.ask("ok", "ok?")

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")
    await run.wait()
    interrupt = (await runner.list_interrupts())[0]
    assert (await run.cancel()).status is RunStatus.CANCELLED
    assert await runner.list_interrupts() == []
    assert await outcome_of(run) == "run.cancelled"
    assert (await read_frames(await runner.follow(run.id))).kinds[-1] == "run.cancelled"
    with raises(Conflict, "interrupt.closed"):
        await runner.answer(run.id, interrupt.id, "yes")


@for_seeds(5)
async def test_a_finished_run_is_left_as_it_is():
    @agent
    async def helper(ctx):
        return "done"

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")
    await run.wait()
    assert (await run.cancel()).status is RunStatus.COMPLETED
    assert await run.result() == "done"


@for_seeds(5)
async def test_a_run_that_is_not_there():
    runner = make_runner(hanging)
    with raises(NotFound, "run.not_found"):
        await runner.cancel("nobody")
    run = await runner.start(USER, SESSION, "hi")
    with raises(NotFound, "run.not_found"):
        await runner.cancel(run.id, user_id="bob")
    await run.cancel()
    await run.wait()


@for_seeds(20)
async def test_a_run_whose_turn_has_come_but_that_has_not_begun_yet():
    ran = []

    @agent
    async def helper(ctx):
        ran.append(ctx.user_content.text)

    store = FaultyStore(InMemorySessionService())
    for after in (False, True):
        ran.clear()
        runner = make_runner(helper, store)
        released = asyncio.Event()
        first_append = hold("append", store.calls["append"] + 1, until=released)
        beginning = hold("begin", store.calls["begin"] + 1, after=after)
        store.plan += [first_append, beginning]
        await runner.start(USER, SESSION, "first")
        second = await runner.start(USER, SESSION, "second")
        released.set()
        await beginning.reached.wait()
        await second.cancel()
        beginning.go.set()
        assert await outcome_of(second) == "run.cancelled"
        assert ran == ["first"]
        await idle()
        assert_at_rest(runner)


# -- agents that do not end ---------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_an_agent_that_swallows_the_cancel_for_a_while_is_waited_for():
    @agent
    async def slow(ctx):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(3)
        return "late"

    store = InMemorySessionService()
    runner = make_runner(slow, store)
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    before = asyncio.get_running_loop().time()
    assert await outcome_of(run) == "run.cancelled"
    assert asyncio.get_running_loop().time() - before == pytest.approx(3, abs=0.1)
    assert await said_in(store) == [("user", "hi")]
    await idle()
    assert_at_rest(runner)


class Stubborn(Agent):
    """Swallows every cancel until it is let go."""

    def __init__(self, **options):
        super().__init__(name="stubborn", **options)
        self.let_go = asyncio.Event()
        self.after = []

    async def run(self, ctx):
        if ctx.user_content.text != "hang":
            return "quick"
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.after.append("swallowed")
        for attempt in (lambda: ctx.step("late", lambda: 1), lambda: ctx.ask("q", "?")):
            try:
                await attempt()
            except asyncio.CancelledError:
                self.after.append("refused")
        return "far too late"


@for_seeds(10)
async def test_an_agent_that_never_ends_is_abandoned():
    stubborn = Stubborn()
    store = InMemorySessionService()
    runner = make_runner(stubborn, store, max_concurrency=2, run_config=RunConfig(cancel_grace=2))
    run = await runner.start(USER, SESSION, "hang")
    queued = await runner.start(USER, SESSION, "next")
    await idle()
    await run.cancel("enough")
    before = asyncio.get_running_loop().time()
    assert await outcome_of(run) == "run.cancelled"
    assert asyncio.get_running_loop().time() - before == pytest.approx(2, abs=0.1)
    assert_whole(await read_frames(await runner.follow(run.id)))
    assert await queued.result() == "quick", "the session is freed"
    await idle()
    assert (runner.limiter.active, runner.limiter.abandoned) == (1, 1), "the slot is not"
    log = await said_in(store)
    stubborn.let_go.set()
    await idle()
    assert stubborn.after == ["swallowed", "refused", "refused"]
    assert await said_in(store) == log, "what it says afterwards is not taken"
    assert_at_rest(runner)


@for_seeds(10)
async def test_an_abandoned_agent_takes_a_slot_until_it_ends():
    stubborn = Stubborn()
    runner = make_runner(stubborn, max_concurrency=1, run_config=RunConfig(cancel_grace=1))
    run = await runner.start(USER, SESSION, "hang")
    await idle()
    await run.cancel()
    await run.wait()
    other = await runner.start("bob", SESSION, "quick")
    await asyncio.sleep(10)
    assert other.status is RunStatus.QUEUED
    stubborn.let_go.set()
    assert await other.result() == "quick"
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_an_abandoned_run_is_told_in_the_log():
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("sojourn.run").addHandler(handler)
    try:
        stubborn = Stubborn()
        runner = make_runner(stubborn, run_config=RunConfig(cancel_grace=1))
        run = await runner.start(USER, SESSION, "hang")
        await idle()
        await run.cancel()
        await run.wait()
        stubborn.let_go.set()
        await idle()
    finally:
        logging.getLogger("sojourn.run").removeHandler(handler)
    assert ["abandoned" in r.getMessage() for r in records if r.levelno == logging.WARNING] == [True]


@for_seeds(10)
async def test_without_any_grace_a_run_is_closed_at_once():
    runner = make_runner(hanging, run_config=RunConfig(cancel_grace=0))
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    await idle()
    assert_at_rest(runner)


# -- at every point -----------------------------------------------------------------------------------------------------


def eventful():
    """An agent that does all there is to do, with waits between."""

    @agent
    async def child(ctx):
        yield "child "
        await asyncio.sleep(1)
        yield Content("model").with_text("of mine")

    def branch(name):
        @agent(name=name)
        async def speak(ctx):
            yield f"{name} "
            await asyncio.sleep(1)
            await ctx.step("s", lambda: asyncio.sleep(0.5))
            yield Content("model").with_text(name)

        return speak

    parallel = ParallelAgent(name="parallel", sub_agents=[branch("x"), branch("y")])

    @agent
    async def last(ctx):
        yield "last"
        await asyncio.sleep(1)
        await ctx.ask("q", "sure?")

    @agent(sub_agents=[last])
    async def root(ctx):
        await asyncio.sleep(0.5)
        await ctx.step("pay", lambda: asyncio.sleep(1))
        yield Content("model", (Part.from_function_call("look_up", {}, id="c1"),))
        await asyncio.sleep(1)
        yield Content("user", (Part.from_function_response("look_up", {}, id="c1"),))
        await ctx.history()
        await ctx.run_agent(child)
        await ctx.run_agent(parallel)
        yield "over"
        ctx.transfer_to("last")

    return root


@pytest.mark.parametrize("moment", [0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5])
@pytest.mark.parametrize("slow", [False, True])
def test_a_cancel_at_any_moment_ends_the_run_whole(moment, slow):
    """`slow`: each append takes its time, so that the cancel comes while the store commits."""

    @for_seeds(3)
    async def case():
        class Slow(FaultyStore):
            async def append(self, fence, batch):
                if slow:
                    await asyncio.sleep(0.3)
                appended = await super().append(fence, batch)
                if slow:
                    await asyncio.sleep(0.3)
                return appended

        store = Slow(InMemorySessionService())
        runner = make_runner(eventful(), store)
        run = await runner.start(USER, SESSION, "hi")
        reading = asyncio.ensure_future(read_frames(run))
        await asyncio.sleep(moment)
        await run.cancel()
        await run.settled()
        assert (await run.refresh()).status is RunStatus.CANCELLED
        live = await reading
        if live.kinds[-1] != "interrupt":
            assert_whole(live)
        assert_whole(await read_frames(await runner.follow(run.id)))
        history = await store.history(KEY, None)
        calls = {c.id for e in history.events for c in e.get_function_calls()}
        responses = {r.id for e in history.events for r in e.get_function_responses()}
        assert calls - responses <= {i.id for i in await store.list_interrupts("app", open_only=False)}
        log = await log_of(store)
        assert [e.seq for e in log] == list(range(1, len(log) + 1))
        stored = {e.id: e.text for e in log}
        for partial in live.partials:
            assert partial.delta in stored[partial.id], "what was seen is stored"
        await idle()
        assert_at_rest(runner)
        again = await runner.start(USER, SESSION, "again")
        assert (await again.wait()).status is RunStatus.WAITING

    case()


@for_seeds(10)
async def test_open_tool_calls_are_sealed_with_an_answer():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Content("model", (Part.from_function_call("one", {}, id="c1"), Part.from_function_call("two", {}, id="c2")))
        yield Content("user", (Part.from_function_response("one", {"x": 1}, id="c1"),))
        await asyncio.Event().wait()

    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    await run.wait()
    responses = [r for e in await log_of(store) for r in e.get_function_responses()]
    assert [(r.id, r.name) for r in responses] == [("c1", "one"), ("c2", "two")]
    assert responses[1].response == {"error": "run.cancelled"}


@for_seeds(10)
async def test_what_was_said_before_a_cancel_during_a_plugin_is_kept():
    """The message was sealed and handed to a plugin that takes its time: it must not be lost on the way to the store."""

    class Thoughtful(Plugin):
        async def on_event(self, ctx, event):
            await asyncio.sleep(1)

    @agent
    async def helper(ctx):
        yield "on the screen"
        yield Content("model").with_text("never seen")

    store = InMemorySessionService()
    runner = make_runner(helper, store, plugins=[Thoughtful()])
    run = await runner.start(USER, SESSION, "hi")
    await asyncio.sleep(0.5)
    await run.cancel()
    await run.wait()
    assert ("helper", "on the screen") in await said_in(store)


@for_seeds(10)
async def test_a_cancel_reaches_every_branch_and_inner_agent_once():
    cancelled = []

    def waiting(name):
        @agent(name=name)
        async def wait(ctx):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(name)
                raise

        return wait

    helper = SequentialAgent(
        name="seq",
        sub_agents=[
            LoopAgent(name="loop", sub_agents=[ParallelAgent(name="par", sub_agents=[waiting("a"), waiting("b")])]),
            waiting("c"),
        ],
    )
    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert sorted(cancelled) == ["a", "b"]
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_an_agent_that_turns_the_cancel_into_an_error_is_cancelled_all_the_same():
    @agent
    async def helper(ctx):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("broken by the cancel") from None

    run = await make_runner(helper).start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"


@for_seeds(10)
async def test_what_an_agent_says_after_the_cancel_is_not_taken():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        try:
            yield "before"
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield "sorry"
            yield Event(output="sorry")

    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert await said_in(store) == [("user", "hi"), ("helper", "before")]


# -- timeouts end a run the same way ------------------------------------------------------------------------------------


@for_seeds(10)
async def test_a_timeout_ends_a_run_with_a_code_of_its_own():
    store = InMemorySessionService()
    runner = make_runner(hanging, store, run_config=RunConfig(timeout=5))
    run = await runner.start(USER, SESSION, "hi")
    assert await outcome_of(run) == "run.timeout"
    assert run.status is RunStatus.FAILED
    assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)
    last = (await log_of(store))[-1]
    assert (last.text, last.interrupted) == ("so far", True)
    assert_whole(await read_frames(await runner.follow(run.id)))
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_timeout_abandons_an_agent_that_does_not_end():
    stubborn = Stubborn()
    runner = make_runner(stubborn, run_config=RunConfig(timeout=5, cancel_grace=1))
    run = await runner.start(USER, SESSION, "hang")
    assert await outcome_of(run) == "run.timeout"
    assert runner.limiter.abandoned == 1
    stubborn.let_go.set()
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_timeout_counts_neither_the_queue_nor_the_wait_for_a_person():
    @agent
    async def helper(ctx):
        await asyncio.sleep(3)
        if ctx.user_content.text == "ask":
            return await ctx.ask("q", "sure?")
        return "done"

    runner = make_runner(helper, max_concurrency=1, run_config=RunConfig(timeout=5))
    runs = [await runner.start(USER, SESSION, "go") for _ in range(4)]
    assert [await r.result() for r in runs] == ["done"] * 4
    asking = await runner.start(USER, SESSION, "ask")
    await asking.wait()
    await asyncio.sleep(1000)
    answered = await runner.answer(asking.id, (await asking.interrupts())[0].id, "yes")
    assert await answered.result() == "yes"


@for_seeds(10)
async def test_the_first_reason_to_stop_counts():
    @agent
    async def helper(ctx):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3)

    runner = make_runner(helper, run_config=RunConfig(timeout=5))
    run = await runner.start(USER, SESSION, "hi")
    await asyncio.sleep(4)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    late = await runner.start(USER, SESSION, "hi")
    await asyncio.sleep(6)
    await late.cancel()
    assert await outcome_of(late) == "run.timeout"


# -- deleting the session -----------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_deleting_the_session_stops_its_runs():
    store = InMemorySessionService()
    ended = []

    @agent
    async def helper(ctx):
        try:
            yield "so far"
            await asyncio.Event().wait()
        finally:
            ended.append(ctx.user_content.text)

    runner = make_runner(helper, store)
    running = await runner.start(USER, SESSION, "running")
    queued = await runner.start(USER, SESSION, "queued")
    await idle()
    await runner.delete_session(USER, SESSION)
    assert await outcome_of(running) == "session.deleted"
    assert await outcome_of(queued) == "session.deleted"
    assert ended == ["running"]
    await idle()
    assert_at_rest(runner)
    fresh = await runner.start(USER, SESSION, "fresh")
    await idle()
    assert await said_in(store) == [("user", "fresh")]
    await fresh.cancel()
    await fresh.wait()

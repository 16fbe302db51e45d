"""Agents that break their contract: each failure has a code, hangs nobody and takes nobody else down."""

import asyncio
import logging
import sys
import threading

import pytest

from sojourn.agents.base import Agent
from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content
from sojourn.errors import AgentError, InvalidInput, ToolError
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.delivery import hub
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.support import (
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


async def run_to_end(helper, message="go", **options):
    """The outcome of a run; afterwards the session takes the next one and nothing is left over."""
    store = InMemorySessionService()
    runner = make_runner(helper, store, **options)
    run = await runner.start(USER, SESSION, message)
    reading = await read_frames(run)
    outcome = await outcome_of(run)
    await idle()
    assert_at_rest(runner)
    assert_whole(reading)
    assert_whole(await read_frames(await runner.follow(run.id)))
    return outcome, [e.text for e in (await log_of(store))[1:]]


@pytest.mark.parametrize("rubbish", [42, 0, True, b"bytes", {"a": 1}, ["x"], object(), float("nan"), Exception, ...])
def test_rubbish_that_is_yielded_is_refused(rubbish):
    @for_seeds(3)
    async def case():
        @agent
        async def helper(ctx):
            yield "said "
            yield rubbish
            yield "never said"

        assert await run_to_end(helper) == ("agent.bad_yield", ["said "])

    case()


@pytest.mark.parametrize("rubbish", [b"bytes", object(), float("nan"), {1: 2}, {"a": {1}}, 1 + 2j])
def test_rubbish_that_is_returned_is_refused(rubbish):
    @for_seeds(3)
    async def case():
        @agent
        async def helper(ctx):
            return rubbish

        assert await run_to_end(helper) == ("agent.bad_yield", [])

    case()


class Text(str):
    """Not exactly a str."""

    __slots__ = ()


@for_seeds(3)
async def test_subclasses_of_str_are_text():
    @agent
    async def helper(ctx):
        yield Text("a")
        yield "b"

    @agent
    async def function(ctx):
        return Text("c")

    assert await run_to_end(helper) == ("ab", ["ab"])
    assert await run_to_end(function) == ("c", ["c"])


@for_seeds(3)
async def test_none_that_is_yielded_is_refused_like_other_rubbish():
    @agent
    async def helper(ctx):
        yield None

    assert (await run_to_end(helper))[0] == "agent.bad_yield"


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("secret"), "agent.failed"), (AgentError("x"), "agent.failed"), (ToolError("x", code="crm.broken"), "crm.broken"),
     (InvalidInput("x"), "input.invalid"), (RuntimeError("x"), "agent.failed"), (TimeoutError(), "agent.failed"),
     (StopAsyncIteration(), "agent.failed"), (asyncio.CancelledError(), "agent.failed"), (SystemExit(1), "agent.failed"),
     (KeyboardInterrupt(), "agent.failed"), (BaseException("x"), "agent.failed"),
     (ExceptionGroup("g", [ValueError()]), "agent.failed")],
)  # fmt: skip
@pytest.mark.parametrize("when", ["before", "after", "function", "step", "callback"])
def test_whatever_is_raised_is_a_failure_with_a_code(error, code, when):
    @for_seeds(2)
    async def case():
        def throw(*_):
            raise error

        @agent
        async def generator(ctx):
            if when == "before":
                throw()
            yield "said"
            throw()

        @agent
        async def function(ctx):
            if when == "step":
                await ctx.step("s", throw)
            throw()

        async def quiet(ctx):
            pass

        if when == "callback":
            helper = agent(name="helper", before_agent=throw)(quiet)
        else:
            helper = generator if when in ("before", "after") else function
        assert await run_to_end(helper) == (code, ["said"] if when == "after" else [])

    case()


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), ValueError("x")])
def test_whatever_a_parallel_branch_raises_fails_the_run_and_leaves_the_process_alone(error):
    @for_seeds(3)
    async def case():
        @agent
        async def broken(ctx):
            await asyncio.sleep(1)
            raise error

        @agent
        async def fine(ctx):
            await asyncio.sleep(2)
            yield "fine"

        assert await run_to_end(ParallelAgent(name="all", sub_agents=[broken, fine])) == ("agent.failed", ["fine"])

    try:
        case()
    except (SystemExit, KeyboardInterrupt) as ended:
        pytest.fail(f"{ended!r} has ended the process")


@for_seeds(3)
async def test_an_agent_that_raises_generator_exit_itself_has_failed():
    @agent
    async def helper(ctx):
        raise GeneratorExit

    assert await run_to_end(helper) == ("agent.failed", [])


@for_seeds(3)
async def test_sys_exit_in_an_agent_does_not_end_the_process():
    @agent
    async def helper(ctx):
        sys.exit(3)

    assert (await run_to_end(helper))[0] == "agent.failed"


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(1), KeyboardInterrupt(), StopIteration(), asyncio.CancelledError()]
)
@pytest.mark.anyio
async def test_whatever_a_plain_function_raises_in_its_thread_is_a_failure_with_a_code(error):
    @agent
    def helper(ctx):
        raise error

    @agent
    def generator(ctx):
        yield "said"
        raise error

    for plain in (helper, generator):
        run = await make_runner(plain).start(USER, SESSION, "go")
        async with asyncio.timeout(3):
            # A generator turns StopIteration into RuntimeError by itself.
            assert await outcome_of(run) == "agent.failed"


# -- agents that do not let others run ----------------------------------------------------------------------------------


PARTIAL = Event(partial=True, content=Content("model").with_text("x"))
EMPTY_PARTIAL = Event(partial=True)
FORGOT_TO_STARVE = 5_000


@pytest.mark.parametrize("item", ["x", "", Text("x"), Content("model").with_text("x"), Event(output=1), PARTIAL, EMPTY_PARTIAL])
def test_an_endless_generator_without_a_wait_can_be_cancelled_and_starves_nobody(item):
    @for_seeds(2)
    async def case():
        @agent
        async def quick(ctx):
            return "quick"

        @agent
        async def endless(ctx):
            for _ in range(FORGOT_TO_STARVE):
                yield item
            raise AssertionError("nobody else had a turn")

        store = InMemorySessionService()
        runner = make_runner(endless, store)
        run = await runner.start(USER, SESSION, "go")
        other = await make_runner(quick, store).start("bob", SESSION, "hi")
        assert await other.result() == "quick"
        await run.cancel()
        assert await outcome_of(run) == "run.cancelled"
        await idle()
        assert_at_rest(runner)

    case()


@for_seeds(2)
async def test_an_endless_message_is_cut_off():
    @agent
    async def helper(ctx):
        while True:
            yield "x" * 1000

    run = await make_runner(helper, run_config=RunConfig(max_event_bytes=2048)).start(USER, SESSION, "go")
    assert await outcome_of(run) == "event.too_large"


@pytest.mark.anyio
async def test_an_agent_that_blocks_the_loop_is_named_by_the_watchdog(monkeypatch):
    monkeypatch.setattr(hub, "BLOCKED_SECONDS", 0.05)
    reported = threading.Event()
    messages = []

    class Told(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())
            reported.set()

    told = Told()
    logging.getLogger("sojourn.watchdog").addHandler(told)

    @agent
    async def the_culprit(ctx):
        assert reported.wait(20), "blocks the loop until it is told"
        return "done"

    try:
        async with make_runner(the_culprit) as runner:
            assert await (await runner.start(USER, SESSION, "go")).result() == "done"
    finally:
        logging.getLogger("sojourn.watchdog").removeHandler(told)
    assert len(messages) == 1
    assert "the_culprit" in messages[0]
    assert "blocked" in messages[0]


@pytest.mark.anyio
async def test_a_plain_function_that_blocks_keeps_nobody_else():
    release = threading.Event()

    @agent
    def blocking(ctx):
        if ctx.user_id == "blocker":
            release.wait(20)
        return ctx.user_id

    runner = make_runner(blocking)
    slow = await runner.start("blocker", SESSION, "go")
    assert await (await runner.start(USER, SESSION, "go")).result() == USER
    release.set()
    assert await slow.result() == "blocker"


@pytest.mark.anyio
async def test_a_thread_that_hangs_is_abandoned_and_takes_a_slot_until_it_is_back():
    started, release = threading.Event(), threading.Event()

    @agent
    def blocking(ctx):
        if ctx.user_content.text == "hang":
            started.set()
            release.wait(20)
        return "back"

    runner = make_runner(blocking, max_concurrency=1, run_config=RunConfig(cancel_grace=0.01))
    run = await runner.start(USER, SESSION, "hang")
    await asyncio.to_thread(started.wait)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert (runner.limiter.active, runner.limiter.abandoned) == (1, 1)
    queued = await runner.start(USER, SESSION, "go")
    assert queued.status is RunStatus.QUEUED
    release.set()
    assert await queued.result() == "back"
    # The reply reaches the reader before the task that gave it has ended.
    while runner.limiter.active:
        await asyncio.sleep(0)
    assert_at_rest(runner)


# -- generators that do not close ---------------------------------------------------------------------------------------


@for_seeds(3)
async def test_a_generator_that_goes_on_after_it_was_closed():
    @agent
    async def helper(ctx):
        try:
            yield "said"
            ctx.end_invocation()
            yield "not taken"
        finally:
            yield "nor this"

    outcome, texts = await run_to_end(helper)
    assert (outcome, texts) == ("said", ["said"])


ENDED = "a generator that has ended is closed again, which is taken for going on"


@pytest.mark.parametrize("message", ["end", "fail", "hang", "hand over"])
def test_a_generator_that_ends_properly_is_not_reported(message):
    warnings = []

    class Told(logging.Handler):
        def emit(self, record):
            if record.levelno == logging.WARNING:
                warnings.append(record.getMessage())

    @agent
    async def billing(ctx):
        yield "billing"

    @agent(sub_agents=[billing])
    async def helper(ctx):
        yield "said"
        match ctx.user_content.text:
            case "fail":
                raise ValueError("broken")
            case "hang":
                await asyncio.Event().wait()
            case "hand over":
                ctx.transfer_to("billing")
                yield "over"
                yield "not taken"

    @for_seeds(1)
    async def case():
        runner = make_runner(helper)
        run = await runner.start(USER, SESSION, message)
        await idle()
        await run.cancel()
        await run.wait()

    told = Told()
    logging.getLogger("sojourn.run").addHandler(told)
    try:
        case()
    finally:
        logging.getLogger("sojourn.run").removeHandler(told)
    assert warnings == []


@for_seeds(3)
async def test_a_generator_that_awaits_in_its_finally_block():
    cleaned = []

    @agent
    async def helper(ctx):
        try:
            yield "said"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert cleaned == [True]


@for_seeds(3)
async def test_a_generator_whose_cleaning_up_fails_after_a_hand_over():
    @agent
    async def billing(ctx):
        yield "billing"

    @agent(sub_agents=[billing])
    async def root(ctx):
        try:
            ctx.transfer_to("billing")
            yield "over"
            yield "not taken"
        finally:
            raise ValueError("cleaning up failed")

    assert await run_to_end(root) == ("agent.failed", ["over"])


@for_seeds(3)
async def test_an_agent_that_cancels_itself_neither_leaves_a_ghost_nor_stops_the_others():
    @agent
    async def helper(ctx):
        if ctx.user_content.text == "go":
            yield "said"
            asyncio.current_task().cancel()
        await asyncio.sleep(1)
        yield "fine"

    store = InMemorySessionService()
    runner = make_runner(helper, store, max_concurrency=1)
    run = await runner.start(USER, SESSION, "go")
    others = [await runner.start(f"u{n}", SESSION, "hi") for n in range(3)]
    assert await outcome_of(run) in ("agent.failed", "run.cancelled")
    assert [await r.result() for r in others] == ["fine"] * 3
    await idle()
    assert_at_rest(runner)
    assert (await store.get_run("app", run.id)).status.terminal


@for_seeds(3)
async def test_tasks_that_outlive_their_run_can_write_nothing():
    late = []

    @agent
    async def helper(ctx):
        async def linger():
            await asyncio.sleep(1)
            try:
                await ctx.step("late", lambda: 1)
            except BaseException as error:
                late.append(type(error).__name__)

        late.append(asyncio.ensure_future(linger()))
        return "done"

    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "go")
    assert await run.result() == "done"
    await asyncio.sleep(2)
    assert late[1] == "CancelledError"
    assert await said_in(store) == [("user", "go"), ("helper", "done")]
    assert await store.list_steps(run.record.uid) == []


@for_seeds(3)
async def test_a_run_method_that_returns_what_it_must_not():
    class Plain(Agent):
        def run(self, ctx):
            return "not awaitable"

    class Iterable(Agent):
        def run(self, ctx):
            class Items:
                def __init__(self):
                    self.left = 2

                def __aiter__(self):
                    return self

                async def __anext__(self):
                    self.left -= 1
                    if self.left < 0:
                        raise StopAsyncIteration
                    return f"item {self.left}. "

            return Items()

    assert (await run_to_end(Plain(name="plain")))[0] in ("not awaitable", "agent.bad_yield", "agent.failed")
    assert await run_to_end(Iterable(name="iterable")) == ("item 1. item 0. ", ["item 1. item 0. "])


@for_seeds(3)
async def test_an_error_message_that_cannot_be_written_does_not_keep_the_run_open():
    @agent
    async def helper(ctx):
        raise AgentError("lone \ud800 surrogate and NUL \x00")

    outcome, _ = await run_to_end(helper)
    assert isinstance(outcome, str)


class Broken(InMemoryArtifactService):
    """Cannot save."""

    async def save_artifact(self, *args, **options):
        raise RuntimeError("a bug in a driver")


@for_seeds(5)
async def test_a_run_that_is_abandoned_ends_whatever_its_services_raise():
    end = asyncio.Event()

    @agent
    async def helper(ctx):
        yield "x" * 400_000
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                pass

    runner = make_runner(helper, artifact_service=Broken(), run_config=RunConfig(cancel_grace=1, max_event_bytes=50_000))
    run = await runner.start(USER, SESSION, "go")
    await idle()
    await run.cancel()
    async with asyncio.timeout(60):
        assert await outcome_of(run) == "internal"
        await idle()
        assert (await runner.follow(run.id)).status is RunStatus.FAILED
    end.set()
    await idle()
    assert_at_rest(runner)

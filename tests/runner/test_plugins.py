"""Plugins: every hook is called, before-hooks fail a run with a code, after-hooks destroy nothing."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import Forbidden
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_before
from sojourn.testing.loop import for_seeds
from tests.runner.support import (
    SESSION,
    USER,
    assert_at_rest,
    idle,
    log_of,
    make_runner,
    outcome_of,
    process,
    read_events,
    said_in,
)

BEFORE = ("on_user_message", "before_run", "before_agent", "before_step", "on_event")
AFTER = ("after_step", "after_agent", "after_run")


class Tracing(Plugin):
    """Notes each call."""

    def __init__(self, trace=None):
        self.trace = trace if trace is not None else []

    async def on_user_message(self, key, message):
        self.trace.append("on_user_message")

    async def before_run(self, ctx):
        self.trace.append("before_run")

    async def before_agent(self, ctx):
        self.trace.append(f"before_agent {ctx.agent_name}")

    async def after_agent(self, ctx, error):
        self.trace.append(f"after_agent {ctx.agent_name} {type(error).__name__}")

    async def before_step(self, ctx, key):
        self.trace.append(f"before_step {key}")

    async def after_step(self, ctx, key, error):
        self.trace.append(f"after_step {key} {type(error).__name__}")

    async def on_event(self, ctx, event):
        self.trace.append(f"on_event {event.text}")

    async def after_run(self, record, error):
        self.trace.append(f"after_run {record.status} {record.error.code if record.error else None}")


@agent
async def helper(ctx):
    """Does a step, speaks, and ends as its message says."""

    def effect():
        if ctx.user_content.text == "bad step":
            raise ValueError("bad step")
        return 1

    await ctx.step("s", effect)
    yield "said"
    match ctx.user_content.text:
        case "fail":
            raise ValueError("broken")
        case "hang":
            await asyncio.Event().wait()
        case "ask":
            await ctx.ask("q", "?")


START = ["on_user_message", "before_run", "before_agent helper", "before_step s"]


@for_seeds(5)
async def test_every_hook_fires_for_every_way_a_run_ends():
    async def trace_of(message, act=None, **options):
        plugin = Tracing()
        runner = make_runner(helper, plugins=[plugin], **options)
        run = await runner.start(USER, SESSION, message)
        await asyncio.sleep(1)
        if act is not None:
            await act(runner, run)
        await run.settled()
        await idle()
        assert_at_rest(runner)
        return plugin.trace

    async def cancel(runner, run):
        await run.cancel()

    step, said = ["after_step s NoneType"], ["on_event said"]
    assert await trace_of("hi") == [*START, *step, *said, "after_agent helper NoneType", "after_run completed None"]
    assert await trace_of("fail") == [*START, *step, "after_agent helper ValueError", *said, "after_run failed agent.failed"]
    assert await trace_of("bad step") == [
        *START,
        "after_step s ValueError",
        "after_agent helper ValueError",
        "after_run failed agent.failed",
    ]
    assert await trace_of("hang", cancel) == [
        *START, *step, "after_agent helper CancelledError", *said, "after_run cancelled run.cancelled",
    ]  # fmt: skip
    assert await trace_of("hang", run_config=RunConfig(timeout=0.5)) == [
        *START, *step, "after_agent helper CancelledError", *said, "after_run failed run.timeout",
    ]  # fmt: skip
    assert await trace_of("ask") == [
        *START, *step, *said, "on_event ", "after_agent helper RunPaused", "after_run waiting None",
    ]  # fmt: skip


@for_seeds(5)
async def test_after_hooks_fire_when_the_reader_leaves():
    plugin = Tracing()
    runner = make_runner(helper, plugins=[plugin])
    stream = runner.run(USER, SESSION, "hang")
    await anext(stream)
    await stream.aclose()
    await idle()
    assert plugin.trace[-1] == "after_run cancelled run.cancelled"


@for_seeds(5)
async def test_after_hooks_fire_for_abandoned_runs_and_for_runs_that_the_store_let_down():
    @agent
    async def stubborn(ctx):
        while True:
            try:
                await asyncio.sleep(60)
                return
            except asyncio.CancelledError:
                pass

    plugin = Tracing()
    runner = make_runner(stubborn, plugins=[plugin], run_config=RunConfig(cancel_grace=1))
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    await run.wait()
    await idle()
    assert plugin.trace[-1] == "after_run cancelled run.cancelled"
    await asyncio.sleep(120)
    assert plugin.trace.count("after_run cancelled run.cancelled") == 1

    plugin.trace.clear()
    store = FaultyStore(InMemorySessionService(), [fail_before("append", *range(1, 9))])
    await outcome_of(await make_runner(helper, store, plugins=[plugin]).start(USER, SESSION, "hi"))
    await asyncio.sleep(60)
    assert plugin.trace[-1] == "after_run failed store.unavailable"


@for_seeds(5)
async def test_a_step_whose_result_is_known_calls_no_hook_again():
    store = InMemorySessionService()
    trace = []
    async with process(helper, store, plugins=[Tracing(trace)]) as first:
        run = await first.runner.start(USER, SESSION, "hang")
        await idle()
        first.die()
        trace.clear()
        async with process(helper, store, enter=True, plugins=[Tracing(trace)]) as second:
            await idle()
            assert trace[:2] == ["before_run", "before_agent helper"]
            assert not [t for t in trace if "step" in t]
            await second.runner.cancel(run.id)


@for_seeds(3)
async def test_plugins_are_called_in_order():
    trace = []

    class Named(Plugin):
        def __init__(self, name):
            self.name = name

        async def on_event(self, ctx, event):
            trace.append(self.name)
            return event.evolve(content=Content("model").with_text(event.text + self.name))

    runner = make_runner(helper, plugins=[Named("a"), Named("b")])
    assert await (await runner.start(USER, SESSION, "hi")).result() == "saidab"
    assert trace == ["a", "b"]


# -- hooks that change something ----------------------------------------------------------------------------------------


@for_seeds(3)
async def test_hooks_may_change_the_message_and_answer_in_place_of_agents():
    class Changing(Plugin):
        async def on_user_message(self, key, message):
            return Content("user").with_text(f"{key.user_id}: {message.text}")

        async def before_run(self, ctx):
            return Content("model").with_text("closed") if "before_run" in ctx.user_content.text else None

        async def before_agent(self, ctx):
            return Content("model").with_text("not me") if "before_agent" in ctx.user_content.text else None

    store = InMemorySessionService()
    runner = make_runner(helper, store, plugins=[Changing()])
    for message, answer in (("hi", "said"), ("before_run", "closed"), ("before_agent", "not me")):
        assert await (await runner.start(USER, SESSION, message)).result() == answer
    assert (await said_in(store))[0] == ("user", "alice: hi")


@for_seeds(3)
async def test_a_plugin_replaces_an_event_but_not_its_identity():
    class Redacting(Plugin):
        async def on_event(self, ctx, event):
            return event.evolve(id="other", seq=9, ordinal=9, run_id="other", content=Content("model").with_text("***"))

    @agent
    async def slow(ctx):
        yield "said"
        await asyncio.sleep(1)

    store = InMemorySessionService()
    runner = make_runner(slow, store, plugins=[Redacting()])
    reading = await read_events(runner.run(USER, SESSION, "hi"))
    event = (await log_of(store))[1]
    assert (event.text, event.ordinal, event.seq) == ("***", 1, 2)
    assert event.id == reading.partials[0].id
    assert reading.events[-1].text == "***"
    assert reading.screen == "said"


# -- hooks that raise ---------------------------------------------------------------------------------------------------


def _raising(hook, error):
    async def call(self, *args):
        raise error

    return type("Raising", (Plugin,), {hook: call})()


@pytest.mark.parametrize("hook", BEFORE)
def test_a_hook_that_comes_before_something_fails_the_run_with_a_code(hook):
    @for_seeds(5)
    async def case():
        store = InMemorySessionService()
        runner = make_runner(helper, store, plugins=[_raising(hook, ValueError("secret"))])
        # What is said last is stored with the end of the run, and has a test of its own.
        reading = await read_events(runner.run(USER, SESSION, "ask" if hook == "on_event" else "hi"))
        assert reading.error.code == "plugin.failed"
        assert "secret" not in str(reading.error)
        await idle()
        assert_at_rest(runner)
        if hook == "on_user_message":
            assert (await runner.list_runs()).items == []
        else:
            assert (await runner.list_runs()).items[0].status is RunStatus.FAILED

    case()


@pytest.mark.parametrize("hook", BEFORE)
def test_a_hook_may_refuse_with_a_code_of_its_own(hook):
    @for_seeds(5)
    async def case():
        runner = make_runner(helper, plugins=[_raising(hook, Forbidden("not allowed", code="policy.denied"))])
        assert (await read_events(runner.run(USER, SESSION, "hi"))).error.code == "policy.denied"
        await idle()
        assert_at_rest(runner)

    case()


@pytest.mark.parametrize("hook", AFTER)
@pytest.mark.parametrize("error", [ValueError("broken"), Forbidden("no")])
def test_a_hook_that_comes_after_something_cannot_destroy_a_finished_answer(hook, error):
    @for_seeds(5)
    async def case():
        store = InMemorySessionService()
        plugin = Tracing()
        runner = make_runner(helper, store, plugins=[_raising(hook, error), plugin])
        run = await runner.start(USER, SESSION, "hi")
        assert await run.result() == "said"
        await idle()
        assert run.status is RunStatus.COMPLETED
        assert plugin.trace[-1] == "after_run completed None", "the hooks of the others are called all the same"
        assert_at_rest(runner)

    case()


@for_seeds(3)
async def test_what_an_event_hook_raises_for_is_not_stored_even_at_the_end():
    class Late(Plugin):
        async def on_event(self, ctx, event):
            raise ValueError("broken")

    @agent
    async def quick(ctx):
        yield "the answer"

    store = InMemorySessionService()
    runner = make_runner(quick, store, plugins=[Late()])
    code = await outcome_of(await runner.start(USER, SESSION, "hi"))
    assert code == "plugin.failed"
    last = (await log_of(store))[-1]
    assert (last.text, last.interrupted, last.error_code) == ("", True, "plugin.failed")


@for_seeds(3)
async def test_a_slow_after_run_hook_keeps_neither_the_session_nor_the_reader():
    class Slow(Plugin):
        async def after_run(self, record, error):
            await asyncio.sleep(100)

    runner = make_runner(helper, plugins=[Slow()])
    first = await runner.start(USER, SESSION, "hi")
    second = await runner.start(USER, SESSION, "hi")
    assert await first.result() == await second.result() == "said"
    assert asyncio.get_running_loop().time() < 1


# -- callbacks of agents ------------------------------------------------------------------------------------------------


@for_seeds(3)
async def test_callbacks_before_an_agent_may_answer_in_its_place_and_those_after_it_add():
    ran = []

    async def first(ctx):
        ran.append("first")

    def second(ctx):
        ran.append("second")
        return "in its place" if ctx.user_content.text == "skip" else None

    def third(ctx):
        ran.append("third")

    def after(ctx):
        return Content("model").with_text("and more")

    @agent(before_agent=[first, second, third], after_agent=[lambda ctx: None, after, third])
    async def spoken(ctx):
        ran.append("agent")
        return "the agent"

    async def texts(message):
        ran.clear()
        store = InMemorySessionService()
        await (await make_runner(spoken, store).start(USER, SESSION, message)).result()
        return [e.text for e in (await log_of(store))[1:]], list(ran)

    assert await texts("hi") == (["the agent", "and more"], ["first", "second", "third", "agent"])
    assert await texts("skip") == (["in its place", "and more"], ["first", "second"])


@pytest.mark.parametrize("where", ["before_agent", "after_agent"])
def test_a_callback_that_raises_fails_the_run_and_keeps_what_was_said(where):
    @for_seeds(3)
    async def case():
        def broken(ctx):
            raise ValueError("broken")

        async def speak(ctx):
            yield "said"

        store = InMemorySessionService()
        runner = make_runner(agent(name="helper", **{where: broken})(speak), store)
        assert await outcome_of(await runner.start(USER, SESSION, "hi")) == "agent.failed"
        assert [e.text for e in (await log_of(store))[1:]] == (["said"] if where == "after_agent" else [])

    case()


@for_seeds(3)
async def test_what_a_callback_after_the_agent_sets_is_stored():
    async def after(ctx):
        ctx.state["after"] = True
        await ctx.artifacts.save("after.txt", "x")
        ctx.set_actions(requested_auth_configs={"c": {}})

    @agent(after_agent=after)
    async def spoken(ctx):
        yield "said"

    store = InMemorySessionService()
    await (await make_runner(spoken, store).start(USER, SESSION, "hi")).result()
    log = await log_of(store)
    assert [e.actions.artifact_delta for e in log if e.actions.artifact_delta] == [{"after.txt": 0}]
    assert [e.actions.requested_auth_configs for e in log if e.actions.requested_auth_configs] == [{"c": {}}]
    assert (await store.get_session(app_name="app", user_id=USER, session_id=SESSION)).state == {"after": True}


@pytest.mark.parametrize("hook", ["before_run", "before_agent", "before_step", "on_event", "after_agent", "after_step"])
def test_a_cancel_while_a_hook_takes_its_time(hook):
    @for_seeds(5)
    async def case():
        async def wait(self, *args):
            await asyncio.sleep(3)

        store = InMemorySessionService()
        plugin = Tracing()
        runner = make_runner(helper, store, plugins=[type("Slow", (Plugin,), {hook: wait})(), plugin])
        run = await runner.start(USER, SESSION, "ask")
        await asyncio.sleep(1)
        await run.cancel()
        assert await outcome_of(run) == "run.cancelled"
        await asyncio.sleep(30)
        assert plugin.trace[-1] == "after_run cancelled run.cancelled"
        assert_at_rest(runner)

    case()


UNCHECKED = "what a hook returns is not looked at"


@pytest.mark.parametrize("value", [42, ["x"], object()])
@pytest.mark.parametrize(
    "where",
    ["before_run", "before_agent", "callback", *(pytest.param(h) for h in ("on_user_message", "on_event"))],
)
def test_what_a_hook_must_not_return_fails_with_a_code(where, value):
    @for_seeds(2)
    async def case():
        async def give(self, *args):
            return value

        if where == "callback":
            runner = make_runner(agent(name="helper", before_agent=lambda ctx: value)(helper.fn))
        else:
            runner = make_runner(helper, plugins=[type("Wrong", (Plugin,), {where: give})()])
        reading = await read_events(runner.run(USER, SESSION, "ask"))
        assert reading.error is not None
        assert reading.error.code in ("plugin.failed", "agent.failed", "agent.bad_yield", "message.invalid")
        await idle()
        assert_at_rest(runner)

    case()

"""Functions as agents: what they may be, and what they are called."""

import asyncio
import contextvars
import threading

import pytest

from sojourn.agents.base import Agent
from sojourn.agents.current import current_run
from sojourn.agents.function import FunctionAgent, agent
from sojourn.agents.threads import DaemonExecutor, in_thread, track_calls
from sojourn.errors import InvalidInput
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import SESSION, USER, assert_at_rest, idle, make_runner, outcome_of, read_events


async def an_async_function(ctx):
    return "async function"


async def an_async_generator(ctx):
    yield "async "
    yield "generator"


def a_function(ctx):
    return "function"


def a_generator(ctx):
    yield "gene"
    yield "rator"


class Callable:
    async def __call__(self, ctx):
        return "callable"


class PlainCallable:
    def __call__(self, ctx):
        return "plain callable"


def gives_an_awaitable(ctx):
    return an_async_function(ctx)


KINDS = [
    (an_async_function, "async function"), (an_async_generator, "async generator"), (a_function, "function"), (a_generator, "generator"),
    (Callable(), "callable"), (PlainCallable(), "plain callable"), (gives_an_awaitable, "async function"), (lambda ctx: "lambda", "lambda"),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "answer"), KINDS)
def test_functions_of_every_kind(fn, answer):
    @for_seeds(3)
    async def case():
        assert await outcome_of(await make_runner(FunctionAgent(fn, name="f")).start(USER, SESSION, "go")) == answer

    case()


@pytest.mark.parametrize(("fn", "answer"), KINDS)
@pytest.mark.anyio
async def test_functions_of_every_kind_in_a_real_event_loop(fn, answer):
    async with make_runner(FunctionAgent(fn, name="f")) as runner:
        assert await (await runner.start(USER, SESSION, "go")).result() == answer


@pytest.mark.anyio
async def test_a_plain_function_runs_in_a_thread_with_its_context():
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    @agent
    def helper(ctx):
        seen.append((threading.current_thread() is threading.main_thread(), threading.current_thread().daemon))
        seen.append((variable.get(), current_run().user_id, ctx.state["n"], ctx.user_content.text, ctx.memories))
        ctx.state["n"] = 2
        ctx.turn()
        ctx.set_actions(escalate=True)
        return "done"

    runner = make_runner(helper, propagate=[variable])
    await runner.store.create_session(app_name="app", user_id=USER, session_id=SESSION, state={"n": 1})
    variable.set("handed on")
    assert await (await runner.start(USER, SESSION, "go")).result() == "done"
    assert seen == [(False, True), ("handed on", USER, 1, "go", [])]
    assert (await runner.get_session(USER, SESSION)).state == {"n": 2}


@pytest.mark.anyio
async def test_a_plain_generator_streams_and_is_closed_when_the_reader_leaves():
    closed, go_on = threading.Event(), threading.Event()

    waiting = threading.Event()

    @agent
    def helper(ctx):
        try:
            yield "a"
            waiting.set()
            go_on.wait(20)
            yield "b"
            yield "c"
        finally:
            closed.set()

    runner = make_runner(helper)
    stream = runner.run(USER, SESSION, "go")
    assert (await anext(stream)).delta == "a"
    await asyncio.to_thread(waiting.wait)
    go_on.set()
    await stream.aclose()
    assert await asyncio.to_thread(closed.wait, 10)
    reading = await read_events(make_runner(helper).run(USER, SESSION, "go"))
    assert reading.screen == "abc"


@pytest.mark.anyio
async def test_many_plain_functions_at_once_need_no_more_threads_than_they_are():
    barrier = threading.Barrier(30, timeout=20)

    @agent
    def helper(ctx):
        barrier.wait()
        return ctx.session_id

    runner = make_runner(helper)
    runs = await asyncio.gather(*(runner.start(USER, f"s{n}", "go") for n in range(30)))
    assert [await r.result() for r in runs] == [f"s{n}" for n in range(30)]


# -- names and options --------------------------------------------------------------------------------------------------


def test_the_decorator_takes_name_and_description_from_the_function():
    @agent
    async def helper(ctx):
        """Helps.

        In many ways.
        """

    @agent(name="other", description="Something else.")
    async def another(ctx):
        """Helps."""

    assert (helper.name, helper.description) == ("helper", "Helps.")
    assert (another.name, another.description) == ("other", "Something else.")
    assert isinstance(helper, Agent)
    assert FunctionAgent(lambda ctx: 1, name="f").description == ""


@pytest.mark.anyio
async def test_a_decorated_function_can_be_called_as_it_was():
    @agent
    async def helper(ctx):
        return f"called with {ctx}"

    assert await helper("anything") == "called with anything"


@pytest.mark.parametrize("name", ["", "user", "a/b", "a.b", "a#b", "a\x00", "x" * 300, None, 5])
def test_names_that_cannot_be(name):
    with raises(InvalidInput, "agent.invalid_name"):
        Agent(name=name)


@pytest.mark.parametrize("thing", [None, 5, "text"])
def test_what_is_no_function(thing):
    with raises(InvalidInput, "agent.invalid"):
        FunctionAgent(thing)


def test_trees():
    leaf = Agent(name="leaf")
    middle = Agent(name="middle", sub_agents=[leaf])
    root = Agent(name="root", sub_agents=[middle, Agent(name="other")])
    assert [a.name for a in root.walk()] == ["root", "middle", "leaf", "other"]
    assert leaf.root_agent is root
    assert root.find_agent("leaf") is leaf
    assert middle.find_agent("other") is None
    assert leaf.parent_agent is middle
    with raises(InvalidInput, "agent.has_parent"):
        Agent(name="thief", sub_agents=[leaf])
    with raises(InvalidInput, "agent.invalid"):
        Agent(name="root", sub_agents=["leaf"])
    with raises(InvalidInput, "agent.duplicate_name"):
        make_runner(Agent(name="root", sub_agents=[Agent(name="a"), Agent(name="b", sub_agents=[Agent(name="a")])]))


def test_an_agent_that_was_refused_as_a_child_is_still_free():
    child, taken = Agent(name="child"), Agent(name="taken")
    Agent(name="parent", sub_agents=[taken])
    with raises(InvalidInput, "agent.has_parent"):
        Agent(name="thief", sub_agents=[child, taken])
    assert child.parent_agent is None


# -- threads ------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_calls_are_kept_account_of_until_their_thread_is_back():
    release, started = threading.Event(), threading.Event()

    def work():
        started.set()
        release.wait(20)

    calls = track_calls()
    future = in_thread(work)
    await asyncio.to_thread(started.wait)
    future.cancel()
    assert len(calls) == 1
    release.set()
    await asyncio.wait(set(calls))
    await asyncio.sleep(0)
    assert calls == set()


@for_seeds(30)
async def test_a_call_that_is_cancelled_before_its_thread_starts_leaves_nothing_behind():
    @agent
    def helper(ctx):
        return "done"

    runner = make_runner(helper, max_concurrency=1)
    run = await runner.start(USER, SESSION, "go")
    await asyncio.sleep(0)
    await run.cancel()
    await run.wait()
    await idle()
    assert_at_rest(runner)
    assert await (await runner.start(USER, SESSION, "go")).result() == "done"


def test_idle_threads_are_used_again():
    executor = DaemonExecutor()
    seen = {executor.submit(threading.get_ident).result(10) for _ in range(20)}
    assert len(seen) <= 3


def test_a_thread_outlives_its_loop_without_a_trace():
    release = threading.Event()
    outcome = []

    async def main():
        in_thread(lambda: outcome.append(release.wait(20)))

    asyncio.run(main())
    release.set()
    done = DaemonExecutor().submit(lambda: None)
    done.result(10)
    while not outcome:
        threading.Event().wait(0.001)
    assert outcome == [True]

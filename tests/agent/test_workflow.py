"""Agents that run others: one after the other, in rounds, and at the same time."""

import asyncio

import pytest

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.agents.workflow import LoopAgent, ParallelAgent, SequentialAgent
from sojourn.content import Content
from sojourn.errors import InvalidInput
from sojourn.event import Event, EventActions
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    SESSION,
    USER,
    assert_at_rest,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_events,
    said_in,
    state_of,
)


def speaker(name, *pieces, seconds=0.0):
    @agent(name=name)
    async def speak(ctx):
        for piece in pieces or (name,):
            await asyncio.sleep(seconds)
            yield piece

    return speak


async def texts_of(tree, message="go", **options):
    store = InMemorySessionService()
    run = await make_runner(tree, store, **options).start(USER, SESSION, message)
    outcome = await outcome_of(run)
    return outcome, [t for _, t in (await said_in(store))[1:] if t]


# -- in order -----------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_in_order():
    tree = SequentialAgent(name="all", sub_agents=[speaker("a", seconds=2), speaker("b", seconds=1), speaker("c")])
    assert await texts_of(tree) == ("c", ["a", "b", "c"])
    assert await texts_of(SequentialAgent(name="none")) == (None, [])


@for_seeds(5)
async def test_the_end_of_the_invocation_ends_the_order():
    @agent
    async def ender(ctx):
        yield "enough"
        ctx.end_invocation()

    tree = SequentialAgent(name="all", sub_agents=[speaker("a"), ender, speaker("c")])
    assert await texts_of(tree) == ("enough", ["a", "enough"])


@for_seeds(5)
async def test_a_failure_ends_the_order():
    @agent
    async def broken(ctx):
        yield "half"
        raise ValueError("broken")

    tree = SequentialAgent(name="all", sub_agents=[speaker("a"), broken, speaker("c")])
    assert await texts_of(tree) == ("agent.failed", ["a", "half"])


@for_seeds(5)
async def test_later_agents_see_what_earlier_ones_wrote():
    seen = []

    @agent
    async def writer(ctx):
        ctx.state["x"] = 1
        ctx.state["temp:y"] = 2

    @agent
    async def reader(ctx):
        seen.append((dict(ctx.state), [e.text for e in await ctx.history()]))

    await texts_of(SequentialAgent(name="all", sub_agents=[speaker("a"), writer, reader]))
    assert seen == [({"x": 1, "temp:y": 2}, ["go", "a"])]


# -- in rounds ----------------------------------------------------------------------------------------------------------


def counting(name, *, escalate_at=None, how="action"):
    @agent(name=name)
    async def count(ctx):
        n = ctx.state.increment("n")
        escalate = n == escalate_at
        if escalate and how == "action":
            ctx.set_actions(escalate=True)
        if escalate and how == "event":
            yield Event(content=Content("model").with_text(f"{name}{n}"), actions=EventActions(escalate=True))
        else:
            yield f"{name}{n}"

    return count


@for_seeds(3)
async def test_rounds_end_at_their_bound():
    tree = LoopAgent(name="loop", sub_agents=[counting("a"), speaker("b")], max_iterations=3)
    assert await texts_of(tree) == ("b", ["a1", "b", "a2", "b", "a3", "b"])


@pytest.mark.parametrize("how", ["action", "event"])
def test_rounds_end_when_an_agent_escalates(how):
    @for_seeds(3)
    async def case():
        tree = LoopAgent(name="loop", sub_agents=[counting("a", escalate_at=2, how=how), speaker("b")])
        assert await texts_of(tree) == ("a2", ["a1", "b", "a2"])

    case()


@pytest.mark.parametrize("kind", [SequentialAgent, ParallelAgent])
def test_an_agent_deep_inside_escalates_the_loop_around_it(kind):
    @for_seeds(3)
    async def case():
        inner = kind(name="inner", sub_agents=[counting("a", escalate_at=2)])
        assert (await texts_of(LoopAgent(name="loop", sub_agents=[inner, speaker("b")])))[1] == ["a1", "b", "a2"]

    case()


@for_seeds(3)
async def test_an_agent_escalates_only_the_loop_that_encloses_it():
    inner = LoopAgent(name="inner", sub_agents=[counting("a", escalate_at=2)])
    outer = LoopAgent(name="outer", sub_agents=[inner, speaker("b")], max_iterations=2)
    # The second time, the counter is beyond the number at which it escalates: the inner loop needs a bound of its own.
    inner.max_iterations = 5
    assert (await texts_of(outer))[1] == ["a1", "a2", "b", "a3", "a4", "a5", "a6", "a7", "b"]


@for_seeds(3)
async def test_rounds_of_agents_that_never_wait_starve_nobody_and_can_be_cancelled():
    @agent
    async def silent(ctx):
        pass

    store = InMemorySessionService()
    runner = make_runner(LoopAgent(name="loop", sub_agents=[silent]), store)
    run = await runner.start(USER, SESSION, "go")
    assert await (await make_runner(speaker("quick"), store).start("bob", SESSION, "go")).result() == "quick"
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    await idle()
    assert_at_rest(runner)


@for_seeds(3)
async def test_rounds_are_bounded_by_the_runs_own_bounds():
    @agent
    async def thinker(ctx):
        ctx.turn()

    tree = LoopAgent(name="loop", sub_agents=[thinker])
    assert (await texts_of(tree, run_config=RunConfig(max_turns=5)))[0] == "run.max_turns"


def test_loops_that_cannot_be():
    with raises(InvalidInput, "agent.invalid"):
        LoopAgent(name="loop")
    with raises(InvalidInput, "agent.invalid"):
        LoopAgent(name="loop", sub_agents=[speaker("a")], max_iterations=0)


# -- at the same time ---------------------------------------------------------------------------------------------------


@for_seeds(20)
async def test_branches_run_at_the_same_time_each_in_its_own_branch():
    store = InMemorySessionService()
    tree = ParallelAgent(name="all", sub_agents=[speaker(n, f"{n}1 ", f"{n}2", seconds=1) for n in "xyz"])
    run = await make_runner(tree, store).start(USER, SESSION, "go")
    await run.result()
    assert asyncio.get_running_loop().time() == pytest.approx(2, abs=0.1)
    assert sorted((e.author, e.branch, e.text) for e in (await log_of(store))[1:]) == [(n, n, f"{n}1 {n}2") for n in "xyz"]
    assert await texts_of(ParallelAgent(name="none")) == (None, [])


@for_seeds(20)
async def test_a_branch_sees_what_was_said_before_it_and_not_what_its_siblings_say():
    seen = {}

    def branch(name):
        @agent(name=name)
        async def work(ctx):
            yield Content("model").with_text(f"{name}1")
            await asyncio.sleep(platform.random())
            seen[name] = [e.text for e in await ctx.history()]

        return work

    @agent
    async def last(ctx):
        seen["last"] = sorted(e.text for e in await ctx.history())

    tree = SequentialAgent(
        name="all", sub_agents=[speaker("first"), ParallelAgent(name="par", sub_agents=[branch("x"), branch("y")]), last]
    )
    await texts_of(tree)
    assert seen == {"x": ["go", "first", "x1"], "y": ["go", "first", "y1"], "last": ["first", "go", "x1", "y1"]}


@for_seeds(20)
async def test_branches_have_views_of_the_state_of_their_own_and_all_writes_are_stored():
    seen = {}

    def branch(name):
        @agent(name=name)
        async def work(ctx):
            ctx.state[name] = 1
            ctx.state["shared"] = name
            ctx.state.increment("count")
            ctx.state["temp:note"] = name
            await asyncio.sleep(platform.random())
            seen[name] = dict(ctx.state)
            if name == "x":
                yield Content("model").with_text("x speaks")

        return work

    @agent
    async def last(ctx):
        seen["last"] = dict(ctx.state)

    store = InMemorySessionService()
    tree = SequentialAgent(name="all", sub_agents=[ParallelAgent(name="par", sub_agents=[branch("x"), branch("y")]), last])
    await (await make_runner(tree, store).start(USER, SESSION, "go")).result()
    assert seen["x"] == {"x": 1, "shared": "x", "count": 1, "temp:note": "x"}
    assert seen["y"] == {"y": 1, "shared": "y", "count": 1, "temp:note": "y"}
    state = await state_of(store)
    assert state == {"x": 1, "y": 1, "count": 2, "shared": state["shared"]}
    assert {k: v for k, v in seen["last"].items() if k != "temp:note"} == state


@for_seeds(20)
async def test_a_branch_does_not_see_what_a_sibling_has_written_even_if_it_starts_later():
    seen = {}

    def branch(name):
        @agent(name=name)
        async def work(ctx):
            seen[name] = dict(ctx.state)
            ctx.state[name] = 1

        return work

    await texts_of(ParallelAgent(name="all", sub_agents=[branch("x"), branch("y")]))
    assert seen == {"x": {}, "y": {}}


@for_seeds(20)
async def test_a_failure_lets_the_others_finish_and_keeps_all_they_said():
    def broken(name, seconds):
        @agent(name=name)
        async def fail(ctx):
            yield f"{name} half"
            await asyncio.sleep(seconds)
            raise ValueError(name)

        return fail

    store = InMemorySessionService()
    tree = ParallelAgent(name="all", sub_agents=[broken("x", 1), speaker("y", "y1 ", "y2", seconds=2), broken("z", 0.5)])
    runner = make_runner(tree, store)
    run = await runner.start(USER, SESSION, "go")
    reading = await read_events(run.events())
    assert reading.error.code == "agent.failed"
    log = {e.branch: (e.text, e.interrupted) for e in (await log_of(store))[1:]}
    assert log == {"x": ("x half", True), "y": ("y1 y2", False), "z": ("z half", True)}
    assert run.status is RunStatus.FAILED
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_branches_that_are_stopped_while_one_fails_leave_no_error_that_nobody_handles():
    @agent
    async def broken(ctx):
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("broken by the cancel")

    runner = make_runner(ParallelAgent(name="all", sub_agents=[broken, speaker("y", seconds=9)]))
    run = await runner.start(USER, SESSION, "go")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_branch_that_has_failed_before_the_others_are_stopped_leaves_no_error_that_nobody_handles():
    @agent
    async def broken(ctx):
        raise ValueError("broken")

    runner = make_runner(ParallelAgent(name="all", sub_agents=[broken, speaker("y", seconds=9)]))
    run = await runner.start(USER, SESSION, "go")
    await asyncio.sleep(1)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_branch_that_ends_the_invocation_ends_it_for_all():
    @agent
    async def ender(ctx):
        await asyncio.sleep(1)
        yield "enough"
        ctx.end_invocation()

    tree = SequentialAgent(
        name="seq",
        sub_agents=[ParallelAgent(name="all", sub_agents=[ender, speaker("y", "y1", "y2", "y3", seconds=0.7)]), speaker("z")],
    )
    outcome, texts = await texts_of(tree)
    assert outcome is not None
    assert "enough" in texts
    assert "z" not in texts
    assert "y1y2y3" not in texts


@for_seeds(10)
async def test_branches_inside_of_branches():
    store = InMemorySessionService()
    seen = {}

    def leaf(name):
        @agent(name=name)
        async def speak(ctx):
            yield Content("model").with_text(name)
            await asyncio.sleep(platform.random())
            seen[name] = sorted(e.text for e in await ctx.history())

        return speak

    tree = ParallelAgent(
        name="top",
        sub_agents=[ParallelAgent(name=side, sub_agents=[leaf(f"{side}1"), leaf(f"{side}2")]) for side in ("l", "r")],
    )
    await (await make_runner(tree, store).start(USER, SESSION, "go")).result()
    assert {e.branch for e in (await log_of(store))[1:]} == {"l.l1", "l.l2", "r.r1", "r.r2"}
    assert seen == {name: ["go", name] for name in ("l1", "l2", "r1", "r2")}


@for_seeds(10)
async def test_a_parallel_agent_in_a_loop():
    tree = LoopAgent(
        name="loop", sub_agents=[ParallelAgent(name="par", sub_agents=[counting("x"), speaker("y")])], max_iterations=3
    )
    outcome, texts = await texts_of(tree)
    assert outcome in ("y", "x3")
    assert sorted(texts) == ["x1", "x2", "x3", "y", "y", "y"]


# -- run_agent ----------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_an_agent_uses_what_another_answered():
    @agent
    async def structured(ctx):
        return {"n": 1}

    @agent
    async def silent(ctx):
        pass

    @agent
    async def root(ctx):
        answers = [await ctx.run_agent(a) for a in (speaker("a", "one ", "text"), structured, silent)]
        return answers

    assert (await texts_of(root))[0] == ["one text", {"n": 1}, None]


@for_seeds(5)
async def test_an_agent_handles_the_failure_of_another():
    @agent
    async def broken(ctx):
        yield "half "
        raise ValueError("broken")

    @agent
    async def root(ctx):
        try:
            await ctx.run_agent(broken)
        except ValueError:
            yield "never mind"

    assert await texts_of(root) == ("never mind", ["half ", "never mind"])


@for_seeds(5)
async def test_the_same_agent_many_times_at_once_in_branches_of_its_own():
    worker = speaker("worker", "a ", "b", seconds=0.1)

    @agent
    async def root(ctx):
        return await asyncio.gather(*(ctx.run_agent(worker, branch=f"b{n}") for n in range(5)))

    outcome, texts = await texts_of(root)
    assert outcome == ["a b"] * 5
    assert texts == ["a b"] * 5

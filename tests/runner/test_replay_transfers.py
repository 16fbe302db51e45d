"""C1: later attempts of runs that were handed over, or have branches."""

import asyncio

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.support import SESSION, USER, idle, log_of, outcome_of, process, said_in, state_of


@for_seeds(5)
async def test_a_later_attempt_starts_at_the_agent_that_had_the_run():
    store = InMemorySessionService()
    ran = []

    @agent
    async def billing(ctx):
        ran.append(f"billing {ctx.attempt}")
        yield Content("model").with_text("billing here")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield "done"

    @agent(sub_agents=[billing])
    async def root(ctx):
        ran.append(f"root {ctx.attempt}")
        ctx.state["handed"] = True
        yield "over to billing"
        ctx.transfer_to("billing")

    async with process(root, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(root, store, enter=True) as second:
            assert await (await second.runner.follow(run.id)).result() == "done"
    assert ran == ["root 1", "billing 1", "billing 2"]
    assert await said_in(store) == [
        ("user", "go"),
        ("root", "over to billing"),
        ("billing", "billing here"),
        ("billing", "done"),
    ]
    assert await state_of(store) == {"handed": True}


@for_seeds(5)
async def test_steps_after_a_hand_over_are_not_done_again_whatever_was_handed_over_inside():
    store = InMemorySessionService()
    effects = []

    @agent
    async def specialist(ctx):
        return "looked"

    @agent(sub_agents=[specialist])
    async def researcher(ctx):
        ctx.transfer_to("specialist")

    @agent
    async def billing(ctx):
        await ctx.step("pay", lambda: effects.append("paid"))
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return "done"

    @agent(sub_agents=[billing, researcher])
    async def root(ctx):
        await ctx.run_agent(researcher)
        ctx.transfer_to("billing")

    async with process(root, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(root, store, enter=True) as second:
            assert await (await second.runner.follow(run.id)).result() == "done"
    assert effects == ["paid"]


@for_seeds(5)
async def test_branches_before_a_hand_over_are_not_taken_for_those_after_it():
    store = InMemorySessionService()

    @agent
    async def worker(ctx):
        yield Content("model").with_text(f"working for {ctx.user_content.text} {ctx.state['who']}")

    @agent
    async def billing(ctx):
        ctx.state["who"] = "billing"
        yield Content("model").with_text("billing")
        await ctx.run_agent(worker, branch="side")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield "done"

    @agent(sub_agents=[billing])
    async def root(ctx):
        ctx.state["who"] = "root"
        await ctx.run_agent(worker, branch="side")
        ctx.transfer_to("billing")

    async with process(root, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        before = [e.text for e in await log_of(store)]
        first.die()
        async with process(root, store, enter=True) as second:
            assert await (await second.runner.follow(run.id)).result() == "done"
    assert [e.text for e in await log_of(store)] == [*before, "done"]


@for_seeds(10)
async def test_branches_are_replayed_each_in_its_own_order():
    store = InMemorySessionService()

    def branch(name):
        @agent(name=name)
        async def speak(ctx):
            for n in range(3):
                await asyncio.sleep(platform.random())
                yield Content("model").with_text(f"{name}{n}")
            if ctx.attempt == 1 and name == "x":
                await asyncio.Event().wait()

        return speak

    from sojourn.agents.workflow import ParallelAgent

    helper = ParallelAgent(name="all", sub_agents=[branch("x"), branch("y")])
    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await asyncio.sleep(4)
        first.die()
        async with process(helper, store, enter=True) as second:
            await (await second.runner.follow(run.id)).wait()
    log = await log_of(store, superseded=True)
    for name in "xy":
        assert [e.text for e in log if e.branch == name] == [f"{name}{n}" for n in range(3)]
    assert not any(e.superseded for e in log)


@for_seeds(5)
async def test_what_a_branch_has_said_counts_whatever_is_said_after_it():
    store = InMemorySessionService()

    @agent
    async def inner(ctx):
        ctx.state["by"] = min(ctx.attempt, 2)
        yield Content("model").with_text(f"inside {min(ctx.attempt, 2)}")

    @agent
    async def helper(ctx):
        await ctx.run_agent(inner, branch="x")
        yield Content("model").with_text("outside" if ctx.attempt < 3 else "at last")
        if ctx.attempt < 3:
            await asyncio.Event().wait()

    for attempt in (1, 2):
        async with process(helper, store, enter=True) as dying:
            if attempt == 1:
                await dying.runner.start(USER, SESSION, "go", run_id="r1")
            await idle()
            dying.die()
    async with process(helper, store, enter=True) as third:
        assert await outcome_of(await third.runner.follow("r1")) == "at last"
    assert [e.text for e in await log_of(store)] == ["go", "inside 2", "at last"]
    assert await state_of(store) == {"by": 2}

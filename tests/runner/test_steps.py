"""C1: a finished step is not done again."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.workflow import LoopAgent, ParallelAgent
from sojourn.errors import Conflict, InvalidInput, Unavailable
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.support import SESSION, USER, idle, make_runner, outcome_of, process


@for_seeds(5)
async def test_a_step_is_done_once_over_all_attempts():
    store = InMemorySessionService()
    effects, results = [], []

    @agent
    async def helper(ctx):
        async def effect():
            effects.append(ctx.attempt)
            return {"tuple": (1, 2), "attempt": ctx.attempt}

        results.append(await ctx.step("pay", effect))
        await asyncio.Event().wait()

    async with process(helper, store) as first:
        await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            await idle()
            second.die()
    assert effects == [1]
    assert results == [{"tuple": [1, 2], "attempt": 1}] * 2


@for_seeds(3)
async def test_a_key_used_twice_in_one_attempt_is_refused():
    codes = []

    @agent
    async def helper(ctx):
        await ctx.step("pay", lambda: 1)
        try:
            await ctx.step("pay", lambda: 2)
        except Conflict as error:
            codes.append(error.code)
        return await ctx.step("pay again", lambda: 3)

    assert await (await make_runner(helper).start(USER, SESSION, "go")).result() == 3
    assert codes == ["step.duplicate_key"]


@for_seeds(3)
async def test_agents_inside_of_others_have_keys_of_their_own():
    done = []

    @agent
    async def inner(ctx):
        await ctx.step("pay", lambda: done.append(ctx.step_id("pay")))

    @agent
    async def root(ctx):
        await ctx.step("pay", lambda: done.append(ctx.step_id("pay")))
        await ctx.run_agent(inner)
        await ctx.run_agent(inner)
        await ctx.run_agent(LoopAgent(name="loop", sub_agents=[agent(name="again")(inner.fn)], max_iterations=2))

    run = await make_runner(root).start(USER, SESSION, "go")
    await run.result()
    assert len(set(done)) == 5
    assert all(key.startswith(f"{run.id}:") for key in done)


@for_seeds(3)
async def test_a_failure_is_told_and_not_remembered():
    store = InMemorySessionService()
    effects = []

    @agent
    async def helper(ctx):
        def effect():
            effects.append(ctx.attempt)
            if ctx.attempt == 1:
                raise ValueError("out of money")
            return "paid"

        try:
            return await ctx.step("pay", effect)
        except ValueError:
            await asyncio.Event().wait()

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        steps = await store.list_steps(run.record.uid)
        assert [(s.key, s.status, s.error.code) for s in steps] == [("pay", "failed", "step.failed")]
        first.die()
        async with process(helper, store, enter=True) as second:
            assert await (await second.runner.follow(run.id)).result() == "paid"
            steps = await store.list_steps(run.record.uid)
            assert [(s.key, s.status, s.result, s.attempt) for s in steps] == [("pay", "done", "paid", 2)]
    assert effects == [1, 2]


@for_seeds(3)
async def test_a_step_that_failed_may_be_tried_again_in_the_same_attempt():
    tries = []

    @agent
    async def helper(ctx):
        def effect():
            tries.append(True)
            if len(tries) < 3:
                raise Unavailable("away")
            return len(tries)

        while True:
            try:
                return await ctx.step("pay", effect)
            except Unavailable:
                await asyncio.sleep(1)

    assert await (await make_runner(helper).start(USER, SESSION, "go")).result() == 3


@pytest.mark.parametrize("result", [object(), float("inf"), b"x"])
def test_a_result_that_is_no_json_value_fails_with_a_code(result):
    @for_seeds(2)
    async def case():
        @agent
        async def helper(ctx):
            try:
                await ctx.step("pay", lambda: result)
            except InvalidInput as error:
                return f"{error.code}: {'pay' in error.message}"

        assert await (await make_runner(helper).start(USER, SESSION, "go")).result() == "json.invalid: True"

    case()


@for_seeds(3)
async def test_a_step_that_is_cancelled_is_done_again():
    store = InMemorySessionService()
    effects = []

    @agent
    async def helper(ctx):
        async def effect():
            effects.append("starts")
            await asyncio.sleep(5)
            effects.append("ends")

        await ctx.step("pay", effect)
        return "done"

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        report = await first.runner.close(grace=1)
        assert report.suspended == 1
    async with process(helper, store, enter=True) as second:
        assert await (await second.runner.follow(run.id)).result() == "done"
    assert effects == ["starts", "starts", "ends"]
    assert run.record.deaths == 0


@for_seeds(5)
async def test_steps_of_branches_at_the_same_time():
    done = []

    def branch(name):
        @agent(name=name)
        async def work(ctx):
            for n in range(3):

                async def effect(n=n):
                    await asyncio.sleep(0)
                    done.append((name, n))
                    return f"{name}{n}"

                assert await ctx.step(f"{n}", effect) == f"{name}{n}"

        return work

    run = await make_runner(ParallelAgent(name="all", sub_agents=[branch("x"), branch("y")])).start(USER, SESSION, "go")
    await run.result()
    assert sorted(done) == [(name, n) for name in "xy" for n in range(3)]


@for_seeds(3)
async def test_a_step_may_use_another_step():
    @agent
    async def helper(ctx):
        async def outer():
            return [await ctx.step("inner", lambda: 1), 2]

        return await ctx.step("outer", outer)

    assert await (await make_runner(helper).start(USER, SESSION, "go")).result() == [1, 2]


@for_seeds(3)
async def test_a_step_of_a_retry_is_done_again():
    effects = []

    @agent
    async def helper(ctx):
        await ctx.step("pay", lambda: effects.append(ctx.run_id))
        if len(effects) == 1:
            raise ValueError("broken")

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "agent.failed"
    again = await runner.retry(run.id)
    await again.result()
    assert effects == [run.id, again.id]

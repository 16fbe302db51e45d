"""C1: a finished step is not done again."""

import asyncio
import contextlib

import pytest

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.agents.side import SideContext
from sojourn.agents.workflow import LoopAgent, ParallelAgent
from sojourn.content import Content, Part
from sojourn.errors import Conflict, InvalidInput, Unavailable
from sojourn.event import Event, EventActions
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from tests.runner.support import SESSION, TRIES, USER, idle, log_of, make_runner, outcome_of, process


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


# -- steps that are stored with the next event --------------------------------------------------------------------------


async def journal_of(store, run):
    """A run's steps as (key, status, result)."""
    return [(s.key, s.status, s.result) for s in await store.list_steps(run.record.uid)]


@for_seeds(5)
async def test_a_step_and_the_next_event_are_one_append():
    seen = []

    @agent
    async def helper(ctx):
        for n in range(3):
            word = await ctx.step(f"say {n}", lambda n=n: f"word {n} ", with_next_event=True)
            seen.append((len(await journal_of(store, run)), store.calls["append"]))
            yield Content("model").with_text(word)
        await ctx.step("last", lambda: "end", with_next_event=True)
        yield "and that is all"

    store = FaultyStore(InMemorySessionService())
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    await run.result()
    assert seen == [(0, 0), (1, 1), (2, 2)]
    assert store.calls["append"] == 4
    assert [key for key, *_ in await journal_of(store, run)] == ["say 0", "say 1", "say 2", "last"]


@for_seeds(5)
async def test_a_step_at_once_is_an_append_of_its_own_and_takes_those_before_it_along():
    seen = []

    @agent
    async def helper(ctx):
        await ctx.step("plan", lambda: "a plan", with_next_event=True)
        await ctx.step("pay", lambda: "paid")
        seen.append([key for key, *_ in await journal_of(store, run)])
        yield "done"

    store = FaultyStore(InMemorySessionService())
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    await run.result()
    assert seen == [["plan", "pay"]]
    assert store.calls["append"] == 2


@pytest.mark.parametrize("after", [False, True])
def test_a_step_is_lost_with_its_event_and_done_again_or_kept_with_it(after):
    @for_seeds(5)
    async def case():
        store = InMemorySessionService()
        effects = []

        @agent
        async def helper(ctx):
            word = await ctx.step(
                "think", lambda: effects.append(ctx.attempt) or f"thought {ctx.attempt}", with_next_event=True
            )
            yield word[:3]
            await asyncio.sleep(0.001)
            yield Whole(Event(content=Content("model").with_text(word)))

        async with process(helper, store) as first:
            first.die_at("append", 1, after=after)
            run = await first.runner.start(USER, SESSION, "go")
            await asyncio.sleep(1)
            assert await journal_of(store, run) == ([("think", "done", "thought 1")] if after else [])
            async with process(helper, store, enter=True) as second:
                run = await second.runner.follow(run.id)
                assert await run.result() == ("thought 1" if after else "thought 2")
                assert [e.text for e in await log_of(store, superseded=True)][1:] == [f"thought {1 if after else 2}"]
                assert [s.attempt for s in await store.list_steps(run.record.uid)] == [1 if after else 2]
        assert effects == ([1] if after else [1, 2])

    case()


@for_seeds(5)
async def test_a_step_before_a_process_dies_without_an_event_is_done_again():
    store = InMemorySessionService()
    effects = []

    @agent
    async def helper(ctx):
        await ctx.step("think", lambda: effects.append(ctx.attempt), with_next_event=True)
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield "done"

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            assert await (await second.runner.follow(run.id)).result() == "done"
    assert effects == [1, 2]


@pytest.mark.parametrize("end", ["complete", "fail", "cancel", "timeout", "wait", "suspend"])
def test_a_step_without_a_next_event_goes_with_the_end(end):
    @for_seeds(5)
    async def case():
        effects = []

        @agent
        async def helper(ctx):
            await ctx.step("think", lambda: effects.append(ctx.attempt) or {"attempt": ctx.attempt}, with_next_event=True)
            if end == "fail":
                raise ValueError("broken")
            if end == "wait":
                await ctx.ask("q", "?")
            if end != "complete":
                await asyncio.sleep(100)

        store = InMemorySessionService()
        runner = make_runner(helper, store, run_config=RunConfig(timeout=5 if end == "timeout" else None))
        run = await runner.start(USER, SESSION, "go")
        await idle()
        if end == "cancel":
            await run.cancel()
        if end == "suspend":
            assert (await runner.close(grace=0)).suspended == 1
        status = (await run.wait()).status if end != "suspend" else (await store.get_run("app", run.id)).status
        assert status is {
            "complete": RunStatus.COMPLETED, "fail": RunStatus.FAILED, "cancel": RunStatus.CANCELLED,
            "timeout": RunStatus.FAILED, "wait": RunStatus.WAITING, "suspend": RunStatus.QUEUED,
        }[end]  # fmt: skip
        assert await journal_of(store, run) == [("think", "done", {"attempt": 1})]
        if end == "suspend":
            async with make_runner(helper, store) as later:
                await asyncio.sleep(1)
                await later.cancel(run.id)
        assert effects == [1]

    case()


@for_seeds(20)
async def test_a_step_of_one_branch_is_stored_with_the_next_event_of_any():
    @agent
    async def thinker(ctx):
        await ctx.step("think", lambda: "a thought", with_next_event=True)
        await asyncio.sleep(10)
        yield "thought"

    @agent
    async def talker(ctx):
        await asyncio.sleep(5)
        yield Content("model").with_text("hello")

    store = InMemorySessionService()
    runner = make_runner(ParallelAgent(name="all", sub_agents=[thinker, talker]), store)
    run = await runner.start(USER, SESSION, "go")
    await asyncio.sleep(4)
    assert await journal_of(store, run) == []
    await asyncio.sleep(4)
    assert [key.rpartition("/")[2] for key, *_ in await journal_of(store, run)] == ["think"]
    assert [e.text for e in await log_of(store)][1:] == ["hello"]
    await run.wait()


@for_seeds(20)
async def test_no_step_of_branches_that_speak_at_once_is_lost():
    def branch(name):
        @agent(name=name)
        async def speak(ctx):
            for n in range(4):
                await ctx.step(f"{n}", lambda n=n: f"{name}{n}", with_next_event=n % 2 == 0)
                yield Content("model").with_text(f"{name}{n}")
                await asyncio.sleep(0)

        return speak

    store = FaultyStore(InMemorySessionService(), [fail_before("append", 2, 7), fail_after("append", 4, 9)])
    runner = make_runner(ParallelAgent(name="all", sub_agents=[branch("x"), branch("y"), branch("z")]), store)
    run = await runner.start(USER, SESSION, "go")
    await run.result()
    assert sorted(result for *_, result in await journal_of(store, run)) == [f"{b}{n}" for b in "xyz" for n in range(4)]
    assert sorted(e.text for e in (await log_of(store))[1:]) == [f"{b}{n}" for b in "xyz" for n in range(4)]


@pytest.mark.parametrize("fault", [fail_before, fail_after])
@pytest.mark.parametrize("times", [1, TRIES - 1, TRIES])
def test_a_store_that_fails_keeps_the_steps_for_the_next_append(fault, times):
    """Some times are borne by repeating; once it is given up the agent is told, and the end takes its steps."""

    @for_seeds(5)
    async def case():
        effects = []

        @agent
        async def helper(ctx):
            word = await ctx.step("think", lambda: effects.append(True) or "a thought", with_next_event=True)
            yield Content("model").with_text(word)

        store = FaultyStore(InMemorySessionService(), [fault("append", *range(1, times + 1))])
        run = await make_runner(helper, store).start(USER, SESSION, "go")
        assert await outcome_of(run) == ("a thought" if times < TRIES else "store.unavailable")
        assert await journal_of(store, run) == [("think", "done", "a thought")]
        assert effects == [True]

    case()


@for_seeds(5)
async def test_an_event_that_is_refused_does_not_take_the_steps_with_it():
    """An agent inside of another one fails; the other one goes on."""

    @agent
    async def inner(ctx):
        await ctx.step("think", lambda: "a thought", with_next_event=True)
        yield Event(actions=EventActions(state_increments={"name": 1}))

    @agent
    async def root(ctx):
        try:
            await ctx.run_agent(inner)
        except InvalidInput as error:
            yield error.code

    store = InMemorySessionService()
    await store.create_session(app_name="app", user_id=USER, session_id=SESSION, state={"name": "Ann"})
    run = await make_runner(root, store).start(USER, SESSION, "go")
    assert await run.result() == "state.not_a_number"
    assert await journal_of(store, run) == [("inner@1/think", "done", "a thought")]


@for_seeds(5)
async def test_a_step_that_fails_and_then_succeeds_before_the_next_event_is_done():
    tries = []

    @agent
    async def helper(ctx):
        def effect():
            tries.append(True)
            if len(tries) < 3:
                raise Unavailable("away")
            return len(tries)

        for _ in range(2):
            with contextlib.suppress(Unavailable):
                await ctx.step("think", effect, with_next_event=True)
        assert await journal_of(store, run) == []
        yield str(await ctx.step("think", effect, with_next_event=True))

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    assert await run.result() == "3"
    assert await journal_of(store, run) == [("think", "done", 3)]


@for_seeds(5)
async def test_a_failure_goes_with_the_end_of_the_run_that_it_fails():
    @agent
    async def helper(ctx):
        def effect():
            raise ValueError("no idea")

        await ctx.step("think", effect, with_next_event=True)

    store = FaultyStore(InMemorySessionService())
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    assert await outcome_of(run) == "agent.failed"
    [step] = await store.list_steps(run.record.uid)
    assert (step.key, step.status, step.error.code) == ("think", "failed", "step.failed")
    assert store.calls["append"] == 1


@for_seeds(3)
async def test_a_key_may_not_be_used_again_whenever_its_step_is_stored():
    codes = []

    @agent
    async def helper(ctx):
        for first, second in ((True, False), (False, True), (True, True)):
            key = f"{first} {second}"
            await ctx.step(key, lambda: 1, with_next_event=first)
            try:
                await ctx.step(key, lambda: 2, with_next_event=second)
            except Conflict as error:
                codes.append(error.code)

    await (await make_runner(helper).start(USER, SESSION, "go")).result()
    assert codes == ["step.duplicate_key"] * 3


@for_seeds(5)
async def test_an_agent_that_goes_on_after_a_stop_is_told_at_its_next_step_which_is_kept():
    trace = []

    @agent
    async def helper(ctx):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            try:
                await ctx.step("clean up", lambda: "clean", with_next_event=True)
                trace.append("goes on")
            except asyncio.CancelledError:
                trace.append("told")

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert trace == ["told"]
    assert await journal_of(store, run) == [("clean up", "done", "clean")]


@for_seeds(5)
async def test_an_attempt_that_has_ended_takes_no_steps():
    trace = []

    @agent
    async def helper(ctx):
        while True:
            try:
                await asyncio.sleep(60)
                break
            except asyncio.CancelledError:
                pass
        try:
            await ctx.step("too late", lambda: trace.append("done"), with_next_event=True)
            trace.append("goes on")
        except asyncio.CancelledError:
            trace.append("told")
            raise

    store = InMemorySessionService()
    run = await make_runner(helper, store, run_config=RunConfig(cancel_grace=1)).start(USER, SESSION, "go")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    await asyncio.sleep(100)
    assert trace == ["done", "told"]
    assert await journal_of(store, run) == []


@for_seeds(5)
async def test_a_task_that_outlives_its_run_is_told_at_its_next_step():
    trace = []

    @agent
    async def helper(ctx):
        async def lag():
            await asyncio.sleep(5)
            try:
                await ctx.step("late", lambda: trace.append("done"), with_next_event=True)
                trace.append("goes on")
            except asyncio.CancelledError:
                trace.append("told")

        lagging.append(asyncio.ensure_future(lag()))
        return "answer"

    lagging = []
    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    assert await run.result() == "answer"
    await asyncio.gather(*lagging)
    assert trace == ["done", "told"]
    assert await journal_of(store, run) == []


@for_seeds(5)
async def test_the_journal_of_a_turn_whose_event_is_stored_is_complete_in_the_next_attempt():
    """As an agent that talks to a model does it: a response, its calls, a response."""
    store = InMemorySessionService()
    effects = []

    @agent
    async def helper(ctx):
        async def effect(name):
            await asyncio.sleep(0)
            effects.append((ctx.attempt, name))
            return f"{name} of {ctx.attempt}"

        for turn in range(2):
            text = await ctx.step(f"model {turn}", lambda turn=turn: effect(f"model {turn}"), with_next_event=True)
            yield text[:2]
            call = Part.from_function_call("look_up", {}, id=f"c{turn}")
            yield Whole(Event(content=Content("model", (Part(text=text), call))))
            found = await ctx.step(f"tool {turn}", lambda turn=turn: effect(f"tool {turn}"))
            if turn == 1 and ctx.attempt == 1:
                await asyncio.Event().wait()
            yield Content("user", (Part.from_function_response("look_up", {"found": found}, id=f"c{turn}"),))
        yield await ctx.step("model 2", lambda: effect("model 2"), with_next_event=True)

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await asyncio.sleep(1)
        first.die()
        async with process(helper, store, enter=True) as second:
            run = await second.runner.follow(run.id)
            assert await run.result() == "model 2 of 2"
    assert effects == [(1, "model 0"), (1, "tool 0"), (1, "model 1"), (1, "tool 1"), (2, "model 2")]
    assert not [e for e in await log_of(store, superseded=True) if e.superseded]


@for_seeds(3)
async def test_a_step_whose_replies_were_all_lost_is_not_done_again():
    done = []
    faulty = FaultyStore(InMemorySessionService(), [fail_after("append", *range(1, TRIES + 1))])

    @agent
    async def payer(ctx):
        try:
            return await ctx.step("pay", lambda: done.append(1) or "paid")
        except Unavailable:
            return "again: " + await ctx.step("pay", lambda: done.append(1) or "paid")

    runner = make_runner(payer, faulty)
    run = await runner.start(USER, SESSION, "go")
    assert (await outcome_of(run), done) == ("again: paid", [1])
    [step] = await faulty.list_steps(run.record.uid)
    assert (step.status, step.result) == ("done", "paid")


# -- agents inside of a step --------------------------------------------------------------------------------------------


def in_the_step(ctx, inner):
    """Runs an agent inside of a step with the agent's own context."""
    return lambda: ctx.run_agent(inner)


def aside(ctx, inner):
    """Runs an agent inside of a step with a context for the step, as tools have it."""
    return lambda: SideContext(ctx, "look").run_agent(inner)


@pytest.mark.parametrize("how", [in_the_step, aside])
@pytest.mark.parametrize("branch", [None, "b"])
def test_what_an_agent_inside_of_a_step_did_counts_once_and_is_seen_in_every_attempt(how, branch):
    @for_seeds(5)
    async def case():
        store = InMemorySessionService()
        seen = []

        @agent
        async def inner(ctx):
            n = await ctx.step("n", lambda: len(seen))
            ctx.state["found"] = [*ctx.state.get("found", []), n]
            ctx.state.increment("count")
            ctx.state["temp:scrap"] = n
            yield Content("model").with_text(f"found {n}")

        @agent
        async def outer(ctx):
            found = ctx.state.to_dict()
            ctx.state["mine"] = "before"
            if branch is None:
                await ctx.step("look", how(ctx, inner))
            else:
                await ctx.run_agent(agent(name="middle")(looking), branch=branch)
            seen.append((found, {k: ctx.state.get(k) for k in ("found", "count", "mine")}))
            yield Content("model").with_text("and then")
            await ctx.run_agent(inner)
            if ctx.attempt == 1:
                await asyncio.Event().wait()
            yield "done"

        async def looking(ctx):
            await ctx.step("look", how(ctx, inner))

        async with process(outer, store) as first:
            run = await first.runner.start(USER, SESSION, "go")
            await idle()
            first.die()
            async with process(outer, store, enter=True) as second:
                assert await outcome_of(await second.runner.follow(run.id)) == "done"
        assert seen == [({}, {"found": [0], "count": 1, "mine": "before"})] * 2
        log = await log_of(store, superseded=True)
        assert [e.text for e in log if e.text] == ["go", "found 0", "and then", "found 1", "done"]
        assert not any(e.superseded for e in log)
        state = (await store.get_session(app_name="app", user_id=USER, session_id=SESSION)).state
        assert state == {"found": [0, 1], "count": 2, "mine": "before"}

    case()


@for_seeds(5)
async def test_steps_at_once_have_branches_of_their_own_for_what_is_said_inside():
    @agent
    async def inner(ctx):
        await asyncio.sleep(0.01)
        return ctx.branch

    @agent
    async def outer(ctx):
        async def twice():
            return [await ctx.run_agent(inner), *await asyncio.gather(ctx.run_agent(inner), ctx.run_agent(inner, branch="b"))]

        said = await asyncio.gather(ctx.step("one", twice), ctx.step("two", in_the_step(ctx, inner)), ctx.run_agent(inner))
        return [*said, ctx.branch]

    run = await make_runner(outer).start(USER, SESSION, "go")
    assert await run.result() == [["#one", "#one", "#one.b"], "#two", None, None]


@for_seeds(5)
async def test_what_is_written_and_not_stored_yet_is_not_hidden_by_what_was_stored_inside():
    @agent
    async def inner(ctx):
        ctx.state["a"] = "inside"
        ctx.state.increment("n", 5)
        yield Content("model").with_text("said")

    @agent
    async def outer(ctx):
        ctx.state["a"], ctx.state["n"] = "outside", 1
        await ctx.step("look", aside(ctx, inner))
        return [ctx.state["a"], ctx.state["n"]]

    runner = make_runner(outer)
    assert await (await runner.start(USER, SESSION, "go")).result() == ["outside", 1]
    state = (await runner.store.get_session(app_name="app", user_id=USER, session_id=SESSION)).state
    assert state == {"a": "outside", "n": 1}

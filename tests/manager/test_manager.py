"""SessionManager: users' sessions under a common limit."""

import asyncio
import contextvars

import pytest

from sojourn.agents.function import agent
from sojourn.agents.question import Question
from sojourn.content import Content, Part
from sojourn.errors import Conflict, InvalidInput, LimitExceeded, RunWaiting
from sojourn.event import ASK_CALL
from sojourn.manager import DEFAULT_CONCURRENCY, SessionManager
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.config import RunnerConfig
from sojourn.runner.runner import Runner
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import assert_at_rest, dropped, idle, outcome_of

request = contextvars.ContextVar("request", default="nobody's")


@agent
async def helper(ctx):
    """Says the words of its message one by one; `hang` hangs, `ask` asks."""
    for word in ctx.user_content.text.split():
        if word == "hang":
            await asyncio.Event().wait()
        if word == "ask":
            await ctx.ask("q", "?")
        if word == "slow":
            await asyncio.sleep(1)
        yield f"{word} "


async def answer(session, text):
    async with session.run(text) as run:
        return await run.result()


@for_seeds(5)
async def test_the_program_of_the_documentation():
    manager = SessionManager(config={"any": "thing"}, shared_builder=lambda config: helper, max_concurrency=10)
    async with manager.session(user_id="user_123") as session:
        assert session.user_id == "user_123"
        async with session.run("Hello, help me fix my router.") as run:
            assert await run.result() == "Hello, help me fix my router. "
        chunks = []
        async with session.run("And the lamp is red.") as run:
            async for chunk in run.result_stream():
                chunks.append(chunk)
        assert "".join(chunks) == "And the lamp is red. "
        events = await (await manager.runner()).store.list_events(
            app_name=session.app_name, user_id="user_123", session_id=session.session_id
        )
        assert len(events) == 4
    await idle()
    assert_at_rest(await manager.runner())


# -- what it is made of -------------------------------------------------------------------------------------------------


class Builder:
    def __init__(self, built):
        self.built = built
        self.configs = []

    async def build(self, config):
        self.configs.append(config)
        await asyncio.sleep(1)
        if isinstance(self.built, Exception):
            raise self.built
        return self.built


@for_seeds(5)
async def test_a_builder_is_asked_once_whoever_comes_first():
    builder = Builder(helper)
    manager = SessionManager("the config", builder)

    async def use(n):
        async with manager.session(f"u{n}") as session:
            return await answer(session, "hi")

    assert await asyncio.gather(*(use(n) for n in range(5))) == ["hi "] * 5
    assert builder.configs == ["the config"]


@for_seeds(5)
async def test_a_build_sees_nothing_of_whoever_comes_first():
    seen = []

    async def build(config):
        seen.append(request.get())
        return helper

    manager = SessionManager({}, build)
    request.set("the first one's")
    async with manager.session("u") as session:
        assert await answer(session, "hi") == "hi "
    assert seen == ["nobody's"]


@for_seeds(5)
async def test_a_builder_may_give_a_runner_which_is_not_closed():
    runner = Runner(app_name="built", agent=helper)
    async with SessionManager({}, Builder(runner)) as manager, manager.session("u") as session:
        assert session.app_name == "built"
        assert await answer(session, "hi") == "hi "
    assert await (await runner.start("u", "s", "still open")).result() == "still open "


@for_seeds(5)
async def test_a_build_that_fails_is_tried_again_by_the_next():
    builder = Builder(ValueError("the model is away"))
    manager = SessionManager({}, builder)
    for _ in range(2):
        with pytest.raises(ValueError, match="the model is away"):
            async with manager.session("u"):
                pass
    builder.built = helper
    async with manager.session("u") as session:
        assert await answer(session, "hi") == "hi "


@for_seeds(10)
async def test_one_that_gives_up_waiting_for_the_build_does_not_end_it_for_others():
    builder = Builder(helper)
    manager = SessionManager({}, builder)
    first = asyncio.ensure_future(manager.runner())
    second = asyncio.ensure_future(manager.runner())
    await asyncio.sleep(0.5)
    await dropped(first)
    assert (await second).agent is helper
    assert len(builder.configs) == 1


@pytest.mark.parametrize(
    "arguments",
    [{}, {"config": 5}, {"config": {"app_name": "x"}}, {"runner": Runner(app_name="a", agent=helper), "max_concurrency": 3},
     {"runner": Runner(app_name="a", agent=helper), "config": {}}, {"runner": Runner(app_name="a", agent=helper), "app_name": "b"}],
)  # fmt: skip
def test_parts_that_do_not_go_together(arguments):
    with raises(InvalidInput, "manager.invalid"):
        SessionManager(**arguments)


@for_seeds(2)
async def test_builders_that_build_nothing_of_use():
    with raises(InvalidInput, "manager.invalid"):
        await SessionManager({}, lambda config: "no agent").runner()
    with raises(InvalidInput, "manager.invalid"):
        await SessionManager({}, shared_builder=object()).runner()


@for_seeds(2)
async def test_the_ways_to_make_one():
    for manager, bound in (
        (SessionManager(helper), DEFAULT_CONCURRENCY),
        (SessionManager(agent=helper, max_concurrency=3), 3),
        (SessionManager({"agent": helper, "app_name": "x", "max_concurrency": 4}), 4),
        (SessionManager(RunnerConfig(app_name="x", agent=helper, max_concurrency=5)), 5),
        (SessionManager(RunnerConfig(app_name="x", agent=helper), max_concurrency=6), 6),
        (SessionManager(runner=Runner(app_name="x", agent=helper, max_concurrency=7)), 7),
        (SessionManager({}, lambda config: helper, 9), 9),
    ):
        async with manager.session("u") as session:
            assert await answer(session, "hi") == "hi "
        assert (await manager.runner()).limiter.limits.max_concurrency == bound


@for_seeds(3)
async def test_sessions_have_ids_of_their_own_unless_they_are_named():
    manager = SessionManager(helper)
    async with manager.session("u") as one, manager.session("u") as two, manager.session("u", "named") as three:
        assert one.session_id != two.session_id
        assert three.session_id == "named"
        assert (await three.get()).id == "named"
    for user, session in (("", None), (None, None), ("u", ""), ("u", "\x00")):
        with raises(InvalidInput, "id.invalid"):
            async with manager.session(user, session):
                pass
    assert (await manager.runner()).limiter.active == 0


@for_seeds(3)
async def test_a_sessions_state_is_a_copy():
    @agent
    async def writer(ctx):
        ctx.state["n"] = 1

    manager = SessionManager(writer)
    async with manager.session("u") as session:
        assert dict(await session.state()) == {}
        await answer(session, "hi")
        state = await session.state()
        assert dict(state) == {"n": 1}
        state["n"] = 2
        assert (await session.get()).state == {"n": 1}


# -- the limit ----------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_sessions_wait_for_a_slot_fairly_between_users():
    manager = SessionManager(helper, max_concurrency=1)
    order = []

    async def use(user, n):
        async with manager.session(user):
            order.append(user)
            await asyncio.sleep(1)

    flood = [asyncio.ensure_future(use("flooder", n)) for n in range(20)]
    await asyncio.sleep(2.5)
    await use("polite", 0)
    assert order.index("polite") <= 4
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    await idle()
    assert_at_rest(await manager.runner())


@for_seeds(10)
async def test_a_session_reserves_a_slot_that_its_first_active_run_uses():
    manager = SessionManager(helper, max_concurrency=2)
    runner = await manager.runner()
    async with manager.session("u") as session:
        assert runner.limiter.active == 1
        async with session.run("slow") as first:
            assert runner.limiter.active == 1
            async with session.run("slow") as second:
                assert second.status is RunStatus.QUEUED, "one at a time per session"
                assert await first.result() == "slow "
                assert await second.result() == "slow "
        await idle()
        assert runner.limiter.active == 1
        assert await answer(session, "again") == "again "
    assert runner.limiter.active == 0


@for_seeds(10)
async def test_further_runs_at_the_same_time_take_slots_of_their_own():
    manager = SessionManager(helper, max_concurrency=2)
    runner = await manager.runner()
    async with manager.session("a", "s") as session:
        async with session.run("hang") as first:
            elsewhere = await runner.start("b", "other", "hang")
            assert runner.limiter.active == 2
            async with session.run("hi") as second:
                await asyncio.sleep(10)
                assert second.status is RunStatus.QUEUED
            assert (await runner.follow(second.id)).status is RunStatus.CANCELLED
        await elsewhere.cancel()
        await elsewhere.wait()
        assert first.status is RunStatus.CANCELLED
        await idle()
        assert runner.limiter.active == 1
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_hundred_sessions_stay_within_the_limit():
    now, peak = [0], [0]

    @agent
    async def counting(ctx):
        now[0] += 1
        peak[0] = max(peak[0], now[0])
        await asyncio.sleep(1)
        now[0] -= 1
        return ctx.user_id

    manager = SessionManager(counting, max_concurrency=7)

    async def use(n):
        async with manager.session(f"u{n % 10}") as session:
            return await answer(session, "hi")

    assert await asyncio.gather(*(use(n) for n in range(100))) == [f"u{n % 10}" for n in range(100)]
    assert peak[0] == 7


@for_seeds(10)
async def test_a_run_that_never_starts_leaves_the_sessions_slot():
    manager = SessionManager(helper, max_concurrency=2)
    runner = await manager.runner()
    other = await runner.start("u", "s", "hang")
    async with manager.session("u", "s") as session:
        async with session.run("hi") as run:
            await idle()
            assert run.status is RunStatus.QUEUED
        assert run.status is RunStatus.CANCELLED
    assert runner.limiter.active == 1
    await other.cancel()
    await other.wait()
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_session_that_waits_can_be_given_up():
    manager = SessionManager(helper, max_concurrency=1)
    runner = await manager.runner()

    async def wait():
        async with manager.session("b"):
            raise AssertionError("no slot is free")

    async with manager.session("a"):
        waiting = asyncio.ensure_future(wait())
        await idle()
        await dropped(waiting)
        assert runner.limiter.queued == 0
    async with manager.session("c"):
        pass
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_full_queue_and_a_long_wait_are_refused():
    manager = SessionManager(helper, max_concurrency=1, max_queue=1, queue_timeout=5)
    async with manager.session("a"):
        waiting = asyncio.ensure_future(manager.session("b").__aenter__())
        await idle()
        with raises(LimitExceeded, "limit.queue_full"):
            async with manager.session("c"):
                pass
        with raises(LimitExceeded, "limit.queue_timeout"):
            await waiting
    async with manager.session("d"):
        pass
    assert_at_rest(await manager.runner())


@for_seeds(10)
async def test_a_session_opened_inside_of_a_run_does_not_wait_for_the_runs_own_slot():
    manager = None

    @agent
    async def outer(ctx):
        if ctx.session_id == "inner":
            return "inner"
        async with manager.session(ctx.user_id, "inner") as session:
            return f"{await answer(session, 'hi')} from {ctx.session_id}"

    manager = SessionManager(outer, max_concurrency=1)
    async with asyncio.timeout(100), manager.session("u", "outer") as session:
        assert await answer(session, "hi") == "inner from outer"
    await idle()
    assert_at_rest(await manager.runner())


# -- leaving ------------------------------------------------------------------------------------------------------------


@for_seeds(20)
async def test_leaving_the_runs_block_cancels_and_awaits_the_end():
    cleaned = []

    @agent
    async def cleaning(ctx):
        try:
            yield "said"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append(True)

    manager = SessionManager(cleaning)
    async with manager.session("u") as session:
        async with session.run("hi") as run:
            async for _ in run.result_stream():
                break
        assert cleaned == [True]
        assert run.status is RunStatus.CANCELLED
        with pytest.raises(ZeroDivisionError):
            async with session.run("hi") as run:
                await idle()
                _ = 1 / 0
        assert cleaned == [True, True]
    assert_at_rest(await manager.runner())


@for_seeds(20)
async def test_a_block_that_is_cancelled_ends_its_run():
    manager = SessionManager(helper)

    async def use():
        async with manager.session("u") as session, session.run("hang") as run:
            await run.result()

    task = asyncio.ensure_future(use())
    await asyncio.sleep(1)
    await dropped(task)
    await idle()
    runner = await manager.runner()
    assert (await runner.list_runs()).items[0].status is RunStatus.CANCELLED
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_run_that_waits_for_a_person_is_left_waiting_and_holds_no_slot_beyond_the_session():
    manager = SessionManager(helper, max_concurrency=1)
    async with manager.session("u", "s") as session:
        async with session.run("ask then") as run:
            with pytest.raises(RunWaiting):
                await run.result()
        assert (await run.refresh()).status is RunStatus.WAITING
        assert await answer(session, "meanwhile") == "meanwhile "
    runner = await manager.runner()
    assert_at_rest(runner)
    answered = await runner.answer(run.id, (await runner.list_interrupts())[0].id, "yes")
    assert await answered.result() == "ask then "


def answer_to(question, value="yes"):
    return Content("user", (Part.from_function_response(ASK_CALL, {"result": value}, id=question.id),))


@for_seeds(10)
async def test_a_message_that_answers_goes_on_in_the_sessions_slot():
    manager = SessionManager(helper, max_concurrency=1)
    runner = await manager.runner()
    async with manager.session("u", "s") as session:
        async with session.run("ask then") as run:
            await run.wait()
        (question,) = await runner.list_interrupts()
        async with session.run(answer_to(question)) as answered:
            assert await asyncio.wait_for(answered.result(), 60) == "ask then "
        await idle()
        assert runner.limiter.active == 1
        # The same answer again starts nothing, and does not keep the slot.
        async with session.run(answer_to(question)) as again:
            assert await again.result() == "ask then "
        assert await asyncio.wait_for(answer(session, "hi"), 60) == "hi "
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_run_that_was_answered_before_gets_the_slot_of_who_waits_for_it():
    @agent
    async def curious(ctx):
        asked = [Question("a", "?"), Question("b", "?")]
        return await ctx.ask_all(asked)

    manager = SessionManager(curious, max_concurrency=1)
    runner = await manager.runner()
    async with manager.session("u", "s") as session:
        async with session.run("hi") as run:
            await run.wait()
        first, second = await runner.list_interrupts()
        both = Content("user", answer_to(first).parts + answer_to(second, "no").parts)
        async with session.run(both) as answered:
            assert await asyncio.wait_for(answered.result(), 60) == ["yes", "no"]
    assert_at_rest(runner)


@for_seeds(10)
async def test_leaving_a_run_that_went_on_with_an_answer_neither_ends_nor_awaits_it():
    manager = SessionManager(helper, max_concurrency=1)
    runner = await manager.runner()
    async with manager.session("u", "s") as session, session.run("ask hang") as run:
        await run.wait()
    (question,) = await runner.list_interrupts()

    async def leave_at_once():
        async with manager.session("u", "s") as session, session.run(answer_to(question)):
            pass

    await asyncio.wait_for(leave_at_once(), 60)
    await idle()
    assert (await run.refresh()).status is RunStatus.RUNNING
    assert runner.limiter.active == 1, "the slot is in use until the run's code ends"
    await runner.cancel(run.id)
    assert (await run.wait()).status is RunStatus.CANCELLED
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_run_that_is_known_does_not_keep_the_sessions_slot():
    manager = SessionManager(helper, max_concurrency=1)
    config = RunConfig(when_busy="replace")
    for _ in range(2):
        async with manager.session("u", "s") as session, session.run("hi", run_id="r1", run_config=config) as run:
            assert await run.result() == "hi "
    assert_at_rest(await manager.runner())


@for_seeds(10)
async def test_an_abandoned_run_keeps_the_sessions_slot_until_its_code_ends():
    let_go = asyncio.Event()

    @agent
    async def stubborn(ctx):
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                pass

    manager = SessionManager(stubborn, max_concurrency=1, run_config=RunConfig(cancel_grace=1))
    runner = await manager.runner()
    async with manager.session("u") as session:
        async with session.run("hi") as run:
            await idle()
        assert run.status is RunStatus.CANCELLED
    assert runner.limiter.active == 1
    other = manager.session("b")
    waiting = asyncio.ensure_future(other.__aenter__())
    await asyncio.sleep(10)
    assert not waiting.done()
    let_go.set()
    await waiting
    assert runner.limiter.active == 1
    await other.__aexit__(None, None, None)
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_session_that_was_left_runs_nothing():
    manager = SessionManager(helper)
    async with manager.session("u") as session:
        pass
    with raises(Conflict, "session.closed"):
        async with session.run("hi"):
            pass
    assert_at_rest(await manager.runner())


@for_seeds(5)
async def test_a_run_that_could_not_be_started_leaves_the_sessions_slot():
    manager = SessionManager(helper)
    runner = await manager.runner()
    async with manager.session("u") as session:
        for _ in range(3):
            with raises(InvalidInput, "message.invalid"):
                async with session.run(""):
                    pass
        assert await answer(session, "hi") == "hi "
        assert runner.limiter.active == 1
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_manager_closes_the_runner_it_made_and_takes_up_what_was_left():
    store = InMemorySessionService()

    @agent
    async def slow(ctx):
        await asyncio.sleep(100 if ctx.attempt == 1 else 0)
        return "done"

    async with SessionManager(agent=slow, session_service=store) as first:
        run = await (await first.runner()).start("u", "s", "hi")
        await idle()
        await first.close(grace=0)
    async with SessionManager(agent=slow, session_service=store) as second:
        assert await outcome_of(await (await second.runner()).follow(run.id)) == "done"


@for_seeds(3)
async def test_content_may_be_given_instead_of_text():
    manager = SessionManager(helper)
    async with manager.session("u") as session:
        assert await answer(session, Content("user").with_text("hi")) == "hi "
        async with session.run("hi", run_id="r1", run_config=RunConfig(max_turns=3)) as run:
            assert run.id == "r1"
            assert run.record.config == {"max_turns": 3}

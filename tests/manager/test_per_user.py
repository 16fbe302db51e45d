"""An agent per user: built in parallel, each once, in an empty context, under the limits."""

import asyncio
import contextvars
import logging
import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest

from sojourn.agents.base import Agent
from sojourn.agents.current import find_current_run
from sojourn.agents.function import FunctionAgent, agent
from sojourn.agents.per_user import PerUserAgents
from sojourn.agents.source import AgentSource
from sojourn.errors import (
    AgentError,
    InvalidInput,
    LimitExceeded,
    Unavailable,
    Unsupported,
)
from sojourn.manager import SessionManager
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.manager.world import World, answer, now
from tests.runner.support import APP, assert_at_rest, dropped, idle, outcome_of, said_in

request = contextvars.ContextVar("request", default="nobody's")


# -- building -----------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_each_user_has_an_agent_that_is_built_once_and_kept():
    world = World()
    async with SessionManager({}, world) as manager:
        for _ in range(3):
            assert await answer(manager, "ann") == "hi from ann's 1"
            assert await answer(manager, "ben") == "hi from ben's 1"
        assert world.builds == {"ann": 1, "ben": 1}
        await idle()
        assert_at_rest(await manager.runner())
        assert world.open == {"ann", "ben"}
    assert world.open == set()


@for_seeds(5)
async def test_all_kinds_of_builders():
    def plain(config, user_id):
        return FunctionAgent(lambda ctx: f"{config} for {user_id}", name="helper")

    async def asynchronous(config, user_id):
        await asyncio.sleep(1)
        return plain(config, user_id)

    @asynccontextmanager
    async def context_manager(config, user_id):
        yield plain(config, user_id)

    async def of_a_context_manager(config, user_id):
        return context_manager(config, user_id)

    class Entered(FunctionAgent):
        async def __aenter__(self):
            self.fn = None

        async def __aexit__(self, *exc):
            pass

    class Callable:
        async def __call__(self, config, user_id):
            return plain(config, user_id)

    class Method:
        async def build(self, config, user_id):
            return plain(config, user_id)

    for builder in (
        plain,
        asynchronous,
        context_manager,
        of_a_context_manager,
        partial(asynchronous),
        lambda config, user_id: Entered(lambda ctx: f"{config} for {user_id}", name="helper"),
        Callable(),
        Method(),
    ):
        async with SessionManager("this", builder, per_user=True) as manager:
            assert await answer(manager, "ann") == "this for ann"


@for_seeds(2)
async def test_who_says_that_it_is_per_user():
    def build(config, user_id="nobody"):
        return FunctionAgent(lambda ctx: f"{user_id}'s", name="helper")

    assert await answer(SessionManager({}, build), "ann") == "nobody's"
    assert await answer(SessionManager({}, build, per_user=True), "ann") == "ann's"
    build.per_user = True
    assert await answer(SessionManager({}, build), "ann") == "ann's"
    assert await answer(SessionManager({}, build, per_user=False), "ann") == "nobody's"


@for_seeds(20)
async def test_a_slow_build_holds_up_nobody_else():
    world = World(slow=100)
    manager = SessionManager({}, world, max_concurrency=1)
    runner = await manager.runner()
    opened = [asyncio.ensure_future(answer(manager, "slow")) for _ in range(5)]
    started = [await runner.start("slow", f"s{n}", "hi") for n in range(5)]
    await idle()
    assert runner.limiter.active == 0
    for user in ("ann", "ben"):
        assert await answer(manager, user) == f"hi from {user}'s 1"
        assert await (await runner.start(user, "s", "hi")).result() == f"hi from {user}'s 1"
    assert now() < 1
    assert {run.status for run in started} == {RunStatus.QUEUED}
    assert await asyncio.gather(*opened, *(run.result() for run in started)) == ["hi from slow's 1"] * 10
    assert now() < 101
    assert world.builds["slow"] == 1
    await manager.close()
    assert_at_rest(runner)


@for_seeds(10)
async def test_users_agents_are_built_at_the_same_time():
    world = World(**{f"u{n}": 10 for n in range(20)})
    async with SessionManager({}, world, max_concurrency=1) as manager:
        assert len(set(await asyncio.gather(*(answer(manager, f"u{n}") for n in range(20))))) == 20
        assert now() < 11


@pytest.mark.anyio
async def test_a_plain_builder_that_blocks_holds_up_nobody_else():
    go_on = threading.Event()

    def build(config, user_id):
        assert user_id != "slow" or go_on.wait(60)
        return FunctionAgent(lambda ctx: user_id, name="helper")

    async with SessionManager({}, build, per_user=True) as manager:
        slow = asyncio.ensure_future(answer(manager, "slow"))
        assert await answer(manager, "ann") == "ann"
        assert not slow.done()
        go_on.set()
        assert await slow == "slow"


@for_seeds(20)
async def test_one_that_gives_up_waiting_does_not_end_the_build_for_others():
    world = World(ann=10)
    async with SessionManager({}, world) as manager:
        first = asyncio.ensure_future(answer(manager, "ann"))
        await asyncio.sleep(5)
        second = asyncio.ensure_future(answer(manager, "ann"))
        await asyncio.sleep(1)
        await dropped(first)
        assert await second == "hi from ann's 1"
        assert now() < 11
        await idle()
        assert_at_rest(await manager.runner())


@for_seeds(10)
async def test_a_build_sees_nothing_of_the_request_that_came_first_and_leaves_nothing():
    seen = []

    @asynccontextmanager
    async def build(config, user_id):
        seen.append((request.get(), find_current_run()))
        request.set(f"the build of {user_id}")

        @agent
        async def helper(ctx):
            return request.get()

        yield helper
        seen.append(request.get())

    manager = SessionManager({}, build, per_user=True, propagate=[request])

    async def ask(user_id, value):
        request.set(value)
        return await answer(manager, user_id), request.get()

    for user_id, value in (("ann", "one"), ("ann", "two"), ("ben", "three")):
        assert await asyncio.ensure_future(ask(user_id, value)) == (value, value)
    assert seen == [("nobody's", None)] * 2
    # Nor is anything seen of a run that another agent's run starts.
    outer = Runner(app_name="outer", agent=FunctionAgent(lambda ctx: ask("cleo", "four"), name="outer"))
    await (await outer.start("u", "s", "hi")).wait()
    assert seen == [("nobody's", None)] * 3
    await asyncio.ensure_future(closed_with(manager, "five"))
    assert sorted(seen[3:]) == [f"the build of {user}" for user in ("ann", "ben", "cleo")]


async def closed_with(manager, value):
    request.set(value)
    await manager.close()


@for_seeds(5)
async def test_a_runner_that_was_given_or_built_may_have_them():
    world = World(slow=10)
    async with Runner(
        app_name=APP, agent=PerUserAgents(lambda user_id: world.build(None, user_id)), max_concurrency=1
    ) as runner:
        for manager in (SessionManager(runner=runner), SessionManager({}, lambda config: runner)):
            slow = asyncio.ensure_future(answer(manager, "slow"))
            await idle()
            assert await answer(manager, "ann") == "hi from ann's 1"
            assert await slow == "hi from slow's 1"
            await manager.close()
        assert world.open == {"slow", "ann"}
    assert world.open == set()


# -- builds that fail ---------------------------------------------------------------------------------------------------


@for_seeds(20)
async def test_a_build_that_fails_is_told_to_all_who_wait_and_tried_again(caplog):
    caplog.set_level(logging.CRITICAL, "sojourn.agents")
    world = World(ann=10)
    world.broken["ann"] = ValueError("secret details")
    async with SessionManager({}, world) as manager:
        runner = await manager.runner()
        opened = [asyncio.ensure_future(answer(manager, "ann")) for _ in range(3)]
        started = [await runner.start("ann", f"s{n}", "hi") for n in range(2)]
        errors = await asyncio.gather(*opened, *(run.result() for run in started), return_exceptions=True)
        assert [(type(e), e.code) for e in errors] == [(AgentError, "agent.build_failed")] * 5
        assert not any("secret" in str(e) for e in errors)
        assert len({id(e) for e in errors}) == 5
        assert {(await run.refresh()).status for run in started} == {RunStatus.FAILED}
        assert world.builds["ann"] == 1
        assert await answer(manager, "ben") == "hi from ben's 1"
        with raises(AgentError, "agent.build_failed"):
            await answer(manager, "ann")
        world.broken.clear()
        assert await answer(manager, "ann") == "hi from ann's 3"
        assert await (await runner.retry(started[0].id)).result() == "hi from ann's 3"
        await idle()
        assert_at_rest(runner)


@for_seeds(5)
async def test_a_builders_own_coded_error_is_passed_on():
    world = World()
    original = world.broken["ann"] = Unavailable("the model's key is missing; set KEY", code="model.no_key", retryable=False)
    manager = SessionManager({}, world)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            await answer(manager, "ann")
        assert caught.value.code == "model.no_key"
        assert caught.value is not original
        assert "set KEY" in str(caught.value)
    run = await (await manager.runner()).start("ann", "s", "hi")
    with raises(Unavailable, "model.no_key"):
        await run.result()
    assert (await run.refresh()).error.code == "model.no_key"


@for_seeds(5)
async def test_a_build_that_cancels_itself_has_failed(caplog):
    caplog.set_level(logging.CRITICAL, "sojourn.agents")

    async def build(config, user_id):
        raise asyncio.CancelledError

    with pytest.raises(AgentError, match=r"raised CancelledError.*agent\.build_failed"):
        await answer(SessionManager({}, build, per_user=True), "ann")


@asynccontextmanager
async def swallowing():
    try:
        yield "no agent"
    except Exception:
        pass


def twins():
    return Agent(name="root", sub_agents=[Agent(name="twin"), Agent(name="twin")])


@pytest.mark.parametrize(
    ("made", "code"),
    [(lambda: "no agent", "agent.invalid"), (lambda: None, "agent.invalid"), (swallowing, "agent.invalid"),
     (twins, "agent.duplicate_name"), (lambda: Runner(app_name="a", agent=Agent(name="a")), "agent.invalid")],
)  # fmt: skip
@for_seeds(3)
async def test_builders_that_build_nothing_of_use(made, code):
    manager = SessionManager({}, lambda config, user_id: made(), per_user=True)
    for _ in range(2):
        with raises(InvalidInput, code):
            await answer(manager, "ann")


@pytest.mark.parametrize(
    "arguments",
    [{"agent": Agent(name="a")}, {"config": Agent(name="a")}, {}, {"shared_builder": World(), "agent": Agent(name="a")},
     {"shared_builder": object()}, {"runner": Runner(app_name="a", agent=Agent(name="a"))},
     {"runner": Runner(app_name="a", agent=Agent(name="a")), "shared_builder": World()}],
)  # fmt: skip
def test_parts_that_do_not_go_together(arguments):
    with raises(InvalidInput, "manager.invalid"):
        SessionManager(per_user=True, **arguments)


@pytest.mark.parametrize("bounds", [{"per_user_idle": 0}, {"per_user_idle": float("nan")}, {"per_user_max": 0}])
def test_bounds_that_cannot_be(bounds):
    with raises(InvalidInput, "limit.invalid"):
        SessionManager({}, World(), **bounds)


@for_seeds(2)
async def test_there_is_no_agent_for_all():
    manager = SessionManager({}, World())
    with raises(Unsupported, "runner.agent_per_user"):
        _ = (await manager.runner()).agent
    assert isinstance(PerUserAgents(lambda user_id: None), AgentSource)


# -- limits -------------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_waiting_for_a_build_is_bounded_like_waiting_for_a_slot():
    world = World(ann=None)
    manager = SessionManager({}, world, max_concurrency=1, max_queue=1, queue_timeout=5, per_user_idle=1)
    runner = await manager.runner()
    with raises(LimitExceeded, "limit.queue_timeout"):
        await answer(manager, "ann")
    queued = [await runner.start("ann", f"s{n}", "hi") for n in range(2)]
    for config in (None, RunConfig(when_busy="replace")):
        with raises(LimitExceeded, "limit.queue_full"):
            await runner.start("ann", "s0", "hi", run_config=config)
    assert [await outcome_of(run) for run in queued] == ["limit.queue_timeout"] * 2
    assert "not built" in str((await queued[0].refresh()).error.message)
    assert now() == 10
    assert await answer(manager, "ben") == "hi from ben's 1"
    await asyncio.sleep(2)
    world.build_seconds.clear()
    assert await answer(manager, "ann") == "hi from ann's 2", "none of those who were refused kept the build"
    await manager.close()
    assert_at_rest(runner)


@for_seeds(10)
async def test_nothing_is_built_for_those_who_are_refused():
    users = [f"user{n}" for n in range(30)]

    async def by_session(manager, user):
        return await answer(manager, user)

    async def by_start(manager, user):
        return await (await (await manager.runner()).start(user, "s", "hi")).result()

    for way in (by_session, by_start):
        world = World(**dict.fromkeys(users, 1))
        manager = SessionManager({}, world, max_concurrency=2, max_queue=1)
        results = await asyncio.gather(*(way(manager, user) for user in users), return_exceptions=True)
        refused = [e for e in results if isinstance(e, LimitExceeded) and e.code == "limit.queue_full"]
        assert len(refused) == 27, "two slots and a place in the queue are for three"
        assert sum(world.builds.values()) == 3
        with raises(LimitExceeded, "limit.queue_full"):
            await asyncio.gather(*(way(manager, f"other{n}") for n in range(4)))
        await idle()
        assert_at_rest(await manager.runner())
        await manager.close()


@for_seeds(10)
async def test_without_a_queue_a_free_slot_is_enough_for_an_agent_that_is_not_built():
    world = World(ann=1, ben=1, cleo=1)
    async with SessionManager({}, world, max_concurrency=2, max_queue=0) as manager:
        runner = await manager.runner()
        runs = [await runner.start(user, "s", "hi", run_config=RunConfig(when_busy="replace")) for user in ("ann", "ben")]
        with raises(LimitExceeded, "limit.queue_full"):
            await runner.start("cleo", "s", "hi")
        with raises(LimitExceeded, "limit.queue_full"):
            await answer(manager, "cleo")
        assert [await run.result() for run in runs] == ["hi from ann's 1", "hi from ben's 1"]
        await idle()
        assert await answer(manager, "cleo") == "hi from cleo's 1"
        assert set(world.builds) == {"ann", "ben", "cleo"}


@for_seeds(10)
async def test_who_was_let_into_the_queue_keeps_the_place_when_the_agent_is_built():
    world = World(ben=1)
    async with SessionManager({}, world, max_concurrency=1, max_queue=0) as manager:
        await answer(manager, "ann")
        ben = asyncio.ensure_future(answer(manager, "ben"))
        await asyncio.sleep(0.5)
        assert await answer(manager, "ann", "slow") == "slow from ann's 1"
        assert await ben == "hi from ben's 1"


@for_seeds(1)
async def test_an_agent_that_has_methods_of_a_source_is_an_agent():
    class Lender(Agent):
        def is_ready(self, user_id):
            raise AssertionError

        lease = is_ready

        async def run(self, ctx):
            return "hi"

    lender = Lender(name="lender")
    assert isinstance(lender, AgentSource)
    async with Runner(app_name=APP, agent=lender) as runner:
        assert runner.agent is lender
        assert await (await runner.start("ann", "s", "hi")).result() == "hi"


@for_seeds(20)
async def test_runs_that_wait_for_the_build_keep_their_order_and_can_be_cancelled():
    world = World(alice=10)
    manager = SessionManager({}, world, app_name=APP)
    runner = await manager.runner()
    runs = [await runner.start("alice", "s1", f"m{n}") for n in range(5)]
    await runs[1].cancel()
    assert runs[0].status is RunStatus.QUEUED
    latest = await runner.start("alice", "s2", "old")
    newest = await runner.start("alice", "s2", "new", run_config=RunConfig(when_busy="replace"))
    await asyncio.gather(*(run.wait() for run in (*runs, latest, newest)))
    texts = [text for author, text in await said_in(runner.store) if author == "user"]
    assert texts == ["m0", "m2", "m3", "m4"]
    assert [run.status for run in (runs[1], latest, newest)] == [RunStatus.CANCELLED, RunStatus.CANCELLED, RunStatus.COMPLETED]
    await manager.close()
    assert_at_rest(runner)


@for_seeds(10)
async def test_the_time_of_a_build_is_not_the_runs():
    manager = SessionManager({}, World(ann=100), run_config=RunConfig(timeout=5))
    assert await outcome_of(await (await manager.runner()).start("ann", "s", "slow")) == "slow from ann's 1"


@for_seeds(10)
async def test_a_session_opened_inside_of_a_run_has_its_users_agent():
    world = World(ben=10)

    class Nested(World):
        def agent(self, owner):
            async def outer(ctx):
                return f"{await answer(inner, 'ben')} in {ctx.user_id}"

            return FunctionAgent(outer, name="outer")

    inner = SessionManager({}, world, max_concurrency=1)
    assert await answer(SessionManager({}, Nested()), "ann") == "hi from ben's 1 in ann"

    class Itself(World):
        def agent(self, owner):
            async def outer(ctx):
                return "end" if ctx.user_id == "ben" else f"{await answer(itself, 'ben')} in {ctx.user_id}"

            return FunctionAgent(outer, name="outer")

    itself = SessionManager({}, Itself(ben=10), max_concurrency=1)
    assert await answer(itself, "ann") == "end in ann"

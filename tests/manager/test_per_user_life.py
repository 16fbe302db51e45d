"""An agent per user: kept for reuse, owned by one task, let go when nobody uses it, there again after a crash."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest

from sojourn import platform
from sojourn.agents.base import CLOSE_GRACE
from sojourn.agents.function import FunctionAgent, agent
from sojourn.agents.per_user import EXIT_SECONDS, IDLE_SECONDS, PerUserAgents
from sojourn.errors import (
    Conflict,
    RunWaiting,
    SojournError,
    Unavailable,
)
from sojourn.manager import SessionManager
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.delivery.places import BUILD_SECONDS
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds, simulate
from sojourn.testing.suite import raises
from tests.manager.world import World, answer, drawn, now
from tests.runner.support import assert_at_rest, dropped, idle, outcome_of, process

# -- letting go ---------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_an_agent_is_let_go_when_nobody_has_used_it_for_a_while():
    world = World()
    async with SessionManager({}, world, per_user_idle=100) as manager:
        await answer(manager, "ann")
        await asyncio.sleep(60)
        await answer(manager, "ben")
        await asyncio.sleep(39)
        assert world.open == {"ann", "ben"}
        await answer(manager, "ann")
        await asyncio.sleep(60)
        assert world.open == {"ann", "ben"}
        await asyncio.sleep(2)
        assert world.open == {"ann"}
        await asyncio.sleep(100)
        assert world.open == set()
        assert await answer(manager, "ann") == "hi from ann's 2"
    assert (world.left, world.wrong) == (["ben", "ann", "ann"], [])


class Closing(FunctionAgent):
    def __init__(self, name, log):
        super().__init__(lambda ctx: "hi", name=name)
        self.log = log

    async def close(self):
        self.log.append(f"{self.name} closed")


@for_seeds(5)
async def test_an_agent_that_is_let_go_is_closed_before_it_is_left():
    log = []

    @asynccontextmanager
    async def build(config, user_id):
        yield Closing(user_id, log)
        log.append(f"{user_id} left")

    async with SessionManager(None, build, per_user=True, per_user_idle=10) as manager:
        await answer(manager, "ann")
        await asyncio.sleep(20)
        assert log == ["ann closed", "ann left"]
        await answer(manager, "ben")
    assert log[2:] == ["ben closed", "ben left"]


@for_seeds(5)
async def test_an_agent_of_several_users_is_closed_with_the_last():
    log = []
    everyones = Closing("everyones", log)
    async with SessionManager(None, lambda config, user_id: everyones, per_user=True, per_user_idle=10) as manager:
        await answer(manager, "ann")
        await asyncio.sleep(5)
        await answer(manager, "ben")
        await asyncio.sleep(7)
        assert log == []
    assert log == ["everyones closed"]


@for_seeds(5)
async def test_an_agent_that_does_not_close_is_given_up():
    class Stuck(FunctionAgent):
        async def close(self):
            await asyncio.Event().wait()

    left = []

    @asynccontextmanager
    async def build(config, user_id):
        try:
            yield Stuck(lambda ctx: "hi", name="stuck")
        finally:
            left.append(now())

    manager = SessionManager(None, build, per_user=True)
    await answer(manager, "ann")
    await manager.close()
    assert left == [CLOSE_GRACE]


@for_seeds(5)
async def test_how_long_agents_are_kept_unless_it_is_said():
    world, for_ever = World(), World()
    async with SessionManager({}, world) as manager, SessionManager({}, for_ever, per_user_idle=None) as other:
        await answer(manager, "ann")
        await answer(other, "ann")
        await asyncio.sleep(IDLE_SECONDS - 1)
        assert world.open == {"ann"}
        await asyncio.sleep(2)
        assert world.open == set()
        await asyncio.sleep(3600 * 20)
        assert for_ever.open == {"ann"}


@for_seeds(10)
async def test_an_agent_is_never_let_go_while_a_run_uses_it():
    world = World()
    manager = SessionManager({}, world, per_user_idle=1, per_user_max=1)
    runner = await manager.runner()
    runs = [await runner.start(user, "s", "slow " * 10) for user in ("ann", "ben", "cleo")]
    await idle()
    assert world.open == {"ann", "ben", "cleo"}, "more than are kept, as all are in use"
    assert [await outcome_of(run) for run in runs] == ["slow " * 10 + f"from {user}'s 1" for user in ("ann", "ben", "cleo")]
    await idle()
    assert len(world.open) == 1
    await asyncio.sleep(1)
    assert world.open == set()
    await manager.close()


@for_seeds(10)
async def test_an_agent_is_kept_for_an_open_session_and_for_those_who_wait_for_a_slot():
    world = World()
    manager = SessionManager({}, world, max_concurrency=1, per_user_idle=1)
    runner = await manager.runner()
    async with manager.session("ann") as session:
        waiting = asyncio.ensure_future(answer(manager, "ben"))
        queued = await runner.start("cleo", "s", "hi")
        await asyncio.sleep(1000)
        assert world.open == {"ann", "ben", "cleo"}
        async with session.run("hi") as run:
            assert await run.result() == "hi from ann's 1"
    assert await waiting == "hi from ben's 1"
    assert await outcome_of(queued) == "hi from cleo's 1"
    await asyncio.sleep(2)
    assert world.open == set()
    await manager.close()


@for_seeds(10)
async def test_those_that_have_been_idle_longest_go_first():
    world = World()
    async with SessionManager({}, world, per_user_max=3) as manager:
        for user in ("a", "b", "c", "a"):
            await answer(manager, user)
        for user, goes in (("d", "b"), ("e", "c"), ("a", None), ("f", "d")):
            await answer(manager, user)
            await idle()
            assert world.left[-1:] == [goes or world.left[-1]]
        assert world.open == {"a", "e", "f"}


@for_seeds(10)
async def test_a_run_that_waits_for_a_person_keeps_no_agent_and_gets_it_again():
    world = World(ann=5)
    async with SessionManager({}, world, per_user_idle=1) as manager:
        runner = await manager.runner()
        async with manager.session("ann", "s") as session, session.run("before ask after") as run:
            with pytest.raises(RunWaiting) as waiting:
                await run.result()
        await asyncio.sleep(2)
        assert world.open == set()
        answered = await runner.answer(run.id, waiting.value.interrupts[0].id, "yes")
        assert await answered.result() == "ask after from ann's 2"
        await idle()
        assert_at_rest(runner)


@for_seeds(10)
async def test_code_that_was_abandoned_keeps_its_agent():
    let_go = asyncio.Event()
    world = World()

    @agent
    async def stubborn(ctx):
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                pass
        assert "ann" in world.open

    world.agent = lambda owner: stubborn
    manager = SessionManager({}, world, per_user_idle=1, run_config=RunConfig(cancel_grace=1))
    async with manager.session("ann") as session, session.run("hi") as run:
        await idle()
    assert run.status is RunStatus.CANCELLED
    await asyncio.sleep(100)
    assert world.open == {"ann"}
    let_go.set()
    await asyncio.sleep(2)
    assert world.open == set()
    await manager.close()


@for_seeds(10)
async def test_a_build_that_nobody_waits_for_any_more_ends_with_the_time_of_an_idle_agent():
    world = World(ann=None)
    async with SessionManager({}, world, per_user_idle=100) as manager:
        await dropped(waiting := asyncio.ensure_future(answer(manager, "ann")))
        assert waiting.cancelled()
        waiting = asyncio.ensure_future(answer(manager, "ann"))
        await asyncio.sleep(1)
        await dropped(waiting)
        await asyncio.sleep(101)
        world.build_seconds.clear()
        before = now()
        assert await answer(manager, "ann") == "hi from ann's 2"
        assert now() == before


@for_seeds(20)
async def test_the_next_build_waits_until_the_agent_before_is_left_but_not_for_ever(caplog):
    caplog.set_level(logging.CRITICAL, "sojourn.agents")
    world = World()
    async with SessionManager({}, world, per_user_idle=1) as manager:
        await answer(manager, "ann")
        world.exit_seconds["ann"] = 5
        await asyncio.sleep(2)
        before = now()
        assert await answer(manager, "ann") == "hi from ann's 2"
        assert world.wrong == [], "there are never two at a time"
        assert before + 3 < now() < before + 5
        world.exit_seconds["ann"] = 1e6
        await asyncio.sleep(2)
        before = now()
        world.open.discard("ann")
        assert await answer(manager, "ann") == "hi from ann's 3"
        assert now() < before + EXIT_SECONDS
        world.exit_seconds.clear()


@for_seeds(10)
async def test_a_build_that_was_given_up_does_not_let_the_next_one_overtake_the_agent_before():
    world = World()
    async with SessionManager({}, world, per_user_idle=2) as manager:
        await answer(manager, "ann")
        world.exit_seconds["ann"] = 9
        await asyncio.sleep(3)
        given_up = asyncio.ensure_future(answer(manager, "ann"))
        await asyncio.sleep(1)
        await dropped(given_up)
        await asyncio.sleep(3)
        assert await answer(manager, "ann") == "hi from ann's 2"
        assert now() == 11
        assert world.wrong == []


@for_seeds(10)
async def test_an_agent_whose_own_work_has_failed_is_built_again(caplog):
    caplog.set_level(logging.CRITICAL, "sojourn.agents")
    fail, builds = asyncio.Event(), []

    async def server():
        await fail.wait()
        raise ConnectionError("the tool server has died")

    @asynccontextmanager
    async def build(config, user_id):
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(server())
            builds.append(user_id)
            number = len(builds)
            try:
                yield FunctionAgent(lambda ctx: number, name="helper")
            finally:
                await asyncio.sleep(1)
                serving.cancel()

    async with SessionManager({}, build, per_user=True) as manager:
        async with manager.session("ann") as session:
            async with session.run("hi") as run:
                assert await run.result() == 1
            fail.set()
            await idle()
            fail.clear()
            async with session.run("hi") as run:
                assert await run.result() == 2
        assert await answer(manager, "ann") == 2


# -- ends ---------------------------------------------------------------------------------------------------------------


@for_seeds(20)
async def test_closing_ends_all_and_leaves_queued_runs_to_the_next():
    store = InMemorySessionService()
    world = World(slow=1000)
    async with SessionManager({}, world, session_service=store) as manager:
        runner = await manager.runner()
        await answer(manager, "ann")
        detached = await runner.start("slow", "s", "hi")
        waiting = asyncio.ensure_future(answer(manager, "slow"))
        hanging = await runner.start("ben", "s", "slow slow slow")
        await idle()
        closing = asyncio.ensure_future(manager.close(grace=1))
        with raises(Unavailable, "runner.closed"):
            await waiting
        report = await closing
        assert (report.queued, report.suspended) == (1, 1)
        assert await outcome_of(detached) == "run.suspended"
        assert world.open == set()
        assert world.builds == {"ann": 1, "slow": 1, "ben": 1}
        for _ in range(2):
            with raises(Unavailable, "runner.closed"):
                await answer(manager, "ann")
            await manager.close()
    world.build_seconds.clear()
    async with SessionManager({}, world, session_service=store) as manager:
        runner = await manager.runner()
        assert await outcome_of(await runner.follow(detached.id)) == "hi from slow's 2"
        assert await outcome_of(await runner.follow(hanging.id)) == "slow slow slow from ben's 2"
    assert len(asyncio.all_tasks()) == 1


@for_seeds(5)
async def test_an_agent_that_cannot_be_left_does_not_keep_the_manager_open(caplog):
    caplog.set_level(logging.CRITICAL, "sojourn.agents")
    world = World()
    manager = SessionManager({}, world)
    await answer(manager, "ann")
    world.exit_seconds["ann"] = 1e6
    before = now()
    await manager.close()
    assert now() - before == EXIT_SECONDS
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("seed", range(10))
def test_agents_are_left_with_their_event_loop_and_runs_that_wait_for_one_go_on_in_the_next(seed):
    store, worlds = InMemorySessionService(), [World(slow=100), World()]
    runners = []

    async def first():
        manager = SessionManager({}, worlds[0], session_service=store)
        runners.append(manager)
        await answer(manager, "ann")
        await (await manager.runner()).start("slow", "s", "hi", run_id="r")
        await asyncio.sleep(1)

    async def second():
        async with SessionManager({}, worlds[1], session_service=store) as manager:
            assert await outcome_of(await (await manager.runner()).follow("r")) == "hi from slow's 1"

    async def the_first_manager_again():
        assert await answer(runners[0], "ann") == "hi from ann's 2"

    simulate(first, seed=seed)
    assert (worlds[0].open, worlds[0].left) == (set(), ["ann"])
    # Other seeds: ids are drawn from them.
    simulate(second, seed=seed + 100)
    simulate(the_first_manager_again, seed=seed + 200)


@pytest.mark.anyio
async def test_one_event_loop_at_a_time():
    def build(config, user_id):
        return FunctionAgent(lambda ctx: user_id, name="helper")

    async with SessionManager({}, build, per_user=True) as manager, manager.session("ann"):

        def elsewhere():
            async def use():
                with raises(Conflict, "runner.other_loop"):
                    await answer(manager, "ann")

            asyncio.run(use())

        await asyncio.to_thread(elsewhere)


# -- crashes ------------------------------------------------------------------------------------------------------------


def source(world):
    return PerUserAgents(lambda user_id: world.build(None, user_id))


@for_seeds(10)
async def test_a_run_goes_on_with_its_users_agent_after_a_crash():
    store, worlds = InMemorySessionService(), [World(), World(alice=5, bob=5)]
    async with process(source(worlds[0]), store) as first:
        runs = [await first.runner.start(user, "s1", "one hang two") for user in ("alice", "bob")]
        asked = await first.runner.start("alice", "s2", "ask")
        await asyncio.sleep(1)
        first.die()
    worlds[1].agent = lambda owner: FunctionAgent(lambda ctx: f"{ctx.attempt} by {owner}'s", name="helper")
    async with process(source(worlds[1]), store, enter=True) as second:
        before = now()
        assert [await outcome_of(await second.runner.follow(run.id)) for run in runs] == ["2 by alice's", "2 by bob's"]
        assert now() < before + 6
        assert (await second.runner.follow(asked.id)).status is RunStatus.WAITING


class Counting(World):
    """Notices how many agents are being built or entered at a time."""

    def __init__(self, **build_seconds):
        super().__init__(**build_seconds)
        self.now = self.most = 0

    @asynccontextmanager
    async def entered(self, user_id):
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            async with super().entered(user_id) as made:
                yield made
        finally:
            self.now -= 1


async def unfinished(store, users, runs=1):
    """Leaves runs in a store as a process that dies does; each of a user in a session of its own and two in one."""
    async with process(source(World()), store) as first:
        left = [await first.runner.start(user, f"s{n // 2}", "slow hang") for user in users for n in range(runs)]
        first.die()
    return left


@pytest.mark.parametrize("bound", [1, 3])
def test_no_more_agents_are_built_at_a_time_for_what_a_crash_left_than_runs_may_execute(bound):
    @for_seeds(5)
    async def check():
        store, world = InMemorySessionService(), Counting(**{f"u{n}": n % 4 for n in range(12)})
        world.agent = lambda owner: FunctionAgent(lambda ctx: owner, name="helper")
        left = await unfinished(store, [f"u{n}" for n in range(12)], runs=3)
        agents = PerUserAgents(lambda user_id: world.build(None, user_id), max_kept=1)
        async with process(agents, store, enter=True, max_concurrency=bound) as second:
            handles = [await second.runner.follow(run.id, user_id=run.user_id) for run in left]
            await second.runner.cancel(handles[-1].id)
            wanted = [run.user_id for run in left[:-1]] + ["run.cancelled"]
            assert [await outcome_of(handle) for handle in handles] == wanted
            # Beside those in use one is kept, and one may be on its way out.
            assert world.most <= bound + 2
            assert set(world.builds.values()) == {1}
            await idle()
            assert_at_rest(second.runner)

    check()


@for_seeds(5)
async def test_builds_that_do_not_end_keep_out_what_a_crash_left_of_others_for_a_while_only():
    store, world = InMemorySessionService(), World(u0=None, u1=None)
    world.agent = lambda owner: FunctionAgent(lambda ctx: owner, name="helper")
    left = await unfinished(store, [f"u{n}" for n in range(6)])
    async with process(source(world), store, enter=True, max_concurrency=2) as second:
        before = now()
        handles = [await second.runner.follow(run.id, user_id=run.user_id) for run in left]
        assert [await outcome_of(handle) for handle in handles[2:]] == ["u2", "u3", "u4", "u5"]
        assert now() <= before + BUILD_SECONDS + 1
        await asyncio.gather(*(second.runner.cancel(run.id) for run in handles[:2]))
        await idle()
        assert_at_rest(second.runner)


@for_seeds(1)
async def test_however_many_that_wait_for_a_place_are_cancelled_the_last_one_gets_it():
    store, world = InMemorySessionService(), World()
    left = await unfinished(store, [f"u{n}" for n in range(700)])
    async with process(source(world), store, max_concurrency=1) as second:
        first, *others, last = await second.runner.recover()
        assert len(others) == len(left) - 2
        for run in others:
            await second.runner.cancel(run.id)
        await second.runner.cancel(first.id)
        await asyncio.sleep(60)
        assert (await second.runner.follow(last.id, user_id=last.user_id)).status is RunStatus.RUNNING
        await second.runner.cancel(last.id)
        await idle()
        assert_at_rest(second.runner)


@pytest.mark.parametrize("way", ["waits", "queues behind"])
def test_who_waits_for_a_run_that_a_crash_left_does_not_keep_it_from_its_agent(way):
    @for_seeds(10)
    async def check():
        store, world = InMemorySessionService(), World()
        _, left = await unfinished(store, ["ann", "bob"])

        def agent_of(owner):
            async def helper(ctx):
                if owner == "ann" and way == "waits":
                    return await (await second.runner.follow(left.id)).result()
                if owner == "ann":
                    return [event.text async for event in second.runner.run("bob", "s0", "hi") if not event.partial][-1]
                return "bob's"

            return FunctionAgent(helper, name="helper")

        world.agent = agent_of
        async with process(source(world), store, max_concurrency=1) as second:
            ann, bob = await second.runner.recover()
            assert await outcome_of(await second.runner.follow(ann.id)) == "bob's"
            assert await outcome_of(await second.runner.follow(bob.id)) == "bob's"
            await idle()
            assert_at_rest(second.runner)

    check()


@for_seeds(5)
async def test_a_run_whose_processes_died_is_closed_without_its_agent():
    store, worlds = InMemorySessionService(), [World() for _ in range(4)]
    run_id = None
    for world in worlds[:3]:
        async with process(source(world), store, enter=True) as one:
            if run_id is None:
                run_id = (await one.runner.start("alice", "s1", "hang")).id
            await asyncio.sleep(1)
            one.die()
    async with process(source(worlds[3]), store, enter=True) as last:
        assert await outcome_of(await last.runner.follow(run_id)) == "run.crash_loop"
    assert [world.builds["alice"] for world in worlds] == [1, 1, 1, 0]


@for_seeds(5)
async def test_the_agent_that_has_the_session_is_found_among_the_users_own():
    def build(config, user_id):
        async def hand_over(ctx):
            ctx.transfer_to("specialist")

        async def specialist(ctx):
            return f"{user_id}'s specialist: {ctx.user_content.text}"

        children = [] if user_id == "ben" else [FunctionAgent(specialist, name="specialist")]
        plain = FunctionAgent(lambda ctx: "root", name="root")
        return FunctionAgent(hand_over, name="root", sub_agents=children) if children else plain

    async with SessionManager({}, build, per_user=True) as manager:
        for text in ("one", "two"):
            assert await answer(manager, "ann", text, "s") == f"ann's specialist: {text}"
        assert await answer(manager, "ben", "one", "s") == "root"


# -- everything at once -------------------------------------------------------------------------------------------------


@for_seeds(60)
async def test_whatever_happens_at_the_same_time(caplog):
    caplog.set_level(logging.CRITICAL)
    users = [f"u{n}" for n in range(6)]
    world = World(**{user: drawn([0, 0, 1, 7]) for user in users})
    world.exit_seconds = {user: drawn([0, 0, 1]) for user in users}
    manager = SessionManager(
        {},
        world,
        drawn([1, 2, 5]),
        per_user_idle=drawn([1, 5]),
        per_user_max=2,
        run_config=RunConfig(timeout=9),
    )
    runner = await manager.runner()
    codes = set()

    async def use(user):
        for _ in range(4):
            await asyncio.sleep(drawn([0, 0, 1, 3]))
            if platform.random() < 0.2:
                world.broken[user] = ValueError("broken")
            else:
                world.broken.pop(user, None)
            try:
                if platform.random() < 0.5:
                    said = await answer(manager, user, drawn(["hi", "slow", "slow slow"]))
                    assert f"from {user}'s" in said
                else:
                    run = await runner.start(user, drawn(["s1", "s2"]), drawn(["hi", "slow", "hang"]))
                    await asyncio.sleep(drawn([0, 1, 9]))
                    if platform.random() < 0.7 or "hang" in run.record.message.text:
                        await run.cancel()
                    await run.result()
            except SojournError as error:
                codes.add(error.code)

    uses = [asyncio.ensure_future(use(user)) for user in users for _ in range(3)]
    for quitter in uses[:: drawn([3, 5])]:
        asyncio.get_running_loop().call_later(drawn([1, 4, 9]), quitter.cancel)
    async with asyncio.timeout(2000):
        for outcome in await asyncio.gather(*uses, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
    assert codes <= {"agent.build_failed", "run.cancelled", "run.timeout"}
    await asyncio.sleep(20)
    assert (world.open, world.wrong) == (set(), [])
    await manager.close()
    assert_at_rest(runner)
    assert len(asyncio.all_tasks()) == 1

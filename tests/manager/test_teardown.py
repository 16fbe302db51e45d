"""The event loop ends while users' runs are being started: quietly, and nothing that was acknowledged is lost."""

import asyncio
import gc
import logging
import sys

import pytest

from sojourn.agents.function import agent
from sojourn.manager import SessionManager
from sojourn.run.status import RunStatus
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, hold

USERS = ("ann", "ben")


@pytest.fixture
def noise(monkeypatch, caplog):
    """What Python and asyncio complain about when things are thrown away."""
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(repr(unraisable.exc_value)))

    def all_noise():
        gc.collect()
        return heard + [r.getMessage() for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.WARNING]

    return all_noise


class World:
    """A manager with one slot, in one event loop after the other, and an agent that hangs as long as it is told to."""

    def __init__(self, store):
        self.store = store
        self.hangs = True
        self.swallows = False
        self.acknowledged = []
        self.results = {}

    def manager(self):
        @agent
        async def helper(ctx):
            try:
                if self.hangs:
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.swallows:
                    raise
            return f"{ctx.user_id}: done"

        return SessionManager(agent=helper, max_concurrency=1, session_service=self.store)

    async def start_two(self, turns, then=None):
        """Two users start a run each; the loop ends after that many turns of its, or when `then` has come."""
        runner = await self.manager().runner()

        async def start(user):
            run = await runner.start(user, "s1", "go")
            self.acknowledged.append((user, run.id))
            await run.result()

        # Kept, as whoever starts runs does: an event loop knows its tasks only weakly.
        self.tasks = [asyncio.ensure_future(start(user)) for user in USERS]
        for _ in range(turns):
            await asyncio.sleep(0)
        if then is not None:
            await then.wait()

    async def finish(self):
        """The next loop: what was left unfinished goes on."""
        self.hangs = False
        async with self.manager() as manager:
            runner = await manager.runner()
            for user, run_id in self.acknowledged:
                self.results[user] = await (await runner.follow(run_id, user_id=user)).result()
            for record in (await runner.list_runs()).items:
                run = await runner.follow(record.id, user_id=record.user_id)
                await run.settled()
                assert run.status.terminal
            assert (runner.limiter.active, runner.limiter.queued) == (0, 0)
            assert not runner.hub.jobs

    def assert_whole(self):
        assert self.results == {user: f"{user}: done" for user, _ in self.acknowledged}


@pytest.fixture(params=["ram", "sqlite"])
def world(request, tmp_path):
    if request.param == "ram":
        yield World(InMemorySessionService())
        return
    store = DatabaseSessionService(f"sqlite:///{tmp_path}/sessions.db")
    yield World(store)
    asyncio.run(store.close())


@pytest.mark.timeout(30)
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 20])
@pytest.mark.parametrize("swallows", [False, True])
def test_two_pending_starts_end_quietly_with_their_loop(world, noise, turns, swallows):
    world.swallows = swallows
    asyncio.run(world.start_two(turns))
    assert noise() == []
    asyncio.run(world.finish())
    assert noise() == []
    world.assert_whole()
    if isinstance(world.store, InMemorySessionService):
        assert len(world.acknowledged) == 2, "nothing in the store in RAM waits"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("stays_away", [False, True])
def test_two_starts_that_wait_for_the_store_end_quietly_with_their_loop(noise, after, stays_away):
    world = World(FaultyStore(InMemorySessionService()))

    async def first():
        held = hold("submit", after=after)
        world.store.plan.append(held)
        if stays_away:
            # Nor does it let anybody end the runs whose callers are gone.
            world.store.plan.append(hold("get_run"))
        await world.start_two(5, held.reached)

    asyncio.run(first())
    assert noise() == []
    assert world.acknowledged == []
    world.store.plan.clear()
    asyncio.run(world.finish())
    assert noise() == []
    statuses = {r.user_id: r.status for r in asyncio.run(_runs(world))}
    end = RunStatus.COMPLETED if stays_away else RunStatus.CANCELLED
    assert statuses == (dict.fromkeys(USERS, end) if after else {})


async def _runs(world):
    return (await (await world.manager().runner()).list_runs()).items


@pytest.mark.timeout(30)
@pytest.mark.parametrize("turns", [1, 3, 20])
def test_a_loop_that_is_closed_over_pending_starts_leaves_nothing_that_hangs(world, turns):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(world.start_two(turns))
    left = asyncio.all_tasks(loop)
    loop.close()
    asyncio.run(world.finish())
    world.assert_whole()
    for task in left:
        task._log_destroy_pending = False

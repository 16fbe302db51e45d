"""What becomes of a run whose client goes: detached or cancelled after a grace, as the server is configured."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.config import ServerConfig
from sojourn.server.following import Following
from sojourn.testing.loop import simulate
from tests.runner.support import idle

DETACH = ServerConfig()
CANCEL = ServerConfig(on_disconnect="cancel", disconnect_grace=10.0)


@agent
async def slow(ctx):
    yield "Wait."
    if "ask" in ctx.user_content.text:
        await ctx.ask("sure", "Sure?")
    await asyncio.sleep(100)
    yield "Done."


def in_simulation(scenario, config):
    async def whole():
        runner = Runner(app_name="app", agent=slow)
        run = await runner.start("ann", "s", "ask" if "waits" in scenario.__name__ else "Hi")
        following = Following(config)
        try:
            return await scenario(run, following)
        finally:
            following.close()
            await runner.close(grace=200)

    return simulate(whole, seed=1)


async def followed_until(run, following, seconds, *, started=True):
    with following.follow(run, started=started):
        await asyncio.sleep(seconds)


def test_detached_the_run_goes_on():
    async def scenario(run, following):
        await followed_until(run, following, 1)
        return (await run.wait()).status

    assert in_simulation(scenario, DETACH) is RunStatus.COMPLETED


def test_a_run_that_nobody_follows_again_is_cancelled_after_the_grace():
    async def scenario(run, following):
        await followed_until(run, following, 1)
        await asyncio.sleep(9.9)
        assert run.status is RunStatus.RUNNING
        record = await run.wait()
        assert asyncio.get_running_loop().time() < 12
        return record.status, record.cancel_requested

    assert in_simulation(scenario, CANCEL) == (RunStatus.CANCELLED, "its client has gone")


def test_whoever_comes_back_within_the_grace_keeps_it():
    async def scenario(run, following):
        await followed_until(run, following, 1)
        await asyncio.sleep(9)
        await followed_until(run, following, 200, started=False)
        return (await run.wait()).status

    assert in_simulation(scenario, CANCEL) is RunStatus.COMPLETED


def test_who_came_back_and_goes_again_starts_the_grace_again():
    async def scenario(run, following):
        await followed_until(run, following, 1)
        await asyncio.sleep(9)
        await followed_until(run, following, 20, started=False)
        await asyncio.sleep(9)
        assert run.status is RunStatus.RUNNING
        await asyncio.sleep(2)
        return (await run.wait()).status

    assert in_simulation(scenario, CANCEL) is RunStatus.CANCELLED


def test_one_of_several_followers_is_enough():
    async def scenario(run, following):
        other = asyncio.create_task(followed_until(run, following, 200, started=False))
        await idle()
        await followed_until(run, following, 1)
        await other
        return (await run.wait()).status

    assert in_simulation(scenario, CANCEL) is RunStatus.COMPLETED


def test_runs_of_apps_with_stores_of_their_own_are_told_apart():
    async def scenario(run, following):
        async with Runner(app_name="other", agent=slow) as runner:
            other = await runner.start("ann", "s", "Hi")
            assert other.record.uid == run.record.uid
            following_other = asyncio.create_task(followed_until(other, following, 50))
            await idle()
            await followed_until(run, following, 1)
            await asyncio.sleep(20)
            assert (await run.refresh()).status is RunStatus.CANCELLED
            await following_other
            return other.status

    assert in_simulation(scenario, CANCEL) is RunStatus.RUNNING


def test_a_run_that_was_started_detached_is_never_cancelled():
    async def scenario(run, following):
        await followed_until(run, following, 1, started=False)
        return (await run.wait()).status

    assert in_simulation(scenario, CANCEL) is RunStatus.COMPLETED


def test_a_run_that_waits_for_a_person_is_left_waiting():
    async def scenario_waits(run, following):
        await followed_until(run, following, 1)
        await asyncio.sleep(100)
        return run.status

    assert in_simulation(scenario_waits, CANCEL) is RunStatus.WAITING


def test_a_server_that_closes_cancels_nothing_any_more():
    async def scenario(run, following):
        await followed_until(run, following, 1)
        following.close()
        return (await run.wait()).status

    assert in_simulation(scenario, CANCEL) is RunStatus.COMPLETED


@pytest.mark.parametrize("config", [DETACH, CANCEL])
def test_nothing_is_kept_of_runs_that_have_ended(config):
    async def scenario(run, following):
        await followed_until(run, following, 150)
        return following._followers, following._started, following._timers

    assert in_simulation(scenario, config) == ({}, {}, {})

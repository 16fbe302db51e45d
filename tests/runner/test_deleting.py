"""S6: deleting a session removes all there is of it, whatever becomes of whoever asked for it."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.errors import NotFound
from sojourn.runner.attempt.spill import scope_of
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import SESSION, USER, assert_at_rest, dropped, idle, make_runner, outcome_of


@agent
async def saver(ctx):
    """Saves, and hangs."""
    await ctx.artifacts.save("note.txt", "a note")
    await asyncio.Event().wait()


async def saved():
    """A Runner with a run under way and one in the queue, what it keeps artifacts in, and where those of the session are."""
    artifacts = InMemoryArtifactService()
    runner = make_runner(saver, FaultyStore(InMemorySessionService()), artifact_service=artifacts)
    runs = [await runner.start(USER, SESSION, f"{n}") for n in range(2)]
    await idle()
    scope = scope_of(await runner.get_session(USER, SESSION))
    assert (await artifacts.list_artifact_names(scope)).items == ["note.txt"]
    return runner, runs, artifacts, scope


@for_seeds(5)
async def test_a_store_that_fails_once_the_session_is_gone_leaves_nothing_behind():
    runner, runs, artifacts, scope = await saved()
    runner.store.plan.append(fail_before("get_run", 1))
    await runner.delete_session(USER, SESSION)
    assert await outcome_of(runs[1]) == "session.deleted"
    assert (await artifacts.list_artifact_names(scope)).items == []
    # It is this one that the store could not tell what became of it.
    assert await outcome_of(runs[0]) == "store.unavailable"
    await idle()
    assert_at_rest(runner)


@pytest.mark.parametrize("after", [False, True])
def test_a_caller_who_is_cancelled_leaves_all_of_it_or_nothing(after):
    @for_seeds(5)
    async def case():
        runner, runs, artifacts, scope = await saved()
        slow = hold("delete_session", after=after)
        runner.store.plan.append(slow)
        deleting = asyncio.ensure_future(runner.delete_session(USER, SESSION))
        await slow.reached.wait()
        await dropped(deleting)
        slow.go.set()
        assert [await outcome_of(run) for run in runs] == ["session.deleted"] * 2
        await idle()
        assert (await artifacts.list_artifact_names(scope)).items == []
        with raises(NotFound, "session.not_found"):
            await runner.get_session(USER, SESSION)

    case()


@for_seeds(5)
async def test_a_caller_who_is_cancelled_need_not_be_told_that_there_was_none():
    runner = make_runner(saver, FaultyStore(InMemorySessionService(), [slow := hold("delete_session")]))
    deleting = asyncio.ensure_future(runner.delete_session(USER, SESSION))
    await slow.reached.wait()
    await dropped(deleting)
    slow.go.set()
    await runner.close()

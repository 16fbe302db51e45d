"""S6: deleting a session removes all there is of it, whatever becomes of whoever asked for it."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.errors import NotFound, Unavailable
from sojourn.runner.attempt.spill import scope_of
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyRetainingStore, FaultyStore, fail_after, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import APP, SESSION, USER, assert_at_rest, dropped, idle, make_runner, outcome_of


@agent
async def saver(ctx):
    """Saves, and hangs."""
    await ctx.artifacts.save("note.txt", "a note")
    await asyncio.Event().wait()


class FailingArtifacts(InMemoryArtifactService):
    """Cannot delete as long as it is away."""

    is_away = False

    async def delete_session_artifacts(self, scope):
        if self.is_away:
            raise Unavailable("no", code="artifact.unavailable")
        await super().delete_session_artifacts(scope)


# With each kind of store, the call that deletes a session.
STORES = [(FaultyStore, "delete_session"), (FaultyRetainingStore, "drop_session")]


async def saved(store_class):
    """A Runner with a run under way and one in the queue, what it keeps artifacts in, and where those of the session are."""
    artifacts = FailingArtifacts()
    runner = make_runner(saver, store_class(InMemorySessionService()), artifact_service=artifacts)
    runs = [await runner.start(USER, SESSION, f"{n}") for n in range(2)]
    await idle()
    scope = scope_of(await runner.get_session(USER, SESSION))
    assert (await artifacts.list_artifact_names(scope)).items == ["note.txt"]
    return runner, runs, artifacts, scope


@pytest.mark.parametrize("store_class", [FaultyStore, FaultyRetainingStore])
def test_a_store_that_fails_once_the_session_is_gone_leaves_nothing_behind(store_class):
    @for_seeds(5)
    async def case():
        runner, runs, artifacts, scope = await saved(store_class)
        runner.store.plan.append(fail_before("get_run", 1))
        await runner.delete_session(USER, SESSION)
        assert await outcome_of(runs[1]) == "session.deleted"
        assert (await artifacts.list_artifact_names(scope)).items == []
        # It is this one that the store could not tell what became of it.
        assert await outcome_of(runs[0]) == "store.unavailable"
        await idle()
        assert_at_rest(runner)

    case()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("store_class", "call"), STORES)
def test_a_caller_who_is_cancelled_leaves_all_of_it_or_nothing(store_class, call, after):
    @for_seeds(5)
    async def case():
        runner, runs, artifacts, scope = await saved(store_class)
        slow = hold(call, after=after)
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


@pytest.mark.parametrize(("store_class", "call"), [(FaultyStore, "delete_session"), (FaultyRetainingStore, "get_session")])
def test_a_caller_who_is_cancelled_need_not_be_told_that_there_was_none(store_class, call):
    @for_seeds(5)
    async def case():
        runner = make_runner(saver, store_class(InMemorySessionService(), [slow := hold(call)]))
        deleting = asyncio.ensure_future(runner.delete_session(USER, SESSION))
        await slow.reached.wait()
        await dropped(deleting)
        slow.go.set()
        await runner.close()

    case()


async def nothing_left(store, artifacts, scope):
    return not (await artifacts.list_artifact_names(scope)).items and not await store.dropped_sessions(APP)


@for_seeds(5)
async def test_a_process_that_dies_once_the_session_is_gone_leaves_its_artifacts_to_the_next():
    runner, _, artifacts, scope = await saved(FaultyRetainingStore)
    store = runner.store.inner
    runner.store.plan.append(last_word := hold("drop_session", after=True))
    deleting = asyncio.ensure_future(runner.delete_session(USER, SESSION))
    await last_word.reached.wait()
    assert (await artifacts.list_artifact_names(scope)).items == ["note.txt"]
    async with make_runner(saver, store, artifact_service=artifacts):
        await idle()
        assert await nothing_left(store, artifacts, scope)
    # Had it been slow and not dead, no harm would be done.
    last_word.go.set()
    await deleting
    await runner.close()


@for_seeds(5)
async def test_artifacts_that_cannot_be_deleted_are_deleted_later():
    runner, _, artifacts, scope = await saved(FaultyRetainingStore)
    store = runner.store.inner
    artifacts.is_away = True
    with raises(Unavailable, "artifact.unavailable"):
        await runner.delete_session(USER, SESSION)
    with raises(NotFound, "session.not_found"):
        await runner.delete_session(USER, SESSION)
    await runner.close()
    async with make_runner(saver, store, artifact_service=artifacts):
        # It is still away, which keeps nobody from running agents.
        await idle()
    assert not await nothing_left(store, artifacts, scope)
    artifacts.is_away = False
    async with make_runner(saver, store, artifact_service=artifacts):
        await idle()
    assert await nothing_left(store, artifacts, scope)


@for_seeds(3)
async def test_a_lost_reply_leaves_nothing_behind_either():
    runner, _, artifacts, scope = await saved(FaultyRetainingStore)
    runner.store.plan.append(fail_after("settle_dropped", 1))
    with raises(Unavailable, "store.unavailable"):
        await runner.delete_session(USER, SESSION)
    assert await nothing_left(runner.store.inner, artifacts, scope)
    await runner.close()


@for_seeds(3)
async def test_a_session_that_is_created_again_keeps_its_own_artifacts():
    runner, _, artifacts, old = await saved(FaultyRetainingStore)
    store = runner.store.inner
    artifacts.is_away = True
    with raises(Unavailable, "artifact.unavailable"):
        await runner.delete_session(USER, SESSION)
    await runner.close()
    new = await store.create_session(app_name=APP, user_id=USER, session_id=SESSION)
    await artifacts.save_artifact(scope_of(new), "note.txt", b"another")
    artifacts.is_away = False
    async with make_runner(saver, store, artifact_service=artifacts):
        await idle()
    assert await nothing_left(store, artifacts, old)
    assert (await artifacts.list_artifact_names(scope_of(new))).items == ["note.txt"]

"""A1: every artifact that an agent saves is told by an event, whatever becomes of the agent, the run and its process."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content
from sojourn.errors import Unavailable
from sojourn.event import Event, EventActions
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.run.store import MAX_DEATHS
from sojourn.runner.attempt.spill import scope_of
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.artifact_conformance import versions_of
from sojourn.testing.faults import FaultyStore, fail_before
from sojourn.testing.loop import for_seeds
from tests.runner.support import (
    APP,
    SESSION,
    USER,
    assert_at_rest,
    assert_whole,
    dropped,
    idle,
    log_of,
    make_runner,
    outcome_of,
    process,
    read_events,
    read_frames,
)


class Artifacts(InMemoryArtifactService):
    """Counts how often it is looked through, and fails in a way that a test chooses."""

    def __init__(self):
        super().__init__()
        self.listings = 0
        self.lose_reply = None
        self.away = None

    async def save_artifact(self, *args, **options):
        version = await super().save_artifact(*args, **options)
        if self.lose_reply is not None:
            error, self.lose_reply = self.lose_reply, None
            raise error
        return version

    async def list_artifact_names(self, scope, **page):
        self.listings += 1
        if self.away is not None:
            await self.away()
        return await super().list_artifact_names(scope, **page)


async def told_in(store, session_id=SESSION, *, superseded=True):
    """What the events of a session tell of saves, in their order."""
    log = await log_of(store, session_id, superseded=superseded)
    return [e.actions.artifact_delta for e in log if e.actions.artifact_delta]


async def saved_in(artifacts, store):
    """What is there, by name: the run of each version."""
    session = await store.get_session(app_name=APP, user_id=USER, session_id=SESSION)
    scope = scope_of(session)
    names = (await InMemoryArtifactService.list_artifact_names(artifacts, scope)).items
    return {name: [v.run_id for v in await versions_of(artifacts, scope, name)] for name in names}


# -- processes that die -------------------------------------------------------------------------------------------------


def dying(then):
    """An agent whose first attempt saves and hangs; `then` is what it does in later ones."""

    @agent
    async def helper(ctx):
        yield Content("model").with_text("before")
        if ctx.attempt == 1:
            await ctx.artifacts.save("a.txt", "one")
            await ctx.artifacts.save("a.txt", "two")
            await ctx.artifacts.save("user:b.txt", "three")
            await asyncio.Event().wait()
        async for item in then(ctx):
            yield item

    return helper


async def says_after(ctx):
    yield Content("model").with_text("after")


async def saves_again(ctx):
    await ctx.artifacts.save("a.txt", "anew")
    yield Content("model").with_text("after")


async def fails_again(ctx):
    yield Content("model").with_text("after")
    raise ValueError("broken")


async def says_nothing(ctx):
    return
    yield


@pytest.mark.parametrize(
    ("then", "told", "versions"),
    [
        (says_after, [{"a.txt": 1, "user:b.txt": 0}], 2),
        (says_nothing, [{"a.txt": 1, "user:b.txt": 0}], 2),
        (fails_again, [{"a.txt": 1, "user:b.txt": 0}], 2),
        (saves_again, [{"a.txt": 2}, {"user:b.txt": 0}], 3),
    ],
)
def test_what_was_saved_before_a_crash_is_told_by_the_next_attempt(then, told, versions):
    @for_seeds(5)
    async def case():
        store, artifacts = InMemorySessionService(), Artifacts()
        helper = dying(then)
        async with process(helper, store, artifact_service=artifacts) as first:
            run = await first.runner.start(USER, SESSION, "go")
            await idle()
            assert await told_in(store) == []
            first.die()
            async with process(helper, store, artifact_service=artifacts, enter=True) as second:
                run = await second.runner.follow(run.id)
                await run.wait()
                assert run.status is (RunStatus.FAILED if then is fails_again else RunStatus.COMPLETED)
                assert await outcome_of(run) == {fails_again: "agent.failed", says_nothing: "before"}.get(then, "after")
                assert_whole(await read_frames(run))
                assert_at_rest(second.runner)
        assert await told_in(store) == await told_in(store, superseded=False) == told
        assert await saved_in(artifacts, store) == {"a.txt": [run.id] * versions, "user:b.txt": [run.id]}
        assert artifacts.listings == 1

    case()


@for_seeds(5)
async def test_what_an_event_had_told_before_the_crash_is_not_told_again():
    store, artifacts = InMemorySessionService(), Artifacts()

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "earlier":
            await ctx.artifacts.save("a.txt", "of another run")
            await ctx.artifacts.save("user:c.txt", "of another run")
            return
        if ctx.attempt == 1:
            await ctx.artifacts.save("a.txt", "one")
        yield Content("model").with_text("saved")
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    async with process(helper, store, artifact_service=artifacts) as first:
        await (await first.runner.start(USER, SESSION, "earlier")).wait()
        await (await first.runner.start(USER, "elsewhere", "earlier")).wait()
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, artifact_service=artifacts, enter=True) as second:
            assert await (await second.runner.follow(run.id)).result() == "saved"
    assert artifacts.listings == 1
    assert await told_in(store) == [{"a.txt": 0, "user:c.txt": 0}, {"a.txt": 1}]
    events = [e for e in await log_of(store, superseded=True) if e.run_id == run.id]
    assert [(e.text, e.superseded) for e in events] == [("go", False), ("saved", True), ("saved", False)]


@for_seeds(5)
async def test_it_is_told_before_the_run_waits_and_after_two_deaths_too():
    store, artifacts = InMemorySessionService(), Artifacts()

    async def asks(ctx):
        if ctx.attempt == 2:
            await asyncio.Event().wait()
        yield Content("model").with_text(f"you said {await ctx.ask('q', '?')}")

    helper = dying(asks)
    async with process(helper, store, artifact_service=artifacts) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, artifact_service=artifacts, enter=True) as second:
            await idle()
            second.die()
            async with process(helper, store, artifact_service=artifacts, enter=True) as third:
                run = await third.runner.follow(run.id)
                await run.wait()
                assert run.status is RunStatus.WAITING
                assert await told_in(store) == [{"a.txt": 1, "user:b.txt": 0}]
                answered = await third.runner.answer(run.id, (await run.interrupts())[0].id, "yes")
                assert await answered.result() == "you said yes"
                assert artifacts.listings == 1, "an attempt that nobody's death came before has nothing to look for"
                assert_whole(await read_frames(answered))
    assert await told_in(store) == [{"a.txt": 1, "user:b.txt": 0}]


@pytest.mark.parametrize("how", ["attached", "on_crash", "crash_loop"])
def test_a_run_that_does_not_go_on_after_the_crash_tells_what_it_saved(how):
    @for_seeds(3)
    async def case():
        store, artifacts = InMemorySessionService(), Artifacts()

        @agent
        async def helper(ctx):
            await ctx.artifacts.save(f"{ctx.attempt}.txt", "x")
            await asyncio.Event().wait()
            yield "never"

        config = RunConfig(on_crash="fail" if how == "on_crash" else "resume")
        processes = []
        async with process(helper, store, artifact_service=artifacts) as first:
            if how == "attached":
                reader = asyncio.ensure_future(read_events(first.runner.run(USER, SESSION, "go", run_id="r1")))
            else:
                await first.runner.start(USER, SESSION, "go", run_id="r1", run_config=config)
            await idle()
            first.die()
            for _ in range(MAX_DEATHS - 1 if how == "crash_loop" else 0):
                dead = process(helper, store, artifact_service=artifacts, enter=True)
                processes.append(dead)
                one = await dead.__aenter__()
                await idle()
                one.die()
            async with process(helper, store, artifact_service=artifacts, enter=True) as last:
                code = "run.crash_loop" if how == "crash_loop" else "run.lost"
                assert await outcome_of(await last.runner.follow("r1")) == code
            for dead in processes:
                await dead.__aexit__(None, None, None)
        if how == "attached":
            await dropped(reader)
        saved = {f"{n}.txt": 0 for n in range(1, MAX_DEATHS + 1 if how == "crash_loop" else 2)}
        assert await told_in(store) == [saved]

    case()


async def _hangs():
    await asyncio.Event().wait()


async def _is_away():
    raise Unavailable("artifacts are away", code="artifact.unavailable")


async def _is_broken():
    raise OSError("a bug of the service's")


@pytest.mark.parametrize("trouble", [_hangs, _is_away, _is_broken])
def test_a_service_that_cannot_be_looked_through_does_not_keep_the_run_from_its_end(trouble):
    @for_seeds(2)
    async def case():
        store, artifacts = InMemorySessionService(), Artifacts()
        artifacts.away = trouble
        helper = dying(says_after)
        async with process(helper, store, artifact_service=artifacts) as first:
            run = await first.runner.start(USER, SESSION, "go")
            await idle()
            first.die()
            async with process(helper, store, artifact_service=artifacts, enter=True) as second:
                assert await (await second.runner.follow(run.id)).result() == "after"
                assert_at_rest(second.runner)
        assert await told_in(store) == []

    case()


@for_seeds(5)
async def test_a_run_that_is_cancelled_while_its_saves_are_looked_for_ends_all_the_same():
    store, artifacts = InMemorySessionService(), Artifacts()
    artifacts.away = _hangs
    helper = dying(says_after)
    async with process(helper, store, artifact_service=artifacts) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, artifact_service=artifacts, enter=True) as second:
            await idle()
            job = second.runner.hub.jobs[run.record.uid]
            job.execution.task.cancel()
            assert await (await second.runner.follow(run.id)).result() == "after"
            assert asyncio.get_running_loop().time() < 1


# -- runs that end before their agent says anything ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fails", "cancelled", "timeout", "refused", "branch"])
def test_what_was_saved_is_told_when_the_run_ends_badly(how):
    @for_seeds(3)
    async def case():
        artifacts = Artifacts()

        @agent
        async def helper(ctx):
            await ctx.artifacts.save("a.txt", "x")
            if how in ("fails", "branch"):
                raise ValueError("broken")
            if how == "refused":
                yield Event(content=Content("model").with_text("said"), actions=EventActions(state_delta={"big": "x" * 5000}))
            await asyncio.Event().wait()

        root = ParallelAgent(name="all", sub_agents=[helper]) if how == "branch" else helper
        config = RunConfig(max_event_bytes=2048, timeout=5 if how == "timeout" else None)
        runner = make_runner(root, artifact_service=artifacts, run_config=config)
        run = await runner.start(USER, SESSION, "go")
        await idle()
        if how == "cancelled":
            await run.cancel()
        codes = {"cancelled": "run.cancelled", "timeout": "run.timeout", "refused": "event.too_large"}
        assert await outcome_of(run) == codes.get(how, "agent.failed")
        assert await told_in(runner.store) == [{"a.txt": 0}]
        assert_whole(await read_frames(run))
        last = (await log_of(runner.store))[-1]
        assert (last.author, last.content, last.branch) == (root.name, None, None)
        assert artifacts.listings == 0
        await idle()
        assert_at_rest(runner)

    case()


@for_seeds(3)
async def test_what_was_saved_is_told_when_the_last_message_is_refused():
    @agent
    async def helper(ctx):
        yield "the answer"
        await ctx.artifacts.save("a.txt", "x")
        ctx.state["big"] = "x" * 5000

    runner = make_runner(helper, run_config=RunConfig(max_event_bytes=2048))
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "event.too_large"
    assert await told_in(runner.store) == [{"a.txt": 0}]
    assert_whole(await read_frames(run))


@for_seeds(3)
async def test_a_plugin_that_takes_the_saves_out_of_an_event_does_not_hide_them():
    class Censor(Plugin):
        async def on_event(self, ctx, event):
            return event.evolve(actions=EventActions()) if event.content is not None else None

    @agent
    async def helper(ctx):
        await ctx.artifacts.save("a.txt", "x")
        yield "the answer"

    runner = make_runner(helper, plugins=[Censor()])
    assert await (await runner.start(USER, SESSION, "go")).result() == "the answer"
    assert await told_in(runner.store) == [{"a.txt": 0}]


@for_seeds(3)
async def test_saves_that_cannot_be_told_do_not_keep_the_run_from_its_end():
    @agent
    async def helper(ctx):
        for n in range(100):
            await ctx.artifacts.save(f"a file with quite a long name {n}.txt", "x")
        raise ValueError("broken")

    runner = make_runner(helper, run_config=RunConfig(max_event_bytes=2048))
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "event.too_large"
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_what_was_saved_around_a_question_is_told_before_the_run_waits():
    artifacts = Artifacts()

    @agent
    async def inner(ctx):
        yield Content("model").with_text(f"you said {await ctx.ask('q', '?')}")

    @agent
    async def helper(ctx):
        if ctx.attempt == 1:
            await ctx.artifacts.save("a.txt", "x")
        await ctx.run_agent(inner)
        yield "end"

    runner = make_runner(helper, artifact_service=artifacts)
    run = await runner.start(USER, SESSION, "go")
    await run.wait()
    assert run.status is RunStatus.WAITING
    assert await told_in(runner.store) == [{"a.txt": 0}]
    answered = await runner.answer(run.id, (await run.interrupts())[0].id, "yes")
    assert await answered.result() == "end"
    assert await told_in(runner.store) == [{"a.txt": 0}]
    assert_whole(await read_frames(answered))
    log = await log_of(runner.store)
    assert [e.text for e in log if e.text] == ["go", "you said yes", "end"]
    assert artifacts.listings == 0


@for_seeds(5)
async def test_what_was_saved_before_a_shutdown_is_told_and_the_run_goes_on():
    store, artifacts = InMemorySessionService(), Artifacts()
    helper = dying(says_after)
    first = make_runner(helper, store, artifact_service=artifacts)
    run = await first.start(USER, SESSION, "go")
    await idle()
    assert (await first.close(grace=0)).suspended == 1
    assert await told_in(store) == [{"a.txt": 1, "user:b.txt": 0}]
    async with make_runner(helper, store, artifact_service=artifacts) as second:
        run = await second.follow(run.id)
        assert await run.result() == "after"
        assert_whole(await read_frames(run))
    assert await told_in(store) == [{"a.txt": 1, "user:b.txt": 0}]
    assert [e.text for e in await log_of(store)] == ["go", "before", "after"]
    assert artifacts.listings == 0


# -- saves that are cut off ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Unavailable("the reply was lost", code="artifact.unavailable"), asyncio.CancelledError()])
def test_a_save_whose_reply_was_lost_is_told(error):
    @for_seeds(3)
    async def case():
        artifacts = Artifacts()

        @agent
        async def helper(ctx):
            artifacts.lose_reply = error
            try:
                await ctx.artifacts.save("a.txt", "x")
            except (Unavailable, asyncio.CancelledError):
                yield "it may be there"

        runner = make_runner(helper, artifact_service=artifacts)
        assert await (await runner.start(USER, SESSION, "go")).result() == "it may be there"
        assert await told_in(runner.store) == [{"a.txt": 0}]
        assert artifacts.listings == 1

    case()


@for_seeds(3)
async def test_what_ends_after_its_run_saves_nothing():
    artifacts = Artifacts()

    @agent
    async def stubborn(ctx):
        while True:
            try:
                await asyncio.sleep(1000)
                await ctx.artifacts.save("late.txt", "x")
                return "too late"
            except asyncio.CancelledError:
                if asyncio.get_running_loop().time() > 100:
                    raise

    runner = make_runner(stubborn, artifact_service=artifacts, run_config=RunConfig(cancel_grace=1))
    run = await runner.start(USER, SESSION, "go")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    await asyncio.sleep(3000)
    assert await saved_in(artifacts, runner.store) == {}
    assert_at_rest(runner)


@for_seeds(3)
async def test_an_append_at_the_end_that_is_repeated_tells_once():
    store = FaultyStore(InMemorySessionService(), [fail_before("append", 1)])

    @agent
    async def helper(ctx):
        await ctx.artifacts.save("a.txt", "x")
        raise ValueError("broken")

    runner = make_runner(helper, store)
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "agent.failed"
    assert await told_in(store) == [{"a.txt": 0}]

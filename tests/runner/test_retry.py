"""Repeating a run in its place, with the same message or another one: regenerate and edit."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content, Part
from sojourn.errors import Conflict, InvalidInput, LimitExceeded, NotFound, Unavailable
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.attempt.spill import scope_of
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.artifact_conformance import names_of
from sojourn.testing.builders import new_run
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises, unchanged
from tests.runner.support import (
    APP,
    KEY,
    SESSION,
    USER,
    idle,
    log_of,
    make_runner,
    outcome_of,
    process,
    read_frames,
    said_in,
    state_of,
)


def failing(times):
    """An agent that fails the first times that it runs."""
    runs = []

    @agent
    async def helper(ctx):
        runs.append(ctx.run_id)
        ctx.state.increment("tries")
        yield Content("model").with_text(f"try {len(runs)}")
        if len(runs) <= times:
            raise ValueError("broken")
        if ctx.user_content.text == "hang":
            await asyncio.Event().wait()
        if ctx.user_content.text == "ask":
            await ctx.ask("q", "?")
        yield "done"

    return helper, runs


@for_seeds(5)
async def test_a_retry_repeats_the_message_and_what_the_old_run_said_does_not_count():
    store = InMemorySessionService()
    helper, runs = failing(2)
    runner = make_runner(helper, store)
    first = await runner.start(USER, SESSION, "go", run_config=RunConfig(max_turns=7))
    assert await outcome_of(first) == "agent.failed"
    second = await runner.retry(first.id)
    assert await outcome_of(second) == "agent.failed"
    third = await runner.retry(second.id)
    assert await third.result() == "done"
    assert runs == [first.id, second.id, third.id]
    assert third.record.retry_of == second.id
    assert third.record.config == {"max_turns": 7}
    assert not third.record.attached
    assert await said_in(store) == [("user", "go"), ("helper", "try 3"), ("helper", "done")]
    assert [e.superseded for e in await log_of(store, superseded=True)] == [True] * 4 + [False] * 3
    assert await state_of(store) == {"tries": 3}, "what a run has done to the state stays"
    assert [r.status for r in (await runner.list_runs()).items] == [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.FAILED]


@for_seeds(5)
async def test_a_retry_does_not_see_what_the_old_run_said():
    seen = []

    @agent
    async def helper(ctx):
        seen.append([e.text for e in await ctx.history()])
        yield Content("model").with_text("half")
        if len(seen) == 2:
            raise ValueError("broken")

    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "before")).result()
    failed = await runner.start(USER, SESSION, "go")
    await failed.wait()
    await (await runner.retry(failed.id)).result()
    assert seen == [["before"], ["before", "half", "go"], ["before", "half", "go"]]


@agent
async def helper(ctx):
    """Says what it was told and how much was said before; hangs or asks if it is told to."""
    history = await ctx.history()
    ctx.state.increment("runs")
    if ctx.user_content.text == "hang":
        await asyncio.Event().wait()
    if ctx.user_content.text == "ask":
        await ctx.ask("q", "?")
    yield Content("model").with_text(f"{ctx.user_content.text} after {[e.text for e in history if e.run_id != ctx.run_id]}")


async def talked(runner, *messages):
    """The runs of some messages, each at its end."""
    runs = []
    for message in messages:
        runs.append(await runner.start(USER, SESSION, message))
        await runs[-1].wait()
    return runs


# -- regenerate and edit ------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_an_earlier_message_is_edited_and_what_came_after_it_does_not_count():
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    runs = await talked(runner, "one", "two", "three")
    frames = [(await read_frames(run)).frames for run in runs]
    log = await log_of(store)
    edited = await runner.retry(runs[1].id, "zwei")
    assert await edited.result() == "zwei after ['one', 'one after []']"
    assert edited.record.retry_of == runs[1].id
    assert await said_in(store) == [
        ("user", "one"), ("helper", "one after []"), ("user", "zwei"), ("helper", "zwei after ['one', 'one after []']"),
    ]  # fmt: skip
    assert [e.superseded for e in await log_of(store, superseded=True)] == [False] * 2 + [True] * 4 + [False] * 2
    assert [e.id for e in await log_of(store, superseded=True)][:6] == [e.id for e in log], "nothing is copied"
    assert [(await run.refresh()).superseded_by for run in runs] == [None, edited.id, edited.id]
    assert await state_of(store) == {"runs": 4}, "what the old branch did to the state stays"

    old = [await make_runner(helper, store).follow(run.id) for run in runs]
    assert [(await read_frames(run)).frames for run in old] == frames, "the old branch reads as it did"
    assert [[e.text async for e in run.events()] for run in old] == [[f[1].event.text] for f in frames]
    assert [await run.result() for run in old] == [f[1].event.text for f in frames]

    later = await runner.start(USER, SESSION, "four")
    assert "three" not in await later.result()


@for_seeds(5)
async def test_an_answer_is_regenerated_as_often_as_one_likes():
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    _, run = await talked(runner, "one", "two")
    for _ in range(3):
        run = await runner.retry(run.id)
        assert await run.result() == "two after ['one', 'one after []']"
    assert len(await said_in(store)) == 4
    assert len(await log_of(store, superseded=True)) == 10


@for_seeds(5)
async def test_the_old_branch_is_told_from_what_an_attempt_left():
    store = InMemorySessionService()
    attempts = []

    @agent
    async def changing(ctx):
        attempts.append(ctx.attempt)
        yield Content("model").with_text("same")
        yield Content("model").with_text(f"try {len(attempts)}")
        if len(attempts) == 1:
            await asyncio.Event().wait()

    async with process(changing, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
    async with process(changing, store, enter=True) as second:
        run = await second.runner.follow(run.id)
        assert await run.result() == "try 2"
        await (await second.runner.retry(run.id)).result()
        assert [e.text async for e in run.events()] == ["same", "try 2"]
        assert await run.result() == "try 2"


@for_seeds(5)
async def test_a_superseded_run_is_not_repeated():
    runner = make_runner(helper)
    runs = await talked(runner, "one", "two", "three")
    edited = await runner.retry(runs[1].id, "zwei")
    await edited.wait()
    for run in runs[1:]:
        with pytest.raises(Conflict, match=edited.id) as caught:
            await runner.retry(run.id)
        assert caught.value.code == "run.superseded"
    assert await (await runner.retry(runs[0].id, "eins")).result() == "eins after []"


@for_seeds(5)
async def test_artifacts_keep_their_versions():
    artifacts = InMemoryArtifactService()

    @agent
    async def saving(ctx):
        version = await ctx.artifacts.save("note.txt", ctx.user_content.text)
        yield Content("model").with_text(f"version {version}")

    runner = make_runner(saving, artifact_service=artifacts)
    run = await runner.start(USER, SESSION, "first")
    assert await run.result() == "version 0"
    run = await runner.retry(run.id, "second")
    assert await run.result() == "version 1"
    scope = scope_of(await runner.get_session(USER, SESSION))
    assert [(await artifacts.load_artifact(scope, "note.txt", n)).text for n in (0, 1)] == ["first", "second"]


# -- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["hang", "ask"])
@pytest.mark.parametrize("busy", ["enqueue", "reject", "replace"])
@pytest.mark.parametrize("large", [False, True])
def test_nothing_is_repeated_while_it_or_a_later_run_goes_on(message, busy, large):
    @for_seeds(3)
    async def case():
        store = InMemorySessionService()
        artifacts = InMemoryArtifactService()
        runner = make_runner(helper, store, artifact_service=artifacts)
        (before,) = await talked(runner, "one")
        going_on = await runner.start(USER, SESSION, message)
        queued = await runner.start(USER, SESSION, "two") if message == "hang" else None
        await idle()
        config = RunConfig(when_busy=busy)
        new_message = Content("user").with_text("zwei").with_bytes(b"x" * (100_000 if large else 10))
        async with unchanged(store, APP):
            for repeated in (before, going_on):
                with pytest.raises(Conflict, match=f"'{going_on.id}'.*cancel it") as caught:
                    await runner.retry(repeated.id, new_message, run_config=config)
                assert caught.value.code == "run.not_finished"
            await idle()
        assert await names_of(artifacts, scope_of(await runner.get_session(USER, SESSION))) == []
        await going_on.cancel()
        await going_on.wait()
        if queued is not None:
            await queued.wait()
        assert await (await runner.retry(before.id, new_message, run_config=config)).result() == "zwei after []"

    case()


@for_seeds(3)
async def test_what_cannot_be_said_is_no_edit():
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    (run,) = await talked(runner, "one")
    response = Content("user", (Part.from_function_response("look_up", {"result": 1}, id="c1"),))
    async with unchanged(store, APP):
        for bad in ("", Content("user"), response, 7):
            with raises(InvalidInput, "message.invalid"):
                await runner.retry(run.id, bad)
        with raises(NotFound, "run.not_found"):
            await runner.retry("nobody")
        with raises(NotFound, "run.not_found"):
            await runner.retry(run.id, user_id="bob")


@for_seeds(5)
async def test_a_repeat_without_a_place_in_the_queue_changes_nothing():
    store = InMemorySessionService()
    runner = make_runner(helper, store, max_concurrency=1, max_queue=0)
    (run,) = await talked(runner, "one")
    busy = await runner.start(USER, "elsewhere", "hang")
    await idle()
    async with unchanged(store, APP):
        with raises(LimitExceeded, "limit.queue_full"):
            await runner.retry(run.id)
    await busy.cancel()


@pytest.mark.parametrize("fault", [fail_before, fail_after])
def test_a_store_that_fails_once_repeats_once(fault):
    @for_seeds(5)
    async def case():
        inner = InMemorySessionService()
        store = FaultyStore(inner)
        runner = make_runner(helper, store)
        runs = await talked(runner, "one", "two")
        store.plan.append(fault("submit", 3))
        again = await runner.retry(runs[0].id, "eins")
        assert await again.result() == "eins after []"
        assert [text for _, text in await said_in(inner)] == ["eins", "eins after []"]

    case()


@for_seeds(5)
async def test_a_store_that_is_away_leaves_the_old_branch():
    inner = InMemorySessionService()
    store = FaultyStore(inner)
    runner = make_runner(helper, store)
    (run,) = await talked(runner, "one")
    store.plan.append(fail_before("submit", 2, 3, 4))
    async with unchanged(inner, APP):
        with raises(Unavailable, "store.unavailable"):
            await runner.retry(run.id, "eins")


# -- in the queue -------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_a_queued_repeat_takes_the_place_when_its_turn_comes():
    store = InMemorySessionService()
    runner = make_runner(helper, store, max_concurrency=1)
    runs = await talked(runner, "one", "two")
    busy = await runner.start(USER, "elsewhere", "hang")
    await idle()
    said = await said_in(store)
    repeated = await runner.retry(runs[0].id, "eins")
    await idle()
    assert repeated.status is RunStatus.QUEUED
    assert await said_in(store) == said
    with raises(Conflict, "run.not_finished"):
        await runner.retry(runs[0].id, "eins")
    await busy.cancel()
    assert await repeated.result() == "eins after []"
    assert [text for _, text in await said_in(store)] == ["eins", "eins after []"]


@for_seeds(5)
async def test_a_repeat_that_is_cancelled_in_the_queue_changes_nothing():
    store = InMemorySessionService()
    runner = make_runner(helper, store, max_concurrency=1)
    runs = await talked(runner, "one", "two")
    busy = await runner.start(USER, "elsewhere", "hang")
    await idle()
    said = await said_in(store)
    repeated = await runner.retry(runs[0].id, "eins")
    await repeated.cancel()
    await busy.cancel()
    assert await said_in(store) == said
    again = await runner.retry(repeated.id)
    assert again.record.retry_of == repeated.id
    assert await again.result() == "eins after []"
    assert [text for _, text in await said_in(store)] == ["eins", "eins after []"]


@for_seeds(5)
async def test_it_waits_for_an_earlier_run_that_was_answered():
    store = InMemorySessionService()
    order = []

    @agent
    async def asking(ctx):
        if ctx.user_content.text == "ask":
            answer = await ctx.ask("q", "?")
            await asyncio.sleep(1)
            yield Content("model").with_text(f"{answer}!")
        order.append(ctx.user_content.text)
        yield Content("model").with_text("ok")

    runner = make_runner(asking, store)
    first, second = await talked(runner, "ask", "two")
    await runner.answer(first.id, (await first.interrupts())[0].id, "yes")
    await idle()
    repeated = await runner.retry(second.id, "zwei")
    assert await repeated.result() == "ok"
    assert order == ["two", "ask", "zwei"]
    texts = [text for _, text in await said_in(store)]
    assert [t for t in texts if t] == ["ask", "yes!", "ok", "zwei", "ok"], "what the earlier run says later stays"


@for_seeds(5)
async def test_a_queued_repeat_survives_its_process():
    store = InMemorySessionService()
    async with process(helper, store, max_concurrency=1) as first:
        runs = await talked(first.runner, "one", "two")
        await first.runner.start(USER, "elsewhere", "hang")
        await idle()
        repeated = await first.runner.retry(runs[0].id, "eins")
        first.die()
    assert len(await said_in(store)) == 4
    async with process(helper, store, enter=True) as second:
        repeated = await second.runner.follow(repeated.id)
        assert await repeated.result() == "eins after []"
        await second.runner.close(0)
    assert len(await said_in(store)) == 2


# -- once ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000])
def test_with_an_id_it_is_done_once(size):
    @for_seeds(10)
    async def case():
        store = InMemorySessionService()
        runner = make_runner(helper, store, artifact_service=InMemoryArtifactService())
        runs = await talked(runner, "one", "two", "three")
        message = Content("user").with_text("zwei").with_bytes(b"x" * size)

        async def repeat():
            return await runner.retry(runs[1].id, message, new_run_id="again")

        first, second = await asyncio.gather(repeat(), repeat())
        assert await first.result() == await second.result() == "zwei after ['one', 'one after []']"
        assert await (await repeat()).result() == await first.result()
        assert len(await said_in(store)) == 4
        (later,) = await talked(runner, "four")
        assert (await repeat()).status is RunStatus.COMPLETED
        assert (await later.refresh()).superseded_by is None
        for other in (
            runner.retry(later.id, message, new_run_id="again"),
            runner.retry(runs[1].id, "two", new_run_id="again"),
            runner.start(USER, SESSION, message, run_id="again"),
        ):
            with raises(Conflict, "run.conflict"):
                await other

    case()


@for_seeds(10)
async def test_of_two_at_once_one_is_done():
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    (run,) = await talked(runner, "one")
    done = await asyncio.gather(runner.retry(run.id, "a"), runner.retry(run.id, "b"), return_exceptions=True)
    (refused,) = [d for d in done if isinstance(d, Conflict)]
    (again,) = [d for d in done if not isinstance(d, Conflict)]
    assert refused.code in ("run.not_finished", "run.superseded")
    await again.wait()
    assert len(await said_in(store)) == 2


# -- as any run ---------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_an_attached_repeat_ends_when_its_caller_leaves():
    runner = make_runner(helper)
    (run,) = await talked(runner, "one")
    again = await runner.retry(run.id, "hang", attached=True)
    await idle()
    await runner.leave(again)
    assert again.status is RunStatus.CANCELLED
    assert await (await runner.retry(again.id, "one")).result() == "one after []"


@for_seeds(3)
async def test_a_stored_message_does_not_go_through_the_hooks_again():
    class Signs(Plugin):
        async def on_user_message(self, key, content):
            return Content("user").with_text(f"{content.text}, signed")

    runner = make_runner(helper, plugins=[Signs()])
    run = await runner.start(USER, SESSION, "one")
    assert await run.result() == "one, signed after []"
    run = await runner.retry(run.id)
    assert await run.result() == "one, signed after []"
    run = await runner.retry(run.id, "two")
    assert await run.result() == "two, signed after []"


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_message_with_bytes_may_be_retried(size):
    @for_seeds(2)
    async def case():
        helper, _ = failing(1)
        runner = make_runner(helper)
        failed = await runner.start(USER, SESSION, Content("user").with_text("look").with_bytes(b"x" * size))
        await failed.wait()
        retried = await runner.retry(failed.id)
        assert await retried.result() == "done"
        assert retried.record.message.content == failed.record.message.content

    case()


@for_seeds(5)
async def test_what_came_after_a_run_ceases_to_count_only_if_that_is_said():
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    runs = await talked(runner, "one", "two")
    before = await said_in(store)
    with pytest.raises(Conflict, match=runs[1].id) as caught:
        await runner.retry(runs[0].id)
    assert caught.value.code == "run.has_later"
    assert await said_in(store) == before
    again = await runner.retry(runs[0].id, new_run_id="again", drop_later=True)
    assert await again.result() == "one after []"
    assert len(await said_in(store)) == 2


@for_seeds(5)
async def test_what_goes_on_is_told_before_what_has_come_later():
    @agent
    async def helper(ctx):
        if ctx.user_content.text == "ask":
            await ctx.ask("q", "?")
        yield "done"

    runner = make_runner(helper)
    runs = [await runner.start(USER, SESSION, text) for text in ("one", "ask", "three")]
    for run in runs:
        await run.wait()
    for run in runs[:2]:
        with pytest.raises(Conflict, match=runs[1].id) as caught:
            await runner.retry(run.id)
        assert caught.value.code == "run.not_finished"


@for_seeds(5)
async def test_the_last_run_is_repeated_as_often_as_asked_under_one_id():
    runner = make_runner(helper)
    (run,) = await talked(runner, "one")
    first = await runner.retry(run.id, new_run_id="again")
    await first.wait()
    second = await runner.retry(run.id, new_run_id="again")
    assert (second.id, second.record.uid) == (first.id, first.record.uid)


@for_seeds(1)
async def test_of_many_runs_that_go_on_the_first_is_told():
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    (before,) = await talked(runner, "one")
    (last,) = await talked(runner, "two")
    for n in range(1_001):
        await store.submit(new_run(f"q{n}", KEY), begin=False)
    for repeated in (before, last):
        with pytest.raises(Conflict, match="'q0'") as caught:
            await runner.retry(repeated.id, "again", run_config=RunConfig(when_busy="replace"))
        assert caught.value.code == "run.not_finished"

"""Repeating what failed or was cancelled, as a new run."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import Conflict, NotFound
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import SESSION, USER, idle, log_of, make_runner, outcome_of, said_in, state_of


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


@for_seeds(5)
async def test_a_cancelled_run_may_be_retried_and_others_not():
    helper, _ = failing(0)
    runner = make_runner(helper)
    for message in ("go", "ask", "hang"):
        run = await runner.start(USER, message, message)
        await idle()
        with raises(Conflict, "run.not_retryable"):
            await runner.retry(run.id)
    await run.cancel()
    await run.wait()
    again = await runner.retry(run.id)
    await idle()
    assert again.status is RunStatus.RUNNING
    await again.cancel()
    await again.wait()
    with raises(NotFound, "run.not_found"):
        await runner.retry("nobody")
    with raises(NotFound, "run.not_found"):
        await runner.retry(run.id, user_id="bob")


@for_seeds(5)
async def test_a_retry_is_queued_like_any_run():
    helper, runs = failing(1)
    runner = make_runner(helper)
    failed = await runner.start(USER, SESSION, "go")
    await failed.wait()
    busy = await runner.start(USER, SESSION, "hang")
    await idle()
    retried = await runner.retry(failed.id)
    await idle()
    assert retried.status is RunStatus.QUEUED
    await busy.cancel()
    assert await retried.result() == "done"
    assert runs == [failed.id, busy.id, retried.id]


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

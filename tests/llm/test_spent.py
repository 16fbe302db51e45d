"""Tokens of answers that come to nothing: spent all the same, and so in the sums of the run and of its user."""

import asyncio

import pytest

from sojourn.agents.llm.agent import LlmAgent
from sojourn.content import Content
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.llm.provider import Reply, chunk, provider
from tests.llm.support import assert_valid_history, llm
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, read_events

MODES = [StreamingMode.NONE, StreamingMode.SSE]


async def assert_spent(runner, run, *, answers=1):
    """The run, its user and its events tell of as many tokens as these answers have cost, and of no more."""
    record = await run.refresh()
    events = [e for e in await log_of(runner.store) if e.author != "user"]
    spent = record.usage.get("total_token_count", 0)
    assert spent == sum(e.usage_metadata.total_token_count for e in events if e.usage_metadata)
    assert spent == (await runner.usage(USER)).total.total_token_count
    # What a scripted model is shown counts for 50 and more, each time.
    assert 50 * answers <= spent < 50 * (answers + 1) + 50
    return events


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("says", ["Hello ", Calls("final_result", {"a": 1})])
def test_an_after_model_raises(mode, says):
    @for_seeds(3)
    async def case():
        def broken(ctx, content):
            raise ValueError("broken")

        schema = None if isinstance(says, str) else {"type": "object"}
        store = InMemorySessionService()
        runner = make_runner(
            llm(says, after_model=broken, output_schema=schema), store, run_config=RunConfig(streaming_mode=mode)
        )
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "agent.failed"
        (event,) = await assert_spent(runner, run)
        assert event.interrupted
        streamed = mode is StreamingMode.SSE and isinstance(says, str)
        assert event.text == ("Hello " if streamed else "")
        await assert_valid_history(store)

    case()


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_too_large_for_a_step(mode):
    @for_seeds(3)
    async def case():
        config = RunConfig(streaming_mode=mode, max_event_bytes=3000)
        runner = make_runner(llm("x" * 4000), run_config=config)
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "step.too_large"
        _, event = await log_of(runner.store)
        assert event.interrupted
        assert event.usage_metadata.total_token_count > 50
        assert (await runner.usage(USER)).total.total_token_count == event.usage_metadata.total_token_count

    case()


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_is_too_large_for_an_event(mode):
    @for_seeds(2)
    async def case():
        # There is nowhere to move it to: neither the answer nor, if it was streamed, the pieces of it can be stored.
        config = RunConfig(streaming_mode=mode, max_event_bytes=3400)
        runner = make_runner(llm("x" * 3200), run_config=config, artifact_service=None)
        run = await runner.start(USER, SESSION, "go")
        outcome = await outcome_of(run)
        assert outcome in ("step.too_large", "artifact.not_configured")
        _, event = await log_of(runner.store)
        assert (event.text, event.interrupted) == ("", True)
        assert (await run.refresh()).usage["total_token_count"] > 50, outcome

    case()


@pytest.mark.parametrize("mode", MODES)
def test_output_does_not_fit_however_often_it_is_asked_for(mode):
    @for_seeds(3)
    async def case():
        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        helper = llm(Calls("final_result", {"a": "x"}), repeat=True, output_schema=schema, retries=1)
        runner = make_runner(helper, run_config=RunConfig(streaming_mode=mode))
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "model.bad_answer"
        await assert_spent(runner, run, answers=len(helper.model.requests))

    case()


@for_seeds(3)
async def test_output_that_did_not_fit_counts_for_the_limit_of_the_next_call():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    helper = llm(Calls("final_result", {"a": "x"}), repeat=True, output_schema=schema)
    runner = make_runner(helper, run_config=RunConfig(max_tokens=20))
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "run.max_tokens"
    assert len(helper.model.requests) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_cancel_after_the_answer(mode):
    @for_seeds(5)
    async def case():
        paid = asyncio.Event()

        async def slow(ctx, content):
            paid.set()
            await asyncio.Event().wait()

        runner = make_runner(llm("Hello.", after_model=slow), run_config=RunConfig(streaming_mode=mode))
        run = await runner.start(USER, SESSION, "go")
        await paid.wait()
        await run.cancel("enough")
        assert (await run.wait()).status is RunStatus.CANCELLED
        (event,) = await assert_spent(runner, run)
        assert event.interrupted

    case()


@for_seeds(3)
async def test_an_answer_that_a_callback_takes_back():
    runner = make_runner(
        llm("Hello.", "Well.", after_model=lambda ctx, content: Content("model") if "H" in content.text else None)
    )
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "Well."
    await assert_spent(runner, run, answers=2)


@pytest.mark.anyio
async def test_a_stream_breaks_off_after_it_has_told_its_usage():
    reply = Reply(chunks=[chunk("Hel"), chunk(usage=(70, 3))], cut=True)
    async with (
        provider(reply) as server,
        make_runner(LlmAgent(name="helper", model="local", base_url=server.url)) as runner,
    ):
        stream = runner.run(USER, SESSION, "go")
        reading = await read_events(stream)
    assert reading.error.code == "model.unreachable"
    (event,) = reading.events
    assert (event.text, event.interrupted, event.usage_metadata.total_token_count) == ("Hel", True, 73)
    assert (await stream.run.refresh()).usage["total_token_count"] == 73

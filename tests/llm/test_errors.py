"""What goes wrong between an agent and its model: codes, retries, and what a client gets to see."""

import asyncio
import re
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelConnectionError,
    ModelRateLimitError,
    ModelServerError,
    ModelUnavailableError,
    OutputTokenLimitExceeded,
)

from sojourn import platform
from sojourn.agents.llm import models
from sojourn.agents.llm.agent import LlmAgent
from sojourn.content import Content, FileData, Part
from sojourn.errors import InvalidInput, Unsupported
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from sojourn.testing.suite import raises
from tests.llm.provider import DONE, Reply, answer, call, chunk, failure, provider
from tests.llm.support import assert_valid_history, events_of, llm, results_in, said
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, read_events

SECRET = "SECRET of the provider"
KEY = "sk-local-123456"
ERRORS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


# -- asking again -------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_a_provider_that_asks_to_come_back_later_is_asked_again_when_it_said():
    limited = ModelRateLimitError("m", SECRET, retry_after=30)
    helper = llm(limited, limited, "Here I am.")
    began = platform.monotonic()
    run = await said(helper)
    assert await outcome_of(run) == "Here I am."
    assert 60 <= platform.monotonic() - began < 61
    assert len(helper.model.requests) == 3
    assert [e.text for e in await events_of(run)] == ["Here I am."]


@for_seeds(2)
async def test_a_provider_that_never_comes_back_ends_the_run_with_a_code_and_its_delay():
    helper = llm(ModelRateLimitError("m", SECRET, retry_after=30), repeat=True)
    began = platform.monotonic()
    run = await said(helper)
    assert await outcome_of(run) == "model.rate_limited"
    error = run.record.error.to_exception()
    assert error.retryable
    assert "30 seconds" in error.message
    assert SECRET not in error.message
    assert len(helper.model.requests) == models.MAX_ATTEMPTS
    assert platform.monotonic() - began < 30 * models.MAX_ATTEMPTS


@for_seeds(2)
async def test_a_delay_beyond_the_bound_ends_the_run_at_once():
    helper = llm(ModelRateLimitError("m", SECRET, retry_after=3600), repeat=True)
    run = await said(helper)
    assert await outcome_of(run) == "model.rate_limited"
    assert len(helper.model.requests) == 1
    assert "3600 seconds" in run.record.error.message


@pytest.mark.parametrize(
    ("error", "code", "tries"),
    [(ModelUnavailableError("m", SECRET), "model.unavailable", 4), (ModelServerError("m", SECRET), "model.failed", 4),
     (ModelConnectionError("m", SECRET), "model.unreachable", 4), (ContentFilterError(SECRET), "model.filtered", 1),
     (OutputTokenLimitExceeded(SECRET), "model.cut_off", 1), (NotImplementedError(SECRET), "model.unsupported_content", 1)],
)  # fmt: skip
def test_failures_have_codes_and_what_the_provider_said_is_not_for_clients(error, code, tries):
    @for_seeds(1)
    async def case():
        store = InMemorySessionService()
        helper = llm(error, repeat=True)
        run = await said(helper, store=store)
        assert await outcome_of(run) == code
        assert SECRET not in run.record.error.message
        assert len(helper.model.requests) == tries
        await assert_valid_history(store)

    case()


@for_seeds(3)
async def test_what_was_said_before_a_failure_is_kept_and_nothing_is_asked_again():
    store = InMemorySessionService()
    helper = llm(["Once upon ", ModelServerError("m", SECRET)], "Never.", repeat=True)
    runner = make_runner(helper, store)
    reading = await read_events(runner.run(USER, SESSION, "go"))
    assert reading.error.code == "model.failed"
    assert reading.screen == "Once upon "
    _, event = await log_of(store)
    assert (event.text, event.interrupted, event.error_code) == ("Once upon ", True, "model.failed")
    assert len(helper.model.requests) == 1


@for_seeds(3)
async def test_a_cancel_while_waiting_to_ask_again():
    helper = llm(ModelRateLimitError("m", SECRET, retry_after=30), repeat=True)
    run = await make_runner(helper).start(USER, SESSION, "go")
    await asyncio.sleep(1)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert len(helper.model.requests) == 1


# -- over HTTP ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def local(*replies, **options):
    """An agent whose model is a server on loopback, and the server."""
    async with provider(*replies) as server:
        helper = LlmAgent(name="helper", model="local", base_url=server.url, api_key=KEY, **options)
        try:
            yield helper, server
        finally:
            await helper.resolved_model().client.close()


@pytest.fixture
def no_delays(monkeypatch):
    """Nothing is asked again."""
    monkeypatch.setattr(models, "MAX_ATTEMPTS", 1)


async def look(what: str) -> str:
    """Looks."""
    return f"{what}!"


@pytest.mark.anyio
async def test_an_answer_of_a_server_is_streamed_with_calls_and_usage():
    async with local(call("look", '{"wh', 'at": "x"}'), answer("It ", "is x!"), tools=[look]) as (helper, server):
        runner = make_runner(helper)
        stream = runner.run(USER, SESSION, "x?")
        reading = await read_events(stream)
        assert reading.error is None
        assert reading.screen == "It is x!"
        assert "".join(p.call.args for p in reading.partials if p.call) == '{"what": "x"}'
        assert results_in(reading.events) == [{"result": "x!"}]
        assert [e.usage_metadata.total_token_count for e in reading.events if e.usage_metadata] == [10, 10]
        assert (await stream.run.refresh()).usage["total_token_count"] == 20
        (head, body), (_, again) = server.requests
        assert f"Bearer {KEY}" in head
        assert body["model"] == "local"
        assert [m["role"] for m in again["messages"]] == ["system", "user", "assistant", "tool"]


@pytest.mark.anyio
async def test_a_server_that_asks_to_come_back_later_is_asked_again_and_not_behind_our_back():
    replies = [
        failure(429, retry_after_ms="1"),
        failure(503, retry_after_ms="1"),
        failure(500, retry_after_ms="1"),
        answer("Here I am."),
    ]
    async with local(*replies) as (helper, server):
        run = await said(helper)
        assert await outcome_of(run) == "Here I am."
        assert len(server.requests) == 4


@pytest.mark.anyio
async def test_a_server_that_is_always_busy_is_asked_as_often_as_we_say():
    async with local(*[failure(429, retry_after_ms="1")] * 20) as (helper, server):
        assert await outcome_of(await said(helper)) == "model.rate_limited"
        assert len(server.requests) == models.MAX_ATTEMPTS


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reply", "code"),
    [(failure(401), "model.unauthorized"), (failure(403), "model.unauthorized"), (failure(404), "model.unknown"), (failure(400), "model.rejected"),
     (failure(500), "model.failed"), (failure(503), "model.unavailable"), (failure(429, code="insufficient_quota"), "model.quota_exceeded"),
     (failure(400, f"{SECRET}: maximum context length is 10 tokens", code="context_length_exceeded"), "model.context_exceeded"),
     (Reply(cut=True), "model.unreachable"),
     (Reply(chunks=["data: {not json\n\n", DONE]), "model.failed"),
     (Reply(200, {"content-type": "text/html"}, ["<html>SECRET of the provider</html>"]), "model.bad_answer"),
     (Reply(chunks=[DONE]), "model.bad_answer")],
    ids=["401", "403", "404", "400", "500", "503", "quota", "context", "dropped", "garbage", "html", "empty"],
)  # fmt: skip
async def test_what_a_server_does_wrong_has_a_code(reply, code, no_delays):
    store = InMemorySessionService()
    async with local(*[reply] * 9) as (helper, server):
        run = await said(helper, store=store)
        assert await outcome_of(run) == code
        message = run.record.error.message
        assert SECRET not in message
        assert KEY not in message
        assert "helper" in message
        await assert_valid_history(store)


@pytest.mark.anyio
async def test_a_connection_that_is_dropped_in_mid_answer_keeps_what_was_said(no_delays):
    store = InMemorySessionService()
    async with local(Reply(chunks=[chunk("Once upon ")], cut=True), answer("Yes.")) as (helper, server):
        runner = make_runner(helper, store)
        reading = await read_events(runner.run(USER, SESSION, "go"))
        assert reading.error.code == "model.unreachable"
        assert reading.error.retryable
        _, event = await log_of(store)
        assert (event.text, event.interrupted) == ("Once upon ", True)
        assert await outcome_of(await runner.start(USER, SESSION, "Again")) == "Yes."


@pytest.mark.anyio
async def test_a_connection_that_is_dropped_in_a_call_makes_no_call(no_delays):
    store = InMemorySessionService()
    seen = []

    async def wipe(disk: str) -> str:
        """Wipes."""
        seen.append(disk)
        return "wiped"

    piece = chunk(
        calls=[{"index": 0, "id": "c", "type": "function", "function": {"name": "wipe", "arguments": '{"disk": "sda"}'}}]
    )
    async with local(Reply(chunks=[piece], cut=True), answer("Yes."), tools=[wipe]) as (helper, server):
        runner = make_runner(helper, store)
        assert await outcome_of(await runner.start(USER, SESSION, "go")) == "model.unreachable"
        assert seen == []
        assert await outcome_of(await runner.start(USER, SESSION, "Again")) == "Yes."
        await assert_valid_history(store)


@pytest.mark.anyio
async def test_a_cancel_hangs_up():
    never = asyncio.Event()
    async with local(Reply(chunks=[chunk("Once "), never])) as (helper, server):
        stream = make_runner(helper).run(USER, SESSION, "go")
        assert (await anext(stream)).delta == "Once "
        run = stream.run
        await run.cancel()
        assert await outcome_of(run) == "run.cancelled"
        await asyncio.wait_for(server.hung_up.wait(), 20)
        await stream.aclose()


@pytest.mark.anyio
async def test_a_server_that_is_not_there(no_delays):
    async with local() as (helper, server):
        pass
    helper = LlmAgent(name="helper", model="local", base_url=server.url)
    run = await said(helper)
    assert await outcome_of(run) == "model.unreachable"
    await helper.resolved_model().client.close()


@pytest.mark.anyio
async def test_without_streaming_a_server_is_asked_for_whole_answers(no_delays):
    from sojourn.run.config import RunConfig, StreamingMode

    whole = '{"id": "c", "object": "chat.completion", "created": 1, "model": "local", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi."}}], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}'
    async with local(Reply(200, {"content-type": "application/json"}, [whole]), failure(429)) as (helper, server):
        runner = make_runner(helper, run_config=RunConfig(streaming_mode=StreamingMode.NONE))
        assert await outcome_of(await runner.start(USER, SESSION, "go")) == "Hi."
        assert not server.requests[0][1].get("stream")
        assert await outcome_of(await runner.start(USER, SESSION, "go")) == "model.rate_limited"


@pytest.mark.anyio
async def test_an_answer_that_pydantic_ai_cannot_read_has_a_code_of_the_model():
    from sojourn.run.config import RunConfig, StreamingMode

    empty = '{"id": "c", "object": "chat.completion", "created": 1, "model": "local", "choices": []}'
    async with local(Reply(200, {"content-type": "application/json"}, [empty])) as (helper, _):
        runner = make_runner(helper, run_config=RunConfig(streaming_mode=StreamingMode.NONE))
        assert await outcome_of(await runner.start(USER, SESSION, "go")) == "model.bad_answer"


# -- which model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["nope:x", "gpt-5", "google-gla"])
def test_an_unknown_model_is_refused_with_a_code(model):
    with raises(InvalidInput, "model.unknown"):
        LlmAgent(name="helper", model=model).resolved_model()


@pytest.mark.parametrize("model", ["", None, 5])
def test_what_is_no_model_is_refused(model):
    with raises(InvalidInput, "model.invalid"):
        LlmAgent(name="helper", model=model).resolved_model()


@pytest.mark.parametrize(("model", "variable"), [("openai:gpt-5", "OPENAI_API_KEY"), ("openai-chat:gpt-5", "OPENAI_API_KEY"), ("deepseek:x", "DEEPSEEK_API_KEY"), ("ollama:x", "OLLAMA_BASE_URL")])  # fmt: skip
def test_a_missing_key_is_named_together_with_the_remedy(model, variable, monkeypatch):
    for name in ("OPENAI_API_KEY", "DEEPSEEK_API_KEY", "OLLAMA_BASE_URL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidInput) as caught:
        LlmAgent(name="helper", model=model).resolved_model()
    assert caught.value.code == "model.no_key"
    assert variable in caught.value.message
    assert "base_url" in caught.value.message


def test_a_provider_whose_package_is_missing_is_named():
    with pytest.raises(Unsupported) as caught:
        LlmAgent(name="helper", model="anthropic:claude-x").resolved_model()
    assert caught.value.code == "model.not_installed"
    assert "anthropic" in caught.value.message


@for_seeds(1)
async def test_an_agent_without_a_usable_model_fails_its_run_and_not_its_making():
    run = await said(LlmAgent(name="helper", model="nope:x"))
    assert await outcome_of(run) == "model.unknown"


@for_seeds(1)
async def test_too_many_calls_in_one_answer_do_not_hurt():
    helper = llm([Calls("look", {"what": f"{n}"}) for n in range(100)], "Done.", tools=[look])
    run = await said(helper)
    assert await outcome_of(run) == "Done."
    assert [r["result"] for r in results_in(await events_of(run))] == [f"{n}!" for n in range(100)]


def test_every_code_is_explained():
    source = "".join(path.read_text(encoding="utf-8") for path in Path(models.__file__).parent.glob("*.py"))
    codes = set(re.findall(r'"((?:model|tool|instruction)\.[a-z_]+)"', source))
    assert len(codes) > 15
    assert {code for code in codes if f"`{code}`" not in ERRORS} == set()


# -- content ------------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    "part",
    [
        Part.from_bytes(b"x", "video/mp4"),
        Part.from_bytes(b"x", "audio/x-weird"),
        Part.from_uri("ftp://example.com/x.pdf", "application/pdf"),
        Part(file_data=FileData(file_uri="http://example.com/x")),
    ],
)
async def test_a_file_that_the_model_cannot_take_fails_its_own_run_only(part):
    async with local(answer("Fine.")) as (helper, server):
        runner = make_runner(helper)
        assert await outcome_of(await runner.start(USER, SESSION, Content("user", (Part(text="look"), part)))) == (
            "model.unsupported_content"
        )
        assert await outcome_of(await runner.start(USER, SESSION, "Never mind.")) == "Fine."
        assert "which is not shown" in str(server.requests[0])


@for_seeds(2)
async def test_what_a_callback_raises_is_not_the_model_s():
    def broken(ctx, messages):
        raise ValueError("mine")

    assert await outcome_of(await said(llm("Never.", before_model=broken))) == "agent.failed"

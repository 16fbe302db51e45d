"""Why a model ended: told by the event, and no call is made that may have been cut off."""

import pytest
from pydantic_ai.messages import FinishReason, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel

from sojourn.agents.llm.agent import LlmAgent
from sojourn.event import Event
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.llm.provider import DONE, Reply, call, chunk, provider
from tests.llm.support import assert_valid_history, events_of, llm, said
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, read_events

WHOLE = RunConfig(streaming_mode=StreamingMode.NONE)


def tool_of(made):
    async def wipe(disk: str = "all") -> str:
        """Wipes."""
        made.append(disk)
        return "wiped"

    return wipe


def cut(*parts, reason: FinishReason | None, name="helper", **options):
    """An agent whose model ends for this reason."""

    async def respond(messages, info):
        return ModelResponse(list(parts), finish_reason=reason)

    return LlmAgent(name=name, model=FunctionModel(respond), **options)


async def ask(url, *tools, store=None, **fields):
    helper = LlmAgent(name="helper", model="local", base_url=url, tools=tools)
    async with make_runner(helper, store, **fields) as runner:
        return await read_events(runner.run(USER, SESSION, "go"))


# -- what events tell ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "told", "cut_off"),
    [
        ("stop", "STOP", False),
        ("tool_call", "STOP", False),
        ("length", "MAX_TOKENS", True),
        ("content_filter", "SAFETY", True),
        ("error", "OTHER", True),
        (None, None, False),
    ],
)
def test_an_event_tells_why_its_model_ended(reason, told, cut_off):
    @for_seeds(1)
    async def case():
        run = await said(cut(TextPart("To be cont"), reason=reason), run_config=WHOLE)
        assert await outcome_of(run) == "To be cont"
        (event,) = await events_of(run)
        assert (event.finish_reason, event.cut_off) == (told, cut_off)
        assert event.to_wire().get("finishReason") == told
        assert Event.model_validate(event.to_wire()).finish_reason == told

    case()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("finish", "told"),
    [
        ("stop", "STOP"),
        ("length", "MAX_TOKENS"),
        ("content_filter", "SAFETY"),
        ("whim", "OTHER"),
        (None, "FINISH_REASON_UNSPECIFIED"),
    ],
)
async def test_what_a_server_says_or_does_not_say_is_stored(finish, told, tmp_path):
    reply = Reply(chunks=[chunk("To be cont"), *([chunk(finish=finish)] if finish else []), chunk(usage=(7, 3)), DONE])
    store = DatabaseSessionService(f"sqlite:///{tmp_path / 'sessions.db'}")
    async with provider(reply) as server:
        reading = await ask(server.url, store=store)
    assert reading.error is None
    assert [(e.text, e.finish_reason) for e in reading.events] == [("To be cont", told)]
    assert (await log_of(store))[-1].finish_reason == told
    await store.close()


@for_seeds(1)
async def test_what_a_callback_says_instead_is_whole():
    helper = cut(TextPart("To be cont"), reason="length", after_model=lambda ctx, content: "Never mind.")
    (event,) = await events_of(await said(helper, run_config=WHOLE))
    assert (event.text, event.finish_reason) == ("Never mind.", None)


@for_seeds(1)
async def test_structured_output_tells_it_too():
    helper = cut(ToolCallPart("final_result", {"a": 1}), reason="tool_call", output_schema={"type": "object"})
    (event,) = await events_of(await said(helper, run_config=WHOLE))
    assert (event.output, event.finish_reason) == ({"a": 1}, "STOP")


# -- calls --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "code"), [("length", "model.cut_off"), ("content_filter", "model.filtered"), ("error", "model.bad_answer")]
)
@pytest.mark.parametrize("args", ["", "{}", '{"disk": "sda"}', '{"disk": "s'])
def test_no_call_of_an_answer_that_was_cut_off_is_made(reason, code, args):
    @for_seeds(1)
    async def case():
        made, store = [], InMemorySessionService()
        parts = [TextPart("I wipe."), ToolCallPart("wipe", {"disk": "sdb"}, "c1"), ToolCallPart("wipe", args, "c2")]
        run = await said(cut(*parts, reason=reason, tools=[tool_of(made)]), store=store, run_config=WHOLE)
        assert await outcome_of(run) == code
        assert made == []
        _, event = await log_of(store)
        assert (event.text, event.get_function_calls(), event.cut_off) == ("I wipe.", [], True)
        assert (await run.refresh()).usage["total_token_count"] == event.usage_metadata.total_token_count > 0
        await assert_valid_history(store)
        again = await said(llm("Hello again."), store=store)
        assert await outcome_of(again) == "Hello again."

    case()


@for_seeds(1)
async def test_an_output_that_was_cut_off_is_none():
    helper = cut(ToolCallPart("final_result", ""), reason="length", output_schema={"type": "object"})
    store = InMemorySessionService()
    run = await said(helper, store=store, run_config=WHOLE)
    assert await outcome_of(run) == "model.cut_off"
    _, event = await log_of(store)
    assert (event.output, event.finish_reason) == (None, "MAX_TOKENS")


@pytest.mark.anyio
@pytest.mark.parametrize("args", ["", '{"disk"', "{}"])
async def test_a_streamed_call_that_the_limit_cut_off_is_not_made(args):
    made = []
    first = {"index": 0, "id": "call_0", "type": "function", "function": {"name": "wipe", "arguments": args}}
    reply = Reply(chunks=[chunk("Well. "), chunk(calls=[first]), chunk(finish="length"), chunk(usage=(7, 3)), DONE])
    async with provider(reply) as server:
        reading = await ask(server.url, tool_of(made))
    assert (reading.error.code, made) == ("model.cut_off", [])
    assert [(e.text, e.finish_reason, e.get_function_calls()) for e in reading.events] == [("Well. ", "MAX_TOKENS", [])]


@pytest.mark.anyio
async def test_a_call_without_arguments_of_a_stream_that_breaks_off_unnoticed_is_not_made():
    made = []
    first = {"index": 0, "id": "call_0", "type": "function", "function": {"name": "wipe", "arguments": ""}}
    async with provider(Reply(chunks=[chunk(calls=[first]), DONE])) as server:
        reading = await ask(server.url, tool_of(made))
    assert (reading.error.code, made) == ("model.cut_off", [])


@pytest.mark.anyio
async def test_a_call_without_arguments_that_is_whole_is_made():
    made = []
    done = Reply(chunks=[chunk("Done."), chunk(finish="stop"), DONE])
    async with provider(call("wipe", ""), done) as server:
        reading = await ask(server.url, tool_of(made))
    assert (reading.error, made) == (None, ["all"])

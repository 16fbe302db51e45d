"""The trace of a session, as google-adk's web UI draws it."""

import pytest
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

from sojourn.agents.function import agent
from sojourn.agents.llm.agent import LlmAgent
from tests.server.adk.support import APP, client_of, make_runner, new_session, say, stream

pytestmark = pytest.mark.anyio

TRACE = f"/dev/apps/{APP}/debug/trace/session/s"


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


async def counting(messages, info):
    if len(messages) == 1:
        yield {0: DeltaToolCall(name="add", json_args='{"a": 1, "b": 2}', tool_call_id="c1")}
    else:
        yield "3"


def assert_drawable(spans):
    """What the web UI's own schema asks of spans; it shows nothing of a trace in which one is otherwise."""
    for span in spans:
        assert isinstance(span["name"], str)
        assert isinstance(span["start_time"], int)
        assert isinstance(span["end_time"], int)
        assert span["end_time"] >= span["start_time"] > 10**18, "nanoseconds since the epoch"
        assert isinstance(span["trace_id"], str)
        assert isinstance(span["span_id"], str)
        attributes = span["attributes"]
        assert all(isinstance(value, str | int | float | bool | list | dict) for value in attributes.values())
        if attributes.get("gen_ai.operation.name") == "invoke_agent":
            assert isinstance(attributes["gen_ai.conversation.id"], str)
        if attributes.get("gen_ai.operation.name") == "generate_content":
            assert isinstance(attributes["gcp.vertex.agent.event_id"], str)
            assert isinstance(attributes["gcp.vertex.agent.invocation_id"], str)


async def test_model_and_tool_calls_are_spans_of_their_run():
    async with client_of(
        make_runner(LlmAgent(name="helper", model=FunctionModel(stream_function=counting), tools=[add]))
    ) as client:
        await new_session(client)
        events = [event for event in await stream(client, "1 + 2?", streaming=True) if not event.get("partial")]
        spans = (await client.get(TRACE)).json()
        assert_drawable(spans)
        run, *steps = spans
        assert run["name"] == "invoke_agent helper"
        assert run["parent_span_id"] is None
        assert run["attributes"]["gcp.vertex.agent.invocation_id"] == events[0]["invocationId"]
        assert {(s["trace_id"], s["parent_span_id"]) for s in steps} == {(run["trace_id"], run["span_id"])}
        assert len({span["span_id"] for span in spans}) == len(spans)
        assert [s["attributes"]["gen_ai.operation.name"] for s in steps] == [
            "generate_content",
            "execute_tool",
            "generate_content",
        ]
        assert [s["attributes"].get("gcp.vertex.agent.event_id") for s in steps] == [events[0]["id"], None, events[2]["id"]]
        assert steps[1]["name"] == "execute_tool add"
        assert steps[1]["attributes"]["gen_ai.tool.call.id"] == events[0]["content"]["parts"][0]["functionCall"]["id"]
        assert steps[0]["attributes"]["gen_ai.usage.input_tokens"] > 0
        assert (await client.get("/debug/trace/session/s")).json() == spans


async def test_steps_and_failures_are_spans():
    @agent
    async def worker(ctx):
        await ctx.step("count", lambda: 1)
        await ctx.step("model:odd", lambda: "no model at all")
        try:
            await ctx.step("break", lambda: 1 / 0)
        except ZeroDivisionError:
            yield "broken"

    async with client_of(make_runner(worker)) as client:
        await new_session(client)
        assert (await client.get(TRACE)).json() == []
        await say(client, "go")
        await say(client, "again")
        spans = (await client.get(TRACE)).json()
        assert_drawable(spans)
        assert [span["name"] for span in spans[:4]] == ["invoke_agent worker", "count", "generate_content model", "break"]
        assert spans[3]["attributes"]["error.type"]
        assert len({span["trace_id"] for span in spans}) == 2
        assert [span["parent_span_id"] is None for span in spans] == [True, False, False, False] * 2


async def test_only_ones_own_runs_are_told_of():
    async with client_of(user="ann") as client:
        bob, root = {"X-User": "bob"}, {"X-User": "root"}
        await new_session(client)
        await client.post(f"/apps/{APP}/users/bob/sessions", json={"sessionId": "s"}, headers=bob)
        await say(client, "hi")
        assert len((await client.get(TRACE)).json()) == 1
        assert (await client.get(TRACE, headers=bob)).json() == []
        assert len((await client.get(TRACE, headers=root)).json()) == 1

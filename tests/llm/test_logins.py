"""A tool that asks for a login: whoever logs in tells the tool, and not the model."""

import pytest
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

from sojourn.agents.llm.agent import LlmAgent
from sojourn.agents.llm.tool import ToolContext
from sojourn.event import CREDENTIAL_CALL
from sojourn.runner.runner import Runner

pytestmark = pytest.mark.anyio

LOGIN = {"authScheme": {"type": "oauth2"}, "exchangedAuthCredential": {"oauth2": {"authUri": "https://id.example.com/auth"}}}


async def test_the_tool_has_what_was_given_and_no_model_is_shown_it():
    shown, used = [], []

    async def model(messages, info):
        shown.append(repr(messages))
        if len(shown) == 1:
            yield {0: DeltaToolCall(name="calendar", json_args="{}", tool_call_id="c1")}
        else:
            yield "Nothing today."

    async def calendar(ctx: ToolContext) -> str:
        """Reads the calendar."""
        given = await ctx.ask_credential("login", LOGIN)
        used.append(given["exchangedAuthCredential"]["oauth2"]["authResponseUri"])
        return "empty"

    runner = Runner(app_name="app", agent=LlmAgent(name="helper", model=FunctionModel(stream_function=model), tools=[calendar]))
    run = await runner.start("ann", "s", "What is on today?")
    await run.wait()
    [question] = await run.interrupts()
    assert (question.kind, question.prompt) == ("credential", LOGIN)
    answer = {**LOGIN, "exchangedAuthCredential": {"oauth2": {"authResponseUri": "https://here/?code=SECRET"}}}
    assert await (await runner.answer(run.id, question.id, answer)).result() == "Nothing today."
    assert await (await runner.start("ann", "s", "And tomorrow?")).result() == "Nothing today."
    assert used == ["https://here/?code=SECRET"]
    events = await runner.store.list_events(app_name="app", user_id="ann", session_id="s")
    assert CREDENTIAL_CALL in [call.name for event in events for call in event.get_function_calls()]
    assert len(shown) == 3
    assert not [text for text in shown if "SECRET" in text or CREDENTIAL_CALL in text]

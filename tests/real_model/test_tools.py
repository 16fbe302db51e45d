"""A real model that has to call a tool, and does."""

from typing import Literal

import pytest

from sojourn.agents.llm.tool import tool
from sojourn.event import CallDelta, Event
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from tests.real_model.support import REAL, CallsFirst

pytestmark = REAL

USER, SESSION = "ann", "s"


@pytest.fixture
def asked():
    """What was asked of the model: `tool_choice` of each request."""
    return []


@pytest.fixture
def model(calling_server, asked):
    return CallsFirst(calling_server.base_url, {"max_tokens": 12}, asked.append)


async def test_a_call_is_streamed_executed_once_and_answered(model, asked, helper):
    looked_up = []

    async def get_weather(city: Literal["Oslo", "Paris", "Rome"]) -> str:
        """Gives the weather of a city."""
        looked_up.append(city)
        return "It is sunny."

    agent = helper(None, model=model, instruction="You look up the weather.", tools=[get_weather])
    runner = Runner(app_name="weather", agent=agent)
    run = await runner.start(USER, SESSION, "What is the weather in Paris?")
    items = [item async for item in run.events()]
    called, returned, answered = [item for item in items if isinstance(item, Event)]

    (call,) = called.get_function_calls()
    assert (call.name, call.args) == ("get_weather", {"city": looked_up[0]})
    assert len(looked_up) == 1
    assert [(r.id, r.response) for r in returned.get_function_responses()] == [(call.id, {"result": "It is sunny."})]
    pieces = [item.call for item in items if item.partial and item.call is not None]
    assert all(isinstance(piece, CallDelta) and (piece.id, piece.name) == (call.id, call.name) for piece in pieces)
    assert len(pieces) > 2, "the arguments come in pieces"

    assert answered.text == await run.result()
    assert asked == ["required", "none"]
    assert run.record.usage["total_token_count"] == sum(event.usage_metadata.total_token_count for event in (called, answered))


async def test_a_call_that_a_person_has_to_allow_is_made_once_after_that(model, asked, helper):
    paid = []

    @tool(require_approval=True)
    async def pay(amount: int) -> str:
        """Pays an amount of money."""
        paid.append(amount)
        return "Paid."

    runner = Runner(app_name="till", agent=helper(None, model=model, instruction="You pay bills.", tools=[pay]))
    run = await runner.start(USER, SESSION, "Pay 20 euros.")
    assert (await run.wait()).status is RunStatus.WAITING
    (question,) = await run.interrupts()
    assert not paid

    run = await runner.answer(run.id, question.id, True)
    assert await run.result()
    assert len(paid) == 1
    assert asked == ["required", "none"], "the answer that the run has is not asked for again"

"""The model that says what it is told to."""

import asyncio

import pytest

from sojourn.agents.llm.agent import LlmAgent
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.testing.agents import run_agent
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls, ScriptedModel, Thinks

WHOLE = RunConfig(streaming_mode=StreamingMode.NONE)


async def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def make(*script, **options):
    model = ScriptedModel(*script, **options)
    return LlmAgent(name="helper", model=model, tools=[add]), model


@pytest.mark.parametrize("config", [RunConfig(), WHOLE])
def test_turns_are_said_in_order_and_what_was_shown_is_kept(config):
    @for_seeds(2)
    async def case():
        agent, model = make(
            [Thinks("Hm."), "I ", "add. ", Calls("add", {"a": 1, "b": 2}, pieces=4), Calls("add", "{")], "3.", "Bye."
        )
        result = await run_agent(agent, "1 + 2?", run_config=config)
        assert (result.text, result.error) == ("3.", None)
        assert result.events[0].content.thoughts == "Hm."
        assert [c.id for c in result.events[0].get_function_calls()] == ["call-1", "call-2"]
        first, second = model.requests
        assert (first.lines, first.tools) == (["user: 1 + 2?"], ["add"])
        assert "helper" in first.instructions
        assert second.lines[:4] == ["user: 1 + 2?", "thinking: Hm.", "model: I add. ", 'call add {"a":1,"b":2}']
        assert "return add 3" in second.text
        assert (await run_agent(result.runner, "Bye", run_config=config)).text == "Bye."

    case()


@pytest.mark.parametrize("config", [RunConfig(), WHOLE])
def test_functions_are_turns_or_come_between_pieces_and_exceptions_are_raised(config, caplog):
    @for_seeds(1)
    async def case():
        trace = []

        async def later(shown):
            await asyncio.sleep(1)
            return [f"{len(shown.messages)}", lambda: trace.append("between"), "!"]

        agent, model = make(later, lambda shown: shown.lines[-1], ["So ", ValueError("broken")])
        result = await run_agent(agent, "a", run_config=config)
        assert (result.text, trace) == ("1!", ["between"])
        result = await run_agent(result.runner, "b", run_config=config)
        assert result.text == "user: b"
        assert (await run_agent(result.runner, "c", run_config=config)).error.code == "agent.failed"

    case()


@for_seeds(1)
async def test_a_request_beyond_the_script_fails_unless_it_repeats():
    agent, model = make("One.")
    result = await run_agent(agent, "a")
    failed = await run_agent(result.runner, "b")
    assert failed.error.code == "agent.failed"
    agent, model = make("One.", "Two.", repeat=True)
    result = await run_agent(agent, "a")
    texts = [(await run_agent(result.runner, f"{n}")).text for n in range(3)]
    assert texts == ["Two.", "One.", "Two."]

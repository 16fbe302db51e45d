"""The helpers for testing agents of one's own."""

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import InvalidInput, LimitExceeded
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.testing.agents import ScriptedAgent, run_agent
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises


@agent
async def greeter(ctx):
    """Greets by name."""
    ctx.state.increment("greetings")
    yield f"Hello, {ctx.state.get('user:name', 'stranger')}!"


@pytest.mark.anyio
async def test_two_lines_test_an_agent():
    result = await run_agent(greeter, "Hi", state={"user:name": "Ann"})
    assert result.text == "Hello, Ann!"


@for_seeds(3)
async def test_what_a_result_holds():
    result = await run_agent(greeter, "Hi")
    assert [(e.author, e.text, e.delta) for e in result.events] == [("greeter", "Hello, stranger!", "Hello, stranger!")]
    assert (result.text, result.output, result.error, result.interrupts) == ("Hello, stranger!", None, None, [])
    assert result.state == {"greetings": 1}
    assert result.status is RunStatus.COMPLETED
    assert await result.run.result() == "Hello, stranger!"
    assert isinstance(result.runner, Runner)


@for_seeds(3)
async def test_a_conversation_goes_on_with_the_same_runner():
    result = await run_agent(greeter, "Hi")
    result = await run_agent(result.runner, "Hi again", state={"user:name": "Bob"})
    assert result.text == "Hello, Bob!"
    assert result.state == {"greetings": 2, "user:name": "Bob"}
    assert len(result.events) == 1


@for_seeds(3)
async def test_structured_output_and_errors():
    assert (await run_agent(ScriptedAgent(Event(output={"n": 1})), "go")).output == {"n": 1}
    failed = await run_agent(ScriptedAgent("said ", ValueError("broken")), "go")
    assert (failed.error.code, failed.status, failed.text) == ("agent.failed", RunStatus.FAILED, "")
    assert [e.text for e in failed.events] == ["said "]
    refused = await run_agent(greeter, "")
    assert isinstance(refused.error, InvalidInput)
    assert (refused.run, refused.status, refused.events, refused.state) == (None, None, [], {})
    full = await run_agent(greeter, "go", max_concurrency=1, max_queue=0)
    assert full.error is None
    assert not isinstance(full.error, LimitExceeded)


@for_seeds(3)
async def test_questions_are_answered_by_key():
    @agent
    async def inner(ctx):
        return await ctx.ask("name", "who?")

    @agent
    async def booking(ctx):
        name = await ctx.run_agent(inner)
        if await ctx.ask("confirm", f"book for {name}?"):
            yield f"booked for {name}"

    waiting = await run_agent(booking, "go")
    assert (waiting.status, waiting.error) == (RunStatus.WAITING, None)
    assert [i.prompt for i in waiting.interrupts] == ["who?"]
    half = await run_agent(booking, "go", answers={"name": "Ann"})
    assert [i.prompt for i in half.interrupts] == ["book for Ann?"]
    done = await run_agent(booking, "go", answers={"name": "Ann", "confirm": True})
    assert (done.text, done.interrupts, done.status) == ("booked for Ann", [], RunStatus.COMPLETED)


@for_seeds(3)
async def test_a_script_is_followed_in_order_and_every_time():
    async def wait(ctx):
        return f"{ctx.user_content.text} "

    scripted = ScriptedAgent(
        "one ", wait, lambda ctx: ctx.state.increment("n") and None, Content("model").with_text("two"), name="s"
    )
    for n, text in enumerate(("a", "b"), 1):
        result = await run_agent(scripted, text)
        assert [e.text for e in result.events] == [f"one {text} ", "two"]
        assert len(scripted.contexts) == n
    assert result.state == {"n": 1}


@for_seeds(3)
async def test_scripts_hand_over_and_ask():
    billing = ScriptedAgent("billing here", name="billing")
    root = ScriptedAgent(lambda ctx: ctx.transfer_to("billing"), "over", name="root", sub_agents=[billing])
    assert (await run_agent(root, "go")).text == "billing here"
    asking = ScriptedAgent(lambda ctx: ctx.ask("q", "?"))
    assert (await run_agent(asking, "go", answers={"q": "yes"})).text == "yes"


@for_seeds(3)
async def test_arguments_that_cannot_be():
    with raises(InvalidInput, "runner.invalid"):
        await run_agent(greeter, "go", unknown=1)
    with raises(InvalidInput, "state.invalid_key"):
        await run_agent(greeter, "go", state={"": 1})
    assert (await run_agent(greeter, "go", run_config=RunConfig(timeout=5))).error is None

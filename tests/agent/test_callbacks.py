"""What is called before and after an agent, and when."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.runner.plugins import Plugin
from sojourn.testing.loop import for_seeds
from tests.runner.support import SESSION, USER, idle, make_runner, outcome_of

CALLED = ["before", "agent", "after callback", "after plugin"]


class After(Plugin):
    """Notes that it was called."""

    def __init__(self, calls):
        self.calls = calls

    async def after_agent(self, ctx, error):
        self.calls.append("after plugin")


def traced(before, act):
    """A Runner of an agent, and what is called of it."""
    calls = []

    def first(ctx):
        calls.append("before")
        return before(ctx)

    @agent(before_agent=first, after_agent=lambda ctx: calls.append("after callback"))
    async def helper(ctx):
        calls.append("agent")
        return await act(ctx)

    return make_runner(helper, plugins=[After(calls)]), calls


async def nothing(ctx):
    return None


async def ask(ctx):
    return await ctx.ask("q", "?")


async def fail(ctx):
    raise ValueError


@pytest.mark.parametrize(
    ("before", "act", "called"),
    [
        (lambda ctx: None, nothing, CALLED),
        (lambda ctx: "no", nothing, [call for call in CALLED if call != "agent"]),
        (lambda ctx: None, fail, [call for call in CALLED if call != "after callback"]),
        (lambda ctx: None, ask, [call for call in CALLED if call != "after callback"]),
    ],
    ids=["it ran", "it was answered for", "it failed", "it asks"],
)
def test_what_is_called_around_an_agent(before, act, called):
    @for_seeds(3)
    async def case():
        runner, calls = traced(before, act)
        await outcome_of(await runner.start(USER, SESSION, "hi"))
        assert calls == called

    case()


@for_seeds(3)
async def test_what_is_called_around_an_agent_that_is_stopped():
    runner, calls = traced(lambda ctx: None, lambda ctx: asyncio.Event().wait())
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert calls == ["before", "agent", "after plugin"]

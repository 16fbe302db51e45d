"""What the tests of agents that a model drives share."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest

from sojourn.agents.llm.agent import LlmAgent
from sojourn.agents.llm.tool import ToolContext, tool
from sojourn.content import Content, Part
from sojourn.run.status import RunStatus
from sojourn.testing.models import ScriptedModel
from tests.runner.support import SESSION, USER, log_of, make_runner, process


def llm(*script, name="helper", repeat=False, **options):
    """An agent whose model follows a script; the model is `agent.model`."""
    return LlmAgent(name=name, model=ScriptedModel(*script, repeat=repeat), **options)


async def said(agent, message="go", store=None, session=SESSION, **fields):
    """Runs an agent to its end; the run."""
    run = await make_runner(agent, store, **fields).start(USER, session, message)
    await run.wait()
    return run


async def events_of(run):
    """What the agents of a run said."""
    return [event async for event in run.events(partials=False)]


def calls_in(events):
    return [call for event in events for call in event.get_function_calls()]


def responses_in(events):
    return [response for event in events for response in event.get_function_responses()]


def results_in(events):
    """What the calls gave, in the order of the log."""
    return [response.response for response in responses_in(events)]


async def waiting(runner, message="go", session=SESSION):
    """A run that waits, and its open questions."""
    run = await runner.start(USER, session, message)
    record = await run.wait()
    assert record.status is RunStatus.WAITING, record.error
    return run, await run.interrupts()


async def assert_valid_history(store, session=SESSION):
    """Every call in the log has exactly one response that counts, and no response is without a call."""
    events = await log_of(store, session)
    called = [call.id for call in calls_in(events)]
    assert len(set(called)) == len(called), called
    assert sorted(r.id for r in responses_in(events)) == sorted(called)


@asynccontextmanager
async def crashed(agent, store, number, *, after=True, message="go", **fields):
    """A run whose process dies in its `number`-th append; the rest of it is gone when the block is left."""
    async with process(agent, store, **fields) as one:
        one.die_at("append", number, after=after)
        run = await one.runner.start(USER, SESSION, message)
        death = asyncio.ensure_future(one.store.plan[0].reached.wait())
        await asyncio.wait([death, asyncio.ensure_future(run.settled())], return_when=asyncio.FIRST_COMPLETED)
        one.die()
        yield run
    # Its tasks find out one after the other that there is no store any more.
    await asyncio.sleep(10)


class Ledger:
    """A tool that notes each real call."""

    def __init__(self, **options):
        self.paid = []
        self.keys = []

        async def pay(amount: int, context: ToolContext) -> str:
            """Pays.

            Args:
                amount: How much.
            """
            self.paid.append(amount)
            self.keys.append(context.idempotency_key)
            return f"paid {amount}"

        self.tool = tool(**options)(pay)


def picture(text="What is this?"):
    return Content("user", (Part(text=text), Part.from_bytes(b"\x89PNG", "image/png")))


@pytest.fixture
def quiet(caplog):
    """Keeps what is logged about tools that fail on purpose out of the output."""
    caplog.set_level(logging.CRITICAL, logger="sojourn.llm")

"""What an agent holds between its runs: its engine, its model, what is to be closed."""

import asyncio
import copy

from pydantic_ai.toolsets import FunctionToolset

from sojourn.agents.llm.calls import TRANSFER_TOOL
from sojourn.run.config import RunConfig
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.llm.support import llm, said
from tests.runner.support import SESSION, USER, make_runner, outcome_of


class Client:
    def __init__(self):
        self.closed = 0

    async def close(self):
        self.closed += 1


class Holding(FunctionToolset):
    """A toolset with something to close."""

    def __init__(self):
        super().__init__()
        self.client = Client()


@for_seeds(3)
async def test_what_an_agent_holds_is_closed_when_its_last_run_has_ended():
    toolset = Holding()
    hold = asyncio.Event()
    helper = llm([hold.wait, "Done."], "Again.", tools=[toolset])
    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")
    await asyncio.sleep(1)
    await helper.close()
    assert toolset.client.closed == 0
    hold.set()
    assert await outcome_of(run) == "Done."
    assert toolset.client.closed == 1
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "Again."
    assert toolset.client.closed == 1


@for_seeds(2)
async def test_an_agent_that_gets_a_family_after_a_run_can_hand_over():
    child = llm("Alone.", "Handed over.", name="child")
    await said(child)
    assert child.model.requests[0].tools == []
    parent = llm([Calls(TRANSFER_TOOL, {"agent_name": "child"})], name="parent", sub_agents=[child])
    assert await outcome_of(await said(parent)) == "Handed over."
    assert child.model.requests[1].tools == [TRANSFER_TOOL]


@for_seeds(2)
async def test_a_copy_has_its_own_engine_and_is_not_running():
    hold = asyncio.Event()
    helper = llm([hold.wait, "Done."], tools=[Holding()])
    run = await make_runner(helper, run_config=RunConfig()).start(USER, SESSION, "go")
    await asyncio.sleep(1)
    made = copy.copy(helper)
    made.name = "copied"
    assert made.engine.name == "copied"
    await made.close()
    assert helper._toolsets[0].client.closed == 1
    hold.set()
    assert await outcome_of(run) == "Done."

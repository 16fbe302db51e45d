"""What an agent holds between its runs: its engine, its model, what is to be closed."""

import asyncio
import copy
import gc

import pytest
from pydantic_ai.toolsets import FunctionToolset

from sojourn.agents.base import CLOSE_GRACE, close_agents
from sojourn.agents.llm.agent import LlmAgent
from sojourn.agents.llm.calls import TRANSFER_TOOL
from sojourn.run.config import RunConfig
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls, ScriptedModel
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
    hold.set()
    assert await outcome_of(run) == "Done."


def agents_with(toolset, *, copies):
    """Two agents with one toolset: an agent and its copy, or two that were given the same."""
    one = llm("Hi.", repeat=True, name="one", tools=[toolset])
    two = copy.copy(one) if copies else llm("Hi.", repeat=True, name="two", tools=[toolset.prefixed("its")])
    return one, two


@pytest.mark.parametrize("copies", [True, False])
def test_a_toolset_of_several_agents_is_closed_with_the_last_that_has_used_it(copies):
    @for_seeds(3)
    async def case():
        toolset = Holding()
        one, two = agents_with(toolset, copies=copies)
        for agent in (one, two):
            await said(agent)
        await one.close()
        await one.close()
        assert toolset.client.closed == 0
        await two.close()
        assert toolset.client.closed == 1
        await said(one)
        await two.close()
        assert toolset.client.closed == 1, "the first has it open again"
        await one.close()
        assert toolset.client.closed == 2

    case()


@for_seeds(3)
async def test_a_copy_does_not_close_what_a_run_of_the_original_uses():
    toolset = Holding()
    hold = asyncio.Event()
    helper = llm([hold.wait, "Done."], tools=[toolset])
    run = await make_runner(helper).start(USER, SESSION, "go")
    await asyncio.sleep(1)
    await copy.copy(helper).close()
    await helper.close()
    assert toolset.client.closed == 0
    hold.set()
    assert await outcome_of(run) == "Done."
    assert toolset.client.closed == 1, "asked for while it ran, it is closed when the run has ended"


@for_seeds(2)
async def test_an_agent_that_is_gone_keeps_no_toolset_open():
    toolset = Holding()
    one, two = agents_with(toolset, copies=True)
    await said(one)
    await said(two)
    del one
    gc.collect()
    await two.close()
    assert toolset.client.closed == 1


@for_seeds(3)
async def test_a_client_that_fails_to_close_or_hangs_keeps_no_other_open(caplog):
    class Failing(Client):
        async def close(self):
            raise ConnectionError("gone")

    class Hanging(Client):
        async def close(self):
            await asyncio.Event().wait()

    failing, hanging, sound = Holding(), Holding(), Holding()
    failing.client, hanging.client = Failing(), Hanging()
    before = asyncio.get_running_loop().time()
    await close_agents(llm("Hi.", tools=[failing, sound]))
    assert sound.client.closed == 1
    assert caplog.records[-1].code == "agent.close_failed"
    await close_agents(llm("Hi.", tools=[hanging, sound]))
    assert sound.client.closed == 2
    assert caplog.records[-1].code == "agent.close_timeout"
    assert asyncio.get_running_loop().time() - before == CLOSE_GRACE


@for_seeds(3)
async def test_a_run_ends_although_what_it_leaves_cannot_be_closed():
    toolset = Holding()
    toolset.client.close = asyncio.Event().wait
    hold = asyncio.Event()
    helper = llm([hold.wait, "Done."], tools=[toolset])
    run = await make_runner(helper).start(USER, SESSION, "go")
    await asyncio.sleep(1)
    await helper.close()
    hold.set()
    assert await outcome_of(run) == "Done."


@for_seeds(2)
async def test_models_that_an_agent_made_are_closed_with_it_and_no_others(monkeypatch):
    class Counted(ScriptedModel):
        left = 0

        async def __aenter__(self):
            return self

        async def __aexit__(self, *_):
            self.left += 1

    made = {name: Counted() for name in ("test:one", "test:two", "given")}
    monkeypatch.setattr("sojourn.agents.llm.agent.resolve", lambda model, *_: made[model])
    helper = LlmAgent(name="helper", model="test:one")
    assert helper.resolved_model() is made["test:one"]
    copied = copy.copy(helper)
    helper.use_model("test:two")
    assert helper.resolved_model() is made["test:two"]
    assert copied.model == "test:one", "copies go on with theirs"
    await copied.close()
    assert [model.left for model in made.values()] == [0, 0, 0]
    helper.use_model(made["given"])
    assert helper.resolved_model() is made["given"]
    await helper.close()
    await helper.close()
    assert [model.left for model in made.values()] == [1, 1, 0]

"""Hand-overs that a model asks for."""

import asyncio

import pytest

from sojourn.agents.llm.tool import ToolContext, tool
from sojourn.agents.workflow import SequentialAgent
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.llm.support import Ledger, assert_valid_history, crashed, events_of, llm, results_in, said, waiting
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, said_in

DAYS = {"name": "days", "description": "Knows the days."}


def to(name):
    return Calls("transfer_to_agent", {"agent_name": name})


def offered(agent):
    """Whom the model of an agent was last told that it may hand over to."""
    for definition in agent.model.requests[-1].info.function_tools:
        if definition.name == "transfer_to_agent":
            assert all(
                name in definition.description for name in definition.parameters_json_schema["properties"]["agent_name"]["enum"]
            )
            return definition.parameters_json_schema["properties"]["agent_name"]["enum"]
    return None


@for_seeds(5)
async def test_children_parent_and_peers_are_offered_and_nobody_else():
    grandchild = llm(name="grandchild")
    one = llm("One.", name="one", description="First.", sub_agents=[grandchild])
    two = llm([to("one")], name="two", description="Second.")
    root = llm([to("two")], name="root", sub_agents=[one, two])
    store = InMemorySessionService()
    run = await said(root, store=store)
    assert await outcome_of(run) == "One."
    assert offered(root) == ["one", "two"]
    assert offered(two) == ["root", "one"]
    assert offered(one) == ["grandchild", "root", "two"]
    assert "First." in root.model.requests[0].instructions
    await assert_valid_history(store)
    actions = [e.actions.transfer_to_agent for e in await log_of(store) if e.actions.transfer_to_agent]
    assert actions == ["two", "one"]


@for_seeds(2)
async def test_what_is_disallowed_is_not_offered_and_without_targets_there_is_no_tool():
    shy = llm("Shy.", name="shy", disallow_transfer_to_parent=True, disallow_transfer_to_peers=True)
    polite = llm([to("shy")], name="polite", disallow_transfer_to_parent=True)
    root = llm([to("polite")], name="root", sub_agents=[shy, polite])
    assert await outcome_of(await said(root)) == "Shy."
    assert offered(polite) == ["shy"]
    assert offered(shy) is None
    alone = llm("Alone.")
    assert await outcome_of(await said(alone)) == "Alone."
    assert alone.model.requests[0].tools == []
    assert "transfer" not in alone.model.requests[0].instructions


@for_seeds(2)
async def test_inside_a_sequence_nobody_outside_is_offered():
    inner = llm("In.", name="inner")
    root = SequentialAgent(name="seq", sub_agents=[inner, llm("After.", name="after")])
    assert await outcome_of(await said(root)) == "After."
    assert offered(inner) is None


@pytest.mark.parametrize(
    ("name", "code"), [("nobody", "transfer.unknown_agent"), ("root", "transfer.not_allowed"), ("grandchild", "transfer.not_allowed")]
)  # fmt: skip
def test_a_hand_over_that_may_not_be_is_told_to_the_model_which_goes_on(name, code):
    @for_seeds(3)
    async def case():
        child = llm(name="child", sub_agents=[llm(name="grandchild")])
        root = llm([to(name)], "Then I answer.", name="root", sub_agents=[child])
        store = InMemorySessionService()
        run = await said(root, store=store)
        assert await outcome_of(run) == "Then I answer."
        assert code in root.model.requests[1].lines[-1]
        assert not any(e.actions.transfer_to_agent for e in await log_of(store))
        await assert_valid_history(store)

    case()


@for_seeds(3)
async def test_a_policy_that_denies_is_told_to_the_model():
    root = llm([to("child")], "Then not.", name="root", sub_agents=[llm(name="child")])
    run = await said(root, transfer_policy=lambda ctx, source, target: "closed at night")
    assert await outcome_of(run) == "Then not."
    assert "transfer.denied" in root.model.requests[1].lines[-1]
    assert "closed at night" in root.model.requests[1].lines[-1]


@for_seeds(3)
async def test_one_hand_over_too_many_is_told_to_the_model():
    ping = llm([to("pong")], name="ping", repeat=True)
    pong = llm(lambda shown: "Enough." if "run.max_transfers" in shown.text else [to("ping")], name="pong", repeat=True)
    ping.model.script = (lambda shown: "Enough." if "run.max_transfers" in shown.text else [to("pong")],)
    root = llm([to("ping")], name="root", sub_agents=[ping, pong])
    run = await said(root, run_config=RunConfig(max_transfers=4))
    assert await outcome_of(run) == "Enough."
    assert (await run.refresh()).transfers == 4


@for_seeds(5)
async def test_other_calls_of_the_turn_are_done_and_the_first_hand_over_counts():
    store = InMemorySessionService()
    ledger = Ledger()
    one, two = llm("One.", name="one"), llm("Two.", name="two")
    root = llm(
        ["Over to one. ", Calls("pay", {"amount": 1}), to("one"), to("two"), Calls("pay", {"amount": 2})],
        name="root",
        tools=[ledger.tool],
        sub_agents=[one, two],
    )
    run = await said(root, store=store)
    assert await outcome_of(run) == "One."
    assert sorted(ledger.paid) == [1, 2]
    await assert_valid_history(store)
    assert (await store.get_run("app", run.id)).agent == "one"


@for_seeds(5)
async def test_a_hand_over_beside_a_call_that_waits_for_leave_takes_place_when_that_is_settled():
    store = InMemorySessionService()
    ledger = Ledger(require_approval=True)
    root = llm(
        [to("child"), Calls("pay", {"amount": 1})],
        name="root",
        tools=[ledger.tool],
        sub_agents=[llm("Mine now.", name="child")],
    )
    runner = make_runner(root, store)
    run, (question,) = await waiting(runner)
    assert await (await runner.answer(run.id, question.id, True)).result() == "Mine now."
    assert ledger.paid == [1]
    await assert_valid_history(store)


@for_seeds(5)
async def test_the_next_run_starts_with_the_agent_that_took_over_and_it_knows_the_conversation():
    store = InMemorySessionService()
    child = llm("It is Monday.", "Tuesday.", [to("root")], **DAYS)
    root = llm(["Let me see. ", to("days")], "Bye.", name="root", sub_agents=[child])
    runner = make_runner(root, store)
    assert await outcome_of(await runner.start(USER, SESSION, "What day is it?")) == "It is Monday."
    lines = child.model.requests[0].lines
    assert lines[0] == "user: What day is it?"
    assert "[root] said: Let me see. " in "\n".join(lines)
    assert not any(line.startswith(("call", "return", "model")) for line in lines), (
        "calls of others are told, not shown as its own"
    )
    assert await outcome_of(await runner.start(USER, SESSION, "And tomorrow?")) == "Tuesday."
    assert child.model.requests[1].lines[-2:] == ["model: It is Monday.", "user: And tomorrow?"]
    assert await outcome_of(await runner.start(USER, SESSION, "Thanks")) == "Bye."
    assert "[days] said: Tuesday." in root.model.requests[-1].text


@pytest.mark.parametrize("number", range(1, 8))
def test_a_hand_over_takes_place_once_whatever_append_the_process_dies_in(number):
    @for_seeds(3)
    async def case():
        for after in (False, True):
            store = InMemorySessionService()
            ledger = Ledger()
            child = llm([Calls("pay", {"amount": 2})], name="child", tools=[ledger.tool])
            child.model.script = (lambda shown: "Done." if "paid 2" in shown.text else [Calls("pay", {"amount": 2})],) * 9
            root = llm(*[[Calls("pay", {"amount": 1}), to("child")]] * 3, name="root", tools=[ledger.tool], sub_agents=[child])
            async with crashed(root, store, number, after=after) as run, process(root, store, enter=True) as second:
                again = await second.runner.follow(run.id)
                assert await outcome_of(again) == "Done."
                record = await store.get_run("app", run.id)
                assert (record.agent, record.transfers, record.status) == ("child", 1, RunStatus.COMPLETED)
                await assert_valid_history(store)
                paid = [r["result"] for r in results_in(await log_of(store)) if "paid" in str(r)]
                assert paid == ["paid 1", "paid 2"]
            assert len(ledger.paid) <= 3
            assert len(set(ledger.keys)) == 2

    case()


@for_seeds(3)
async def test_a_tool_may_run_an_agent_that_hands_over_below_itself():
    leaf = llm("Leaf.", name="leaf")
    inner = llm([to("leaf")], name="inner", sub_agents=[leaf])

    @tool
    async def consult(context: ToolContext) -> str:
        """Consults."""
        await asyncio.sleep(0)
        return await context.run_agent(inner)

    store = InMemorySessionService()
    root = llm([Calls("consult")], "So it is.", name="root", tools=[consult])
    run = await said(root, store=store)
    assert await outcome_of(run) == "So it is."
    assert ("leaf", "Leaf.") in await said_in(store)
    assert {"result": "Leaf."} in results_in(await events_of(run))

"""What an agent may use: `ctx`."""

import pytest

from sojourn.agents.function import agent
from sojourn.agents.question import Question
from sojourn.agents.workflow import SequentialAgent
from sojourn.content import Content
from sojourn.errors import InvalidInput
from sojourn.event import EventActions
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.run.config import RunConfig
from sojourn.testing.agents import run_agent
from sojourn.testing.loop import for_seeds


@for_seeds(2)
async def test_who_and_what():
    seen = {}

    @agent
    async def helper(ctx):
        for name in (
            "app_name",
            "user_id",
            "session_id",
            "agent_name",
            "run_id",
            "invocation_id",
            "attempt",
            "branch",
            "scope",
            "ended",
        ):
            seen[name] = getattr(ctx, name)
        seen["session"] = ctx.session.id
        seen["content"] = ctx.user_content.text
        seen["turns"] = ctx.run_config.max_turns
        seen["actions"] = ctx.actions
        seen["repr"] = repr(ctx)

    result = await run_agent(helper, "hi", user_id="u", session_id="s", run_config=RunConfig(max_turns=3))
    run_id = result.run.id
    assert seen == {
        "app_name": "test", "user_id": "u", "session_id": "s", "agent_name": "helper", "run_id": run_id, "invocation_id": run_id,
        "attempt": 1, "branch": None, "scope": "", "ended": False, "session": "s", "content": "hi", "turns": 3,
        "actions": EventActions(), "repr": f"Context(agent='helper', run_id='{run_id}', attempt=1)",
    }  # fmt: skip


@for_seeds(2)
async def test_actions_are_merged_and_go_with_the_next_event():
    @agent
    async def helper(ctx):
        ctx.set_actions(requested_auth_configs={"c1": {}})
        ctx.set_actions(skip_summarization=True)
        assert ctx.actions.requested_auth_configs == {"c1": {}}
        yield Content("model").with_text("one")
        assert ctx.actions == EventActions()
        ctx.set_actions(EventActions(end_of_agent=True), escalate=True)

    result = await run_agent(helper, "hi")
    first, second = (e.actions for e in result.events)
    assert (first.requested_auth_configs, first.skip_summarization) == ({"c1": {}}, True)
    assert (second.end_of_agent, second.escalate) == (True, True)


@pytest.mark.parametrize("fields", [{"escalade": True}, {"state_delta": 5}, {"escalate": "perhaps"}])
def test_actions_that_cannot_be(fields):
    @for_seeds(1)
    async def case():
        @agent
        async def helper(ctx):
            try:
                ctx.set_actions(**fields)
            except InvalidInput as error:
                return error.code

        assert (await run_agent(helper, "hi")).text == "actions.invalid"

    case()


@for_seeds(2)
async def test_state_set_by_actions_is_stored_and_seen():
    @agent
    async def helper(ctx):
        ctx.set_actions(state_delta={"a": 1}, state_increments={"n": 2})
        ctx.state["b"] = 2
        yield Content("model").with_text("x")
        yield f"{sorted(ctx.state.items())}"

    result = await run_agent(helper, "hi")
    assert result.state == {"a": 1, "b": 2, "n": 2}
    assert result.text == "[('a', 1), ('b', 2), ('n', 2)]"


@for_seeds(2)
async def test_memory_is_the_users():
    memory = InMemoryMemoryService()

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "remember":
            await ctx.memory.add("likes green tea", "plays chess")
        return [m.text for m in await ctx.memory.search("tea")]

    assert (await run_agent(helper, "remember", memory_service=memory)).output == ["likes green tea"]
    assert (await run_agent(helper, "look", memory_service=memory, session_id="other")).output == ["likes green tea"]
    assert (await run_agent(helper, "look", memory_service=memory, user_id="bob")).output == []
    assert (await run_agent(helper, "look", memory_service=memory, app_name="other")).output == []


@for_seeds(2)
async def test_values_that_are_handed_out_are_copies():
    @agent
    async def helper(ctx):
        ctx.state["list"] = [1]
        ctx.state["list"].append(2)
        for event in await ctx.history():
            event.actions.state_delta.copy()
        step = await ctx.step("s", lambda: {"a": [1]})
        step["a"].append(2)
        ctx.session.state["x"] = "changed"
        return dict(ctx.state)

    assert (await run_agent(helper, "hi", state={"x": "stored"})).output == {"x": "stored", "list": [1]}


def _reached(seen, name, **options):
    """An agent that notes whom it reaches, and hands over as its message says."""

    async def run(ctx):
        seen[name] = {a.name for a in ctx.reachable_agents()}
        for reached in ctx.reachable_agents():
            ctx._attempt.check_transfer(ctx, reached.name)
        for target in ctx.user_content.text.split():
            if target in seen[name] and target not in seen:
                ctx.transfer_to(target)
                return

    return agent(name=name, **options)(run)


@for_seeds(2)
async def test_who_can_be_handed_over_to():
    seen = {}
    deep = _reached(seen, "deep")
    proud = _reached(seen, "proud", disallow_transfer_to_parent=True)
    shy = _reached(seen, "shy", disallow_transfer_to_peers=True, sub_agents=[deep])
    root = _reached(seen, "root", sub_agents=[proud, shy])
    assert (await run_agent(root, "proud shy deep")).error is None
    assert seen == {
        "root": {"proud", "shy"},
        "proud": {"shy"},
        "shy": {"deep", "root"},
        "deep": {"shy"},
    }


@for_seeds(2)
async def test_agents_in_a_fixed_order_or_inside_of_another_one_reach_only_what_is_below_them():
    seen = {}
    child = _reached(seen, "child")
    step = _reached(seen, "step", sub_agents=[child])
    inner = _reached(seen, "inner", sub_agents=[_reached(seen, "helper")])
    peer = _reached(seen, "peer")

    async def run(ctx):
        seen["root"] = {a.name for a in ctx.reachable_agents()}
        await ctx.run_agent(inner)
        await ctx.run_agent(order)

    order = SequentialAgent(name="order", sub_agents=[step])
    root = agent(name="root", sub_agents=[inner, peer, order])(run)
    assert (await run_agent(root, "go")).error is None
    assert seen == {"root": {"inner", "peer", "order"}, "inner": {"helper"}, "step": {"child"}}


@for_seeds(2)
async def test_whom_the_policy_refuses_is_reachable_all_the_same():
    @agent
    async def billing(ctx):
        return "billing"

    @agent(sub_agents=[billing])
    async def root(ctx):
        targets = ctx.reachable_agents()
        targets.clear()
        return [a.name for a in ctx.reachable_agents()]

    assert (await run_agent(root, "go", transfer_policy=lambda *_: "closed")).output == ["billing"]


@for_seeds(2)
async def test_a_step_and_questions_as_a_context_gives_them():
    @agent
    async def helper(ctx):
        word = await ctx.step("think", lambda: ("a", "thought"), with_next_event=True)
        name, age = await ctx.ask_all([Question("name", "Name?"), Question("age", "Age?", {"type": "integer"})])
        return [word, name, age]

    result = await run_agent(helper, "hi", answers={"name": "Ann", "age": 7})
    assert result.output == [["a", "thought"], "Ann", 7]
    waiting = await run_agent(helper, "hi", answers={"name": "Ann"})
    assert [i.key for i in waiting.interrupts] == ["age"]

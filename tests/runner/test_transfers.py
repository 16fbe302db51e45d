"""T1: hand-overs between agents."""

import asyncio

import pytest

from sojourn.agents.base import Agent
from sojourn.agents.function import agent
from sojourn.agents.workflow import LoopAgent, ParallelAgent, SequentialAgent
from sojourn.content import Content
from sojourn.errors import SojournError
from sojourn.event import Event, EventActions
from sojourn.run.config import RunConfig
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, said_in


def follower(name, **options):
    """An agent that hands over along the path in the message: `a>b>c`, then says its name."""

    @agent(name=name, **options)
    async def follow(ctx):
        path = ctx.user_content.text.split(">")
        visits = ctx.state.get("temp:visits", 0)
        ctx.state["temp:visits"] = visits + 1
        if visits < len(path):
            ctx.transfer_to(path[visits])
            return
        yield f"{name} here"

    return follow


def tree():
    """root ─ a ─ a1, a2; root ─ b ─ b1."""
    return follower(
        "root",
        sub_agents=[
            follower("a", sub_agents=[follower("a1"), follower("a2")]),
            follower("b", sub_agents=[follower("b1")]),
        ],
    )


async def path_of(root, path, **options):
    store = InMemorySessionService()
    run = await make_runner(root, store, **options).start(USER, SESSION, path)
    return await outcome_of(run)


@pytest.mark.parametrize(
    ("path", "outcome"),
    [("a", "a here"), ("a>a1", "a1 here"), ("a>b", "b here"), ("a>root>b", "b here"), ("a>a1>a2>a>b>b1", "b1 here"),
     ("a1", "transfer.not_allowed"), ("a>b1", "transfer.not_allowed"), ("a>a1>b", "transfer.not_allowed"),
     ("root", "transfer.not_allowed"), ("nobody", "transfer.unknown_agent"), ("a>nobody", "transfer.unknown_agent")],
)  # fmt: skip
def test_an_agent_reaches_its_children_its_parent_and_its_peers(path, outcome):
    @for_seeds(3)
    async def case():
        assert await path_of(tree(), path) == outcome

    case()


@for_seeds(3)
async def test_parents_and_peers_may_be_out_of_bounds():
    root = follower(
        "root",
        sub_agents=[
            follower("a", disallow_transfer_to_parent=True),
            follower("b", disallow_transfer_to_peers=True),
        ],
    )
    assert await path_of(root, "a>root") == "transfer.not_allowed"
    assert await path_of(root, "a>b") == "b here"
    assert await path_of(root, "b>a") == "transfer.not_allowed"
    assert await path_of(root, "b>root>a") == "a here"


def _pair(hand_over, **options):
    """A root that hands over to `billing` in some way."""

    @agent
    async def billing(ctx):
        yield "billing here"

    return agent(name="root", sub_agents=[billing], **options)(hand_over)


async def _yield_content(ctx):
    yield "before"
    ctx.transfer_to("billing")
    yield Content("model").with_text("last words")
    yield "never said"


async def _yield_text(ctx):
    ctx.transfer_to("billing")
    yield "last words"
    yield "never said"


async def _yield_event(ctx):
    yield Event(content=Content("model").with_text("last words"), actions=EventActions(transfer_to_agent="billing"))
    yield "never said"


async def _set_actions(ctx):
    ctx.set_actions(transfer_to_agent="billing")
    yield Content("model").with_text("last words")


async def _return_text(ctx):
    ctx.transfer_to("billing")
    return "last words"


async def _return_event(ctx):
    return Event(content=Content("model").with_text("last words"), actions=EventActions(transfer_to_agent="billing"))


async def _silently(ctx):
    ctx.transfer_to("billing")


async def _inside_a_step(ctx):
    await ctx.step("s", lambda: ctx.transfer_to("billing"))


def _plain(ctx):
    ctx.transfer_to("billing")
    return "last words"


WAYS = [_yield_content, _yield_text, _yield_event, _set_actions, _return_text, _return_event, _silently, _inside_a_step, _plain]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_hand_over_is_told_once_and_takes_effect_in_the_same_run(way):
    @for_seeds(3)
    async def case():
        store = InMemorySessionService()
        runner = make_runner(_pair(way), store)
        run = await runner.start(USER, SESSION, "hi")
        assert await run.result() == "billing here"
        log = await log_of(store)
        assert [e.actions.transfer_to_agent for e in log if e.actions.transfer_to_agent] == ["billing"]
        assert "never said" not in "".join(e.text for e in log)
        assert run.record.agent == "billing"
        assert run.record.transfers == 1
        assert (await runner.get_session(USER, SESSION)).active_agent == "billing"
        assert [e.text for e in log if e.text] in (
            ["hi", "before", "last words", "billing here"], ["hi", "last words", "billing here"], ["hi", "billing here"],
        )  # fmt: skip

    case()


@pytest.mark.parametrize("said", [None, "words"])
@pytest.mark.parametrize("where", ["before_agent", "after_agent"])
def test_a_callback_may_hand_over(where, said):
    @for_seeds(3)
    async def case():
        ran = []

        def callback(ctx):
            ctx.transfer_to("billing")
            return said

        async def root(ctx):
            ran.append(True)
            yield "root speaks"

        store = InMemorySessionService()
        runner = make_runner(_pair(root, **{where: callback}), store)
        run = await runner.start(USER, SESSION, "hi")
        assert await run.result() == "billing here"
        log = await log_of(store)
        assert [e.actions.transfer_to_agent for e in log if e.actions.transfer_to_agent] == ["billing"]
        assert (run.record.agent, run.record.transfers) == ("billing", 1)
        assert (await runner.get_session(USER, SESSION)).active_agent == "billing"
        assert ran == ([] if where == "before_agent" else [True])

    case()


@for_seeds(3)
async def test_class_agents_hand_over_too():
    class Router(Agent):
        async def run(self, ctx):
            ctx.transfer_to("billing")

    @agent
    async def billing(ctx):
        yield "billing here"

    router = Router(name="router", sub_agents=[billing])
    assert await outcome_of(await make_runner(router).start(USER, SESSION, "hi")) == "billing here"


@for_seeds(5)
async def test_the_next_run_starts_at_the_agent_that_has_the_session():
    ran = []

    @agent
    async def billing(ctx):
        ran.append("billing")
        if ctx.user_content.text == "back":
            ctx.transfer_to("root")

    @agent(sub_agents=[billing])
    async def root(ctx):
        ran.append("root")
        if ctx.user_content.text == "pay":
            ctx.transfer_to("billing")

    runner = make_runner(root)

    async def agents_for(text):
        ran.clear()
        await (await runner.start(USER, SESSION, text)).result()
        return list(ran)

    assert await agents_for("hi") == ["root"]
    assert await agents_for("pay") == ["root", "billing"]
    assert await agents_for("hi") == ["billing"]
    assert await agents_for("back") == ["billing", "root"]
    assert await agents_for("hi") == ["root"]


@for_seeds(3)
async def test_an_agent_that_has_vanished_falls_back_to_the_root():
    store = InMemorySessionService()
    await (await make_runner(tree(), store).start(USER, SESSION, "a>a1")).result()
    assert (await store.get_session(app_name="app", user_id=USER, session_id=SESSION)).active_agent == "a1"

    @agent
    async def root(ctx):
        return "root again"

    assert await (await make_runner(root, store).start(USER, SESSION, "hi")).result() == "root again"


@for_seeds(3)
async def test_there_is_a_bound_to_hand_overs():
    root = tree()
    path = ">".join(["a", "b"] * 5)
    assert await path_of(root, path) == "b here"
    assert await path_of(root, f"{path}>a") == "run.max_transfers"
    assert await path_of(root, "a>b", run_config=RunConfig(max_transfers=1)) == "run.max_transfers"
    assert await path_of(root, "a", run_config=RunConfig(max_transfers=0)) == "run.max_transfers"


@for_seeds(5)
async def test_what_is_refused_is_never_stored():
    store = InMemorySessionService()

    def policy(ctx, source, target):
        return "billing is closed" if target.name == "billing" else None

    async def root(ctx):
        yield "before"
        ctx.transfer_to("billing")

    runner = make_runner(_pair(root), store, transfer_policy=policy)
    run = await runner.start(USER, SESSION, "hi")
    assert await outcome_of(run) == "transfer.denied"
    assert "billing is closed" in run.record.error.message
    assert [e.actions.transfer_to_agent for e in await log_of(store)] == [None, None]
    assert run.record.agent is None
    assert (await runner.get_session(USER, SESSION)).active_agent is None


@for_seeds(3)
async def test_a_refused_hand_over_may_be_handled_by_the_agent():
    asked = []

    def policy(ctx, source, target):
        asked.append((ctx.user_id, source.name, target.name))
        return False

    async def root(ctx):
        try:
            ctx.transfer_to("billing")
        except SojournError as error:
            yield f"sorry: {error.code}"

    store = InMemorySessionService()
    runner = make_runner(_pair(root), store, transfer_policy=policy)
    assert await outcome_of(await runner.start(USER, SESSION, "hi")) == "sorry: transfer.denied"
    assert asked == [(USER, "root", "billing")]
    assert all(e.actions.transfer_to_agent is None for e in await log_of(store))


@for_seeds(3)
async def test_a_policy_that_cannot_be_asked_allows_nothing():
    async def policy(ctx, source, target):
        return False

    async def root(ctx):
        ctx.transfer_to("billing")

    runner = make_runner(_pair(root), transfer_policy=policy)
    assert await outcome_of(await runner.start(USER, SESSION, "hi")) != "billing here"


@for_seeds(3)
async def test_a_policy_that_raises_allows_nothing():
    def policy(ctx, source, target):
        raise ValueError("broken")

    async def root(ctx):
        ctx.transfer_to("billing")

    store = InMemorySessionService()
    runner = make_runner(_pair(root), store, transfer_policy=policy)
    assert await outcome_of(await runner.start(USER, SESSION, "hi")) == "agent.failed"
    assert (await runner.get_session(USER, SESSION)).active_agent is None


@for_seeds(3)
async def test_a_yielded_action_is_checked_like_a_call():
    async def root(ctx):
        yield Event(content=Content("model").with_text("x"), actions=EventActions(transfer_to_agent="nobody"))

    store = InMemorySessionService()
    run = await make_runner(_pair(root), store).start(USER, SESSION, "hi")
    assert await outcome_of(run) == "transfer.unknown_agent"
    assert await said_in(store) == [("user", "hi")]


@for_seeds(3)
async def test_a_hand_over_that_was_asked_for_does_not_outlive_a_failure():
    async def root(ctx):
        yield "half a"
        ctx.transfer_to("billing")
        raise ValueError("broken")

    store = InMemorySessionService()
    runner = make_runner(_pair(root), store)
    run = await runner.start(USER, SESSION, "hi")
    assert await outcome_of(run) == "agent.failed"
    assert all(e.actions.transfer_to_agent is None for e in await log_of(store))
    assert (await runner.get_session(USER, SESSION)).active_agent is None


@for_seeds(3)
async def test_the_last_of_several_hand_overs_counts():
    @agent
    async def billing(ctx):
        yield "billing here"

    @agent
    async def sales(ctx):
        yield "sales here"

    @agent(sub_agents=[billing, sales])
    async def root(ctx):
        ctx.transfer_to("billing")
        ctx.transfer_to("sales")

    store = InMemorySessionService()
    assert await outcome_of(await make_runner(root, store).start(USER, SESSION, "hi")) == "sales here"
    assert [e.actions.transfer_to_agent for e in await log_of(store) if e.actions.transfer_to_agent] == ["sales"]


@for_seeds(3)
async def test_no_hand_over_after_the_end_of_the_invocation():
    async def root(ctx):
        ctx.transfer_to("billing")
        ctx.end_invocation()
        yield "enough"

    store = InMemorySessionService()
    runner = make_runner(_pair(root), store)
    run = await runner.start(USER, SESSION, "hi")
    await run.result()
    assert "billing here" not in [e.text for e in await log_of(store)]
    assert (await runner.get_session(USER, SESSION)).active_agent in (None, "root")


# -- agents inside of others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SequentialAgent, LoopAgent, ParallelAgent])
@pytest.mark.parametrize("target", ["root", "outside", "sibling", "workflow"])
def test_agents_of_a_fixed_order_do_not_hand_over_out_of_it(kind, target):
    @for_seeds(3)
    async def case():
        workflow = kind(name="workflow", sub_agents=[follower("inner"), follower("sibling")])
        root = agent(name="root", sub_agents=[workflow, follower("outside")])(_to_workflow)
        store = InMemorySessionService()
        run = await make_runner(root, store).start(USER, SESSION, target)
        assert await outcome_of(run) == "transfer.not_allowed"
        assert [e.actions.transfer_to_agent for e in await log_of(store) if e.actions.transfer_to_agent] == ["workflow"]

    case()


async def _to_workflow(ctx):
    ctx.transfer_to("workflow")


@for_seeds(3)
async def test_agents_of_a_fixed_order_hand_over_below_themselves():
    inner = follower("inner", sub_agents=[follower("helper")])

    @agent
    async def last(ctx):
        return "in order"

    store = InMemorySessionService()
    workflow = SequentialAgent(name="workflow", sub_agents=[inner, last])
    assert await outcome_of(await make_runner(workflow, store).start(USER, SESSION, "helper>inner>helper")) == "in order"
    assert [t for _, t in await said_in(store) if t] == ["helper>inner>helper", "helper here", "in order"]


@for_seeds(3)
async def test_an_agent_run_inside_of_another_hands_over_only_below_itself_and_leaves_the_session_alone():
    @agent
    async def specialist(ctx):
        return "the specialist's answer"

    @agent(sub_agents=[specialist])
    async def researcher(ctx):
        ctx.transfer_to("specialist")

    @agent
    async def other(ctx):
        return "other"

    @agent(sub_agents=[researcher, other])
    async def root(ctx):
        answer = await ctx.run_agent(researcher)
        yield f"it says: {answer}"

    runner = make_runner(root)
    run = await runner.start(USER, SESSION, "hi")
    assert await run.result() == "it says: the specialist's answer"
    assert run.record.agent in (None, "root")
    assert (await runner.get_session(USER, SESSION)).active_agent in (None, "root")

    @agent(name="researcher")
    async def escaping(ctx):
        ctx.transfer_to("other")

    root_of_escaping = agent(name="root", sub_agents=[escaping, agent(name="other")(_silently)])

    @root_of_escaping
    async def trapped(ctx):
        await ctx.run_agent(escaping)

    assert await outcome_of(await make_runner(trapped).start(USER, SESSION, "hi")) == "transfer.not_allowed"


@for_seeds(3)
async def test_hand_overs_of_branches_happen_in_their_branches():
    def branch(name):
        @agent(name=name, sub_agents=[agent(name=f"{name}_helper")(_say_name)])
        async def hand_over(ctx):
            ctx.transfer_to(f"{name}_helper")

        return hand_over

    workflow = ParallelAgent(name="all", sub_agents=[branch("y"), branch("z")])
    store = InMemorySessionService()
    run = await make_runner(workflow, store).start(USER, SESSION, "hi")
    await run.result()
    assert {(e.branch, e.author, e.text) for e in await log_of(store) if e.text} == {
        (None, "user", "hi"), ("y", "y_helper", "y_helper here"), ("z", "z_helper", "z_helper here"),
    }  # fmt: skip
    assert run.record.agent is None


async def _say_name(ctx):
    yield f"{ctx.agent_name} here"


@for_seeds(5)
async def test_the_agent_that_takes_over_sees_state_and_history_of_the_one_before():
    seen = []

    @agent
    async def billing(ctx):
        seen.append((dict(ctx.state), [(e.author, e.text) for e in await ctx.history()]))
        await asyncio.sleep(0)
        return "done"

    @agent(sub_agents=[billing])
    async def root(ctx):
        ctx.state["order"] = 7
        ctx.state["temp:note"] = "x"
        yield "over"
        ctx.transfer_to("billing")

    await (await make_runner(root).start(USER, SESSION, "hi")).result()
    assert seen == [({"order": 7, "temp:note": "x"}, [("user", "hi"), ("root", "over")])]


@for_seeds(3)
async def test_a_retry_starts_at_the_agent_that_the_run_started_at():
    ran = []

    @agent
    async def billing(ctx):
        ran.append("billing")
        if len(ran) < 4:
            raise ValueError("broken")
        return "done"

    @agent(sub_agents=[billing])
    async def root(ctx):
        ran.append("root")
        ctx.transfer_to("billing")

    runner = make_runner(root)
    run = await runner.start(USER, SESSION, "hi")
    assert await outcome_of(run) == "agent.failed"
    retried = await runner.retry(run.id)
    assert await retried.result() == "done"
    assert ran == ["root", "billing", "root", "billing"]
    assert retried.record.retry_of == run.id
    assert (await retried.refresh()).start_agent is None
    await (await runner.start(USER, SESSION, "more")).result()
    assert ran[4:] == ["billing"]
    third = await runner.retry((await runner.list_runs()).items[0].id)
    await third.result()
    assert ran[5:] == ["billing"], "the session was with that agent then"
    assert [e.text for e in await log_of(runner.store) if e.text] == ["hi", "done", "more", "done"]

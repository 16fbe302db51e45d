"""Agents that tools run: what they say counts once, whatever becomes of the attempt, and is shown to nobody else's model."""

import asyncio

import pytest

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.agents.llm.tool import ToolContext, tool
from sojourn.agents.workflow import ParallelAgent, SequentialAgent
from sojourn.content import Content
from sojourn.run.status import RunStatus
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.llm.support import assert_valid_history, calls_in, crashed, llm, responses_in, said, waiting
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, read_events, state_of

SEEDS = 30


async def look(what: str) -> str:
    """Looks."""
    return f"seen {what}"


def inner(name, *tools):
    """An agent that looks, calls each of its other tools, and answers; it does not mind being asked again."""

    def turn(shown):
        done = [line.split()[1] for line in shown.lines if line.startswith("return")]
        for one in ("look", *(t.name for t in tools)):
            if one not in done:
                return [f"{name} does {one}. ", Calls(one, {"what": name})]
        return f"{name} has done {', '.join(done)}."

    return llm(turn, repeat=True, name=name, tools=[look, *tools])


def asking(*, where):
    """An agent that consults two others in one turn, of which the second needs a person's leave.

    Args:
        where: `inside` (a tool of the second's needs it), `call` (the call of the second itself), `tool` (the tool asks), or
            `nowhere`.
    """

    @tool(require_approval=where == "inside")
    async def buy(what: str) -> str:
        """Buys."""
        return "bought"

    first, second = inner("first"), inner("second", buy)

    @tool
    async def consult_first(context: ToolContext) -> str:
        """Consults the first."""
        return await context.run_agent(first)

    @tool(require_approval=where == "call")
    async def consult_second(context: ToolContext) -> str:
        """Consults the second."""
        if where == "tool":
            assert await context.ask("sure", "Sure?", bool)
        answer = await context.run_agent(second)
        context.state["asked"] = "second"
        return answer

    def turn(shown):
        if "return consult_second" in shown.text:
            return "Both have answered."
        return [Calls("consult_first", id="c.1"), Calls("consult_second", id="c.2")]

    return llm(turn, repeat=True, tools=[consult_first, consult_second])


async def assert_told_once(store, *, of=("first", "second")):
    """What the inner agents did and answered stands in the log, counts, and stands there once."""
    log = await log_of(store)
    for name in of:
        own = [e for e in log if e.author == name]
        done = ["look", "buy"] if name == "second" else ["look"]
        assert [c.name for c in calls_in(own) if not c.name.startswith("adk_")] == done
        assert [r.name for r in responses_in(own)] == done
        assert own[-1].text == f"{name} has done {', '.join(done)}."
        assert {e.branch for e in own} == {f"#tool:c%2E{1 if name == 'first' else 2}"}
    assert [e.text for e in log if e.author == "helper" and e.text] == ["Both have answered."]
    assert (await state_of(store)) == {"asked": "second"}
    await assert_valid_history(store)


# -- people -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["inside", "call", "tool"])
def test_what_one_agent_said_stays_when_the_other_waits_for_a_person(where):
    @for_seeds(SEEDS)
    async def case():
        store = InMemorySessionService()
        helper = asking(where=where)
        async with process(helper, store) as one:
            run, (question,) = await waiting(one.runner)
            one.die()
        again = asking(where=where)
        async with process(again, store, enter=True) as two:
            run = await two.runner.answer(run.id, question.id, True)
            assert await outcome_of(run) == "Both have answered."
            assert (await run.refresh()).attempt == 2
        await assert_told_once(store)
        assert await log_of(store, superseded=True) == await log_of(store)

    case()


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["inside", "call", "tool"])
async def test_what_one_agent_said_stays_when_the_other_waits_for_a_person_on_sqlite(tmp_path, where):
    url = f"sqlite:///{tmp_path / 'sessions.db'}"
    helper = asking(where=where)
    store = DatabaseSessionService(url)
    async with make_runner(helper, store) as runner, asyncio.timeout(60):
        run, (question,) = await waiting(runner)
    await store.close()
    store = DatabaseSessionService(url)
    async with make_runner(asking(where=where), store) as runner, asyncio.timeout(60):
        assert await (await runner.answer(run.id, question.id, True)).result() == "Both have answered."
    await assert_told_once(store)
    await store.close()


# -- crashes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_between_parallel_tools(after):
    @for_seeds(SEEDS)
    async def case():
        # Each seed takes them in another order, and dies at another point of it.
        number = int(platform.random() * 15) + 1
        store = InMemorySessionService()
        helper = asking(where="nowhere")
        async with crashed(helper, store, number, after=after) as run, process(helper, store, enter=True) as second:
            assert await outcome_of(await second.runner.follow(run.id)) == "Both have answered."
            await assert_told_once(store)

    case()


@pytest.mark.anyio
async def test_a_crash_between_parallel_tools_on_sqlite(tmp_path):
    for number in range(3, 14, 2):
        url = f"sqlite:///{tmp_path / f'{number}.db'}"
        helper = asking(where="nowhere")
        store = DatabaseSessionService(url)
        async with asyncio.timeout(60):
            async with process(helper, store) as one:
                one.die_at("append", number, after=number % 4 == 1)
                run = await one.runner.start(USER, SESSION, "go")
                death = asyncio.ensure_future(one.store.plan[0].reached.wait())
                settled = asyncio.ensure_future(run.settled())
                await asyncio.wait([death, settled], return_when=asyncio.FIRST_COMPLETED)
                one.die()
                await store.close()
            await asyncio.gather(settled, return_exceptions=True)
            death.cancel()
            store = DatabaseSessionService(url)
            async with make_runner(helper, store) as runner:
                assert await outcome_of(await runner.follow(run.id)) == "Both have answered."
            await assert_told_once(store)
            await store.close()


@for_seeds(SEEDS)
async def test_a_crash_and_then_a_person():
    store = InMemorySessionService()
    helper = asking(where="inside")
    async with crashed(helper, store, int(platform.random() * 9) + 1) as run, process(helper, store) as second:
        await second.runner.__aenter__()
        followed = await second.runner.follow(run.id)
        assert (await followed.wait()).status is RunStatus.WAITING
        (question,) = await followed.interrupts()
        second.die()
    async with process(helper, store, enter=True) as third:
        third.die_at("append", int(platform.random() * 6) + 1, after=True)
        await third.runner.answer(run.id, question.id, True)
        await asyncio.sleep(5)
        third.die()
        async with process(helper, store, enter=True) as fourth:
            assert await outcome_of(await fourth.runner.follow(run.id)) == "Both have answered."
            await assert_told_once(store)
    await asyncio.sleep(10)


@for_seeds(SEEDS)
async def test_agents_in_tools_of_agents_in_tools_and_in_branches_of_their_own():
    async def consult_both(context: ToolContext) -> str:
        """Consults two at once."""
        made = [inner("a"), inner("b")]
        return " ".join(await asyncio.gather(*(context.run_agent(one, branch=one.name) for one in made)))

    async def consult(context: ToolContext) -> str:
        """Consults one that consults."""
        middle = llm(
            lambda shown: "Done below." if "return consult_both" in shown.text else Calls("consult_both"),
            repeat=True,
            name="middle",
            tools=[consult_both],
        )
        return await context.run_agent(middle)

    def turn(shown):
        return "Done." if "return consult" in shown.text else [Calls("consult"), Calls("wait_for_leave")]

    @tool(require_approval=True)
    async def wait_for_leave() -> str:
        """Waits."""
        return "allowed"

    store = InMemorySessionService()
    runner = make_runner(llm(turn, repeat=True, tools=[consult, wait_for_leave]), store)
    run, (question,) = await waiting(runner)
    before = {(e.author, e.branch, e.text) for e in await log_of(store) if e.branch}
    assert {author for author, *_ in before} == {"a", "b", "middle"}
    assert await outcome_of(await runner.answer(run.id, question.id, True)) == "Done."
    assert {(e.author, e.branch, e.text) for e in await log_of(store) if e.branch} == before
    await assert_valid_history(store)


# -- who is shown what --------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_the_caller_is_shown_the_result_and_not_what_was_said_in_the_call():
    specialist = llm("It is 42.", "It is 43.", name="specialist")

    async def consult(context: ToolContext) -> str:
        """Consults a specialist."""
        seen = {e.author for e in await context.history()}
        assert seen <= {"user", "helper"}
        answer = await context.run_agent(specialist)
        assert [e.text for e in await context.history() if e.author == "specialist"] == [answer]
        return answer

    helper = llm(Calls("consult"), "42, then.", Calls("consult"), "43, then.", tools=[consult])
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    reading = await read_events(runner.run(USER, SESSION, "What is it?"))
    assert "It is 42." in reading.screen, "people are shown it"
    await read_events(runner.run(USER, SESSION, "And now?"))
    assert helper.model.requests[2].lines == [
        "user: What is it?", "call consult {}", "return consult It is 42.", "model: 42, then.", "user: And now?",
    ]  # fmt: skip
    assert "specialist" not in helper.model.requests[3].text
    # Who is consulted knows what led to it, and what came of the call before.
    shown = specialist.model.requests[1].text
    assert "user: What is it?" in shown
    assert '[helper] got from consult: {"result":"It is 42."}' in shown
    assert "user: And now?" in shown


@for_seeds(5)
async def test_an_agent_in_a_tool_is_shown_what_parallel_agents_said_before():
    writer = llm("I have read both.", name="writer")

    async def write(context: ToolContext) -> str:
        """Has it written."""
        return await context.run_agent(writer)

    helper = llm(Calls("write"), "Done.", tools=[write])
    both = ParallelAgent(name="both", sub_agents=[llm("One.", name="one"), llm("Two.", name="two")])
    run = await said(SequentialAgent(name="all", sub_agents=[both, helper]))
    assert await outcome_of(run) == "Done."
    for text in ("[one] said: One.", "[two] said: Two."):
        assert text in writer.model.requests[0].text
        assert text in helper.model.requests[0].text


@for_seeds(5)
async def test_what_an_agent_in_a_tool_has_written_is_seen_by_who_comes_after_it():
    @agent
    async def clerk(ctx):
        ctx.state["table"] = 7
        ctx.state.increment("guests", 2)
        yield Content("model").with_text("Table 7.")

    async def reserve(context: ToolContext) -> str:
        """Reserves a table."""
        return await context.run_agent(clerk)

    async def look_up(context: ToolContext) -> str:
        """Says which one."""
        return f"{context.state['table']} for {context.state['guests']}"

    helper = llm(Calls("reserve"), Calls("look_up"), "Done.", instruction="Table: {table?}.", tools=[reserve, look_up])

    @agent
    async def last(ctx):
        return [ctx.state["table"], ctx.state["guests"]]

    run = await said(SequentialAgent(name="all", sub_agents=[helper, last]))
    assert await outcome_of(run) == [7, 2]
    assert "return look_up 7 for 2" in helper.model.requests[-1].lines

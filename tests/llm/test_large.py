"""What tools give and do that is too large for one event: spread over several, told to the model, or shown again."""

import json
from collections import Counter

import pytest

from sojourn.agents.function import agent
from sojourn.agents.llm import spilled
from sojourn.agents.llm.builtin import load_artifact
from sojourn.agents.llm.tool import ToolContext, tool
from sojourn.agents.workflow import SequentialAgent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content, Part
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.llm.support import assert_valid_history, calls_in, crashed, llm, responses_in, results_in, said
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, state_of

MIB = 1_048_576


def writer(*, size=700_000, gives=0):
    """A tool that writes a large value, and what it was called with."""
    called = []

    async def write(key: str, context: ToolContext) -> str:
        """Writes."""
        called.append(key)
        context.state[key] = key * size
        context.state.increment("writes")
        return key * gives or "written"

    return write, called


def writes(*keys):
    return [Calls("write", {"key": key}, id=f"call-{key}") for key in keys]


# -- state ---------------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_calls_that_together_write_more_than_an_event_holds_are_told_by_several():
    store = InMemorySessionService()
    write, called = writer()
    helper = llm(writes("a", "b", "c"), "Done.", tools=[write])
    run = await said(helper, store=store, artifact_service=None)
    assert await outcome_of(run) == "Done.", run.record.error
    assert sorted(called) == ["a", "b", "c"]
    events = [e for e in await log_of(store) if e.get_function_responses()]
    assert [[r.id for r in e.get_function_responses()] for e in events] == [["call-a"], ["call-b"], ["call-c"]]
    assert [list(e.actions.state_delta) for e in events] == [["a"], ["b"], ["c"]], "each tells what its own call did"
    assert all(len(e.to_json().encode()) <= MIB for e in events)
    assert await state_of(store) == {"a": "a" * 700_000, "b": "b" * 700_000, "c": "c" * 700_000, "writes": 3}
    assert [line for line in helper.model.requests[1].lines if line.startswith("return")] == ["return write written"] * 3
    await assert_valid_history(store)


@for_seeds(3)
async def test_calls_that_fit_stay_together():
    store = InMemorySessionService()
    write, _ = writer(size=300_000)
    await said(llm(writes("a", "b", "c", "d"), "Done.", tools=[write]), store=store, artifact_service=None)
    events = [e for e in await log_of(store) if e.get_function_responses()]
    assert [[r.id for r in e.get_function_responses()] for e in events] == [["call-a", "call-b", "call-c"], ["call-d"]]


@for_seeds(3)
async def test_results_that_are_too_large_together_need_no_artifacts():
    store = InMemorySessionService()
    write, _ = writer(size=1, gives=700_000)
    helper = llm(writes("a", "b"), "Done.", "Yes.", tools=[write])
    runner = make_runner(helper, store, artifact_service=None)
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "Done."
    assert results_in(await log_of(store)) == [{"result": "a" * 700_000}, {"result": "b" * 700_000}]
    await (await runner.start(USER, SESSION, "Sure?")).result()
    assert [len(line) for line in helper.model.requests[2].lines if line.startswith("return")] == [700_013] * 2


@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize("after", [False, True])
def test_a_process_that_dies_between_them_leaves_all_to_be_told_once(number, after):
    @for_seeds(2)
    async def case():
        store = InMemorySessionService()
        write, called = writer()

        def turn(shown):
            return "Done." if "written" in shown.text else writes("a", "b")

        helper = llm(turn, repeat=True, tools=[write])
        async with crashed(helper, store, number, after=after) as run, process(helper, store, enter=True) as second:
            assert await outcome_of(await second.runner.follow(run.id)) == "Done."
            assert max(Counter(called).values()) <= 2
            assert await state_of(store) == {"a": "a" * 700_000, "b": "b" * 700_000, "writes": 2}
            assert [r.id for r in responses_in(await log_of(store))] == ["call-a", "call-b"]
            assert not [e for e in await log_of(store, superseded=True) if e.superseded]

    case()


@for_seeds(3)
async def test_a_hand_over_comes_with_the_last_of_them_and_ends_come_after_it():
    store = InMemorySessionService()
    write, _ = writer()
    child = llm("Here I am.", name="child")
    helper = llm(
        [*writes("a"), Calls("transfer_to_agent", {"agent_name": "child"}), *writes("b")], tools=[write], sub_agents=[child]
    )
    assert await outcome_of(await said(helper, store=store)) == "Here I am."
    events = [e for e in await log_of(store) if e.get_function_responses()]
    assert [e.actions.transfer_to_agent for e in events] == [None, "child"]
    assert (await state_of(store)).keys() == {"a", "b", "writes"}

    @tool
    async def finish(context: ToolContext) -> str:
        """Ends the run."""
        context.state["large"] = "x" * 700_000
        context.end_invocation()
        return "finished"

    store = InMemorySessionService()
    helper = llm([Calls("finish"), *writes("a")], tools=[finish, write])
    run = await said(helper, store=store)
    assert run.record.status is RunStatus.COMPLETED
    assert len(results_in(await log_of(store))) == 2, "what was done is told before the run ends"
    assert (await state_of(store)).keys() == {"a", "large", "writes"}


@for_seeds(3)
async def test_results_that_are_the_answer_end_the_turn_whichever_event_tells_them():
    @tool
    async def show(context: ToolContext) -> str:
        """Shows."""
        context.state["shown"] = "x" * 700_000
        context.set_actions(skip_summarization=True)
        return "this is it"

    write, _ = writer()
    store = InMemorySessionService()
    helper = llm([Calls("show"), *writes("a")], tools=[show, write])
    run = await said(helper, store=store)
    assert run.record.status is RunStatus.COMPLETED, run.record.error
    assert len(results_in(await log_of(store))) == 2


@pytest.mark.parametrize("size", [MIB - 20, MIB, 3 * MIB])
@pytest.mark.parametrize("artifacts", [True, False])
def test_a_call_that_writes_too_much_fails_and_what_it_wrote_is_undone(size, artifacts):
    @for_seeds(1)
    async def case():
        store = InMemorySessionService()
        write, called = writer(size=size)
        helper = llm(writes("a"), "Too much.", tools=[write])
        options = {} if artifacts else {"artifact_service": None}
        run = await said(helper, store=store, **options)
        assert await outcome_of(run) == "Too much.", run.record.error
        assert called == ["a"]
        assert await state_of(store) == {}
        (failure,) = results_in(await log_of(store))
        assert "bytes of state" in failure["error"]
        await assert_valid_history(store)

    case()


# The bytes of state around the most that one event holds: nothing in between may fail the run.
@for_seeds(1)
async def test_at_the_bound_a_call_either_works_or_fails_as_a_call():
    outcomes = Counter()
    for artifacts in ({}, {"artifact_service": None}):
        for size in range(600, 2100, 37):
            for gives in (0, 400, 800):
                store = InMemorySessionService()
                write, _ = writer(size=size, gives=gives)
                helper = llm(writes("a", "é"), "Done.", tools=[write])
                run = await said(helper, store=store, run_config=RunConfig(max_event_bytes=2048), **artifacts)
                assert await outcome_of(run) == "Done.", (size, gives, run.record.error)
                failed = sum("error" in result for result in results_in(await log_of(store)))
                outcomes[failed] += 1
                assert (await state_of(store)).get("writes", 0) == 2 - failed
    assert outcomes.keys() == {0, 1, 2}


@for_seeds(1)
async def test_the_smallest_event_holds_a_small_result():
    write, _ = writer(size=20)
    run = await said(
        llm(writes("a"), "Done.", tools=[write]), run_config=RunConfig(max_event_bytes=1024), artifact_service=None
    )
    assert await outcome_of(run) == "Done."
    assert results_in([e async for e in run.events(partials=False)]) == [{"result": "written"}]


# -- what was moved to artifacts is shown again -----------------------------------------------------------------------------


def teller(*, size, tools=()):
    """An agent that calls a tool that gives much, and answers twice."""

    async def tell() -> dict:
        """Tells much."""
        return {"story": "x" * size}

    return llm([Calls("tell")], "Told.", "Yes.", tools=[tell, *tools])


async def twice(helper, max_event_bytes, store=None):
    """Runs an agent twice; the lines that the second run's model was shown."""
    runner = make_runner(helper, store, run_config=RunConfig(max_event_bytes=max_event_bytes))
    assert await outcome_of(await runner.start(USER, SESSION, "Tell")) == "Told."
    run = await runner.start(USER, SESSION, "Sure?")
    assert await outcome_of(run) == "Yes.", run.record.error
    return helper.model.requests[2].lines


@for_seeds(2)
async def test_a_result_that_was_moved_is_shown_in_full_in_later_runs():
    store = InMemorySessionService()
    # The event with all that belongs to it is a little larger than the result.
    lines = await twice(teller(size=65_350), 65_536, store)
    (moved,) = results_in(await log_of(store))
    assert moved.keys() == {"artifact"}, "this test is about moved results"
    assert lines[2] == f'return tell {{"story":"{"x" * 65_350}"}}'
    await assert_valid_history(store)


@for_seeds(2)
async def test_a_result_that_is_too_large_to_be_shown_again_is_named_with_the_way_to_it():
    size = MIB - 200
    lines = await twice(teller(size=size), MIB)
    told = json.loads(lines[2].removeprefix("return tell "))
    assert told.keys() == {"artifact", "note"}
    assert "bytes, too large to be shown again; kept as the artifact 'spilled/" in told["note"]
    assert "load_artifact" not in told["note"]
    told = json.loads((await twice(teller(size=size, tools=[load_artifact]), MIB))[2].removeprefix("return tell "))
    assert "load_artifact loads it, with name='spilled/" in told["note"]


@for_seeds(2)
async def test_the_tool_that_is_named_loads_what_was_moved():
    def loads(shown):
        told = json.loads(next(line for line in shown.lines if line.startswith("return tell")).removeprefix("return tell "))
        name = told["note"].split("name='")[1].split("'")[0]
        return [Calls("load_artifact", {"name": name, "version": 0})]

    async def tell() -> dict:
        """Tells much."""
        return {"story": "x" * 300_000}

    helper = llm([Calls("tell")], "Told.", loads, "Yes.", tools=[tell, load_artifact])
    runner = make_runner(helper)
    small = RunConfig(max_event_bytes=300_100)
    assert await outcome_of(await runner.start(USER, SESSION, "Tell", run_config=small)) == "Told."
    assert await outcome_of(await runner.start(USER, SESSION, "Again")) == "Yes."
    loaded = [line for line in helper.model.requests[3].lines if line.startswith("return load_artifact")]
    assert loaded == [f'return load_artifact {{"story":"{"x" * 300_000}"}}']


@for_seeds(2)
async def test_outputs_that_were_moved_are_shown_and_told_to_others():
    @agent
    async def count(ctx):
        return {"words": ["x" * 2000]}

    store = InMemorySessionService()
    helper = llm("Many.", "Many still.")
    root = SequentialAgent(name="both", sub_agents=[count, helper])
    run = await said(root, store=store, run_config=RunConfig(max_event_bytes=2048))
    assert await outcome_of(run) == "Many.", run.record.error
    assert [e.output.keys() for e in await log_of(store) if e.output] == [{"artifact"}]
    assert f'[count] said: {{"words":["{"x" * 2000}"]}}' in helper.model.requests[0].text


@for_seeds(1)
async def test_of_many_the_newest_are_shown(monkeypatch):
    monkeypatch.setattr(spilled, "MAX_SHOWN", 3000)
    monkeypatch.setattr(spilled, "MAX_SHOWN_IN_ALL", 6000)

    async def tell(letter: str) -> dict:
        """Tells much."""
        return {"story": letter * 1900}

    helper = llm(*[turn for n in "abcde" for turn in ([Calls("tell", {"letter": n})], "Told.")], "Yes.", tools=[tell])
    runner = make_runner(helper, run_config=RunConfig(max_event_bytes=2048))
    for _ in "abcde":
        assert await outcome_of(await runner.start(USER, SESSION, "Tell")) == "Told."
    await (await runner.start(USER, SESSION, "Sure?")).result()
    told = [line for line in helper.model.requests[-1].lines if line.startswith("return")]
    assert [letter * 1900 in line for letter, line in zip("abcde", told, strict=True)] == [False, False, True, True, True]


@for_seeds(1)
async def test_what_is_gone_or_was_never_moved_fails_no_run():
    events = [
        Event(output={"artifact": "artifact:gone.json?version=0"}, custom_metadata={"spilled": ["output"]}),
        Event(output={"artifact": "nowhere"}, custom_metadata={"spilled": ["output"]}),
        Event(output={"artifact": 7}, custom_metadata={"spilled": ["output"]}),
        Event(output="text", custom_metadata={"spilled": ["output", "response:0", 5, "response:9"]}),
        Event(output={"plain": 1}, custom_metadata={"spilled": "output"}),
        Event(content=Content("model", (Part(text="text"),)), custom_metadata={"spilled": ["response:0", "text:0", "output"]}),
    ]

    @agent
    async def claims(ctx):
        await ctx.artifacts.save("notes.md", "no JSON")
        for event in [
            *events,
            Event(output={"artifact": "artifact:notes.md?version=0"}, custom_metadata={"spilled": ["output"]}),
        ]:
            yield event

    helper = llm("Well.")
    run = await said(SequentialAgent(name="both", sub_agents=[claims, helper]))
    assert await outcome_of(run) == "Well.", run.record.error
    text = helper.model.requests[0].text
    assert "cannot be shown: artifact.not_found" in text
    assert "cannot be shown: artifact.invalid_uri" in text
    assert '{"artifact":"artifact:notes.md?version=0"}' in text
    assert '{"plain":1}' in text


@for_seeds(1)
async def test_without_the_service_that_it_was_moved_to_a_result_is_named():
    store = InMemorySessionService()
    helper = teller(size=3000)
    small = RunConfig(max_event_bytes=3060)
    files = InMemoryArtifactService()
    assert await outcome_of(await said(helper, store=store, run_config=small, artifact_service=files)) == "Told."
    assert await outcome_of(await said(helper, "Sure?", store, artifact_service=None)) == "Yes."
    assert "cannot be shown: artifact.not_configured" in helper.model.requests[2].text
    assert len(calls_in(await log_of(store))) == 1

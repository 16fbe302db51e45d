"""What a model says: pieces for who watches, one event a message, usage, bounds."""

import asyncio

import pytest

from sojourn.agents.llm.tool import ToolContext
from sojourn.agents.workflow import LoopAgent, ParallelAgent, SequentialAgent
from sojourn.event import CallDelta
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls, Thinks
from tests.llm.support import assert_valid_history, calls_in, crashed, events_of, llm, results_in, said
from tests.runner.support import (
    SESSION,
    USER,
    assert_at_rest,
    assert_whole,
    make_runner,
    outcome_of,
    process,
    read_events,
    read_frames,
    said_in,
    state_of,
)


def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: One number.
        b: The other.
    """
    return a + b


@for_seeds(10)
async def test_text_thoughts_and_calls_are_sent_in_pieces_and_then_in_one_event():
    helper = llm(
        [Thinks("One and "), Thinks("two."), "I ", "add ", Calls("add", {"a": 1, "b": 2}, pieces=3)],
        ["It ", "is ", "3."],
        tools=[add],
    )
    runner = make_runner(helper)
    reading = await read_events(runner.run(USER, SESSION, "1 + 2?"))
    assert reading.error is None
    call, returned, answer = reading.events
    assert call.content.thoughts == "One and two."
    assert call.text == "I add "
    assert [c.args for c in call.get_function_calls()] == [{"a": 1, "b": 2}]
    assert results_in([returned]) == [{"result": 3}]
    assert (answer.text, answer.delta) == ("It is 3.", "")
    assert reading.screen == "One and two.I add It is 3."
    first = [p for p in reading.partials if p.id == call.id]
    assert "".join(p.delta for p in first if p.thought) == "One and two."
    assert "".join(p.delta for p in first if not p.thought) == "I add "
    pieces = [p.call for p in first if p.call is not None]
    assert "".join(p.args for p in pieces) == '{"a": 1, "b": 2}'
    assert {(p.id, p.name) for p in pieces} == {(call.get_function_calls()[0].id, "add")}
    assert all(isinstance(p, CallDelta) for p in pieces)
    assert {p.id for p in reading.partials} == {call.id, answer.id}


@for_seeds(3)
async def test_characters_that_a_server_cut_in_two_are_put_together_and_what_is_none_is_replaced():
    store = InMemorySessionService()
    helper = llm([Thinks("hm \udcff"), "a\ud83d", "\ude00 b \ud800"])
    reading = await read_events(make_runner(helper, store).run(USER, SESSION, "go"))
    assert reading.error is None
    [answer] = reading.events
    assert (answer.content.thoughts, answer.text) == ("hm \ufffd", "a\U0001f600 b \ufffd")
    assert reading.screen.encode(), "what readers are sent is text, too"


@for_seeds(5)
async def test_pieces_are_not_kept_waiting_for_the_rest_of_the_message():
    more = asyncio.Event()
    runner = make_runner(llm(["Wait", more.wait, " for it."]))
    stream = runner.run(USER, SESSION, "go")
    assert (await anext(stream)).delta == "Wait"
    more.set()
    reading = await read_events(stream)
    assert reading.events[-1].text == "Wait for it."
    assert "".join(p.delta for p in reading.partials) == " for it."


@for_seeds(3)
async def test_without_streaming_there_are_whole_events_only():
    helper = llm([Thinks("Hm."), "I add ", Calls("add", {"a": 1, "b": 2})], "It is 3.", tools=[add])
    runner = make_runner(helper, run_config=RunConfig(streaming_mode=StreamingMode.NONE))
    reading = await read_events(runner.run(USER, SESSION, "1 + 2?"))
    assert reading.partials == []
    assert [(e.text, e.delta) for e in reading.events] == [("I add ", "I add "), ("", ""), ("It is 3.", "It is 3.")]
    assert reading.events[0].content.thoughts == "Hm."
    assert results_in(reading.events) == [{"result": 3}]


@pytest.mark.parametrize("mode", [StreamingMode.NONE, StreamingMode.SSE])
def test_usage_is_on_the_event_of_each_message_and_summed_on_the_run(mode):
    @for_seeds(2)
    async def case():
        helper = llm(["Adding. ", Calls("add", {"a": 1, "b": 2})], "It is 3.", tools=[add])
        run = await said(helper, run_config=RunConfig(streaming_mode=mode))
        call, returned, answer = await events_of(run)
        assert returned.usage_metadata is None
        spent = [call.usage_metadata, answer.usage_metadata]
        assert all(u.prompt_token_count >= 50 and u.candidates_token_count > 0 for u in spent)
        assert all(u.total_token_count == u.prompt_token_count + u.candidates_token_count for u in spent)
        total = (await run.refresh()).usage
        assert total["total_token_count"] == sum(u.total_token_count for u in spent)

    case()


@for_seeds(3)
async def test_who_joins_late_sees_the_open_message_and_the_same_frames():
    more = asyncio.Event()
    runner = make_runner(llm([Calls("add", {"a": 1, "b": 2})], ["It ", "is ", more.wait, "3."], tools=[add]))
    run = await runner.start(USER, SESSION, "1 + 2?")
    first = asyncio.ensure_future(read_frames(run))
    await asyncio.sleep(1)
    late = asyncio.ensure_future(read_frames(await runner.follow(run.id)))
    await asyncio.sleep(1)
    more.set()
    one, two = await first, await late
    assert_whole(one)
    assert_whole(two)
    assert [e.id for e in one.events] == [e.id for e in two.events]
    assert one.screen == two.screen == "It is 3."


@for_seeds(3)
async def test_an_answer_without_words_is_asked_for_again_and_then_fails_with_a_code():
    store = InMemorySessionService()
    runner = make_runner(llm([Thinks("…")], repeat=True), store)
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "model.bad_answer"
    assert len(runner.agent.model.requests) < 10


@for_seeds(3)
async def test_max_turns_bounds_the_calls_of_the_model():
    helper = llm([Calls("add", {"a": 1, "b": 1})], repeat=True, tools=[add])
    run = await said(helper, run_config=RunConfig(max_turns=3))
    assert await outcome_of(run) == "run.max_turns"
    assert len(helper.model.requests) == 3


@for_seeds(5)
async def test_max_turns_counts_over_all_attempts_of_a_run():
    helper = llm([Calls("add", {"a": 1, "b": 1})], repeat=True, tools=[add])
    store = InMemorySessionService()
    config = RunConfig(max_turns=4)
    async with (
        crashed(helper, store, 4, run_config=config) as run,
        process(helper, store, enter=True, run_config=config) as second,
    ):
        assert await outcome_of(await second.runner.follow(run.id)) == "run.max_turns"
    assert len(helper.model.requests) <= 5, "four, and one that was under way when its process died"


@for_seeds(5)
async def test_max_turns_counts_over_hand_overs_and_attempts():
    other = llm([Calls("add", {"a": 1, "b": 1})], repeat=True, name="other", tools=[add])
    helper = llm(
        [Calls("add", {"a": 1, "b": 1})], [Calls("transfer_to_agent", {"agent_name": "other"})], sub_agents=[other], tools=[add]
    )
    store = InMemorySessionService()
    config = RunConfig(max_turns=4)
    async with (
        crashed(helper, store, 7, run_config=config) as run,
        process(helper, store, enter=True, run_config=config) as second,
    ):
        assert (await store.get_run("app", run.id)).agent == "other"
        assert await outcome_of(await second.runner.follow(run.id)) == "run.max_turns"
    assert len(helper.model.requests) == 2
    assert len(other.model.requests) <= 3, "two, and one that was under way when its process died"


@pytest.mark.parametrize("number", range(1, 14))
def test_max_turns_counts_the_turns_of_agents_inside_of_tools_over_all_attempts(number):
    @for_seeds(2)
    async def case():
        inner = llm(
            [Calls("add", {"a": 1, "b": 1})], [Calls("add", {"a": 1, "b": 1})], "42.", name="inner", tools=[add], repeat=True
        )

        async def consult(context: ToolContext) -> str:
            """Consults another agent."""
            return str(await context.run_agent(inner))

        def consult_first(shown):
            return Calls("add", {"a": 1, "b": 1}) if "return consult" in shown.text else Calls("consult")

        helper = llm(consult_first, repeat=True, tools=[consult, add])
        store = InMemorySessionService()
        config = RunConfig(max_turns=6)
        async with (
            crashed(helper, store, number, run_config=config) as run,
            process(helper, store, enter=True, run_config=config) as second,
        ):
            assert await outcome_of(await second.runner.follow(run.id)) == "run.max_turns"
        made = len(helper.model.requests) + len(inner.model.requests)
        assert made <= 7, "six, and one that was under way when its process died"

    case()


# -- being stopped ------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_a_cancel_in_mid_message_keeps_what_was_said_and_the_next_history_is_valid():
    store = InMemorySessionService()
    never = asyncio.Event()
    helper = llm([Thinks("Hm."), "Once upon ", Calls("add", '{"a": 1'), never.wait], "Yes.", tools=[add])
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "Tell me a story")
    await asyncio.sleep(1)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    (event,) = [e async for e in (await runner.follow(run.id)).frames() if getattr(e, "event", None)]
    assert event.event.interrupted
    assert event.event.text == "Once upon "
    assert_at_rest(runner)
    await assert_valid_history(store)
    assert await outcome_of(await runner.start(USER, SESSION, "Go on")) == "Yes."
    shown = helper.model.requests[-1]
    assert shown.lines == ["user: Tell me a story", "model: Once upon ", "user: Go on"]


@for_seeds(10)
async def test_a_cancel_in_mid_tool_answers_the_call_and_the_next_history_is_valid():
    store = InMemorySessionService()
    trace = []

    async def slow(n: int) -> str:
        """Takes long."""
        try:
            await asyncio.sleep(3600)
        finally:
            trace.append(n)
        return "never"

    helper = llm([Calls("slow", {"n": 1}), Calls("add", {"a": 1, "b": 2}), Calls("slow", {"n": 2})], "Yes.", tools=[slow, add])
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "go")
    await asyncio.sleep(1)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert sorted(trace) == [1, 2]
    await assert_valid_history(store)
    assert_at_rest(runner)
    assert await outcome_of(await runner.start(USER, SESSION, "Again")) == "Yes."
    assert helper.model.requests[-1].lines[-2:] == ['return slow {"error":"run.cancelled"}', "user: Again"]


@for_seeds(5)
async def test_a_timeout_in_mid_message_ends_the_run_with_its_code():
    never = asyncio.Event()
    store = InMemorySessionService()
    runner = make_runner(llm(["Once ", never.wait], "Yes."), store, run_config=RunConfig(timeout=60))
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "run.timeout"
    assert await said_in(store) == [("user", "go"), ("helper", "Once ")]
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "Yes."


@for_seeds(5)
async def test_leaving_the_loop_closes_the_stream_of_the_model():
    closed = []
    never = asyncio.Event()

    async def wait():
        try:
            await never.wait()
        finally:
            closed.append(True)

    runner = make_runner(llm(["Once ", wait]))
    async with runner.run(USER, SESSION, "go") as stream:
        async for item in stream:
            assert item.delta == "Once "
            await asyncio.sleep(1)
            break
    assert closed == [True]
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_shutdown_in_mid_message_is_no_cancel():
    store = InMemorySessionService()
    more = asyncio.Event()
    helper = llm([Calls("add", {"a": 1, "b": 2})], ["It ", more.wait], ["It is 3."], tools=[add])
    first = make_runner(helper, store)
    run = await first.start(USER, SESSION, "go")
    await asyncio.sleep(1)
    report = await first.close(grace=0)
    assert report.suspended == 1
    async with make_runner(helper, store) as second:
        assert await outcome_of(await second.follow(run.id)) == "It is 3."
    assert len(helper.model.requests) == 3, "the answer that was cut off is asked for again, and only that"
    assert [e.text for e in await events_of(run)] == ["", "", "It is 3."]


# -- inside other agents ------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_in_a_sequence_each_is_told_what_those_before_it_said():
    writer = llm("A poem.", name="writer", output_key="poem")
    critic = llm("Too short.", name="critic", instruction="Criticise: {poem}")
    run = await said(SequentialAgent(name="both", sub_agents=[writer, critic]), "Write!")
    assert await run.result() == "Too short."
    assert critic.model.requests[0].lines == ["user: Write!", "user: For context:\n[writer] said: A poem."]
    assert "Criticise: A poem." in critic.model.requests[0].instructions


@for_seeds(5)
async def test_in_a_loop_a_tool_escalates():
    def enough(context: ToolContext) -> str:
        """Ends it."""
        context.set_actions(escalate=True)
        return "enough"

    store = InMemorySessionService()
    writer = llm("One.", "Two.", [Calls("enough")], "Three.", name="writer", tools=[enough])
    run = await said(LoopAgent(name="loop", sub_agents=[writer], max_iterations=10), store=store)
    assert (await run.wait()).status is RunStatus.COMPLETED
    assert [t for _, t in await said_in(store) if t] == ["go", "One.", "Two.", "Three."]


@for_seeds(10)
async def test_parallel_agents_have_branches_steps_and_state_of_their_own():
    store = InMemorySessionService()

    async def note(word: str, context: ToolContext) -> str:
        """Notes."""
        await asyncio.sleep(1)
        context.state[context.agent_name] = word
        return word

    one = llm([Calls("note", {"word": "x"}, id="same")], "X.", name="one", tools=[note])
    two = llm([Calls("note", {"word": "y"}, id="same")], "Y.", name="two", tools=[note])
    run = await said(ParallelAgent(name="both", sub_agents=[one, two]), store=store)
    assert (await run.wait()).status is RunStatus.COMPLETED, run.record.error
    assert await state_of(store) == {"one": "x", "two": "y"}
    events = await events_of(run)
    assert {e.branch for e in events} == {"one", "two"}
    assert len({c.id for c in calls_in(events)}) == 2
    await assert_valid_history(store)
    assert one.model.requests[-1].lines == ["user: go", 'call note {"word":"x"}', "return note x"]

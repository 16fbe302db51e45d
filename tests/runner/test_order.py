"""R3: the six steps in their order; nothing is seen before it is stored; partials never are."""

import asyncio

import pytest

from sojourn.agents.base import Agent
from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.errors import Unavailable
from sojourn.event import Event, EventActions, Partial
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    APP,
    KEY,
    SESSION,
    USER,
    assert_at_rest,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_events,
    read_frames,
    said_in,
    state_of,
)


class TracedStore(FaultyStore):
    """Notes what was written, in order."""

    def __init__(self, trace):
        super().__init__(InMemorySessionService())
        self.trace = trace

    async def submit(self, run, *, begin):
        submitted = await super().submit(run, begin=begin)
        self.trace.append("store: message" if begin else "store: queued")
        return submitted

    async def append(self, fence, batch):
        appended = await super().append(fence, batch)
        self.trace.extend(f"store: {e.text}" for e in batch.events)
        if batch.move is not None:
            self.trace.append(f"store: {batch.move}")
        return appended


@for_seeds(20)
async def test_the_steps_of_a_run_come_in_their_order():
    trace = []

    class Traced(Plugin):
        async def on_user_message(self, key, message):
            trace.append(f"message {message.text}")

        async def before_run(self, ctx):
            trace.append(f"before run with {len(ctx.memories)} memories")

        async def before_agent(self, ctx):
            trace.append(f"before {ctx.agent_name}")

        async def on_event(self, ctx, event):
            trace.append(f"event {event.text}")

        async def after_agent(self, ctx, error):
            trace.append(f"after {ctx.agent_name}")

        async def after_run(self, record, error):
            trace.append(f"after run: {record.status}")

    @agent
    async def helper(ctx):
        trace.append("agent")
        yield Content("model").with_text("one")
        trace.append("agent goes on")
        yield "two"

    memory = InMemoryMemoryService()
    await memory.add(APP, USER, [Memory("the router has a red lamp")])
    store = TracedStore(trace)
    runner = make_runner(helper, store, plugins=[Traced()], memory_service=memory)
    async for item in runner.run(USER, SESSION, "my router"):
        trace.append(f"seen {item.delta}")
    await idle()
    assert [t for t in trace if not t.startswith("seen")] == [
        "message my router", "store: message", "before run with 1 memories", "before helper", "agent", "event one", "store: one",
        "agent goes on", "event two", "store: two", "after helper", "store: complete", "after run: completed",
    ]  # fmt: skip
    assert trace.index("seen one") > trace.index("store: one")
    assert trace.count("seen two") == 1


@for_seeds(20)
async def test_an_event_is_not_seen_before_it_is_stored():
    store = FaultyStore(InMemorySessionService())
    held = hold("append", 1)
    store.plan.append(held)

    @agent
    async def helper(ctx):
        yield Content("model").with_text("stored first")

    run = await make_runner(helper, store).start(USER, SESSION, "hi")
    seen = []

    async def read():
        async for item in run.events():
            seen.append(item)

    reader = asyncio.create_task(read())
    await held.reached.wait()
    await idle()
    assert seen == []
    held.go.set()
    await reader
    assert [e.text for e in seen] == ["stored first"]


@for_seeds(20)
async def test_an_event_is_not_seen_while_its_reply_is_on_the_way():
    store = FaultyStore(InMemorySessionService())
    held = hold("append", 1, after=True)
    store.plan.append(held)

    @agent
    async def helper(ctx):
        yield Content("model").with_text("stored first")

    run = await make_runner(helper, store).start(USER, SESSION, "hi")
    reading = asyncio.create_task(read_events(run.events()))
    await held.reached.wait()
    await idle()
    assert not reading.done()
    held.go.set()
    assert (await reading).screen == "stored first"


@for_seeds(10)
async def test_yield_event_returns_only_once_it_is_durable():
    store = InMemorySessionService()
    durable = []

    @agent
    async def helper(ctx):
        for text in ("one", "two"):
            yield Event(content=Content("model").with_text(text))
            durable.append((await said_in(store))[-1])

    await (await make_runner(helper, store).start(USER, SESSION, "hi")).result()
    assert durable == [("helper", "one"), ("helper", "two")]


@for_seeds(10)
async def test_what_the_store_refuses_is_never_seen():
    store = FaultyStore(InMemorySessionService(), [fail_before("append")])

    @agent
    async def helper(ctx):
        yield Content("model").with_text("lost")

    run = await make_runner(helper, store).start(USER, SESSION, "hi")
    reading = await read_events(run.events())
    assert reading.items == []
    assert reading.error.code == "store.unavailable"


@for_seeds(20)
async def test_partials_are_never_stored_and_their_event_holds_the_whole_text_under_their_id():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        for word in ("a ", "b ", "c"):
            yield word
            await asyncio.sleep(0)

    reading = await read_events(make_runner(helper, store).run(USER, SESSION, "hi"))
    log = await log_of(store)
    assert [(e.author, e.text, e.partial) for e in log] == [("user", "hi", False), ("helper", "a b c", False)]
    assert {p.id for p in reading.partials} <= {log[1].id}
    assert reading.events[-1].id == log[1].id
    assert reading.screen == "a b c"


@for_seeds(10)
async def test_pieces_are_forwarded_before_the_message_ends():
    said = asyncio.Event()

    @agent
    async def helper(ctx):
        yield "first"
        await said.wait()
        yield " last"

    stream = make_runner(helper).run(USER, SESSION, "hi")
    first = await anext(stream)
    assert isinstance(first, Partial)
    assert (first.delta, first.offset) == ("first", 0)
    said.set()
    assert "".join([i.delta async for i in stream]) == " last"


# -- what seals a message -----------------------------------------------------------------------------------------------


async def _messages(helper, **fields):
    """What an agent leaves in the log."""
    store = InMemorySessionService()
    run = await make_runner(helper, store, **fields).start(USER, SESSION, "hi")
    await outcome_of(run)
    return [(e.author, e.text, e.interrupted) for e in (await log_of(store))[1:]]


@for_seeds(5)
async def test_the_end_of_the_agent_seals_its_message():
    @agent
    async def helper(ctx):
        yield "a"
        yield "b"

    assert await _messages(helper) == [("helper", "ab", False)]


@for_seeds(5)
async def test_anything_else_that_is_yielded_seals_the_message():
    @agent
    async def helper(ctx):
        yield "a"
        yield "b"
        yield Content("model").with_text("c")
        yield "d"
        yield Event(output={"n": 1})
        yield "e"

    assert [m[1] for m in await _messages(helper)] == ["ab", "c", "d", "", "e"]


@for_seeds(5)
async def test_a_hand_over_seals_the_message():
    @agent
    async def billing(ctx):
        yield "here"

    @agent(sub_agents=[billing])
    async def helper(ctx):
        yield "one moment"
        ctx.transfer_to("billing")

    assert await _messages(helper) == [("helper", "one moment", False), ("billing", "here", False)]


@for_seeds(5)
async def test_a_question_seals_the_message():
    @agent
    async def helper(ctx):
        yield "before"
        await ctx.ask("ok", "ok?")

    messages = await _messages(helper)
    assert messages[0] == ("helper", "before", False)
    assert len(messages) == 2


@for_seeds(10)
async def test_a_stop_seals_the_message_as_interrupted():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield "so far"
        await asyncio.Event().wait()

    run = await make_runner(helper, store).start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    last = (await log_of(store))[-1]
    assert (last.text, last.interrupted) == ("so far", True)


@for_seeds(5)
async def test_a_failure_seals_the_message_as_interrupted_with_its_code():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield "so far"
        raise Unavailable("the model is away", code="model.away")

    assert await outcome_of(await make_runner(helper, store).start(USER, SESSION, "hi")) == "model.away"
    last = (await log_of(store))[-1]
    assert (last.text, last.interrupted, last.error_code) == ("so far", True, "model.away")


@for_seeds(5)
async def test_an_inner_agent_seals_the_message_of_the_outer():
    @agent
    async def inner(ctx):
        yield "in"

    @agent
    async def outer(ctx):
        yield "before "
        await ctx.run_agent(inner)
        yield "after"

    assert await _messages(outer) == [("outer", "before ", False), ("inner", "in", False), ("outer", "after", False)]


# -- what an agent gives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text", "output"),
    [("text", "text", None), (Content("model").with_text("c"), "c", None), (Event(output=[1]), "", [1]), ({"a": [1, None]}, "", {"a": [1, None]}),
     (0, "", 0), (False, "", False)],
)  # fmt: skip
def test_an_async_function_returns_one_event(value, text, output):
    @for_seeds(3)
    async def case():
        store = InMemorySessionService()

        @agent
        async def helper(ctx):
            return value

        run = await make_runner(helper, store).start(USER, SESSION, "hi")
        assert await run.result() == (output if output is not None else text)
        assert [(e.text, e.output) for e in (await log_of(store))[1:]] == [(text, output)]

    case()


@for_seeds(3)
async def test_none_and_empty_text_say_nothing():
    @agent
    async def silent(ctx):
        return None

    @agent
    async def empty(ctx):
        yield ""
        yield ""

    for helper in (silent, empty):
        assert await _messages(helper) == []
        assert await (await make_runner(helper).start(USER, SESSION, "hi")).result() is None


@for_seeds(5)
async def test_the_runner_assigns_ids():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Event(id="mine", content=Content("model").with_text("x"), run_id="other", seq=77, pos=5, ordinal=9)

    run = await make_runner(helper, store).start(USER, SESSION, "hi")
    await run.result()
    event = (await log_of(store))[1]
    assert event.id not in ("", "mine")
    assert (event.run_id, event.seq, event.pos, event.ordinal) == (run.id, 2, 2, 1)


@for_seeds(5)
async def test_state_travels_with_the_next_stored_event_and_what_is_left_with_the_end():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        ctx.state["early"] = 1
        yield Content("model").with_text("x")
        ctx.state["late"] = 2

    await (await make_runner(helper, store).start(USER, SESSION, "hi")).result()
    assert (await log_of(store))[1].actions.state_delta == {"early": 1}
    assert await state_of(store) == {"early": 1, "late": 2}


@for_seeds(5)
async def test_state_that_is_left_over_is_dropped_if_the_run_fails_or_is_cancelled():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        ctx.state["kept"] = 1
        yield Content("model").with_text("x")
        ctx.state["left"] = 2
        if ctx.user_content.text == "fail":
            raise ValueError("broken")
        await asyncio.Event().wait()

    runner = make_runner(helper, store)
    assert await outcome_of(await runner.start(USER, SESSION, "fail")) == "agent.failed"
    run = await runner.start(USER, SESSION, "hang")
    await idle()
    await run.cancel()
    await run.wait()
    assert await state_of(store) == {"kept": 1}


@for_seeds(5)
async def test_a_yielded_event_may_change_state_and_the_agent_sees_it():
    store = InMemorySessionService()
    seen = []

    @agent
    async def helper(ctx):
        ctx.state["a"] = 1
        yield Event(actions=EventActions(state_delta={"b": 2}, state_increments={"n": 3}))
        seen.append(ctx.state.to_dict())

    await (await make_runner(helper, store).start(USER, SESSION, "hi")).result()
    assert seen == [{"a": 1, "b": 2, "n": 3}]
    assert await state_of(store) == seen[0]


@for_seeds(5)
async def test_temporary_state_of_a_yielded_event_lives_for_the_attempt():
    store = InMemorySessionService()
    seen = []

    @agent
    async def helper(ctx):
        ctx.state["temp:a"] = 1
        yield Event(actions=EventActions(state_delta={"temp:b": 2}))
        seen.append(ctx.state.to_dict())

    await (await make_runner(helper, store).start(USER, SESSION, "hi")).result()
    assert seen == [{"temp:a": 1, "temp:b": 2}]
    assert await state_of(store) == {}


@for_seeds(5)
async def test_an_event_of_this_run_that_is_yielded_again_is_not_stored_twice():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Content("model").with_text("x")
        for event in (await ctx.history())[1:]:
            yield event

    await (await make_runner(helper, store).start(USER, SESSION, "hi")).result()
    assert await said_in(store) == [("user", "hi"), ("helper", "x")]


# -- the session and the agent ------------------------------------------------------------------------------------------


@for_seeds(3)
async def test_a_missing_session_is_created_unless_it_must_exist():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        return "x"

    runner = make_runner(helper, store)
    with raises_not_found():
        await runner.start(USER, SESSION, "hi", create_session=False)
    assert (await runner.list_runs()).items == []
    await (await runner.start(USER, SESSION, "hi")).result()
    await (await runner.start(USER, SESSION, "hi", create_session=False)).result()
    assert_at_rest(runner)


def raises_not_found():
    from sojourn.errors import NotFound

    return raises(NotFound, "session.not_found")


@for_seeds(3)
async def test_memories_are_injected_if_a_service_was_given():
    memory = InMemoryMemoryService()
    await memory.add(APP, USER, [Memory(f"router note {n}") for n in range(7)])
    await memory.add(APP, "bob", [Memory("router of bob")])
    found = {}

    @agent
    async def helper(ctx):
        found[ctx.run_id] = [m.text for m in ctx.memories]

    async def memories(**options):
        run = await make_runner(helper, **options).start(USER, SESSION, "the router")
        await run.result()
        return found[run.id]

    assert len(await memories(memory_service=memory)) == 5
    assert not any("bob" in text for text in await memories(memory_service=memory, run_config=RunConfig(inject_memory=50)))
    assert await memories(memory_service=memory, run_config=RunConfig(inject_memory=0)) == []
    assert await memories(memory_service=None) == []
    assert await memories() == []


@for_seeds(3)
async def test_a_memory_service_that_is_away_does_not_keep_the_run_from_answering():
    class Away(InMemoryMemoryService):
        async def search(self, *args, **options):
            raise Unavailable("memory is away")

    @agent
    async def helper(ctx):
        return f"{len(ctx.memories)} memories"

    assert await (await make_runner(helper, memory_service=Away()).start(USER, SESSION, "hi")).result() == "0 memories"


@for_seeds(3)
async def test_sessions_are_added_to_memory_when_their_runs_end():
    memory = InMemoryMemoryService()

    @agent
    async def helper(ctx):
        return "your router is red"

    runner = make_runner(helper, memory_service=memory, memory_ingest="on_run_end")
    await (await runner.start(USER, SESSION, "hello")).result()
    await idle()
    assert [m.text for m in await memory.search(APP, USER, "router")] == ["your router is red"]
    assert await memory.search(APP, "bob", "router") == []


@for_seeds(3)
async def test_end_invocation_takes_no_further_event_closes_the_agent_and_completes_the_run():
    store = InMemorySessionService()
    closed = []

    @agent
    async def helper(ctx):
        try:
            yield "enough"
            ctx.end_invocation()
            assert ctx.ended
            yield "more"
            yield "much more"
        finally:
            closed.append(True)

    run = await make_runner(helper, store).start(USER, SESSION, "hi")
    assert await run.result() == "enough"
    assert run.status is RunStatus.COMPLETED
    assert closed == [True]
    assert (await said_in(store))[1:] == [("helper", "enough")]


@for_seeds(5)
async def test_result_is_the_last_final_response():
    call = Part.from_function_call("look_up", {}, id="c1")
    response = Part.from_function_response("look_up", {"x": 1}, id="c1")

    @agent
    async def helper(ctx):
        yield "first"
        yield Content("model", (call,))
        yield Content("user", (response,))
        yield "the answer"
        yield Content("model", (Part.from_function_call("log", {}, id="c2"),))
        yield Content("user", (Part.from_function_response("log", {}, id="c2"),))

    run = await make_runner(helper).start(USER, SESSION, "hi")
    assert await run.result() == "the answer"


@for_seeds(3)
async def test_result_converts():
    from pydantic import BaseModel

    from sojourn.errors import InvalidInput

    class Point(BaseModel):
        x: int

    @agent
    async def helper(ctx):
        return {"x": 1} if ctx.user_content.text == "value" else '{"x": 2}' if ctx.user_content.text == "text" else "no point"

    runner = make_runner(helper)
    assert await (await runner.start(USER, SESSION, "value")).result(to_type=Point) == Point(x=1)
    assert await (await runner.start(USER, SESSION, "text")).result(to_type=Point) == Point(x=2)
    assert await (await runner.start(USER, SESSION, "text")).result(to_type=str) == '{"x": 2}'
    with raises(InvalidInput, "result.type_mismatch"):
        await (await runner.start(USER, SESSION, "other")).result(to_type=Point)


@for_seeds(3)
async def test_the_loop_that_prints_every_text_is_right_without_streaming():
    @agent
    async def helper(ctx):
        yield "a"
        yield "b"
        yield Content("model").with_text("c")

    config = RunConfig(streaming_mode=StreamingMode.NONE)
    reading = await read_events(make_runner(helper, run_config=config).run(USER, SESSION, "hi"))
    assert [e.text for e in reading.items] == ["ab", "c"]
    assert reading.screen == "abc"


@for_seeds(3)
async def test_a_class_agent_runs_like_a_function():
    class Greeter(Agent):
        async def run(self, ctx):
            yield f"Hello, {ctx.user_id} in {ctx.session_id} of {ctx.app_name}, says {ctx.agent_name}."

    class Counter(Agent):
        async def run(self, ctx):
            return len(await ctx.history())

    assert (
        await (await make_runner(Greeter(name="g")).start(USER, SESSION, "hi")).result() == "Hello, alice in s1 of app, says g."
    )
    assert await (await make_runner(Counter(name="c")).start(USER, SESSION, "hi")).result() == 1


@for_seeds(3)
async def test_an_agent_that_forgot_to_write_run_fails_with_a_code():
    assert await outcome_of(await make_runner(Agent(name="empty")).start(USER, SESSION, "hi")) == "agent.failed"


@for_seeds(3)
async def test_history_is_read_only_when_it_is_asked_for():
    store = FaultyStore(InMemorySessionService())

    @agent
    async def helper(ctx):
        return "x"

    await (await make_runner(helper, store).start(USER, SESSION, "hi")).result()
    assert store.calls["history"] == store.calls["list_events"] == store.calls["get_session"] == 0
    assert store.calls["submit"] == store.calls["append"] == 1
    assert await store.history(KEY, 10)


@for_seeds(3)
async def test_frames_of_a_run_tell_what_was_stored():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Content("model").with_text("x")

    run = await make_runner(helper, store).start(USER, SESSION, "hi")
    frames = (await read_frames(run)).frames
    assert [f.event for f in frames if f.event] == (await log_of(store))[1:]

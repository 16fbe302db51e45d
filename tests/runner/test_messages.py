"""R2 and R3: messages that are streamed in pieces, of texts and of function calls, and the events that take their place."""

import asyncio

import pytest

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent
from sojourn.content import Content, Part
from sojourn.errors import AgentError
from sojourn.event import CallDelta, Event, EventActions, Partial, Thought, Usage
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.live import PIECE_OVERHEAD
from sojourn.run.status import RunStatus
from sojourn.runner.attempt.speech import MESSAGE_FACTOR
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    KEY,
    SESSION,
    USER,
    assert_at_rest,
    assert_whole,
    idle,
    log_of,
    make_runner,
    outcome_of,
    process,
    read_events,
    read_frames,
    said_in,
    state_of,
)

SILENT = RunConfig(streaming_mode=StreamingMode.NONE)


def look_up(id="c1", **args):
    """A function call as a part."""
    return Part.from_function_call("look_up", args or {"word": "x"}, id=id)


def reply(text="", *parts, **fields):
    """An event with a text, if any, and other parts."""
    texts = (Part(text=text),) if text else ()
    return Event(content=Content("model", (*texts, *parts)), **fields)


async def only(store):
    """The one event of the agent in the log."""
    [event] = (await log_of(store))[1:]
    return event


async def calls_in_history(store):
    """The ids of all calls, and of all responses, that the next run's model would see."""
    events = (await store.history(KEY, None)).events
    return (
        [c.id for e in events for c in e.get_function_calls()],
        [r.id for e in events for r in e.get_function_responses()],
    )


# -- an event in place of its pieces ------------------------------------------------------------------------------------


@for_seeds(5)
async def test_without_pieces_it_is_an_event_like_any_other():
    @agent
    async def helper(ctx):
        yield Whole(reply("one"))
        yield Content("model").with_text("two")
        yield Whole(reply("three"))

    store = InMemorySessionService()
    reading = await read_events(make_runner(helper, store).run(USER, SESSION, "go"))
    assert [(e.partial, e.text, e.delta) for e in reading.items] == [
        (False, "one", "one"),
        (False, "two", "two"),
        (False, "three", "three"),
    ]
    assert len({e.id for e in reading.items}) == 3
    assert await said_in(store) == [("user", "go"), ("helper", "one"), ("helper", "two"), ("helper", "three")]


@for_seeds(10)
async def test_with_pieces_it_is_the_one_event_of_its_message():
    @agent
    async def helper(ctx):
        for word in ("let ", "me ", "see"):
            yield word
            await asyncio.sleep(0)
        yield Whole(reply("let me see", look_up()))
        yield Content("user", (Part.from_function_response("look_up", {"found": 1}, id="c1"),))
        yield "it is 1"

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    reading = await read_frames(run)
    assert_whole(reading)
    first, _, last = reading.events
    assert (first.text, first.delta, [c.id for c in first.get_function_calls()]) == ("let me see", "", ["c1"])
    assert {p.id for p in reading.partials if p.delta != "it is 1"} == {first.id}
    assert reading.screen == "let me seeit is 1"
    assert not first.interrupted
    assert [(e.text, e.ordinal) for e in await log_of(store)] == [("go", 0), ("let me see", 1), ("", 2), ("it is 1", 3)]
    assert await run.result() == last.text == "it is 1"


@for_seeds(10)
async def test_what_the_pieces_left_out_reaches_every_screen_once():
    @agent
    async def helper(ctx):
        yield "to be "
        yield "or not"
        await asyncio.sleep(2)
        yield Whole(reply("to be or not to be"))
        await asyncio.sleep(2)

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")

    async def late(seconds):
        await asyncio.sleep(seconds)
        return await read_frames(await runner.follow(run.id))

    readings = await asyncio.gather(
        read_frames(run), late(1), late(3), late(9), read_frames(run, partials=False), read_events(run.events()),
        read_events(run.events(partials=False)),
    )  # fmt: skip
    assert {r.screen for r in readings} == {"to be or not to be"}
    assert "".join([c async for c in (await runner.follow(run.id)).result_stream()]) == "to be or not to be"
    first, middle, *_ = readings
    assert [p.delta for p in first.partials] in (["to be ", "or not"], ["to be or not"])
    assert [(p.offset, p.delta) for p in middle.partials] == [(0, "to be or not")]
    assert [r.events[0].delta for r in (first, middle)] == [" to be"] * 2
    for reading in readings[:5]:
        assert_whole(reading)
        assert reading.frames == readings[0].frames


@for_seeds(10)
async def test_a_reader_of_whole_events_gets_no_piece():
    @agent
    async def helper(ctx):
        yield "let me "
        yield CallDelta("c1", "look_up", "{")
        await asyncio.sleep(1)
        yield Whole(reply("let me see", look_up()))
        yield "done"

    runner = make_runner(helper, run_config=SILENT)
    quiet = await read_events(runner.run(USER, SESSION, "go"))
    assert [(e.partial, e.delta, len(e.get_function_calls())) for e in quiet.items] == [
        (False, "let me see", 1),
        (False, "done", 0),
    ]


@for_seeds(10)
async def test_who_reads_in_the_middle_of_a_message_is_given_the_rest_of_it():
    """One piece was read, another one was not, when the event came."""

    @agent
    async def helper(ctx):
        yield "a"
        await asyncio.sleep(1)
        yield "b"
        yield Whole(reply("abc"))

    run = await make_runner(helper).start(USER, SESSION, "go")
    frames = run.frames()
    items = [await anext(frames), await anext(frames)]
    assert (items[0].kind, items[1].delta) == ("run.started", "a")
    await run.wait()
    items += [i async for i in frames]
    assert [i.delta for i in items if isinstance(i, Partial)] == ["a", "b"]
    assert [i.event.delta for i in items if getattr(i, "event", None)] == ["c"]


@for_seeds(10)
async def test_a_text_that_differs_from_the_pieces_is_given_to_those_who_have_seen_none_of_them():
    @agent
    async def helper(ctx):
        yield "two and two "
        yield "is five"
        await asyncio.sleep(2)
        yield Whole(reply("two and two is four, of course"))
        await asyncio.sleep(2)

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")

    async def late(seconds, **options):
        await asyncio.sleep(seconds)
        return await read_frames(await runner.follow(run.id), **options)

    live, middle, after, ended, whole = await asyncio.gather(
        read_frames(run), late(1), late(3), late(9), late(1, partials=False)
    )
    # What is on a screen cannot be taken back.
    for reading in (live, middle):
        assert reading.screen == "two and two is five"
        assert (reading.events[0].text, reading.events[0].delta) == ("two and two is four, of course", "")
    for reading in (after, ended, whole):
        assert reading.partials == []
        assert reading.screen == "two and two is four, of course"
    assert await run.result() == "two and two is four, of course"


@for_seeds(10)
async def test_of_pieces_that_an_event_contradicts_none_is_given_any_more():
    @agent
    async def helper(ctx):
        yield "my password "
        await asyncio.sleep(1)
        yield "is 1234"
        yield Whole(reply("my password is ****"))

    run = await make_runner(helper).start(USER, SESSION, "go")
    frames = run.frames()
    items = [await anext(frames), await anext(frames)]
    await run.wait()
    items += [i async for i in frames]
    assert [i.delta for i in items if isinstance(i, Partial)] == ["my password "]
    assert [i.event.delta for i in items if getattr(i, "event", None)] == ["is ****"]


@for_seeds(5)
async def test_thoughts_are_no_part_of_the_text_that_is_compared():
    @agent
    async def helper(ctx):
        yield Thought("hmm. ")
        yield "so: "
        await asyncio.sleep(1)
        yield Whole(Event(content=Content("model", (Part(text="hmm!", thought=True), Part(text="so: 42")))))

    run = await make_runner(helper).start(USER, SESSION, "go")
    reading = await read_frames(run)
    assert [(p.delta, p.thought) for p in reading.partials] == [("hmm. ", True), ("so: ", False)]
    assert (reading.events[0].delta, reading.events[0].content.thoughts) == ("42", "hmm!")
    assert "".join([c async for c in run.result_stream()]) == "so: 42"


@for_seeds(5)
async def test_all_that_an_event_says_and_does_takes_the_place_of_the_pieces():
    @agent
    async def billing(ctx):
        return "You owe 5."

    @agent(sub_agents=[billing])
    async def root(ctx):
        ctx.state["drafted"] = True
        await ctx.artifacts.save("draft.txt", "a draft")
        ctx.set_actions(requested_auth_configs={"c0": {}})
        yield '{"sum'
        ctx.state.increment("user:answers")
        yield Whole(
            Event(
                content=Content("model").with_text('{"sum": 5}'),
                output={"sum": 5},
                usage_metadata=Usage(prompt_token_count=3, total_token_count=7),
                custom_metadata={"model": "m"},
                actions=EventActions(state_delta={"sum": 5}, transfer_to_agent="billing"),
            )
        )
        raise AssertionError("it has handed over")

    store = InMemorySessionService()
    run = await make_runner(root, store).start(USER, SESSION, "go")
    assert await run.result() == "You owe 5."
    _, event, answer = await log_of(store)
    assert (event.author, event.text, event.output) == ("root", '{"sum": 5}', {"sum": 5})
    assert (event.usage_metadata.total_token_count, event.custom_metadata) == (7, {"model": "m"})
    actions = event.actions
    assert (actions.state_delta, actions.state_increments) == ({"drafted": True, "sum": 5}, {"user:answers": 1})
    assert (actions.artifact_delta, actions.requested_auth_configs) == ({"draft.txt": 0}, {"c0": {}})
    assert (actions.transfer_to_agent, answer.author) == ("billing", "billing")
    assert await state_of(store) == {"drafted": True, "sum": 5, "user:answers": 1}
    assert (run.record.usage["total_token_count"], run.record.agent, run.record.transfers) == (7, "billing", 1)


@for_seeds(5)
async def test_structured_output_in_place_of_pieces_is_the_result():
    @agent
    async def helper(ctx):
        yield '{"a":'
        yield Whole(Event(output={"a": 1}))

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    assert await run.result() == {"a": 1}
    event = await only(store)
    assert (event.content, event.output) == (None, {"a": 1})


@for_seeds(5)
async def test_once_it_was_yielded_it_is_durable_and_its_calls_are_in_the_history():
    seen = []

    @agent
    async def helper(ctx):
        yield "let me "
        yield Whole(reply("let me see", look_up()))
        seen.append(await said_in(store))
        seen.append([c.id for e in await ctx.history() for c in e.get_function_calls()])

    store = InMemorySessionService()
    await (await make_runner(helper, store).start(USER, SESSION, "go")).wait()
    assert seen == [[("user", "go"), ("helper", "let me see")], ["c1"]]


@for_seeds(10)
async def test_agents_inside_of_others_and_branches_have_messages_of_their_own():
    def speaker(name):
        @agent(name=name)
        async def speak(ctx):
            for n in range(2):
                yield f"{name}{n} "
                await asyncio.sleep(0)
                yield CallDelta(f"{name}{n}", "look_up", "{}")
                await asyncio.sleep(0)
                yield Whole(reply(f"{name}{n} looks", look_up(f"{name}{n}")))

        return speak

    @agent
    async def root(ctx):
        yield "first "
        await ctx.run_agent(ParallelAgent(name="both", sub_agents=[speaker("x"), speaker("y")]))
        yield "second "
        await ctx.run_agent(speaker("z"))
        yield Whole(reply("second and last"))

    store = InMemorySessionService()
    run = await make_runner(root, store).start(USER, SESSION, "go")
    reading = await read_frames(run)
    assert_whole(reading)
    said = {name: [e.text for e in reading.events if e.author == name] for name in ("root", "x", "y", "z")}
    assert said == {
        # A message ends where another agent begins to speak: what comes after that is no part of it.
        "root": ["first ", "second ", "second and last"],
        "x": ["x0 looks", "x1 looks"],
        "y": ["y0 looks", "y1 looks"],
        "z": ["z0 looks", "z1 looks"],
    }
    for event in reading.events:
        own = [p for p in reading.partials if p.id == event.id]
        assert {p.branch for p in own} <= {event.branch}
        assert {p.call.id for p in own if p.call} <= {c.id for c in event.get_function_calls()}


# -- pieces of function calls -------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_pieces_of_calls_are_partials_without_text():
    @agent
    async def helper(ctx):
        yield "hm "
        yield CallDelta("c1", "look_up", "")
        yield CallDelta("c1", "look_up", '{"wo')
        yield CallDelta("c2", "buy", "{}")
        yield CallDelta("c1", "look_up", 'rd": "x"}')
        yield "well"
        await asyncio.sleep(1)
        yield Whole(reply("hm well", look_up(), Part.from_function_call("buy", {}, id="c2")))

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")
    reading = await read_frames(run)
    args = {}
    for partial in reading.partials:
        assert (partial.get_function_calls(), partial.is_final_response(), partial.pos) == ([], False, None)
        if partial.call is not None:
            assert (partial.delta, partial.text, partial.thought) == ("", "", False)
            key = partial.call.id, partial.call.name
            args[key] = args.get(key, "") + partial.call.args
    assert args == {("c1", "look_up"): '{"word": "x"}', ("c2", "buy"): "{}"}
    assert [(p.offset, p.delta) for p in reading.partials if p.call is None] == [(0, "hm "), (3, "well")]
    assert {p.offset for p in reading.partials if p.call is not None} == {3}
    assert reading.screen == "hm well"
    assert [c async for c in run.result_stream()] == ["hm well"]


@for_seeds(10)
async def test_who_joins_late_gets_the_pieces_of_each_call_joined_and_in_their_order():
    @agent
    async def helper(ctx):
        yield "a"
        yield "b"
        for n in range(3):
            yield CallDelta("c1", "look_up", f"{n}")
        yield CallDelta("c2", "look_up", "x")
        yield CallDelta("c1", "look_up", "3")
        yield Thought("hm")
        yield "c"
        await asyncio.sleep(2)
        yield CallDelta("c2", "look_up", "y")
        await asyncio.sleep(2)
        yield Whole(reply("abc", look_up("c1"), look_up("c2")))

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")
    await asyncio.sleep(1)
    reading = await read_frames(await runner.follow(run.id))
    pieces = [(p.call.id, p.call.args) if p.call else p.delta for p in reading.partials]
    assert pieces == ["ab", ("c1", "012"), ("c2", "x"), ("c1", "3"), "hm", "c", ("c2", "y")]
    assert [p.offset for p in reading.partials] == [0, 2, 2, 2, 2, 4, 5]
    assert [e.delta for e in reading.events] == [""]


@for_seeds(2)
async def test_a_flood_of_pieces_of_a_call_reaches_a_slow_reader_coalesced():
    pieces = 5_000

    @agent
    async def flood(ctx):
        yield "x"
        for n in range(pieces):
            yield CallDelta("c1", "look_up", f"{n},")
        yield Whole(reply("x", look_up()))

    run = await make_runner(flood).start(USER, SESSION, "go")
    frames = run.frames()
    items = [await anext(frames), await anext(frames)]
    await run.wait()
    partials = [i for i in (*items, *[i async for i in frames]) if isinstance(i, Partial) and i.call is not None]
    assert "".join(p.call.args for p in partials) == "".join(f"{n}," for n in range(pieces))
    assert len(partials) < pieces / 2


def test_a_piece_of_a_call_as_adks_wire_has_it():
    partial = Partial("e1", "r1", "helper", None, 3, "", False, CallDelta("c1", "look_up", '{"wo'))
    event = partial.to_event()
    assert event.to_wire() == {
        "id": "e1",
        "invocationId": "r1",
        "author": "helper",
        "content": {"role": "model", "parts": [{"functionCall": {"id": "c1", "name": "look_up"}}]},
        "customMetadata": {"args_delta": '{"wo'},
        "partial": True,
    }
    assert partial.content == event.content


@for_seeds(5)
async def test_a_message_that_no_event_takes_the_place_of_is_sealed_without_its_calls():
    @agent
    async def helper(ctx):
        yield "let me "
        yield CallDelta("c1", "look_up", "{}")
        yield "see"
        yield reply("", look_up())

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    reading = await read_frames(run)
    assert reading.screen == "let me see"
    _, message, event = await log_of(store)
    assert (message.text, message.get_function_calls(), message.interrupted) == ("let me see", [], False)
    assert [c.id for c in event.get_function_calls()] == ["c1"]
    assert message.id != event.id


@for_seeds(5)
async def test_pieces_of_calls_alone_are_no_answer():
    @agent
    async def helper(ctx):
        yield Content("model").with_text("the answer")
        yield CallDelta("c1", "look_up", "{}")

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    assert_whole(reading := await read_frames(run))
    assert await run.result() == "the answer"
    sealed = (await log_of(store))[-1]
    assert (sealed.content, sealed.text, sealed.interrupted) == (None, "", False)
    assert {p.id for p in reading.partials} <= {sealed.id}


@for_seeds(3)
async def test_what_a_message_takes_in_memory_counts_its_calls():
    limit = 10_000
    pieces = []

    @agent
    async def endless(ctx):
        yield "x"
        while True:
            pieces.append(True)
            yield CallDelta("c1", "look_up", "y" * 1000)

    run = await make_runner(endless, run_config=RunConfig(max_event_bytes=limit)).start(USER, SESSION, "go")
    assert await outcome_of(run) == "event.too_large"
    assert len(pieces) == limit * MESSAGE_FACTOR // (1000 + len("c1look_up") + PIECE_OVERHEAD) + 1


@pytest.mark.parametrize("piece", [CallDelta("c" * 1000, "f", ""), CallDelta("c", "f" * 1000, "")], ids=["id", "name"])
@for_seeds(3)
async def test_what_a_message_takes_in_memory_counts_the_names_of_its_calls(piece):
    limit, pieces = 1024, []

    @agent
    async def endless(ctx):
        while True:
            pieces.append(True)
            ctx.write(CallDelta("".join(piece.id), "".join(piece.name), "y"))

    run = await make_runner(endless, run_config=RunConfig(max_event_bytes=limit)).start(USER, SESSION, "go")
    assert await outcome_of(run) == "event.too_large"
    assert len(pieces) == limit * MESSAGE_FACTOR // (1002 + PIECE_OVERHEAD) + 1


# -- stopped in the middle ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["cancel", "timeout", "fail"])
def test_a_message_that_is_cut_off_keeps_its_text_and_none_of_its_calls(end):
    @for_seeds(10)
    async def case():
        @agent
        async def helper(ctx):
            yield Thought("hm ")
            yield "let me "
            yield CallDelta("c1", "look_up", '{"word": "x"}')
            yield "see"
            yield CallDelta("c2", "look_up", "{")
            await asyncio.sleep(3)
            if end == "fail":
                raise ValueError("broken")
            await asyncio.sleep(100)

        store = InMemorySessionService()
        runner = make_runner(helper, store, run_config=RunConfig(timeout=5 if end == "timeout" else None))
        run = await runner.start(USER, SESSION, "go")
        reading = asyncio.ensure_future(read_frames(run))
        if end == "cancel":
            await asyncio.sleep(4)
            await run.cancel()
        code = {"cancel": "run.cancelled", "timeout": "run.timeout", "fail": "agent.failed"}[end]
        assert await outcome_of(run) == code
        event = await only(store)
        assert (event.text, event.content.thoughts, event.interrupted) == ("let me see", "hm ", True)
        assert event.get_function_calls() == []
        assert await calls_in_history(store) == ([], [])
        got = await reading
        assert got.screen == "hm let me see"
        assert {p.id for p in got.partials} == {event.id}
        assert_at_rest(runner)

    case()


@for_seeds(5)
async def test_pieces_of_calls_alone_that_are_cut_off_leave_an_empty_event():
    @agent
    async def helper(ctx):
        yield CallDelta("c1", "look_up", "{")
        raise ValueError("broken")

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    assert await outcome_of(run) == "agent.failed"
    event = await only(store)
    assert (event.content, event.interrupted) == (None, True)


@for_seeds(5)
async def test_calls_that_an_event_made_are_answered_when_the_run_is_stopped():
    @agent
    async def helper(ctx):
        yield "let me "
        yield Whole(reply("let me see", look_up("c1"), look_up("c2")))
        yield Content("user", (Part.from_function_response("look_up", {}, id="c2"),))
        yield "now "
        await asyncio.sleep(100)

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    await asyncio.sleep(1)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert await calls_in_history(store) == (["c1", "c2"], ["c2", "c1"])
    assert [(e.text, e.interrupted) for e in await log_of(store)][1:] == [
        ("let me see", False), ("", False), ("now ", True), ("", False),
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["store", "plugin"])
def test_a_cancel_while_an_event_with_calls_is_being_stored_leaves_no_call_open(where):
    @for_seeds(10)
    async def case():
        class Slow(Plugin):
            async def on_event(self, ctx, event):
                if where == "plugin" and ctx is not None:
                    await asyncio.sleep(10)

        @agent
        async def helper(ctx):
            yield "let me "
            await asyncio.sleep(1)
            yield Whole(reply("let me see", look_up()))
            raise AssertionError("not reached")

        store = FaultyStore(InMemorySessionService())
        held = hold("append", 1)
        if where == "store":
            store.plan.append(held)
        run = await make_runner(helper, store, plugins=[Slow()]).start(USER, SESSION, "go")
        reading = asyncio.ensure_future(read_frames(run))
        await asyncio.sleep(5)
        await run.cancel()
        held.go.set()
        assert await outcome_of(run) == "run.cancelled"
        assert await calls_in_history(store) == (["c1"], ["c1"])
        assert [e.text for e in await log_of(store)] == ["go", "let me see", ""]
        assert (await store.history(KEY, 0)).pinned == []
        got = await reading
        assert_whole(got)
        assert got.screen == "let me see"

    case()


@for_seeds(5)
async def test_nothing_is_taken_after_a_stop():
    @agent
    async def helper(ctx):
        yield "let me "
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            pass
        yield Whole(reply("let me see", look_up()))

    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    await idle()
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    event = await only(store)
    assert (event.text, event.interrupted, event.get_function_calls()) == ("let me ", True, [])


# -- refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("actions", "code"),
    [
        ({"transfer_to_agent": "nobody"}, "transfer.unknown_agent"),
        ({"state_delta": {"": 1}}, "state.invalid_key"),
        ({"state_increments": {"name": 1}}, "state.not_a_number"),
    ],
)
def test_an_event_that_is_refused_leaves_what_was_said_before_it(actions, code, whole):
    @for_seeds(3)
    async def case():
        @agent
        async def helper(ctx):
            yield "on the "
            yield "screen"
            event = reply("on the screen, and more", actions=EventActions(**actions))
            yield Whole(event) if whole else event

        store = InMemorySessionService()
        await store.create_session(app_name="app", user_id=USER, session_id=SESSION, state={"name": "Ann"})
        runner = make_runner(helper, store)
        reading = await read_frames(run := await runner.start(USER, SESSION, "go"))
        assert await outcome_of(run) == code
        assert_whole(reading)
        _, event = await log_of(store)
        assert (event.text, event.actions.changes_state) == ("on the screen", False)
        assert (event.interrupted, event.error_code) == ((True, code) if whole else (False, None))
        assert await state_of(store) == {"name": "Ann"}
        assert_at_rest(runner)

    case()


NOT_TO_BE_YIELDED = {
    "whole of a text": Whole("text"),
    "whole of content": Whole(Content("model").with_text("text")),
    "whole of a whole": Whole(Whole(Event())),
    "arguments as a dict": CallDelta("c1", "look_up", {"word": "x"}),
    "no arguments": CallDelta("c1", "look_up", None),
    "no id": CallDelta(None, "look_up", "{}"),
    "no name": CallDelta("c1", None, "{}"),
}


@pytest.mark.parametrize("bad", NOT_TO_BE_YIELDED.values(), ids=NOT_TO_BE_YIELDED)
def test_what_is_no_event_or_no_text_is_a_bad_yield_and_breaks_no_reader(bad):
    @for_seeds(3)
    async def case():
        @agent
        async def helper(ctx):
            yield "on the screen"
            await asyncio.sleep(1)
            yield bad
            raise AssertionError("not reached")

        store = InMemorySessionService()
        run = await make_runner(helper, store).start(USER, SESSION, "go")
        reading = await read_frames(run)
        assert_whole(reading)
        assert await outcome_of(run) == "agent.bad_yield"
        event = await only(store)
        assert (event.text, event.interrupted, event.error_code) == ("on the screen", True, "agent.bad_yield")

    case()


NOT_TO_BE_WRITTEN = {
    **{name: bad for name, bad in NOT_TO_BE_YIELDED.items() if isinstance(bad, CallDelta)},
    "arguments as bytes": CallDelta("c1", "look_up", b"{}"),
    "a number": 7,
    "nothing": None,
    "content": Content("model").with_text("text"),
    "an event": Event(),
}


@pytest.mark.parametrize("bad", NOT_TO_BE_WRITTEN.values(), ids=NOT_TO_BE_WRITTEN)
def test_what_is_no_text_cannot_be_written_and_breaks_no_reader(bad):
    @for_seeds(3)
    async def case():
        @agent
        async def helper(ctx):
            ctx.write("on the screen")
            with raises(AgentError, "agent.bad_yield"):
                ctx.write(bad)
            ctx.write(Thought("hm"))
            ctx.write(CallDelta("c1", "look_up", "{}"))
            ctx.write(", still")

        store = InMemorySessionService()
        run = await make_runner(helper, store).start(USER, SESSION, "go")
        reading = await read_frames(run)
        assert_whole(reading)
        event = await only(store)
        assert (event.text, event.interrupted) == ("on the screen, still", False)
        assert "".join(p.delta for p in reading.partials if not p.thought) == "on the screen, still"

    case()


@for_seeds(2)
async def test_an_async_function_has_no_pieces_whose_place_an_event_could_take():
    @agent
    async def helper(ctx):
        return Whole(reply("text"))

    run = await make_runner(helper).start(USER, SESSION, "go")
    assert await outcome_of(run) == "agent.bad_yield"


# -- a store that fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [fail_before, fail_after])
@pytest.mark.parametrize("times", [1, 3])
def test_an_event_is_stored_once_whatever_the_store_does(fault, times):
    @for_seeds(5)
    async def case():
        @agent
        async def helper(ctx):
            yield "let me "
            yield CallDelta("c1", "look_up", "{}")
            yield Whole(reply("let me see", look_up(), usage_metadata=Usage(total_token_count=7)))
            yield Content("user", (Part.from_function_response("look_up", {}, id="c1"),))

        store = FaultyStore(InMemorySessionService(), [fault("append", *range(1, times + 1))])
        run = await make_runner(helper, store).start(USER, SESSION, "go")
        reading = await read_frames(run)
        assert_whole(reading)
        assert reading.screen == "let me see"
        assert run.record.usage["total_token_count"] == 7
        assert [e.text for e in await log_of(store)] == ["go", "let me see", ""]

    case()


@for_seeds(5)
async def test_an_event_that_could_not_be_stored_in_time_goes_with_the_end_and_its_calls_are_answered():
    @agent
    async def helper(ctx):
        yield "let me "
        await asyncio.sleep(1)
        yield Whole(reply("let me see", look_up()))
        raise AssertionError("not reached")

    store = FaultyStore(InMemorySessionService(), [fail_before("append", 1, 2, 3, 4)])
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    reading = await read_frames(run)
    assert await outcome_of(run) == "store.unavailable"
    assert reading.screen == "let me see"
    assert await calls_in_history(store) == (["c1"], ["c1"])


# -- a second attempt ---------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_pieces_of_an_equal_event_are_not_given_twice():
    @agent
    async def helper(ctx):
        yield "let me "
        await asyncio.sleep(0.001)
        yield CallDelta("c1", "look_up", "{}")
        yield Whole(reply("let me see", look_up()))
        yield Content("user", (Part.from_function_response("look_up", {"n": 1}, id="c1"),))
        yield "it is "
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield Whole(reply("it is 1"))

    store = InMemorySessionService()
    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await asyncio.sleep(1)
        stored = await log_of(store)
        first.die()
        async with process(helper, store) as second:
            found = await second.runner.follow(run.id)
            follower = asyncio.ensure_future(read_frames(found, after=stored[-1].pos))
            await second.runner.__aenter__()
            reading = await follower
            everything = await read_frames(await second.runner.follow(run.id))
    assert [e.text for e in reading.events] == ["it is 1"]
    assert reading.screen == "it is 1"
    assert [p for p in reading.partials if p.call is not None] == []
    assert_whole(everything)
    assert (await log_of(store))[: len(stored)] == stored
    assert [e.text for e in await log_of(store, superseded=True)] == ["go", "let me see", "", "it is 1"]


@for_seeds(10)
async def test_after_an_answer_nothing_that_was_on_the_screen_comes_again():
    @agent
    async def helper(ctx):
        yield "one "
        await asyncio.sleep(0.001)
        yield Whole(reply("one and", look_up()))
        yield "two "
        name = await ctx.ask("name", "who?")
        yield "three "
        await asyncio.sleep(0.001)
        yield Whole(reply(f"three {name}"))

    runner = make_runner(helper)
    stream = runner.run(USER, SESSION, "go")
    before = await read_events(stream)
    answered = await runner.answer(stream.run.id, (await stream.run.interrupts())[0].id, "Ann")
    after = await read_events(answered.events(answered.start_pos))
    assert (before.screen, after.screen) == ("one andtwo ", "three Ann")


@for_seeds(10)
async def test_an_event_that_differs_supersedes_and_is_told_whole():
    @agent
    async def helper(ctx):
        yield "same"
        yield Whole(reply("same", actions=EventActions(state_delta={"seen": 1})))
        yield "attempt "
        await asyncio.sleep(0.001)
        yield Whole(
            reply(f"attempt {ctx.attempt}", look_up(f"c{ctx.attempt}"), actions=EventActions(state_delta={"by": ctx.attempt}))
        )
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield Content("user", (Part.from_function_response("look_up", {}, id="c2"),))
        yield "last "
        await asyncio.sleep(0.001)
        yield Whole(reply("last words"))

    store = InMemorySessionService()
    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await asyncio.sleep(1)
        position = (await log_of(store))[-1].pos
        first.die()
        async with process(helper, store) as second:
            found = await second.runner.follow(run.id)
            follower = asyncio.ensure_future(read_frames(found, after=position))
            await second.runner.__aenter__()
            reading = await follower
    # Who compares has to wait for the end of a message that is stored; the one after it is streamed again.
    assert [p.delta for p in reading.partials] in ([], ["last "])
    assert reading.screen == "attempt 2last words"
    log = await log_of(store, superseded=True)
    assert [(e.text, e.attempt, e.superseded) for e in log[1:]] == [
        ("same", 1, False), ("attempt 1", 1, True), ("attempt 2", 2, False), ("", 2, False), ("last words", 2, False),
    ]  # fmt: skip
    assert await state_of(store) == {"seen": 1, "by": 2}
    assert await calls_in_history(store) == (["c2"], ["c2"])


@for_seeds(5)
async def test_what_was_being_written_when_the_process_died_is_not_stored_and_streamed_anew():
    @agent
    async def helper(ctx):
        yield "let me "
        yield CallDelta("c1", "look_up", "{")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        await asyncio.sleep(1)
        yield Whole(reply("let me see"))

    store = InMemorySessionService()
    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        assert await said_in(store) == [("user", "go")]
        async with process(helper, store, enter=True) as second:
            reading = await read_frames(await second.runner.follow(run.id))
    assert reading.screen == "let me see"
    assert {p.id for p in reading.partials} == {(await only(store)).id}


# -- plugins ------------------------------------------------------------------------------------------------------------


class Replacing(Plugin):
    """Puts a text in place of each event's."""

    def __init__(self, text, *parts):
        self.content = Content("model", (Part(text=text), *parts))

    async def on_event(self, ctx, event):
        return Event(id="other", content=self.content, author=event.author)


@for_seeds(5)
async def test_a_plugin_replaces_what_takes_the_place_of_the_pieces_but_not_its_identity():
    @agent
    async def helper(ctx):
        yield "my password "
        await asyncio.sleep(2)
        yield Whole(reply("my password is 1234", look_up()))
        await asyncio.sleep(2)

    store = InMemorySessionService()
    runner = make_runner(helper, store, plugins=[Replacing("my password is ****", look_up("c9"))])
    run = await runner.start(USER, SESSION, "go")

    async def late(seconds):
        await asyncio.sleep(seconds)
        return await read_frames(await runner.follow(run.id))

    live, after, ended = await asyncio.gather(read_frames(run), late(3), late(9))
    assert {r.screen for r in (live, after, ended)} == {"my password is ****"}
    event = await only(store)
    assert (event.text, event.ordinal, event.run_id) == ("my password is ****", 1, run.id)
    assert {p.id for p in live.partials} == {event.id}
    assert [c.id for c in event.get_function_calls()] == ["c9"]


@for_seeds(5)
async def test_nobody_who_has_not_seen_them_is_given_the_pieces_of_a_text_that_a_plugin_took_out():
    @agent
    async def helper(ctx):
        yield "the password is "
        await asyncio.sleep(2)
        yield "1234"
        if ctx.user_content.text == "whole":
            yield Whole(reply("the password is 1234"))
        yield Content("model").with_text("end")
        await asyncio.sleep(2)

    for message in ("whole", "sealed"):
        runner = make_runner(helper, plugins=[Replacing("***")])
        run = await runner.start(USER, SESSION, message)

        async def late(seconds, runner=runner, run=run):
            await asyncio.sleep(seconds)
            return await read_frames(await runner.follow(run.id))

        live, middle, after, ended = await asyncio.gather(read_frames(run), late(1), late(3), late(9))
        assert {r.screen for r in (live, middle)} == {"the password is ***"}
        assert {r.screen for r in (after, ended)} == {"******"}
        assert after.partials == ended.partials == []


@for_seeds(5)
async def test_the_pieces_of_a_text_that_is_too_large_for_an_event_are_given_all_the_same():
    begun, rest = "x" * 20_000, "y" * 20_000

    @agent
    async def helper(ctx):
        for _ in range(2000):
            yield "x" * 10
        yield Whole(reply(begun + rest))

    run = await make_runner(helper, run_config=RunConfig(max_event_bytes=20_000)).start(USER, SESSION, "go")
    reading = await read_frames(run)
    assert "".join(p.delta for p in reading.partials) == begun
    assert reading.events[0].content.parts[0].file_data is not None
    assert await run.result() == begun + rest


@for_seeds(5)
async def test_a_plugin_that_refuses_fails_the_run_and_leaves_the_pieces_that_it_lets_pass():
    class Refusing(Plugin):
        async def on_event(self, ctx, event):
            if event.get_function_calls():
                raise ValueError("no calls")

    @agent
    async def helper(ctx):
        yield "let me "
        await asyncio.sleep(1)
        yield Whole(reply("let me see", look_up()))

    store = InMemorySessionService()
    runner = make_runner(helper, store, plugins=[Refusing()])
    run = await runner.start(USER, SESSION, "go")
    reading = await read_frames(run)
    assert_whole(reading)
    assert await outcome_of(run) == "plugin.failed"
    calls, _ = await calls_in_history(store)
    assert calls == []
    event = await only(store)
    assert (event.text, event.interrupted, event.error_code) == ("let me ", True, "plugin.failed")
    assert reading.screen == "let me "
    assert run.record.status is RunStatus.FAILED

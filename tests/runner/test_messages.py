"""R2 and R3: messages that are streamed in pieces, and the events that take their place."""

import asyncio

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent
from sojourn.content import Content, Part
from sojourn.event import CallDelta, Event, EventActions, Partial, Thought, Usage
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.messages_support import SILENT, look_up, only, reply
from tests.runner.support import SESSION, USER, assert_whole, log_of, make_runner, read_events, read_frames, said_in, state_of


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

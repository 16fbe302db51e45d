"""R2 and R3: function calls that are streamed in pieces."""

import asyncio

import pytest

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.event import CallDelta, Partial, Thought
from sojourn.run.config import RunConfig
from sojourn.run.live import PIECE_OVERHEAD
from sojourn.runner.attempt.speech import MESSAGE_FACTOR
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.messages_support import look_up, reply
from tests.runner.support import SESSION, USER, assert_whole, log_of, make_runner, outcome_of, read_frames


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

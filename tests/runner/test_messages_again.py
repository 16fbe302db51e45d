"""R2 and R3: messages in a store that fails, and in a second attempt."""

import asyncio

import pytest

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.event import CallDelta, EventActions, Usage
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from tests.runner.messages_support import calls_in_history, look_up, only, reply
from tests.runner.support import (
    SESSION,
    TRIES,
    USER,
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

    store = FaultyStore(InMemorySessionService(), [fail_before("append", *range(1, TRIES + 1))])
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

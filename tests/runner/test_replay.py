"""C1: what a later attempt of a run does and says again, and what it does not."""

import asyncio

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.event import Event, Partial
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.support import (
    SESSION,
    USER,
    assert_at_rest,
    dropped,
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


@for_seeds(10)
async def test_an_equal_event_is_not_stored_and_not_forwarded_again():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Content("model").with_text("one")
        yield "two"
        yield Content("model").with_text("three")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield "four"

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        position = (await log_of(store))[-1].pos
        first.die()
        async with process(helper, store) as second:
            found = await second.runner.follow(run.id)
            follower = asyncio.ensure_future(read_frames(found, after=position))
            await second.runner.__aenter__()
            reading = await follower
            assert [e.text for e in reading.events] == ["four"]
            assert reading.positions == [position + 1, position + 2]
    assert await said_in(store) == [
        ("user", "go"),
        ("helper", "one"),
        ("helper", "two"),
        ("helper", "three"),
        ("helper", "four"),
    ]


@for_seeds(20)
async def test_the_pieces_of_an_equal_message_are_not_forwarded_again():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield "one "
        await asyncio.sleep(0.001)
        yield "two "
        await asyncio.sleep(0.001)
        yield f"and {await ctx.ask('n', 'a number?')}"

    runner = make_runner(helper, store)
    stream = runner.run(USER, SESSION, "go")
    assert (await read_events(stream)).screen == "one two "
    run = stream.run
    answered = await runner.answer(run.id, (await run.interrupts())[0].id, 3)
    assert (await read_events(answered.events(answered.start_pos))).screen == "and 3"


@for_seeds(10)
async def test_a_different_event_supersedes_visibly():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Content("model").with_text("same")
        ctx.state["by"] = ctx.attempt
        yield Content("model").with_text(f"attempt {ctx.attempt}")
        yield Content("model").with_text("later")
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            run = await second.runner.follow(run.id)
            assert await run.result() == "later"
            frames = (await read_frames(run)).frames
            events = await read_events(run.events())
    log = await log_of(store, superseded=True)
    assert [(e.text, e.attempt, e.superseded) for e in log[1:]] == [
        ("same", 1, False), ("attempt 1", 1, True), ("later", 1, True), ("attempt 2", 2, False), ("later", 2, False),
    ]  # fmt: skip
    assert [f.event.supersedes for f in frames if f.event] == [None, None, None, 3, None]
    assert [f.pos for f in frames] == [1, 2, 3, 4, 5, 6, 7]
    assert [e.text for e in events.events] == ["same", "attempt 2", "later"]
    assert [e.text for e in await log_of(store)] == ["go", "same", "attempt 2", "later"]
    assert await state_of(store) == {"by": 2}


@for_seeds(10)
async def test_history_of_a_later_attempt_is_what_the_first_one_saw_at_the_same_point():
    store = InMemorySessionService()
    seen = []

    @agent
    async def helper(ctx):
        seen.append([e.text for e in await ctx.history()])
        yield Content("model").with_text("one")
        seen.append([e.text for e in await ctx.history()])
        yield Content("model").with_text("two")
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    async with process(helper, store) as first:
        await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            await idle()
            assert_at_rest(second.runner)
    assert seen == [["go"], ["go", "one"], ["go"], ["go", "one"]]


@for_seeds(5)
async def test_what_a_run_said_before_it_was_given_up_stays_in_the_history():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        ctx.state["kept"] = True
        yield Content("model").with_text("said and seen")
        await asyncio.Event().wait()

    async with process(helper, store) as first:
        reading = asyncio.ensure_future(read_events(first.runner.run(USER, SESSION, "go")))
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            await idle()
            record = (await second.runner.list_runs()).items[0]
            assert (record.status, record.error.code) == (RunStatus.FAILED, "run.lost")
    await dropped(reading)
    assert await said_in(store) == [("user", "go"), ("helper", "said and seen")]
    assert await state_of(store) == {"kept": True}


@for_seeds(5)
async def test_what_an_earlier_attempt_said_stays_if_a_later_one_is_cancelled_before_it_gets_there():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        if ctx.attempt == 2:
            await asyncio.Event().wait()
        yield Content("model").with_text("said and seen")
        await asyncio.Event().wait()

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            await idle()
            await second.runner.cancel(run.id)
            assert await outcome_of(await second.runner.follow(run.id)) == "run.cancelled"
    assert await said_in(store) == [("user", "go"), ("helper", "said and seen")]


@for_seeds(5)
async def test_a_step_key_is_the_same_in_every_attempt():
    store = InMemorySessionService()
    keys = []

    @agent
    async def inner(ctx):
        keys.append(ctx.step_id("pay"))

    @agent
    async def helper(ctx):
        await ctx.run_agent(inner)
        await ctx.run_agent(inner)
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    async with process(helper, store) as first:
        await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True):
            await idle()
    assert len(keys) == 4
    assert keys[:2] == keys[2:]
    assert keys[0] != keys[1]


@for_seeds(5)
async def test_an_event_yields_the_same_identity_in_every_attempt():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        yield Event(output={"n": 1})
        yield "text"
        yield Content("model").with_text("whole")
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    async with process(helper, store) as first:
        await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        before = await log_of(store)
        async with process(helper, store, enter=True):
            await idle()
    assert await log_of(store, superseded=True) == before


@for_seeds(5)
async def test_partials_of_what_is_new_are_forwarded_in_a_later_attempt():
    store = InMemorySessionService()
    go_on = asyncio.Event()

    @agent
    async def helper(ctx):
        yield "old"
        yield Content("model").with_text("old too")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield "new "
        await go_on.wait()
        yield "text"

    async with process(helper, store) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        async with process(helper, store, enter=True) as second:
            run = await second.runner.follow(run.id)
            frames = run.frames(after=3)
            piece = await anext(frames)
            assert isinstance(piece, Partial)
            assert piece.delta == "new "
            go_on.set()
            rest = [i async for i in frames]
            assert "".join(i.delta for i in rest if isinstance(i, Partial)) == "text"

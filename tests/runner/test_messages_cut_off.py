"""R2 and R3: messages that are stopped in the middle, or refused."""

import asyncio

import pytest

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.errors import AgentError
from sojourn.event import CallDelta, Event, EventActions, Thought
from sojourn.run.config import RunConfig
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.messages_support import calls_in_history, look_up, only, reply
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
    read_frames,
    state_of,
)

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

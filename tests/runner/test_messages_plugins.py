"""R2 and R3: plugins that change or refuse what takes the place of the pieces."""

import asyncio

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from tests.runner.messages_support import calls_in_history, look_up, only, reply
from tests.runner.support import SESSION, USER, assert_whole, make_runner, outcome_of, read_frames


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

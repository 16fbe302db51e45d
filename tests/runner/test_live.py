"""Live runs: the user sends while the agent speaks."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.live import LiveRequest, LiveRequestQueue
from sojourn.content import Blob, Content, Part
from sojourn.errors import Conflict, InvalidInput, Unsupported
from sojourn.event import Event, Transcription
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.live_support import echo, scribe, shape, sound, started
from tests.runner.support import (
    APP,
    KEY,
    SEEDS,
    SESSION,
    USER,
    assert_at_rest,
    assert_whole,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_frames,
    said_in,
)

# -- how a conversation goes --------------------------------------------------------------------------------------------


@for_seeds(SEEDS)
async def test_what_both_say_is_stored_in_order():
    runner = make_runner(echo)
    queue = LiveRequestQueue()
    queue.send_content("good morning")
    seen = []
    async for item in runner.run_live(USER, SESSION, queue):
        if isinstance(item, Event):
            # What is stored is never seen before it is stored.
            assert (await log_of(runner.store))[-1].seq >= item.seq
            seen.append(shape(item))
            if item.turn_complete and len(seen) == 2:
                queue.send_content(Content(None, (Part(text="good night"),)))
            elif item.turn_complete:
                queue.close()
    assert seen == [
        ("user", "good morning"),
        ("echo", "good morning ", "turn_complete"),
        ("user", "good night"),
        ("echo", "good night ", "turn_complete"),
    ]
    log = await log_of(runner.store)
    assert log[0].is_opening()
    assert [shape(e) for e in log[1:]] == seen
    assert [e.seq for e in log] == [1, 2, 3, 4, 5]
    assert {e.run_id for e in log} == {log[0].run_id}
    assert_at_rest(runner)


@for_seeds(SEEDS)
async def test_a_message_is_durable_before_the_agent_has_it():
    stored = []

    @agent
    async def listener(ctx):
        async for request in ctx.live:
            stored.append((request.content.text, (await said_in(runner.store))[-1][1]))

    runner = make_runner(listener)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("one")
    await idle()
    queue.send_content("two")
    await idle()
    queue.close()
    await reading
    assert stored == [("one", "one"), ("two", "two")]
    assert run.status is RunStatus.COMPLETED


@for_seeds(SEEDS)
async def test_everything_comes_in_the_order_in_which_it_was_sent():
    taken = []

    @agent
    async def listener(ctx):
        async for request in ctx.live:
            taken.append(request)
            await asyncio.sleep(0)

    runner = make_runner(listener)
    queue = LiveRequestQueue()
    sent = []
    run, reading = await started(runner, queue)
    for n in range(30):
        request = [
            LiveRequest(blob=Blob(data=bytes([n]))),
            LiveRequest(content=Content("user").with_text(f"{n}")),
            LiveRequest(activity_start=True),
            LiveRequest(activity_end=True),
            LiveRequest(audio_stream_end=True),
        ][n % 5]
        sent.append(request)
        queue.send(request)
        if not n % 7:
            await asyncio.sleep(0)
    queue.close()
    assert_whole(await reading)
    assert taken == sent


@for_seeds(SEEDS)
async def test_messages_that_nobody_took_are_stored_all_the_same():
    @agent
    async def hasty(ctx):
        await asyncio.sleep(1)
        yield "No time."

    runner = make_runner(hasty)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    await asyncio.sleep(0.5)
    queue.send_content("Wait!")
    await reading
    assert await said_in(runner.store) == [("user", ""), ("user", "Wait!"), ("hasty", "No time.")]
    with raises(Conflict, "live.closed"):
        queue.send_content("Hello?")
    queue.close()


@for_seeds(SEEDS)
async def test_a_message_that_came_with_the_end_is_stored():
    queue = LiveRequestQueue()

    @agent
    async def hasty(ctx):
        yield "No time."
        queue.send_content("Wait!")

    runner = make_runner(hasty)
    run, reading = await started(runner, queue)
    got = await reading
    assert_whole(got)
    assert [(e.author, e.text) for e in got.events] == [("hasty", "No time."), ("user", "Wait!")]


@for_seeds(SEEDS)
async def test_an_agent_may_speak_first():
    @agent
    async def host(ctx):
        assert ctx.user_content.text == ""
        yield "Welcome!"
        async for _ in ctx.live:
            return

    runner = make_runner(host)
    queue = LiveRequestQueue()
    items = runner.run_live(USER, SESSION, queue)
    while not (item := await anext(items)).turn_complete:
        pass
    assert shape(item) == ("host", "Welcome!", "turn_complete")
    queue.send_activity_start()
    assert [i async for i in items] == []


# -- readers, sessions, processes ---------------------------------------------------------------------------------------


@for_seeds(SEEDS)
async def test_a_reader_who_comes_back_gets_what_it_missed():
    runner = make_runner(echo)
    queue = LiveRequestQueue()
    run = await runner.start_live(USER, SESSION, queue)
    first = run.frames()
    queue.send_content("one")
    while not ((item := await anext(first)).pos and item.event and item.event.turn_complete):
        pass
    queue.send_content("two")
    await idle()
    again = asyncio.ensure_future(read_frames(run, item.pos))
    await idle()
    queue.send_content("three")
    queue.close()
    got = await again
    assert got.positions == [4, 5, 6, 7, 8]
    assert [e.text for e in got.events] == ["two", "two ", "three", "three "]
    await runner.leave(run)


@for_seeds(SEEDS)
async def test_who_comes_late_does_not_hear_what_was_played():
    @agent
    async def radio(ctx):
        for n in range(4):
            yield sound(n)
            await asyncio.sleep(1)
        yield Event(turn_complete=True)
        async for _ in ctx.live:
            pass

    runner = make_runner(radio)
    queue = LiveRequestQueue()
    run = await runner.start_live(USER, SESSION, queue)
    await asyncio.sleep(2.5)
    late = asyncio.ensure_future(read_frames(run, after=1))
    await asyncio.sleep(10)
    queue.close()
    got = await late
    assert [p.content.parts[0].inline_data.data for p in got.partials] == [b"\3"]
    assert got.kinds == ["event", "run.completed"]


@for_seeds(SEEDS)
async def test_sessions_do_not_hear_each_other():
    runner = make_runner(echo)

    async def converse(session):
        queue = LiveRequestQueue()
        queue.send_content(f"I am {session}")
        said = []
        async for item in runner.run_live(USER, session, queue):
            if isinstance(item, Event):
                said.append(item.text)
                if item.turn_complete:
                    queue.close()
        return said

    names = [f"s{n}" for n in range(8)]
    found = await asyncio.gather(*map(converse, names))
    assert found == [[f"I am {name}", f"I am {name} "] for name in names]


@for_seeds(SEEDS)
async def test_a_queue_belongs_to_one_run():
    runner = make_runner(echo)
    queue = LiveRequestQueue()
    run = await runner.start_live(USER, SESSION, queue)
    with raises(Conflict, "live.queue_in_use"):
        await runner.start_live(USER, "other", queue)
    await runner.leave(run)


@for_seeds(SEEDS)
async def test_a_live_run_waits_for_its_turn_with_what_was_sent():
    @agent
    async def either(ctx):
        if ctx.user_content.text:
            await asyncio.sleep(10)
            yield "first"
            return
        async for request in ctx.live:
            yield request.content.text

    runner = make_runner(either)
    await runner.start(USER, SESSION, "wait")
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("second")
    queue.close()
    assert run.status is RunStatus.QUEUED
    await reading
    assert await said_in(runner.store) == [
        ("user", "wait"),
        ("either", "first"),
        ("user", ""),
        ("user", "second"),
        ("either", "second"),
    ]


@for_seeds(SEEDS)
async def test_what_a_live_run_cannot_do():
    @agent
    async def asker(ctx):
        await ctx.ask("sure", "Sure?")

    runner = make_runner(asker)
    run = await runner.start_live(USER, SESSION, LiveRequestQueue())
    assert await outcome_of(run) == "live.cannot_wait"
    with raises(Unsupported, "live.not_repeatable"):
        await runner.retry(run.id)
    ordinary = make_runner(echo)
    assert await outcome_of(await ordinary.start(USER, SESSION, "hi")) == "live.not_live"


@for_seeds(SEEDS)
async def test_a_plugin_sees_what_the_user_sends():
    class Censor(Plugin):
        async def on_user_message(self, key, message):
            assert key == KEY
            if message.text == "bad":
                raise InvalidInput("not here", code="censor.refused")
            return Content("user").with_text(message.text.upper()) if message.text == "hi" else None

    runner = make_runner(echo, plugins=[Censor()])
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    for text in ("hi", "bad", "ok"):
        queue.send_content(text)
        await idle()
    queue.close()
    events = (await reading).events
    assert [(e.author, e.text, e.error_code) for e in events] == [
        ("user", "HI", None),
        ("echo", "HI ", None),
        ("echo", "", "censor.refused"),
        ("user", "ok", None),
        ("echo", "ok ", None),
    ]
    assert run.status is RunStatus.COMPLETED


@for_seeds(SEEDS)
async def test_a_store_that_goes_away_ends_the_run_with_a_code():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(echo, store)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("one")
    await idle()
    store.plan.append(fail_before("append"))
    queue.send_content("two")
    await asyncio.sleep(5)
    store.plan.clear()
    got = await reading
    code = got.error.code if got.error is not None else got.frames[-1].error.code
    assert code == "store.unavailable"
    await asyncio.sleep(60)
    assert ("user", "one") in await said_in(runner.store)


@for_seeds(SEEDS)
@pytest.mark.parametrize("method", ["submit", "append"])
async def test_lost_replies_lose_nothing(method):
    store = FaultyStore(InMemorySessionService(), [fail_after(method, 1)])
    runner = make_runner(echo, store)
    queue = LiveRequestQueue()
    queue.send_content("one")
    queue.close()
    run, reading = await started(runner, queue)
    got = await reading
    assert_whole(got)
    assert [shape(e) for e in got.events] == [("user", "one"), ("echo", "one ", "turn_complete")]


# -- on a database ------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_on_sqlite(tmp_path):
    store = DatabaseSessionService(f"sqlite:///{tmp_path}/live.db")
    async with make_runner(scribe, store) as runner:
        queue = LiveRequestQueue()
        queue.send_content("before")
        run, reading = await started(runner, queue)
        queue.send_activity_start()
        queue.send_realtime(bytes(320))
        queue.send_activity_end()
        queue.close()
        assert_whole(await reading)
        log = await log_of(store)
        assert [(e.author, e.text) for e in log] == [
            ("user", ""),
            ("user", "before"),
            ("user", "hello"),
            ("scribe", "hi there"),
        ]
        assert log[0].is_opening()
        assert log[2].input_transcription == Transcription(text="hello", finished=True)
        assert log[2].content is None
        record = await store.get_run(APP, run.id, USER)
        assert record.message.content is None
        assert record.attached
    await store.close()


@pytest.mark.anyio
async def test_a_live_run_does_not_survive_its_process(tmp_path):
    store = DatabaseSessionService(f"sqlite:///{tmp_path}/live.db")
    runner = make_runner(echo, store)
    queue = LiveRequestQueue()
    run = await runner.start_live(USER, SESSION, queue)
    queue.send_content("hello")
    async for item in run.frames():
        if item.pos and item.event is not None and item.event.turn_complete:
            break
    await store.close()
    # As after kill -9: the record says running, and the process is another one.
    again = DatabaseSessionService(f"sqlite:///{tmp_path}/live.db")
    async with make_runner(echo, again) as later:
        record = await (await later.follow(run.id)).wait()
        assert (record.status, record.error.code) == (RunStatus.FAILED, "run.lost")
        assert [e.text for e in await log_of(again)] == ["", "hello", "hello "]
    await again.close()

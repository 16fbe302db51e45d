"""Live runs: who interrupts an agent, and what becomes of what it was saying."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.live import LiveRequestQueue
from sojourn.content import Content
from sojourn.errors import InvalidInput
from sojourn.event import Event, LivePartial, Partial
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, hold
from sojourn.testing.loop import for_seeds
from tests.runner.live_support import echo, shape, sound, started, talker
from tests.runner.support import SEEDS, SESSION, USER, assert_whole, idle, log_of, make_runner


@for_seeds(SEEDS)
@pytest.mark.parametrize("by", ["activity", "message"])
async def test_an_interruption_ends_what_is_being_said(by):
    runner = make_runner(talker)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("count")
    await asyncio.sleep(2.5)
    if by == "activity":
        queue.send_activity_start()
        queue.send_activity_end()
        await idle()
    queue.send_content("again")
    await asyncio.sleep(1.5)
    queue.close()
    got = await reading
    assert_whole(got)
    assert [shape(e) for e in got.events][:3] == [
        ("user", "count"),
        ("talker", "count: 0 1 2 ", "interrupted"),
        ("user", "again"),
    ]
    # Pieces and events say the same.
    for event in got.events:
        if event.author == "talker":
            assert "".join(p.delta for p in got.partials if p.id == event.id) == event.text
    assert run.status is RunStatus.COMPLETED
    # It was not interrupted by what ended its input, nor by what came while it listened.
    assert [e.interrupted for e in got.events].count(True) == 1


@for_seeds(SEEDS)
async def test_nobody_hears_what_an_agent_says_that_has_not_noticed():
    @agent
    async def deaf(ctx):
        async for request in ctx.live:
            if request.content is not None:
                for n in range(5):
                    yield f"{request.content.text}{n}"
                    ctx.write("+")
                    yield sound(n)
                    await asyncio.sleep(1)
                if ctx.live.interrupted:
                    yield Content("model").with_text("A fact is one all the same.")

    runner = make_runner(deaf)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("a")
    await asyncio.sleep(1.5)
    queue.send_content("b")
    queue.close()
    got = await reading
    assert [shape(e) for e in got.events] == [
        ("user", "a"),
        ("deaf", "a0+a1+", "interrupted"),
        ("user", "b"),
        ("deaf", "A fact is one all the same."),
        ("deaf", "", "turn_complete"),
        ("deaf", "b0+b1+b2+b3+b4+", "turn_complete"),
    ]
    heard = [p.content.parts[0].inline_data.data for p in got.partials if isinstance(p, LivePartial)]
    assert heard == [b"\0", b"\1", b"\0", b"\1", b"\2", b"\3", b"\4"]


@for_seeds(SEEDS)
async def test_an_interruption_of_sound_alone_is_an_event_too():
    @agent
    async def singer(ctx):
        async for request in ctx.live:
            if request.content is not None:
                for n in range(10):
                    yield sound(n)
                    if await ctx.live.interruption(1):
                        break

    runner = make_runner(singer)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("sing")
    await asyncio.sleep(1.5)
    queue.send_activity_start()
    await idle()
    queue.close()
    got = await reading
    assert [shape(e) for e in got.events] == [("user", "sing"), ("singer", "", "interrupted")]
    assert not any(part.inline_data for e in await log_of(runner.store) if e.content for part in e.content.parts)


@for_seeds(SEEDS)
async def test_sound_that_nobody_has_heard_is_taken_back():
    @agent
    async def flood(ctx):
        for n in range(100):
            yield sound(n)
        await ctx.live.interruption()

    runner = make_runner(flood)
    queue = LiveRequestQueue()
    run = await runner.start_live(USER, SESSION, queue)
    reader = run.frames()
    heard = [await anext(reader) for _ in range(4)]
    await idle()
    queue.send_activity_start()
    rest = [item async for item in reader]
    sounds = [i for i in (*heard, *rest) if isinstance(i, LivePartial)]
    assert 3 <= len(sounds) < 30
    assert [f.kind for f in rest if not isinstance(f, Partial)] == ["event", "run.completed"]


@for_seeds(SEEDS)
async def test_who_listens_is_not_interrupted():
    runner = make_runner(echo)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    for text in ("a", "b"):
        queue.send_activity_start()
        queue.send_content(text)
        queue.send_activity_end()
        await idle()
    queue.close()
    assert [shape(e) for e in (await reading).events] == [
        ("user", "a"),
        ("echo", "a ", "turn_complete"),
        ("user", "b"),
        ("echo", "b ", "turn_complete"),
    ]


@for_seeds(SEEDS)
async def test_work_is_ended_by_an_interruption():
    ended = []

    @agent
    async def slow(ctx):
        try:
            for n in range(100):
                yield f"{n} "
                await asyncio.sleep(1)
        finally:
            ended.append(True)

    @agent
    async def chat(ctx):
        async for request in ctx.live:
            if request.content is not None and request.content.text == "go":
                await ctx.live.until_interrupted(ctx.run_agent(slow))
            elif request.content is not None:
                assert await ctx.live.until_interrupted(asyncio.sleep(0, "done")) == "done"
                yield "Yes?"

    runner = make_runner(chat)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("go")
    await asyncio.sleep(1.5)
    queue.send_content("stop")
    await idle()
    assert ended == [True]
    queue.close()
    assert [shape(e) for e in (await reading).events] == [
        ("user", "go"),
        ("slow", "0 1 ", "interrupted"),
        ("user", "stop"),
        ("chat", "Yes?", "turn_complete"),
    ]
    assert run.status is RunStatus.COMPLETED


@for_seeds(SEEDS)
async def test_an_agent_that_listens_and_speaks_at_once():
    """As a bridge to another realtime service does: one task reads, the generator says what comes back."""

    @agent
    async def bridge(ctx):
        back = asyncio.Queue()

        async def uplink():
            async for request in ctx.live:
                if request.blob is not None:
                    back.put_nowait(sound(*request.blob.data))
                elif request.activity_end:
                    back.put_nowait(Event(turn_complete=True))
            back.put_nowait(None)

        task = asyncio.ensure_future(uplink())
        while (item := await back.get()) is not None:
            yield item
        await task

    runner = make_runner(bridge)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    for n in range(3):
        queue.send_realtime(bytes([n]))
        await asyncio.sleep(1)
    queue.send_activity_end()
    await idle()
    queue.send_activity_start()  # Nobody speaks any more.
    queue.close()
    got = await reading
    assert [shape(e) for e in got.events] == [("bridge", "", "turn_complete")]
    assert [p.content.parts[0].inline_data.data for p in got.partials] == [b"\0", b"\1", b"\2"]


@for_seeds(SEEDS)
async def test_text_that_is_said_while_another_task_listens_is_one_message():
    @agent
    async def bridge(ctx):
        async def listen():
            async for _ in ctx.live:
                pass

        listening = asyncio.ensure_future(listen())
        for n in range(4):
            yield f"{n} "
            await asyncio.sleep(1)
        yield Event(turn_complete=True)
        await listening

    runner = make_runner(bridge)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    for _ in range(7):
        await asyncio.sleep(0.5)
        queue.send_realtime(bytes(2))
    await asyncio.sleep(1)
    queue.close()
    got = await reading
    assert [shape(e) for e in got.events] == [("bridge", "0 1 2 3 "), ("bridge", "", "turn_complete")]


@for_seeds(SEEDS)
async def test_an_agent_learns_of_an_interruption_that_is_durable():
    stored = []

    @agent
    async def careful(ctx):
        yield "I say "
        while (request := ctx.live.take()) is None:
            await asyncio.sleep(0.001)
        assert request.activity_start
        stored.append([shape(e) for e in await log_of(runner.store)])

    store = FaultyStore(InMemorySessionService())
    runner = make_runner(careful, store)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    await idle()
    slow = hold("append")
    store.plan.append(slow)
    queue.send_activity_start()
    await asyncio.sleep(1)
    slow.go.set()
    await reading
    assert stored == [[("user", ""), ("careful", "I say ", "interrupted")]]


@for_seeds(SEEDS)
@pytest.mark.parametrize("refused", [True, False])
async def test_an_interruption_that_a_plugin_changes_or_refuses(refused):
    class Editor(Plugin):
        async def on_user_message(self, key, message):
            await asyncio.sleep(0.1)
            if refused and message.text == "b":
                raise InvalidInput("not here", code="editor.refused")
            return Content("user").with_text(message.text.upper())

    runner = make_runner(talker, plugins=[Editor()])
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("a")
    await asyncio.sleep(1.5)
    queue.send_content("b")
    await asyncio.sleep(0.5)
    if refused:
        queue.send_content("c")
    await asyncio.sleep(0.7)
    queue.send_activity_start()
    queue.close()
    got = await reading
    said = [shape(e) for e in got.events]
    answer = ("talker", "C: 0 " if refused else "B: 0 1 ", "interrupted")
    assert said[:2] == [("user", "A"), ("talker", "A: 0 1 ", "interrupted")]
    assert said[-1][1].startswith(answer[1][:5])
    assert said[-1][2:] == answer[2:]


@for_seeds(SEEDS)
async def test_sound_keeps_its_place_between_events():
    @agent
    async def mixed(ctx):
        for n in range(3):
            yield sound(n)
            yield Content("model").with_text(f"{n}")
        yield sound(3)

    runner = make_runner(mixed)
    run = await runner.start_live(USER, SESSION, LiveRequestQueue())
    reader = run.frames()
    await idle()  # It reads only when all has been said.
    order = [i.content.parts[0].inline_data.data[0] if isinstance(i, LivePartial) else i.kind async for i in reader]
    assert order == ["run.started", 0, "event", 1, "event", 2, "event", 3, "run.completed"]

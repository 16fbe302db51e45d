"""Live runs: the user sends while the agent speaks."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.live import LiveRequest, LiveRequestQueue
from sojourn.content import Blob, Content, Part
from sojourn.errors import Conflict, InvalidInput, LimitExceeded, SojournError, Unsupported
from sojourn.event import Event, LivePartial, Partial, Transcription
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.attempt.spill import scope_of
from sojourn.runner.plugins import Plugin
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    APP,
    KEY,
    SEEDS,
    SESSION,
    USER,
    Reading,
    assert_at_rest,
    assert_whole,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_frames,
    said_in,
)

SPOKEN = "audio/pcm;rate=24000"


def sound(*samples):
    """A partial event that holds audio."""
    return Event(partial=True, content=Content("model", (Part.from_bytes(bytes(samples), SPOKEN),)))


@agent
async def echo(ctx):
    """Says each message again, word by word."""
    async for request in ctx.live:
        if request.content is not None:
            for word in request.content.text.split():
                yield f"{word} "


@agent
async def talker(ctx):
    """Counts until it is interrupted, a number a second."""
    async for request in ctx.live:
        if request.content is None:
            continue
        yield f"{request.content.text}: "
        for number in range(100):
            yield f"{number} "
            if await ctx.live.interruption(1):
                break


async def started(runner, queue, **options):
    """A live run and what is read of it."""
    run = await runner.start_live(USER, SESSION, queue, **options)
    return run, asyncio.ensure_future(read(run.frames()))


async def read(frames):
    """Reads frames to the end; unlike `read_frames`, from readers that have been there from the beginning."""
    reading = Reading()
    try:
        async for item in frames:
            reading.items.append(item)
    except SojournError as error:
        reading.error = error
    return reading


def shape(event):
    """What matters of an event of a live run."""
    marks = [name for name in ("interrupted", "turn_complete") if getattr(event, name)]
    return (event.author, event.text, *marks)


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


# -- interruptions ------------------------------------------------------------------------------------------------------


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


# -- speech and transcripts ---------------------------------------------------------------------------------------------


@agent
async def scribe(ctx):
    """Writes down what is said, and says something back."""
    async for request in ctx.live:
        if request.blob is not None:
            yield Event(partial=True, input_transcription=Transcription(text="hel"))
        elif request.activity_end:
            yield Event(input_transcription=Transcription(text="hello", finished=True))
            yield sound(1, 2)
            yield Event(partial=True, output_transcription=Transcription(text="hi"))
            yield Event(output_transcription=Transcription(text="hi there", finished=True), turn_complete=True)


@for_seeds(SEEDS)
async def test_transcripts_are_stored_and_sound_is_not():
    runner = make_runner(scribe)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_activity_start()
    queue.send_realtime(bytes(320))
    queue.send_activity_end()
    queue.close()
    got = await reading
    assert_whole(got)
    assert [shape(e) for e in got.events] == [("user", "hello"), ("scribe", "hi there", "turn_complete")]
    passing = [(p.author, p.input_transcription, p.output_transcription, len(p.content.parts)) for p in got.partials]
    assert passing == [
        ("user", Transcription(text="hel"), None, 0),
        ("scribe", None, None, 1),
        ("scribe", None, Transcription(text="hi"), 0),
    ]
    wire = got.partials[1].to_event().to_wire()
    assert wire["content"]["parts"][0]["inlineData"] == {"mimeType": SPOKEN, "data": "AQI="}
    assert wire["partial"] is True
    assert await said_in(runner.store) == [("user", ""), ("user", "hello"), ("scribe", "hi there")]
    assert await run.result() == "hi there"


@for_seeds(SEEDS)
async def test_what_was_said_is_history_and_memory_and_the_opening_is_not():
    memory = InMemoryMemoryService()

    @agent
    async def both(ctx):
        if ctx.user_content.text:
            return [e.text for e in await ctx.history()]
        async for request in ctx.live:
            if request.content is not None:
                return [e.text for e in await ctx.history()]

    runner = make_runner(both, memory_service=memory, memory_ingest="on_run_end")
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("my cat is called Tom")
    assert (await reading).events[-1].output == ["my cat is called Tom"]
    later = await runner.start(USER, SESSION, "what cat?")
    assert (await later.result())[0] == "my cat is called Tom"
    await runner.hub.settle(5)
    found = await memory.search(APP, USER, "cat")
    assert {m.text for m in found} == {"my cat is called Tom", "what cat?"}


@for_seeds(SEEDS)
async def test_transcripts_are_remembered():
    memory = InMemoryMemoryService()
    runner = make_runner(scribe, memory_service=memory, memory_ingest="on_run_end")
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_activity_end()
    queue.close()
    await reading
    await runner.hub.settle(5)
    assert {(m.author, m.text) for m in await memory.search(APP, USER, "hello hi there")} == {
        ("user", "hello"),
        ("scribe", "hi there"),
    }


@for_seeds(SEEDS)
async def test_sound_is_saved_if_asked():
    @agent
    async def parrot(ctx):
        async for request in ctx.live:
            if request.blob is not None:
                yield Event(partial=True, content=Content("model", (Part(inline_data=request.blob),)))

    runner = make_runner(parrot)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue, run_config=RunConfig(save_live_blob=True))
    for n in range(4):
        queue.send_realtime(bytes([n]) * 30_000)
        await idle()
    queue.send_activity_end()
    await idle()
    queue.close()
    await reading
    saved = [e for e in await log_of(runner.store) if e.content is not None]
    assert {e.author for e in saved} == {"user", "parrot"}
    whole = {}
    session = await runner.get_session(USER, SESSION)
    for event in saved:
        (part,) = event.content.parts
        if part.file_data is not None:
            # Bytes of more than 64 KiB are artifacts.
            (name,) = event.actions.artifact_delta
            part = await runner.artifacts.load_artifact(scope_of(session), name)
        whole[event.author] = whole.get(event.author, b"") + part.inline_data.data
    expected = b"".join(bytes([n]) * 30_000 for n in range(4))
    assert whole == {"user": expected, "parrot": expected}


@for_seeds(SEEDS)
async def test_what_was_played_until_an_interruption_is_saved_before_it():
    @agent
    async def singer(ctx):
        for n in range(10):
            yield sound(n)
            if await ctx.live.interruption(1):
                break
        await asyncio.sleep(1)

    runner = make_runner(singer)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue, run_config=RunConfig(save_live_blob=True))
    await asyncio.sleep(1.5)
    queue.send_activity_start()
    got = await reading
    saved, cut = got.events
    assert saved.content.parts[0].inline_data.data == b"\0\1"
    assert shape(cut) == ("singer", "", "interrupted")


@for_seeds(SEEDS)
async def test_sound_is_not_saved_without_a_place_for_it():
    runner = make_runner(echo, artifact_service=None)
    run = await runner.start_live(USER, SESSION, LiveRequestQueue(), run_config=RunConfig(save_live_blob=True))
    assert await outcome_of(run) == "artifact.not_configured"


# -- bounds -------------------------------------------------------------------------------------------------------------


def test_a_queue_is_bounded_and_says_so():
    queue = LiveRequestQueue(max_requests=3, max_bytes=100)
    queue.send_realtime(bytes(1000))  # One alone may be large.
    with raises(LimitExceeded, "live.queue_full"):
        queue.send_realtime(bytes(1))
    other = LiveRequestQueue(max_requests=3, max_bytes=100)
    for _ in range(3):
        other.send_activity_start()
    with raises(LimitExceeded, "live.queue_full"):
        other.send_content("hello")
    other.close()
    with raises(Conflict, "live.closed"):
        other.send_content("hello")


@for_seeds(SEEDS)
async def test_what_the_agent_takes_makes_room():
    taken = []

    @agent
    async def listener(ctx):
        await asyncio.sleep(1)
        async for request in ctx.live:
            taken.append(request)

    runner = make_runner(listener)
    queue = LiveRequestQueue(max_bytes=100)
    run, reading = await started(runner, queue)
    for _ in range(5):
        for _ in range(10):
            queue.send_realtime(bytes(10))
        with raises(LimitExceeded, "live.queue_full"):
            queue.send_content("x")
        await asyncio.sleep(1.5)
    queue.close()
    await reading
    assert len(taken) == 50


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (LiveRequest(), "live.invalid_request"),
        (LiveRequest(activity_start=True, activity_end=True), "live.invalid_request"),
        (LiveRequest(content=Content("user")), "message.invalid"),
        (LiveRequest(content=Content("user", (Part.from_function_call("f"),))), "message.invalid"),
        (LiveRequest(content=Content("user", (Part.from_function_response("f", {}, id="1"),))), "message.invalid"),
    ],
)
def test_what_cannot_be_sent(request_, code):
    queue = LiveRequestQueue()
    with raises(InvalidInput, code):
        queue.send(request_)


def test_requests_of_adks_wire_are_read():
    assert LiveRequest.model_validate({"activityStart": {}}).activity_start
    assert not LiveRequest.model_validate({"activityStart": None}).activity_start
    assert LiveRequest.model_validate({"audioStreamEnd": True, "activityEnd": None}).audio_stream_end
    assert LiveRequest.model_validate({"close": True}).close
    blob = LiveRequest.model_validate({"blob": {"mimeType": "audio/pcm", "data": "AAE="}}).blob
    assert (blob.mime_type, blob.data) == ("audio/pcm", b"\0\1")
    assert LiveRequest.model_validate({"content": {"parts": [{"text": "hi"}]}}).content.text == "hi"


@for_seeds(SEEDS)
async def test_the_timeout_of_a_live_run():
    runner = make_runner(talker)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue, run_config=RunConfig(timeout=5))
    queue.send_content("count")
    got = await reading
    assert got.frames[-1].error.code == "run.timeout"
    assert shape(got.events[-1]) in [("talker", f"count: 0 1 2 3 4 {more}", "interrupted") for more in ("", "5 ")]
    assert_at_rest(runner)


@for_seeds(SEEDS)
async def test_turns_are_bounded():
    @agent
    async def model(ctx):
        async for _ in ctx.live:
            ctx.turn()
            yield "So?"

    runner = make_runner(model)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue, run_config=RunConfig(max_turns=2))
    for n in range(3):
        queue.send_content(str(n))
        await idle()
    assert (await reading).frames[-1].error.code == "run.max_turns"


@for_seeds(SEEDS)
async def test_leaving_the_loop_cancels():
    ends = []

    @agent
    async def patient(ctx):
        try:
            async for _ in ctx.live:
                yield "Go on."
        finally:
            ends.append(ctx.live.closed)

    runner = make_runner(patient)
    queue = LiveRequestQueue()
    queue.send_content("hello")
    stream = runner.run_live(USER, SESSION, queue)
    async with stream:
        async for item in stream:
            if item.turn_complete:
                break
    assert ends == [False]
    assert stream.run.status is RunStatus.CANCELLED
    with raises(Conflict, "live.closed"):
        queue.send_content("still there?")
    assert_at_rest(runner)


@for_seeds(SEEDS)
async def test_a_cancel_while_it_speaks():
    runner = make_runner(talker)
    queue = LiveRequestQueue()
    run, reading = await started(runner, queue)
    queue.send_content("count")
    await asyncio.sleep(1.5)
    queue.send_content("never mind")
    await run.cancel()
    got = await reading
    assert got.kinds[-1] == "run.cancelled"
    assert_whole(got)
    assert_at_rest(runner)


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

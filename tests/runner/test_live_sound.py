"""Live runs: speech, its transcripts, and the sound that is kept."""

import asyncio

from sojourn.agents.function import agent
from sojourn.agents.live import LiveRequestQueue
from sojourn.content import Content, Part
from sojourn.event import Event, Transcription
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.run.config import RunConfig
from sojourn.runner.attempt.spill import scope_of
from sojourn.testing.loop import for_seeds
from tests.runner.live_support import SPOKEN, echo, scribe, shape, sound, started
from tests.runner.support import APP, SEEDS, SESSION, USER, assert_whole, idle, log_of, make_runner, outcome_of, said_in


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

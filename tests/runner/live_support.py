"""What the tests of live runs share."""

import asyncio

from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.errors import SojournError
from sojourn.event import Event, Transcription
from tests.runner.support import SESSION, USER, Reading

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

"""A tuner that is spoken to: it hears a tone, says which one it was, and plays it an octave higher.

    python examples/live_audio.py              plays to it, and interrupts it, without a microphone
    sojourn serve examples/live_audio.py:tuner  for a client of /run_live

Sound comes in as 16-bit PCM at 16 kHz and goes out at 24 kHz. A client says when somebody speaks (`activityStart`,
`activityEnd`), or leaves that to the tuner, which takes silence for the end. Plain Python, no libraries.
"""

import asyncio
import math
from array import array
from itertools import pairwise

from sojourn import Content, Event, LiveRequestQueue, Part, Runner, Transcription, agent

RATE_IN, RATE_OUT = 16_000, 24_000
SOUND_OUT = f"audio/pcm;rate={RATE_OUT}"

CHUNK = 0.1  # Seconds of sound that are sent at once.
LEAD = 0.3  # Seconds that the tuner is ahead of whoever listens: so much is heard after an interruption.
PLAYED = 2.0  # Seconds that it plays.

SILENCE = 0.01  # Level, of 1, below which nobody speaks.
PAUSE = 0.3  # Seconds of silence that end what is said.


def tone(hertz, seconds, rate, level=0.5, start=0.0):
    """A tone as 16-bit PCM."""
    first, count = round(start * rate), round(seconds * rate)
    turn = 2 * math.pi * hertz / rate
    return array("h", (round(32767 * level * math.sin(turn * n)) for n in range(first, first + count))).tobytes()


def level_of(samples):
    """How loud it is: the root of the mean square, of 1."""
    return math.sqrt(sum(s * s for s in samples) / len(samples)) / 32768 if samples else 0.0


def pitch_of(samples, rate):
    """How high it is, in hertz: by the times at which the wave comes up through zero."""
    crossings = [n + before / (before - after) for n, (before, after) in enumerate(pairwise(samples)) if before < 0 <= after]
    if len(crossings) < 2:
        return 0.0
    return (len(crossings) - 1) * rate / (crossings[-1] - crossings[0])


class Ear:
    """Collects what is heard, from the first sound to the silence after it."""

    def __init__(self):
        self._samples = array("h")
        self._quiet = 0

    def hear(self, data):
        """Takes a piece of sound; returns whether it was the end of something."""
        piece = array("h", data)
        if level_of(piece) >= SILENCE:
            self._samples += piece
            self._quiet = 0
        elif self._samples:
            self._quiet += len(piece)
        return self._quiet >= PAUSE * RATE_IN

    def end(self):
        """What was heard, as (hertz, level); None if it was nothing."""
        samples, self._samples, self._quiet = self._samples, array("h"), 0
        return (pitch_of(samples, RATE_IN), level_of(samples)) if samples else None


@agent
async def tuner(ctx):
    """Says which tone it hears, and plays it an octave higher."""
    ear = Ear()
    async for request in ctx.live:
        if request.content is not None:
            yield "Play me something."
        ended = request.activity_end or (request.blob is not None and ear.hear(request.blob.data))
        if not ended or (heard := ear.end()) is None:
            continue
        hertz, level = heard
        said = f"a tone of {hertz:.0f} Hz, {20 * math.log10(level):.0f} dB"
        yield Event(input_transcription=Transcription(text=said, finished=True))
        octave = 2 * hertz
        for n in range(round(PLAYED / CHUNK)):
            sound = tone(octave, CHUNK, RATE_OUT, start=n * CHUNK)
            yield Event(partial=True, content=Content("model", (Part.from_bytes(sound, SOUND_OUT),)))
            # A client hears it as fast as it was made: too far ahead of it, nothing could be taken back.
            if n * CHUNK >= LEAD and await ctx.live.interruption(CHUNK):
                break
        else:
            answer = Transcription(text=f"{octave:.0f} Hz", finished=True)
            yield Event(output_transcription=answer, turn_complete=True)


async def main():
    runner = Runner(app_name="tuner", agent=tuner)
    queue = LiveRequestQueue()
    notes = iter((440, 330))

    def play(hertz):
        queue.send_activity_start()
        queue.send_realtime(tone(hertz, 0.5, RATE_IN))
        queue.send_activity_end()

    play(next(notes))
    sound = array("h")
    async for item in runner.run_live("ann", "lesson", queue):
        if item.partial and item.content.parts:
            sound.frombytes(item.content.parts[0].inline_data.data)
            if len(sound) >= RATE_OUT and (note := next(notes, None)):
                play(note)  # It has played for long enough.
        elif item.input_transcription:
            print(f"heard {item.text}")
        elif item.interrupted or item.turn_complete:
            how = "interrupted after" if item.interrupted else "played"
            print(f"{how} {len(sound) / RATE_OUT:.1f} s of {pitch_of(sound, RATE_OUT):.0f} Hz")
            sound = array("h")
            if item.turn_complete:
                queue.close()


if __name__ == "__main__":
    asyncio.run(main())

"""The tuner hears tones, says which, plays them an octave higher, and stops when it is interrupted."""

import asyncio
import base64
import json
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from examples.live_audio import CHUNK, LEAD, PAUSE, PLAYED, RATE_IN, RATE_OUT, Ear, level_of, pitch_of, tone, tuner
from websockets.asyncio.client import connect

from examples import live_audio
from sojourn import LivePartial, LiveRequestQueue, Runner
from sojourn.server.app import create_app
from sojourn.testing.loop import for_seeds
from tests.server.serving import running

SECOND = 2 * RATE_IN


def pieces(sound, seconds=0.02):
    """Sound as a microphone gives it."""
    size = round(seconds * RATE_IN) * 2
    return [sound[n : n + size] for n in range(0, len(sound), size)]


def near(hertz):
    return pytest.approx(hertz, rel=0.01)


class Listener:
    """Somebody with headphones."""

    def __init__(self):
        self.sound = array("h")
        self.events = []

    def hear(self, item):
        if isinstance(item, LivePartial):
            (part,) = item.content.parts
            assert part.inline_data.mime_type == "audio/pcm;rate=24000"
            self.sound.frombytes(part.inline_data.data)
        else:
            self.events.append(item)

    @property
    def seconds(self):
        return len(self.sound) / RATE_OUT


@pytest.mark.parametrize("hertz", [110, 440, 987.77, 3000])
@pytest.mark.parametrize("level", [0.05, 0.9])
def test_a_tone_is_measured(hertz, level):
    samples = array("h", tone(hertz, 0.5, RATE_IN, level))
    assert pitch_of(samples, RATE_IN) == near(hertz)
    assert level_of(samples) == pytest.approx(level / 2**0.5, rel=0.02)


def test_what_is_heard_begins_with_sound_and_ends_with_silence():
    ear = Ear()
    hiss = array("h", (n * 7919 % 101 - 50 for n in range(RATE_IN))).tobytes()
    assert not any(ear.hear(piece) for piece in pieces(hiss))
    assert ear.end() is None
    assert not any(ear.hear(piece) for piece in pieces(tone(440, 0.5, RATE_IN)))
    quiet = [ear.hear(piece) for piece in pieces(hiss[: round(PAUSE * SECOND) + 640])]
    assert quiet.index(True) * 0.02 == pytest.approx(PAUSE, abs=0.03)
    hertz, _ = ear.end()
    assert hertz == near(440)


@for_seeds(10)
@pytest.mark.parametrize("signals", [True, False])
async def test_it_plays_back_what_it_hears(signals):
    runner = Runner(app_name="tuner", agent=tuner)
    queue = LiveRequestQueue()
    listener = Listener()
    stream = runner.run_live("ann", "s", queue)

    async def speak():
        if signals:
            queue.send_activity_start()
        for piece in pieces(tone(440, 0.5, RATE_IN) + (b"" if signals else bytes(SECOND))):
            queue.send_realtime(piece)
            await asyncio.sleep(0.02)
        if signals:
            queue.send_activity_end()

    speaking = asyncio.ensure_future(speak())
    async for item in stream:
        listener.hear(item)
        if item.turn_complete:
            queue.close()
    await speaking
    assert [(e.author, e.text) for e in listener.events] == [("user", "a tone of 440 Hz, -9 dB"), ("tuner", "880 Hz")]
    assert listener.seconds == pytest.approx(PLAYED)
    assert pitch_of(listener.sound, RATE_OUT) == near(880)


@for_seeds(10)
async def test_it_falls_silent_when_it_is_interrupted():
    runner = Runner(app_name="tuner", agent=tuner)
    queue = LiveRequestQueue()
    listener = Listener()
    queue.send_realtime(tone(440, 0.5, RATE_IN))
    queue.send_activity_end()
    async for item in runner.run_live("ann", "s", queue):
        listener.hear(item)
        if not queue.closed and listener.seconds >= 1:
            queue.send_activity_start()
            queue.close()
    assert 1 <= listener.seconds <= 1 + LEAD + CHUNK
    assert [(e.text, e.interrupted) for e in listener.events] == [("a tone of 440 Hz, -9 dB", False), ("", True)]


@pytest.mark.anyio
async def test_over_a_websocket():
    runner = Runner(app_name="tuner", agent=tuner)
    async with running(create_app(runner)) as server:
        await runner.create_session("ann", "s")
        url = f"ws://127.0.0.1:{server.port}/run_live?app_name=tuner&user_id=ann&session_id=s"
        async with connect(url) as socket:
            for piece in pieces(tone(330, 0.5, RATE_IN)):
                await socket.send(piece)
            await socket.send(json.dumps({"activityEnd": {}}))
            sound = array("h")
            heard = json.loads(await socket.recv())
            assert heard["inputTranscription"] == {"text": "a tone of 330 Hz, -9 dB", "finished": True}
            assert heard["author"] == "user"
            while len(sound) < RATE_OUT / 2:
                said = json.loads(await socket.recv())
                blob = said["content"]["parts"][0]["inlineData"]
                assert (said["partial"], blob["mimeType"]) == (True, "audio/pcm;rate=24000")
                sound.frombytes(base64.urlsafe_b64decode(blob["data"]))
            assert pitch_of(sound, RATE_OUT) == near(660)
            await socket.send(json.dumps({"activityStart": {}}))
            while "pos" not in (said := json.loads(await socket.recv())):
                pass
            assert said["interrupted"] is True
            await socket.send(json.dumps({"content": {"parts": [{"text": "hello"}]}}))
            while not (said := json.loads(await socket.recv())).get("turnComplete"):
                pass
            assert said["content"]["parts"][0]["text"] == "Play me something."


@pytest.mark.slow
def test_the_program_runs():
    done = subprocess.run([sys.executable, Path(live_audio.__file__)], capture_output=True, text=True, timeout=30, check=True)
    first, cut, second, played = done.stdout.splitlines()
    assert (first, second) == ("heard a tone of 440 Hz, -9 dB", "heard a tone of 330 Hz, -9 dB")
    assert cut.startswith("interrupted after 1.")
    assert cut.endswith(" of 880 Hz")
    assert played == "played 2.0 s of 660 Hz"

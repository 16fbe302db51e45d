"""Live runs: what may be sent, how much of it, and how long they take."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.live import LiveRequest, LiveRequestQueue
from sojourn.content import Content, Part
from sojourn.errors import Conflict, InvalidInput, LimitExceeded
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.live_support import shape, started, talker
from tests.runner.support import SEEDS, SESSION, USER, assert_at_rest, assert_whole, idle, make_runner


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

"""Work that is done to its end, whatever happens to its caller."""

import asyncio

import anyio
import pytest

from sojourn.outcome import outlast
from sojourn.testing.loop import for_seeds


@for_seeds(5)
async def test_a_cancelled_caller_learns_of_it_when_the_work_is_done():
    begun, gate, done = asyncio.Event(), asyncio.Event(), []

    async def work():
        begun.set()
        await gate.wait()
        done.append(True)
        return 1

    caller = asyncio.ensure_future(outlast(work()))
    await begun.wait()
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == [True]


@for_seeds(5)
async def test_its_result_and_its_error_are_the_callers():
    async def fail():
        await asyncio.sleep(0)
        raise ValueError("no")

    assert await outlast(asyncio.sleep(0, "yes")) == "yes"
    with pytest.raises(ValueError, match="no"):
        await outlast(fail())


def test_the_end_of_the_event_loop_ends_the_work():
    ended = []

    async def work(begun):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def main():
        begun = asyncio.Event()
        caller = asyncio.ensure_future(outlast(work(begun)))
        await begun.wait()
        return caller

    assert asyncio.run(main()).cancelled()
    assert ended == [True]


@for_seeds(5)
async def test_a_timeout_within_the_work_ends_what_takes_too_long():
    async def work():
        try:
            async with asyncio.timeout(10):
                await asyncio.Event().wait()
        except TimeoutError:
            return "too late"

    began = asyncio.get_running_loop().time()
    assert await outlast(outlast(work())) == "too late"
    assert asyncio.get_running_loop().time() - began == pytest.approx(10)


@for_seeds(5)
async def test_a_timeout_within_the_work_is_no_matter_of_a_caller_that_is_cancelled():
    begun, done = asyncio.Event(), []

    async def work():
        with anyio.move_on_after(10):
            begun.set()
            await asyncio.Event().wait()
        done.append(True)

    caller = asyncio.ensure_future(outlast(work()))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done == [True]

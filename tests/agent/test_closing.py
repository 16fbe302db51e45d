"""Agents are closed one after the other, whatever one of them does, and within bounds."""

import asyncio

import pytest

from sojourn.agents.base import CLOSE_GRACE, Agent, close_agents
from sojourn.errors import Unavailable
from sojourn.testing.loop import for_seeds
from tests.runner.support import idle, make_runner


def now():
    return asyncio.get_running_loop().time()


class Closing(Agent):
    """Does something when it is closed, and notes that it was."""

    def __init__(self, name, closed, close=None, **options):
        super().__init__(name=name, **options)
        self._closed = closed
        self._close = close

    async def close(self):
        if self._close is not None:
            await self._close()
        self._closed.append(self.name)

    async def run(self, ctx):
        return "hi"


async def never():
    await asyncio.Event().wait()


def failing(error):
    async def fail():
        raise error

    return fail


def family(closed, close):
    """A parent with three children; the middle one closes in its own way."""
    children = [Closing("a", closed), Closing("b", closed, close), Closing("c", closed)]
    return Closing("parent", closed, sub_agents=children)


@for_seeds(5)
async def test_one_that_hangs_is_cancelled_after_the_grace_and_the_others_are_closed(caplog):
    caplog.clear()
    closed = []
    await close_agents(family(closed, never))
    assert closed == ["parent", "a", "c"]
    assert now() == CLOSE_GRACE
    (record,) = caplog.records
    assert record.getMessage() == (
        "agent b could not be closed: it took longer than 5 seconds and was cancelled [agent.close_timeout]"
    )
    assert (record.agent, record.code) == ("b", "agent.close_timeout")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("odd"), "agent.close_failed"),
        (TimeoutError("of its own"), "agent.close_failed"),
        (Unavailable("away", code="store.unavailable"), "store.unavailable"),
    ],
)
def test_one_that_fails_is_logged_with_its_code_and_the_others_are_closed(caplog, error, code):
    caplog.clear()

    @for_seeds(1)
    async def case():
        closed = []
        await close_agents(family(closed, failing(error)))
        assert closed == ["parent", "a", "c"]
        assert now() == 0

    case()
    (record,) = caplog.records
    assert record.code == code
    assert record.exc_info[1] is error


@for_seeds(5)
async def test_who_closes_can_be_cancelled(caplog):
    caplog.clear()
    closed = []
    closing = asyncio.ensure_future(close_agents(family(closed, never)))
    await idle()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert closed == ["parent", "a"]
    assert now() < 1
    assert not caplog.records


@for_seeds(20)
async def test_a_cancel_in_the_moment_of_the_grace_is_respected():
    closed = []
    closing = asyncio.ensure_future(close_agents(family(closed, never)))
    asyncio.get_running_loop().call_later(CLOSE_GRACE, closing.cancel)
    await asyncio.wait([closing])
    # It came before the end, or there was nothing to cancel any more.
    assert closed == (["parent", "a"] if closing.cancelled() else ["parent", "a", "c"])


@for_seeds(3)
async def test_a_runner_closes_all_that_it_can():
    closed = []
    runner = make_runner(family(closed, never))
    await runner.close()
    assert closed == ["parent", "a", "c"]

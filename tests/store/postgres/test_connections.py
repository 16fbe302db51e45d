"""Connections that calls take in turns: who gets one, who waits, and what becomes of those that nobody needs."""

import asyncio

import pytest

from sojourn.postgres.connections import IDLE_SECONDS, Exhausted, OwnConnections
from sojourn.testing.loop import for_seeds


class Connection:
    """What the connections of the driver show of themselves."""

    def __init__(self):
        self.closed = self.in_transaction = False

    def is_closed(self):
        return self.closed

    def is_in_transaction(self):
        return self.in_transaction

    def terminate(self):
        self.closed = True

    async def close(self, *, timeout):
        await asyncio.sleep(0.001)
        self.closed = True


class Maker:
    def __init__(self):
        self.made = []
        self.failing = 0
        self.seconds = 0.01

    async def __call__(self):
        await asyncio.sleep(self.seconds)
        if self.failing:
            self.failing -= 1
            raise OSError("away")
        self.made.append(Connection())
        return self.made[-1]


@for_seeds(30)
async def test_no_more_than_allowed_and_everybody_gets_one():
    make = Maker()
    connections = OwnConnections(make, 3, 1000)
    used = 0

    async def use(n):
        nonlocal used
        conn = await connections.acquire()
        used += 1
        assert used <= 3
        await asyncio.sleep(0.01 * (n % 4))
        if n % 7 == 0:
            conn.closed = True
        conn.in_transaction = n % 5 == 0
        used -= 1
        await connections.release(conn, late=n % 11 == 0)

    await asyncio.gather(*(use(n) for n in range(60)))
    assert sum(not conn.closed for conn in make.made) <= 3
    await connections.close()
    assert all(conn.closed for conn in make.made)


@for_seeds(30)
async def test_who_waits_too_long_is_told_and_the_others_are_not():
    make = Maker()
    connections = OwnConnections(make, 1, 10)
    conn = await connections.acquire()

    async def late():
        with pytest.raises(Exhausted):
            await connections.acquire()
        return asyncio.get_running_loop().time()

    began = asyncio.get_running_loop().time()
    first = asyncio.ensure_future(late())
    await asyncio.sleep(6)
    second = asyncio.ensure_future(connections.acquire())
    assert round(await first - began) == 10
    await connections.release(conn)
    assert await second is conn
    await connections.release(conn)
    await connections.close()


@for_seeds(30)
async def test_callers_that_are_cancelled_leave_their_place():
    make = Maker()
    connections = OwnConnections(make, 2, 1000)

    async def use():
        conn = await connections.acquire()
        try:
            await asyncio.sleep(0.01)
        finally:
            await connections.release(conn)

    calls = [asyncio.ensure_future(use()) for _ in range(20)]
    for n, call in enumerate(calls):
        await asyncio.sleep(0.002 * (n % 3))
        if n % 2:
            call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(100):
        await asyncio.gather(*(use() for _ in range(5)))
    await connections.close()


@for_seeds(20)
async def test_what_a_cancelled_caller_was_given_is_not_lost():
    make = Maker()
    connections = OwnConnections(make, 1, 1000)
    for broken in (False, True):
        conn = await connections.acquire()
        waiting = asyncio.ensure_future(connections.acquire())
        await asyncio.sleep(0.001)
        conn.closed = broken
        await connections.release(conn)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(100):
            await connections.release(await connections.acquire())
    await connections.close()


@for_seeds(20)
async def test_a_connection_that_is_being_made_is_waited_for():
    make = Maker()
    connections = OwnConnections(make, 1, 1000)
    making = asyncio.ensure_future(connections.acquire())
    await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(connections.close())
    await connections.release(await making)
    await closing
    assert all(conn.closed for conn in make.made)


@for_seeds(20)
async def test_a_server_that_is_away_keeps_nobody_waiting():
    make = Maker()
    make.failing = 5
    connections = OwnConnections(make, 2, 1000)
    results = await asyncio.gather(*(connections.acquire() for _ in range(7)), return_exceptions=True)
    assert sum(isinstance(result, OSError) for result in results) == 5
    for conn in results:
        if isinstance(conn, Connection):
            await connections.release(conn)
    await connections.close()


@for_seeds(20)
async def test_what_nobody_needs_is_closed_after_a_while():
    make = Maker()
    connections = OwnConnections(make, 5, 1000)
    taken = [await connections.acquire() for _ in range(5)]
    for conn in taken:
        await connections.release(conn)
    for _ in range(10):
        await asyncio.sleep(IDLE_SECONDS / 4)
        await connections.release(await connections.acquire())
    assert sum(not conn.closed for conn in make.made) == 1
    assert len(make.made) == 5
    await connections.close()


@for_seeds(20)
async def test_closing_waits_for_what_is_under_way_and_refuses_the_rest():
    make = Maker()
    connections = OwnConnections(make, 2, 1000)
    conn = await connections.acquire()
    making = asyncio.ensure_future(connections.acquire())
    await asyncio.sleep(0.001)
    waiting = asyncio.ensure_future(connections.acquire())
    await asyncio.sleep(0.001)
    closing = asyncio.ensure_future(connections.close())
    await asyncio.sleep(1)
    assert not closing.done()
    await connections.release(await making)
    await connections.release(conn)
    await closing
    assert all(conn.closed for conn in make.made)
    with pytest.raises(ConnectionAbortedError):
        await waiting
    with pytest.raises(ConnectionAbortedError):
        await connections.acquire()


@for_seeds(5)
async def test_closing_does_not_wait_for_ever():
    make = Maker()
    connections = OwnConnections(make, 2, 1000)
    conn = await connections.acquire()
    await connections.close()
    assert conn.closed
    await connections.release(conn)

"""Connections that calls take in turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from sojourn.postgres.faults import DRIVEN

if TYPE_CHECKING:
    from asyncpg import Connection, Pool

CLOSE_TIMEOUT = 10.0
"""Seconds that calls under way are given when connections are closed."""

RETIRE_TIMEOUT = 5.0
"""Seconds that a connection is given to end what takes too long on it."""

IDLE_SECONDS = 300.0
"""Seconds after which a connection that nobody needs is closed."""


class Exhausted(Exception):
    """All connections were in use for too long.

    Attributes:
        size: How many there are.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Connections(Protocol):
    """What connections are taken from, in one event loop."""

    async def acquire(self) -> Connection:
        """Takes a connection, or waits for one.

        Raises:
            Exhausted: None has become free in time.
        """
        ...

    async def release(self, conn: Connection, *, late: bool = False) -> None:
        """Gives a connection back, be it broken or not.

        Args:
            conn: The connection.
            late: Whether its last statement took too long, and may still be under way.
        """
        ...

    async def close(self) -> None:
        """Waits a little for those in use, and closes what was opened here."""
        ...

    def terminate(self) -> None:
        """Cuts what was opened here."""
        ...


class OwnConnections:
    """Connections that are made when they are needed, up to a number.

    asyncpg's own pool asks the clock and wakes timers several times for each statement, which costs as much as the statement.

    Args:
        connect: Makes one.
        size: How many at most.
        timeout: Seconds to wait for a free one.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int, timeout: float) -> None:
        self._connect = connect
        self._size = size
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        # The newest at the end: those that are needed seldom grow old at the front.
        self._idle: deque[tuple[float, Connection]] = deque()
        self._used: set[Connection] = set()
        self._making = 0
        # Each gets a connection, or None for leave to make one.
        self._waiting: deque[tuple[float, asyncio.Future[Connection | None]]] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._pruning: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False

    async def acquire(self) -> Connection:
        while self._idle:
            conn = self._idle.pop()[1]
            if not conn.is_closed():
                self._used.add(conn)
                return conn
        if len(self._used) + self._making >= self._size:
            given = await self._wait()
            if given is not None:
                return given
        else:
            self._making += 1
        try:
            conn = await self._connect()
            if self._closed:
                conn.terminate()
                raise ConnectionAbortedError(_CLOSED)
            self._used.add(conn)
        finally:
            self._making -= 1
            self._let_next()
            self._note_emptied()
        return conn

    async def _wait(self) -> Connection | None:
        future: asyncio.Future[Connection | None] = self._loop.create_future()
        now = self._loop.time()
        self._waiting.append((now + self._timeout, future))
        if self._expiry is None:
            self._expiry = self._loop.call_at(now + self._timeout, self._expire)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                given = future.result()
                if given is None:
                    self._making -= 1
                    self._let_next()
                else:
                    await self.release(given)
            raise

    def _expire(self) -> None:
        now = self._loop.time()
        while self._waiting and (self._waiting[0][0] <= now or self._waiting[0][1].done()):
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(Exhausted(self._size))
        self._expiry = self._loop.call_at(self._waiting[0][0], self._expire) if self._waiting else None

    def _next(self) -> asyncio.Future[Connection | None] | None:
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                return future
        return None

    def _let_next(self) -> None:
        """Lets one that waits make a connection, if there may be another one."""
        if len(self._used) + self._making < self._size and (future := self._next()) is not None:
            self._making += 1
            future.set_result(None)

    async def release(self, conn: Connection, *, late: bool = False) -> None:
        closed = conn.is_closed()
        if not closed and (late or conn.is_in_transaction()):
            # It keeps its place, and its user waits, until the server has ended what goes on there, or does not answer.
            with suppress(*DRIVEN):
                await conn.close(timeout=RETIRE_TIMEOUT)
            closed = conn.is_closed()
        if closed:
            # One whose end came from outside is not cleaned up by itself.
            conn.terminate()
            self._used.discard(conn)
            self._let_next()
        elif self._emptied is None and (future := self._next()) is not None:
            future.set_result(conn)
        elif self._closed:
            conn.terminate()
        else:
            self._used.discard(conn)
            self._idle.append((self._loop.time(), conn))
            if self._pruning is None:
                self._pruning = self._loop.call_later(IDLE_SECONDS, self._prune)
        self._note_emptied()

    def _note_emptied(self) -> None:
        if self._emptied is not None and not (self._used or self._making) and not self._emptied.done():
            self._emptied.set_result(None)

    def _prune(self) -> None:
        limit = self._loop.time() - IDLE_SECONDS
        while self._idle and self._idle[0][0] <= limit:
            # The server takes the end of a connection for a good bye.
            self._idle.popleft()[1].terminate()
        self._pruning = self._loop.call_later(IDLE_SECONDS, self._prune) if self._idle else None

    async def close(self) -> None:
        if self._used or self._making:
            self._emptied = self._loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._emptied
        idle = [conn for _, conn in self._idle]
        self._idle.clear()
        for conn in idle:
            with suppress(*DRIVEN):
                await conn.close(timeout=CLOSE_TIMEOUT)
        self.terminate()

    def terminate(self) -> None:
        self._closed = True
        for timer in (self._expiry, self._pruning):
            if timer is not None:
                timer.cancel()
        for conn in [*self._used, *(conn for _, conn in self._idle)]:
            if not conn.is_closed():
                conn.terminate()
        self._used.clear()
        self._idle.clear()
        while (future := self._next()) is not None:
            future.set_exception(ConnectionAbortedError(_CLOSED))


_CLOSED = "the connections have been closed"


class GivenConnections:
    """The connections of a pool that is somebody else's.

    Args:
        pool: The pool.
        timeout: Seconds to wait for a free one.
    """

    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout

    async def acquire(self) -> Connection:
        try:
            return await self._pool.acquire(timeout=self._timeout)
        except TimeoutError:
            size = self._pool.get_max_size()
            if self._pool.get_size() - self._pool.get_idle_size() < size:
                raise
            raise Exhausted(size) from None

    async def release(self, conn: Connection, *, late: bool = False) -> None:
        # A connection that broke is dropped by the pool; what is to be told is told by whoever used it.
        with suppress(*DRIVEN):
            await self._pool.release(conn, timeout=CLOSE_TIMEOUT)

    async def close(self) -> None:
        """Does nothing: it is somebody else's."""

    def terminate(self) -> None:
        """Does nothing: it is somebody else's."""

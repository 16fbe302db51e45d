"""A TCP proxy before a server, which cuts connections at a moment of a test's choosing."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

_STARTUP = (196608).to_bytes(4)
"""The protocol's version, with which a client begins."""


class Proxy:
    """Forwards connections to a port until it is told not to.

    Attributes:
        cuts: How many connections were cut at a chosen moment.
        connections: How many were made.
        round_trips: How often the server was asked something: messages of clients that came after one of the server's.
        settings: Names of what clients asked for as they connected.
    """

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._lose: bytes | None = None
        self._swallow: bytes | None = None
        self._stalled = asyncio.Event()
        self._stalled.set()
        self.port = 0
        self.cuts = 0
        self.connections = 0
        self.round_trips = 0
        self.settings: set[str] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, family=socket.AF_INET)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refuse(self) -> None:
        """Cuts all connections, and every new one at once."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Lets connections through again."""
        self._refusing = False

    def cut(self) -> None:
        """Cuts all connections that there are."""
        for writer in list(self._writers):
            writer.transport.abort()

    def lose_reply(self, to: bytes) -> None:
        """Once: lets what contains these bytes through to the server, and cuts the connection in place of its reply."""
        self._lose = to

    def swallow(self, what: bytes) -> None:
        """Once: cuts the connection in place of letting what contains these bytes through."""
        self._swallow = what

    def stall(self) -> None:
        """Lets nothing through any more, without a word."""
        self._stalled.clear()

    def go_on(self) -> None:
        """Lets through what has come meanwhile."""
        self._stalled.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._refusing:
                return
            self.connections += 1
            answers, upstream = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._writers.add(upstream)
            losing = asyncio.Event()
            state = {"asked": False}
            await asyncio.gather(self._there(reader, upstream, losing, state), self._back(answers, writer, losing, state))
        except (OSError, asyncio.CancelledError):
            # Its streams would complain of a task that was cancelled.
            pass
        finally:
            for one in (writer, upstream):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()
                    with suppress(OSError):
                        await one.wait_closed()

    async def _there(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event, state: dict[str, bool]
    ) -> None:
        while data := await reader.read(1 << 16):
            await self._stalled.wait()
            if data[4:8] == _STARTUP:
                self.settings.update(data[8:].decode().split("\0")[::2])
            if not state["asked"]:
                state["asked"] = True
                self.round_trips += 1
            if self._swallow is not None and self._swallow in data:
                self._swallow = None
                self.cuts += 1
                raise ConnectionResetError
            if self._lose is not None and self._lose in data:
                self._lose = None
                losing.set()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

    async def _back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, losing: asyncio.Event, state: dict[str, bool]
    ) -> None:
        while data := await reader.read(1 << 16):
            await self._stalled.wait()
            if losing.is_set():
                self.cuts += 1
                raise ConnectionResetError
            state["asked"] = False
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError

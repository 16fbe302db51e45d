"""Clients that cost as little as they can, so that servers on the same machine have the rest of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from bench.served import fast_loop

T = TypeVar("T")

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_END = b"0\r\n\r\n"


class Client(asyncio.Protocol):
    """One connection that is kept, with one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received: list[bytes] = []
        self._whole: asyncio.Future[bytes] = self._loop.create_future()
        self._spoken: asyncio.Future[None] = self._loop.create_future()
        # Of a response with a length.
        self._missing: int | None = None

    @classmethod
    async def to(cls, port: int) -> Client:
        """A client of a server on loopback."""
        _, client = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return client

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        first = not self._received
        self._received.append(data)
        if first:
            length = _LENGTH.search(data)
            self._missing = None if length is None else int(length[1]) + data.index(b"\r\n\r\n") + 4
        if self._missing is not None:
            self._missing -= len(data)
        if not self._spoken.done() and (not first or not data.endswith(b"\r\n\r\n")):
            self._spoken.set_result(None)
        # JSON has no line ends, so what ends like this is the end. It may have come in two pieces.
        if self._missing == 0 or (
            self._missing is None and (data.endswith(_END) or b"".join(self._received[-2:]).endswith(_END))
        ):
            self._whole.set_result(b"".join(self._received))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        for waited_for in (self._whole, self._spoken):
            if not waited_for.done():
                waited_for.set_exception(ConnectionError(f"the server hung up: {exc}"))
                waited_for.exception()

    async def ask(self, request: bytes) -> bytes:
        """Sends a request, and waits for the whole response; gives all of it, head and framing included."""
        self._send(request)
        return await self._whole

    async def ask_first(self, request: bytes) -> None:
        """Sends a request, and waits for the first piece of the response."""
        self._send(request)
        await self._spoken

    def _send(self, request: bytes) -> None:
        self._received.clear()
        self._whole = self._loop.create_future()
        self._spoken = self._loop.create_future()
        self._transport.write(request)

    def close(self) -> None:
        """Hangs up."""
        self._transport.abort()


def get(path: str) -> bytes:
    """A request."""
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()


def post(path: str, body: Any) -> bytes:
    """A request with JSON."""
    text = json.dumps(body).encode()
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    return head.format(path, len(text)).encode() + text


def session(name: str) -> bytes:
    """A request that creates a session."""
    return post(f"/apps/bench/users/user/sessions/{name}", {})


def run_sse(name: str, text: str = "hi") -> bytes:
    """A request for a run in a session, streamed."""
    message = {"role": "user", "parts": [{"text": text}]}
    return post("/run_sse", {"appName": "bench", "userId": "user", "sessionId": name, "newMessage": message, "streaming": True})


async def clients_of(port: int, count: int, *, sessions: bool = True) -> list[Client]:
    """Clients with a session each: `s0`, `s1` and so on."""
    clients = [await Client.to(port) for _ in range(count)]
    for n, client in enumerate(clients if sessions else ()):
        response = await client.ask(session(f"s{n}"))
        assert response.startswith(b"HTTP/1.1 200"), response
    return clients


async def each(clients: list[Client], work: Callable[[int, Client], Awaitable[None]]) -> None:
    """Has all clients work at the same time; they are told their numbers."""
    await asyncio.gather(*(work(n, client) for n, client in enumerate(clients)))


def ran(work: Coroutine[Any, Any, T]) -> T:
    """What comes of it, on a fast loop."""
    with asyncio.Runner(loop_factory=fast_loop()) as loop:
        return loop.run(work)

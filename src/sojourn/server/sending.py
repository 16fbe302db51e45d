"""What is sent piece by piece: it is given up when its client is gone, or takes too little for too long."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from sojourn.server.config import ServerConfig

logger = logging.getLogger("sojourn.server")

ABORT = "sojourn.abort"
"""The ASGI extension by which a response drops its connection, with what is still unsent; see `sojourn.server.transport`."""


async def send_while_read(
    say: Callable[[Connection], Awaitable[None]],
    scope: Scope,
    receive: Receive,
    send: Send,
    config: ServerConfig,
    *,
    heartbeat: bytes | None = None,
) -> None:
    """Sends a response as long as its client is there and takes what it is sent.

    Args:
        say: Sends it; is cancelled when the client is gone, or has taken too little for too long.
        scope: Of the request.
        receive: Of the request.
        send: Of the request.
        config: The limit for slow readers; how often there is a heartbeat.
        heartbeat: What is sent when nothing else is; None for nothing.
    """
    connection = Connection(send, heartbeat, config)
    gone = asyncio.get_running_loop().create_task(client_gone(receive))
    gone.add_done_callback(connection.cut)
    try:
        async with connection:
            await say(connection)
        if connection.stalled and (abort := scope.get("extensions", {}).get(ABORT)) is not None:
            abort["call"]()
            await asyncio.wait((gone,))
    finally:
        gone.cancel()
        await asyncio.wait((gone,))


async def client_gone(receive: Receive) -> None:
    """Returns when the client is gone."""
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except Exception:
        logger.exception("it cannot be told any more whether a client is gone; its response is cut")


class _Gone(Exception):
    """The server says that the client is gone when it is sent something."""


class Connection:
    """The connection of a response that is sent piece by piece: an `async with` block that is left early when it is cut.

    It is cut when the client is gone, or has taken too little for too long. A heartbeat is sent when nothing else is.

    Attributes:
        stalled: Whether it was cut because of what the client did not take.
    """

    __slots__ = (
        "_beat", "_heartbeat", "_loop", "_open", "_patience", "_pulse", "_scope", "_send", "_sending", "_since", "_timer",
        "stalled",
    )  # fmt: skip

    def __init__(self, send: Send, heartbeat: bytes | None, config: ServerConfig) -> None:
        self.stalled = False
        self._send = send
        self._heartbeat = heartbeat or b""
        self._pulse = math.inf if heartbeat is None else config.heartbeat
        self._patience = config.slow_reader_timeout
        self._loop = asyncio.get_running_loop()
        self._scope = asyncio.timeout(None)
        self._open = False
        self._sending = 0
        self._since = self._loop.time()
        self._beat: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._open = True
        self._tick()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        self._open = False
        self.finish()
        assert self._timer is not None
        self._timer.cancel()
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            return True
        return isinstance(error, _Gone)

    async def send(self, message: Message) -> None:
        """Sends something, and waits as long as the client is not ready for more."""
        if not self._sending:
            self._since = self._loop.time()
        self._sending += 1
        try:
            await self._send(message)
        except OSError as error:
            raise _Gone from error
        finally:
            self._sending -= 1

    def cut(self, _: object = None) -> None:
        """Leaves the block."""
        if self._open:
            self._open = False
            self._scope.reschedule(self._loop.time())

    def finish(self) -> None:
        """Sends no more heartbeats: what is sent next is the end."""
        self._pulse = math.inf
        if self._beat is not None:
            self._beat.cancel()

    def _tick(self) -> None:
        left = (self._patience if self._sending else self._pulse) - (self._loop.time() - self._since)
        if left <= 0:
            if self._sending:
                logger.info("a reader took too little for %g s; its response is cut", self._patience)
                self.stalled = True
                self.cut()
                return
            self._beat = self._loop.create_task(self._say_nothing())
            left = self._pulse
        self._timer = self._loop.call_later(min(left, self._patience), self._tick)

    async def _say_nothing(self) -> None:
        with suppress(_Gone):
            await self.send({"type": "http.response.body", "body": self._heartbeat, "more_body": True})

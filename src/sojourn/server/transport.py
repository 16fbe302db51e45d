"""The uvicorn protocols of our own server: connections of clients that take nothing are dropped, not kept until they do."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode
from websockets.protocol import State

from sojourn.server.sending import ABORT


class Dropping:
    """A protocol that can let go of a connection whose client does not read.

    Closing a connection first sends what is left, for which the client may never be ready.
    """

    linger: ClassVar[float] = 30.0
    """Seconds for which a client may take nothing of what is left when its connection is closed."""

    transport: Any
    loop: asyncio.AbstractEventLoop

    def _drop_later(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left:
            self.loop.call_later(self.linger, self._drop_if_stuck, left)

    def _drop_if_stuck(self, before: int) -> None:
        left = self.transport.get_write_buffer_size()
        if left == before:
            self.transport.abort()
        elif left:
            self.loop.call_later(self.linger, self._drop_if_stuck, left)


class DroppingHttpProtocol(Dropping, HttpToolsProtocol):
    """Serves HTTP/1.1."""

    _answered: RequestResponseCycle | None = None
    """The request that is being answered, or was last. Those that a client sends behind it, meanwhile, wait in `pipeline`."""

    def on_headers_complete(self) -> None:
        """Takes up the request, unless it has to wait."""
        super().on_headers_complete()
        if not self.pipeline:
            self._answered = self.cycle

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request that is being answered; uvicorn tells the newest one, which may still wait."""
        super().connection_lost(exc)
        answered = self._answered
        if answered is not None and not answered.response_complete:
            answered.disconnected = True
            answered.message_event.set()

    def on_message_begin(self) -> None:
        """Offers the extension to the request."""
        super().on_message_begin()
        extensions: dict[str, dict[object, object]] = {ABORT: {"call": self.transport.abort}}
        self.scope["extensions"] = extensions

    def on_response_complete(self) -> None:
        """Takes up the next request, and bounds the time of a connection that is closed with its response."""
        if self.pipeline:
            self._answered = self.pipeline[-1][0]
        super().on_response_complete()
        if self.transport.is_closing():
            self._drop_later()

    def shutdown(self) -> None:
        """Bounds the time of a connection that is closed with the server."""
        super().shutdown()
        if self.transport.is_closing():
            self._drop_later()

    def timeout_keep_alive_handler(self) -> None:
        """Bounds the time of a connection that is closed because nothing was asked any more."""
        super().timeout_keep_alive_handler()
        self._drop_later()


class DroppingWebSocketProtocol(Dropping, WebSocketsSansIOProtocol):
    """Serves WebSockets. What a client does not read is not added to by its own pings.

    Attributes:
        spoken: Done when the app has nothing more to say; None before the handshake.
    """

    spoken: asyncio.Task[None] | None = None
    _pong: bytes | None = None

    async def run_asgi(self) -> None:
        """Runs the app."""
        self.spoken = asyncio.current_task()
        await super().run_asgi()

    def data_received(self, data: bytes) -> None:
        """Refuses a handshake that cannot be read, such as one with a body; the headers of it come at once."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        """Closes the connection if a text is not in UTF-8; uvicorn would log that as an error of the server."""
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(b"".join(self.frames)):
            self.frames = []
            if self.conn.state is State.OPEN:
                self.conn.send_close(CloseCode.INVALID_DATA, "not in UTF-8")
                self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    async def send(self, message: Any) -> None:
        """Sends; uvicorn does not take a refusal with a body for an answer, and would log each as an error."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def handle_ping(self) -> None:
        """Answers, once the client reads: of several pings the newest, as RFC 6455 allows."""
        pongs = self.conn.data_to_send()
        if self.writable.is_set():
            self.transport.write(b"".join(pongs))
        elif pongs:
            self._pong = pongs[-1]

    def resume_writing(self) -> None:
        """Answers the ping that came meanwhile."""
        super().resume_writing()
        if self._pong is not None and not self.close_sent:
            self.transport.write(self._pong)
        self._pong = None

    def keepalive_timeout(self) -> None:
        """Bounds the time of a connection that is closed because the client does not answer pings."""
        super().keepalive_timeout()
        self._drop_later()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """Bounds the time of a connection whose last message is written."""
        super().on_task_complete(task)
        self._drop_later()

    def shutdown(self) -> None:
        """Bounds the time of a connection that is closed with the server."""
        super().shutdown()
        self._drop_later()


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

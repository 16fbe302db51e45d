"""The uvicorn protocol of our own server: connections of clients that take nothing are dropped, not kept until they do."""

from __future__ import annotations

from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sojourn.server.stream import ABORT


class DroppingHttpProtocol(HttpToolsProtocol):
    """Serves HTTP/1.1, and can let go of a connection whose client does not read.

    Closing a connection first sends what is left, for which the client may never be ready.
    """

    linger: ClassVar[float] = 30.0
    """Seconds for which a client may take nothing of what is left when its connection is closed."""

    def on_message_begin(self) -> None:
        """Offers the extension to the request."""
        super().on_message_begin()
        extensions: dict[str, dict[object, object]] = {ABORT: {"call": self.transport.abort}}
        self.scope["extensions"] = extensions

    def on_response_complete(self) -> None:
        """Bounds the time of a connection that is closed with its response."""
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

    def _drop_later(self) -> None:
        transport: Any = self.transport
        left = transport.get_write_buffer_size()
        if left:
            self.loop.call_later(self.linger, self._drop_if_stuck, left)

    def _drop_if_stuck(self, before: int) -> None:
        transport: Any = self.transport
        left = transport.get_write_buffer_size()
        if left == before:
            transport.abort()
        elif left:
            self.loop.call_later(self.linger, self._drop_if_stuck, left)

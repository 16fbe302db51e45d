"""Connections of clients that take their time: what they ask has to arrive within bounds of size and time."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from sojourn.server.transport import DroppingHttpProtocol


class _Sealed(list[tuple[bytes, bytes]]):
    """Headers that are complete: trailers, which come behind a body, are not taken for any of them."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Leaves it out."""


class ServingProtocol(DroppingHttpProtocol):
    """Serves HTTP/1.1 to strangers.

    Attributes:
        header_timeout: Seconds that the headers of a request may take to arrive, a new connection its first request, and what
            is left of a request that was answered before all of it was there.
        max_header_bytes: How large they may be; the same goes for anything else that is neither header nor body.
    """

    header_timeout: ClassVar[float] = 10.0
    max_header_bytes: ClassVar[int] = 65_536

    _deadline: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Bounds the time until the first request."""
        super().connection_made(transport)
        self._bound_headers()

    def data_received(self, data: bytes) -> None:
        """Bounds the size of headers, and of what stands around the pieces of a body."""
        self._header_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._header_bytes > self.max_header_bytes:
            if self._deadline is not None:
                self._refuse(b"431 Request Header Fields Too Large")
            else:
                self.transport.abort()
        elif self._waits_without_bound():
            # Whatever comes ends uvicorn's bound for idle connections, even if nothing is asked with it.
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        """Bounds the time for the headers of a request."""
        super().on_message_begin()
        if self._deadline is None:
            self._bound_headers()

    def on_headers_complete(self) -> None:
        """The headers are there."""
        self._unbind()
        self._header_bytes = 0
        super().on_headers_complete()
        self.headers = _Sealed(self.headers)

    def on_body(self, body: bytes) -> None:
        """A piece of a body is there."""
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there."""
        self._unbind()
        self._header_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Bounds the time for what is left of a request that is answered already."""
        super().on_response_complete()
        if self._is_idle() and self.cycle.more_body and not self.transport.is_closing():
            self._bound_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._unbind()
        super().connection_lost(exc)

    def _bound_headers(self) -> None:
        self._header_bytes = 0
        self._deadline = self.loop.call_later(self.header_timeout, self._took_too_long)

    def _unbind(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_idle(self) -> bool:
        """Whether nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _waits_without_bound(self) -> bool:
        bounded = self._deadline is not None or self.timeout_keep_alive_task is not None
        return self._is_idle() and not bounded and self.transport.get_protocol() is self

    def _took_too_long(self) -> None:
        if self._is_idle():
            self._refuse(b"408 Request Timeout")
        else:
            # A response that is still being sent to a client that pipelines is not cut: its own bounds count.
            self._deadline = self.loop.call_later(self.header_timeout, self._took_too_long)

    def _refuse(self, status: bytes) -> None:
        self._unbind()
        self.transport.write(b"HTTP/1.1 %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status)
        self.transport.close()
        self._drop_later()

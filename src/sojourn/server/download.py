"""Bytes that are sent as they are read."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Mapping
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sojourn.errors import SojournError
from sojourn.server.config import ServerConfig
from sojourn.server.sending import Connection, send_while_read

logger = logging.getLogger("sojourn.server")

PIECE_BYTES = 65_536
"""How much is sent at once."""


class Download(Response):
    """A response of any size, of which no more is read than its client takes; one who takes nothing any more is cut off.

    If the bytes cannot be read to the end, the connection is closed before all are sent: by the length, the client can tell.

    Args:
        chunks: The bytes.
        config: The limit for slow readers.
        status: The HTTP status.
        headers: Headers, the length of it all among them.
        media_type: What the bytes are.
    """

    def __init__(
        self,
        chunks: AsyncIterable[bytes],
        config: ServerConfig,
        *,
        status: int = HTTPStatus.OK,
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        self.status_code = status
        self.background = None
        self.media_type = media_type
        self.init_headers(headers)
        self._chunks = chunks
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it all."""
        await send_while_read(self._send_all, scope, receive, send, self._config)

    async def _send_all(self, connection: Connection) -> None:
        await connection.send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                # In pieces that a slow client, too, takes one of in time.
                for start in range(0, len(chunk), PIECE_BYTES):
                    piece = chunk[start : start + PIECE_BYTES]
                    await connection.send({"type": "http.response.body", "body": piece, "more_body": True})
        except SojournError as error:
            # Nothing else can be answered any more: a response that is left without its end is cut off by the server.
            logger.error("a download broke off: %s", error, exc_info=None if error.retryable else error)
            return
        await connection.send({"type": "http.response.body", "body": b"", "more_body": False})

"""JSON that clients send, looked at before it is taken apart: what it is made of is bounded, not its size alone.

A value of two bytes becomes an object of hundreds: without a bound, one request could take all memory, and keep the server from
everything else for minutes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sojourn.errors import InvalidInput
from sojourn.server.access import caller_of
from sojourn.server.paths import PathRoute

MAX_VALUES = 100_000
"""How many values a request may hold: numbers, texts, and what holds them."""

_BEGINNINGS = (b",", b"[", b"{")
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class TooManyValues(InvalidInput):
    """JSON that is made of too many values."""

    default_code = "request.too_many_values"
    http_status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def check_values(text: bytes) -> bytes:
    """Returns JSON text that holds no more than `MAX_VALUES` values.

    Raises:
        TooManyValues: `request.too_many_values`.
    """
    if len(text) > MAX_VALUES and _count(text) >= MAX_VALUES and _count_precisely(text) >= MAX_VALUES:
        raise TooManyValues(
            f"what was sent holds more than {MAX_VALUES} values; send less at once, and save large data as artifacts"
        )
    return text


def _count(text: bytes) -> int:
    """How many values there are but for the first, and maybe more: in texts, these bytes mean nothing."""
    return sum(map(text.count, _BEGINNINGS))


def _count_precisely(text: bytes) -> int:
    # A value has at most two texts: its own, and its key.
    rest, texts = _TEXT.subn(b"", text, count=2 * MAX_VALUES)
    return max(texts // 2, _count(rest) if texts < 2 * MAX_VALUES else 0)


class JsonRoute(PathRoute):
    """A route that takes JSON from callers who are identified: what others send is not read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def checked(request: Request) -> Response:
            await caller_of(request)
            try:
                check_values(await request.body())
            except ClientDisconnect:
                raise HTTPException(HTTPStatus.BAD_REQUEST) from None
            return await handle(request)

        return checked

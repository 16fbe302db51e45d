"""Responses and their documentation, as the routes of this dialect share them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response


def json_response(text: str, headers: dict[str, str] | None = None) -> Response:
    """JSON text as a response."""
    return Response(text, headers=headers, media_type="application/json")


def link(relation: str, **query: str | int) -> dict[str, str]:
    """A `Link` header (RFC 8288) to the same address with another query."""
    return {"Link": f'<?{urlencode(query)}>; rel="{relation}"'}


LINK: dict[str, Any] = {
    "Link": {"description": 'Where it goes on (`rel="next"`), or begins (`rel="first"`).', "schema": {"type": "string"}}
}
"""The documentation of `link`."""

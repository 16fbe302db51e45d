"""What callers show of themselves: the key or token in a request's headers."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from sojourn.errors import Unauthorized

MAX_CREDENTIAL_BYTES = 8192
"""What is longer is no key and no token."""

SUBPROTOCOL = "sojourn"
"""The WebSocket subprotocol of `/run_live`."""

BEARER_SUBPROTOCOL = "bearer."
"""What a WebSocket subprotocol starts with that is a key or token: pages cannot set a WebSocket's headers."""

API_KEY_HEADER = "x-api-key"


def api_key_of(connection: HTTPConnection) -> str | None:
    """What is shown in `X-API-Key`, or as `bearer_of` says."""
    keys = connection.headers.getlist(API_KEY_HEADER)
    return _only(keys) if keys else bearer_of(connection)


def bearer_of(connection: HTTPConnection) -> str | None:
    """What is shown in `Authorization: Bearer …`, or among the subprotocols of a WebSocket as `bearer.…`.

    Raises:
        Unauthorized: `auth.invalid` for something that is shown several times, or too long.
    """
    shown = [value[7:].strip() for value in connection.headers.getlist("authorization") if value[:7].lower() == "bearer "]
    if not shown and connection.scope["type"] == "websocket":
        shown = [
            offered.removeprefix(BEARER_SUBPROTOCOL)
            for offered in connection.scope.get("subprotocols", ())
            if offered.startswith(BEARER_SUBPROTOCOL)
        ]
    return _only(shown) if shown else None


def subprotocol_of(connection: HTTPConnection) -> str | None:
    """What a WebSocket is to be accepted with: browsers hang up unless it is one that they offered, and never the token."""
    return SUBPROTOCOL if SUBPROTOCOL in connection.scope.get("subprotocols", ()) else None


def missing() -> Unauthorized:
    """Nothing is shown."""
    return Unauthorized("show who you are: with `Authorization: Bearer …`, or a key with `X-API-Key`", code="auth.missing")


def invalid() -> Unauthorized:
    """What is shown identifies nobody: the same error whatever is wrong with it."""
    return Unauthorized("the key or token is not valid", code="auth.invalid")


def _only(shown: list[str]) -> str:
    if len(shown) != 1 or len(shown[0]) > MAX_CREDENTIAL_BYTES:
        raise invalid()
    return shown[0]

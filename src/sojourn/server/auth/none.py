"""No authentication: for one's own machine."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

from starlette.requests import HTTPConnection

from sojourn.errors import Forbidden
from sojourn.server.auth.principal import Principal

_ANYBODY = Principal(user_id=None)


class NoAuth:
    """Believes every caller: whoever is named in the request is the user. Only for servers that listen on loopback."""

    needs_loopback = True
    schemes: Mapping[str, Mapping[str, Any]] = {}

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """The caller, of whom nothing is known.

        Raises:
            Forbidden: `auth.needs_loopback` if the request has come in from outside of this machine, however the server was
                started.
        """
        server = connection.scope.get("server")
        if server is not None and not is_loopback(server[0], unknown=True):
            raise Forbidden(
                "without authentication only this machine's own users are answered; its operator configures keys or tokens",
                code="auth.needs_loopback",
            )
        return _ANYBODY


def is_loopback(host: str, *, unknown: bool = False) -> bool:
    """Whether nobody but this machine's own users can reach an address.

    Args:
        host: An IP address or a name.
        unknown: What is said of names besides `localhost`, which may stand for anything.
    """
    try:
        address = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return unknown or host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

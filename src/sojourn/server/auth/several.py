"""Several ways to say who calls, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import HTTPConnection

from sojourn.errors import InvalidInput, Unauthorized, Unavailable
from sojourn.server.auth.credentials import invalid, missing
from sojourn.server.auth.principal import Authenticator, Principal


class AnyOf:
    """Identifies callers by whichever of several authenticators knows them.

    Args:
        *authenticators: In the order in which they are asked; none that lets everybody in.

    Raises:
        InvalidInput: `server.invalid`.
    """

    needs_loopback = False

    def __init__(self, *authenticators: Authenticator) -> None:
        if not authenticators or any(each.needs_loopback for each in authenticators):
            raise InvalidInput(
                "name one or several ways to identify callers; beside NoAuth, no other would mean anything",
                code="server.invalid",
            )
        self._authenticators = authenticators

    @property
    def schemes(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of all."""
        return {name: scheme for each in self._authenticators for name, scheme in each.schemes.items()}

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """See `Authenticator`; `auth.unavailable` only if nobody else knows the caller."""
        shown = False
        unavailable: Unavailable | None = None
        for each in self._authenticators:
            try:
                return await each.authenticate(connection)
            except Unauthorized as error:
                shown = shown or error.code != "auth.missing"
            except Unavailable as error:
                unavailable = error
        if unavailable is not None:
            raise unavailable
        raise invalid() if shown else missing()

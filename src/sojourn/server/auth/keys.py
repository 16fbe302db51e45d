"""API keys as a way to say who calls."""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Mapping
from typing import Any

from starlette.requests import HTTPConnection

from sojourn.errors import Unavailable
from sojourn.server.auth.credentials import api_key_of, invalid, missing
from sojourn.server.auth.keyfile import KEY, KeyFile, hash_of
from sojourn.server.auth.principal import Principal

logger = logging.getLogger("sojourn.server")

_NO_HASH = "0" * 64


class ApiKeyAuth:
    """Identifies callers by API keys: `X-API-Key: sjn_…` or `Authorization: Bearer sjn_…`.

    A key that is added or removed counts from the next request on, in all processes.

    Args:
        keys: The file that `sojourn keys` writes.
    """

    needs_loopback = False
    schemes: Mapping[str, Mapping[str, Any]] = {
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "A key made by `sojourn keys add`."},
        "apiKeyAsBearer": {"type": "http", "scheme": "bearer", "description": "The same key as `Authorization: Bearer …`."},
    }

    def __init__(self, keys: KeyFile | str | os.PathLike[str]) -> None:
        self._file = keys if isinstance(keys, KeyFile) else KeyFile(keys)

    async def authenticate(self, connection: HTTPConnection) -> Principal:
        """See `Authenticator`."""
        shown = api_key_of(connection)
        if shown is None:
            raise missing()
        match = KEY.fullmatch(shown)
        if match is None:
            raise invalid()
        try:
            kept = self._file.keys().get(match[1])
        except Unavailable as error:
            logger.error("%s", error)
            raise Unavailable("keys cannot be checked at the moment; try again later", code="auth.unavailable") from error
        same = hmac.compare_digest(hash_of(shown), kept.hash if kept is not None else _NO_HASH)
        if kept is None or not same or kept.has_expired():
            raise invalid()
        return Principal(kept.user_id, kept.admin)

"""Which addresses a server may listen on."""

from __future__ import annotations

from sojourn.errors import InvalidInput
from sojourn.server.auth.none import is_loopback
from sojourn.server.config import ServerConfig


def check_bind(config: ServerConfig, host: str) -> None:
    """Refuses to let others in who are not asked who they are; to be called before listening.

    Args:
        config: How the server serves.
        host: The address or name that it is about to listen on; of names, `localhost` alone counts as loopback.

    Raises:
        InvalidInput: `auth.needs_loopback`.
    """
    if config.auth.needs_loopback and not is_loopback(host):
        raise InvalidInput(
            f"without authentication, everybody who reaches {host} could act as anybody: listen on 127.0.0.1, or use "
            "keys (--auth keys, see `sojourn keys add`) or tokens (--auth jwt)",
            code="auth.needs_loopback",
        )

"""How a server serves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sojourn.errors import InvalidInput
from sojourn.server.auth.none import NoAuth
from sojourn.server.auth.principal import Authenticator

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""The names by which this machine calls itself."""

_BOUNDS = (
    "max_body_bytes",
    "max_parts",
    "max_seeded_events",
    "max_frame_bytes",
    "max_unfinished_runs_per_user",
    "rate_per_user",
)
_SECONDS = (
    "heartbeat",
    "slow_reader_timeout",
    "body_timeout",
    "live_idle_timeout",
    "live_max_duration",
)
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\])(:[0-9]+)?")


@dataclass(slots=True, kw_only=True, frozen=True)
class ServerConfig:
    """How a server serves; what it serves are Runners.

    Attributes:
        auth: Who the caller is. The default believes what the request says, which is for one's own machine only.
        allowed_hosts: Values of the `Host` header, without port, that are answered; `*` for any, `*.example.com` for what is
            below a domain. It protects a server on loopback from web pages whose name points to it.
        allowed_origins: Origins (`https://app.example.com`) whose pages may call and read, besides pages of the server's own
            origin; none by default, so that CORS is off. `*` allows any, without credentials.
        on_disconnect: What becomes of a run started by `/run`, `/run_sse` or `/run_live` whose client has gone: `detach`, it
            goes on and can be followed again; `cancel`, it is cancelled if nobody follows it again within `disconnect_grace`.
        disconnect_grace: Seconds.
        heartbeat: Seconds after which a stream with nothing to say says so.
        reconnect_after: Seconds after which a browser whose stream broke comes back.
        slow_reader_timeout: Seconds for which a client may take nothing of what it is sent before its stream, or its download,
            is cut. A run is not slowed by it, and the client may come back.
        max_body_bytes: Size of a request's body; `request.too_large` beyond.
        body_timeout: Seconds that a request's body may take to arrive; `request.timeout` beyond.
        max_parts: Parts of a message; `message.too_many_parts` beyond.
        max_seeded_events: Events of a conversation that a session is created with; `session.too_many_events` beyond.
        max_frame_bytes: Size of what a client sends at once over a WebSocket.
        max_unfinished_runs_per_user: Runs of one user that are queued, running or waiting; None for no bound.
            `limit.runs_per_user` beyond.
        rate_per_user: Requests that a user may make within a minute; None for no bound. `limit.rate` beyond. Without
            authentication users are told apart by their address.
        public_metrics: Whether everybody may read `/metrics`, and not operators alone.
        live_idle_timeout: Seconds for which a client of `/run_live` may send nothing; None for no bound.
        live_max_duration: Seconds that a `/run_live` may last; None for no bound.
    """

    auth: Authenticator = field(default_factory=NoAuth)
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS
    allowed_origins: Sequence[str] = ()
    on_disconnect: Literal["detach", "cancel"] = "detach"
    disconnect_grace: float = 10.0
    heartbeat: float = 15.0
    reconnect_after: float = 2.0
    slow_reader_timeout: float = 30.0
    max_body_bytes: int = 16 * 2**20
    body_timeout: float = 60.0
    max_parts: int = 100
    max_seeded_events: int = 1000
    max_frame_bytes: int = 2**20
    max_unfinished_runs_per_user: int | None = None
    rate_per_user: int | None = None
    public_metrics: bool = False
    live_idle_timeout: float | None = 600.0
    live_max_duration: float | None = 3600.0

    def __post_init__(self) -> None:
        """Raises InvalidInput, `server.invalid`, for values that cannot be, and for those that would never match anything."""
        if isinstance(self.allowed_hosts, str):
            raise InvalidInput(f"allowed_hosts is the text {self.allowed_hosts!r}; give a list", code="server.invalid")
        for host in self.allowed_hosts:
            if host != "*" and not _HOST.fullmatch(host):
                raise InvalidInput(f"allowed host {host!r} is no name; give it without scheme and port", code="server.invalid")
        for origin in self.allowed_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InvalidInput(
                    f"allowed origin {origin!r} is none; give it like https://app.example.com", code="server.invalid"
                )
        if self.on_disconnect not in ("detach", "cancel"):
            raise InvalidInput(f"on_disconnect is {self.on_disconnect!r}; it is detach or cancel", code="server.invalid")
        for name in _SECONDS:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidInput(f"{name} is {value}; more than 0 seconds are needed", code="server.invalid")
        for name in _BOUNDS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; at least 1 is needed", code="server.invalid")

"""How much a caller may ask for: requests per minute, unfinished runs, parts of a message."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from starlette.requests import HTTPConnection

from sojourn import platform
from sojourn.content import Content
from sojourn.errors import InvalidInput, LimitExceeded
from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.config import ServerConfig
from sojourn.server.counting import count_runs

RATE_WINDOW = 60.0
"""Seconds for which a rate is given."""

_UNFINISHED = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)


@dataclass(slots=True, frozen=True)
class Allowance:
    """What is left of a rate after a request.

    Attributes:
        limit: Requests per window.
        remaining: How many more would be let through now.
        reset: Seconds until all of them would be.
        retry_after: Seconds until the next one would be; 0 if this one was let through.
    """

    limit: int
    remaining: int
    reset: float
    retry_after: float

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As the `RateLimit` headers (draft-ietf-httpapi-ratelimit-headers)."""
        return [
            (b"ratelimit-policy", b'"default";q=%d;w=%d' % (self.limit, RATE_WINDOW)),
            (b"ratelimit", b'"default";r=%d;t=%d' % (self.remaining, math.ceil(self.reset))),
        ]


class Rate:
    """A rate for each of any number of keys, in this process's memory: the generic cell rate algorithm.

    All of a window's requests may come at once; from then on they are let through at an even pace. A key that has been quiet
    for two windows costs no memory.

    Args:
        limit: Requests per `RATE_WINDOW`.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._interval = RATE_WINDOW / limit
        self._full_at: dict[str, float] = {}
        self._prune_at = platform.monotonic() + RATE_WINDOW

    def take(self, key: str) -> Allowance:
        """Counts a request, unless it is not let through."""
        now = platform.monotonic()
        if now >= self._prune_at:
            self._prune(now)
        used = max(self._full_at.get(key, now) - now, 0.0)
        wanted = used + self._interval
        # The tolerance is for sums of intervals that are no binary fractions.
        wait = wanted - RATE_WINDOW
        if wait > self._interval * 1e-6:
            return Allowance(self._limit, 0, used, wait)
        self._full_at[key] = now + wanted
        return Allowance(self._limit, int((RATE_WINDOW - wanted) / self._interval + 1e-6), wanted, 0.0)

    def _prune(self, now: float) -> None:
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        self._prune_at = now + RATE_WINDOW


class Limits:
    """The limits of one server.

    Args:
        config: What they are.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._rate = Rate(config.rate_per_user) if config.rate_per_user is not None else None
        self._starting: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def count(self, connection: HTTPConnection, key: str) -> None:
        """Counts a request; its response tells what is left.

        Args:
            connection: The request.
            key: Whose rate it counts against; see `caller_key`.

        Raises:
            LimitExceeded: `limit.rate`.
        """
        if self._rate is None:
            return
        allowance = self._rate.take(key)
        connection.scope.setdefault("state", {})["sojourn.allowance"] = allowance
        if allowance.retry_after:
            raise LimitExceeded(
                f"more than {allowance.limit} requests within a minute; wait",
                code="limit.rate",
                retry_after=allowance.retry_after,
            )

    def check_message(self, content: Content) -> Content:
        """Returns a message that is not made of too many parts.

        Raises:
            InvalidInput: `message.too_many_parts`.
        """
        parts, limit = len(content.parts), self._config.max_parts
        if parts > limit:
            raise InvalidInput(f"the message has {parts} parts; at most {limit} are allowed", code="message.too_many_parts")
        return content

    def check_seed(self, events: Sequence[Event] | None) -> Sequence[Event]:
        """Returns the events that a session is to be created with, if there are not too many.

        Raises:
            InvalidInput: `session.too_many_events`.
        """
        events, limit = events or (), self._config.max_seeded_events
        if len(events) > limit:
            raise InvalidInput(
                f"the conversation has {len(events)} events; a session is created with at most {limit}: leave out the oldest",
                code="session.too_many_events",
            )
        return events

    @asynccontextmanager
    async def room_for_run(self, runner: Runner, user_id: str) -> AsyncIterator[None]:
        """Makes sure that a user may have one more unfinished run; start it in the block.

        Of one user, such blocks go one after the other, so that none is started on the room of another.

        Raises:
            LimitExceeded: `limit.runs_per_user`.
        """
        limit = self._config.max_unfinished_runs_per_user
        if limit is None:
            yield
            return
        lock = self._starting.setdefault((runner.app_name, user_id), asyncio.Lock())
        async with lock:
            await _check_room(runner, user_id, limit)
            yield


async def _check_room(runner: Runner, user_id: str, limit: int) -> None:
    count = await count_runs(runner, _UNFINISHED, limit, user_id)
    if count >= limit:
        raise LimitExceeded(
            f"user {user_id!r} has {count} unfinished runs, and may have {limit}; wait for one to end, answer it, or cancel it",
            code="limit.runs_per_user",
            retry_after=1.0,
        )


def caller_key(connection: HTTPConnection, user_id: str | None) -> str:
    """Whose rate a request counts against: the user's; the address's where no user is known."""
    if user_id is not None:
        return f"user {user_id}"
    client = connection.scope.get("client")
    return f"address {client[0] if client else ''}"

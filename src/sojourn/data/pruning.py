"""How long data is kept, and removing what has been kept long enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

from sojourn import platform
from sojourn.data.services import Services, considerately, sessions_of, settle
from sojourn.errors import InvalidInput
from sojourn.session.types import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long the data of an app is kept. Without any bound, for ever.

    Attributes:
        ttl: Seconds after its last activity after which a session is removed with all that belongs to it. Sessions with a run
            that has not ended, such as one that waits for a person, stay.
        max_events: Of a session's events, at least this many newest ones stay; older runs are removed.
        max_age: Seconds after its end after which a run is removed.
        every: Seconds from one round of a Runner to the next.

    Raises:
        InvalidInput: `retention.invalid`.
    """

    ttl: float | None = None
    max_events: int | None = None
    max_age: float | None = None
    every: float = 3600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = int if field.name == "max_events" else int | float
            if value is None and field.name != "every":
                continue
            if isinstance(value, bool) or not isinstance(value, wanted) or not math.isfinite(value) or value < 0:
                raise InvalidInput(f"{field.name} is {value!r}; give 0 or more", code="retention.invalid")
        if self.every < _SHORTEST:
            raise InvalidInput(f"every is {self.every!r}; give {_SHORTEST:g} seconds or more", code="retention.invalid")

    @property
    def bounded(self) -> bool:
        """Whether anything is ever removed."""
        return (self.ttl, self.max_events, self.max_age) != (None, None, None)


_SHORTEST = 1.0


@dataclass(slots=True)
class Pruned:
    """What was removed.

    Attributes:
        sessions: Sessions that are gone.
        runs: Runs, those of these sessions included.
        events: Events, those of these sessions included.
    """

    sessions: int = 0
    runs: int = 0
    events: int = 0


async def prune(
    services: Services, app_name: str, retention: Retention, user_id: str | None, stopped: Callable[[], bool]
) -> Pruned:
    """See `DataCare.prune`; ends early, between two transactions, once `stopped` says so."""
    pruned = Pruned()
    if not retention.bounded:
        return pruned
    now = platform.now()
    async for session in sessions_of(services.store, app_name, user_id):
        if stopped():
            break
        since = None if retention.ttl is None else now - retention.ttl
        if since is not None and session.updated_at < since and await _drop(services, session, since, pruned, stopped):
            continue
        await _trim(services, session, retention, now, pruned, stopped)
    await settle(services.store, services.artifacts, app_name, user_id)
    return pruned


async def _drop(services: Services, session: Session, idle_since: float, pruned: Pruned, stopped: Callable[[], bool]) -> bool:
    """Removes a session unless it is in use; whether it is gone."""
    state = "more"
    while state == "more" and not stopped():
        async with considerately():
            dropped = await services.store.drop_session(session.key, idle_since=idle_since)
        state = dropped.state
        pruned.runs += dropped.runs
        pruned.events += dropped.events
    pruned.sessions += state == "gone"
    return state == "gone"


async def _trim(
    services: Services, session: Session, retention: Retention, now: float, pruned: Pruned, stopped: Callable[[], bool]
) -> None:
    before = None if retention.max_age is None else now - retention.max_age
    if before is not None and session.created_at >= before:
        # Nothing in it has ended before it began.
        before = None
    keep = retention.max_events
    if keep is not None and session.event_count < keep:
        keep = None
    more = before is not None or keep is not None
    while more and not stopped():
        async with considerately():
            trimmed = await services.store.trim_session(session.key, keep_events=keep, ended_before=before)
        pruned.runs += trimmed.runs
        pruned.events += trimmed.events
        more = trimmed.more

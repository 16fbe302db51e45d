"""The ledger: what users have spent, whatever becomes of their sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sojourn.event import Usage
from sojourn.postgres.tables import Tables
from sojourn.run.usage import COUNTS, HOUR, UsageBucket, UserUsage, hour_of

_READ = f"SELECT hour, {', '.join(COUNTS)} FROM {{schema}}.user_usage WHERE app_name = $1 AND user_id = $2"
_READ_ALL = f"{_READ} ORDER BY hour"
_READ_SINCE = f"{_READ} AND hour > $3::double precision ORDER BY hour"


def row_of(counts: Mapping[str, int]) -> list[int]:
    """Counts in the order of the columns."""
    return [counts.get(name, 0) for name in COUNTS]


async def add(db: Tables, app_name: str, user_id: str, now: float, counts: Mapping[str, int]) -> None:
    """Adds what was spent at a time."""
    await db.run("SELECT {schema}.spend($1, $2, $3, $4::bigint[])", app_name, user_id, hour_of(now), row_of(counts))


def floor_of(since: float) -> float:
    """The time after which the hours begin that are read."""
    return since - HOUR


async def read(db: Tables, app_name: str, user_id: str, since: float | None) -> UserUsage:
    """What `RunStore.user_usage` gives."""
    if since is None:
        return usage_of(await db.all(_READ_ALL, app_name, user_id))
    return usage_of(await db.all(_READ_SINCE, app_name, user_id, floor_of(since)))


def usage_of(rows: Iterable[Sequence[int]]) -> UserUsage:
    """What a user has spent, from rows of the ledger."""
    return UserUsage.of(UsageBucket(hour, Usage(**dict(zip(COUNTS, counts, strict=True)))) for hour, *counts in rows)

"""The ledger: what users have spent, whatever becomes of their sessions."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from sojourn.event import Usage
from sojourn.run.usage import COUNTS, HOUR, MAX_COUNT, UsageBucket, UserUsage, hour_of

_COLUMNS = ", ".join(COUNTS)

_ADD = f"""
    INSERT INTO user_usage (app_name, user_id, hour, {_COLUMNS}) VALUES (?, ?, ?, {", ".join("?" for _ in COUNTS)})
    ON CONFLICT (app_name, user_id, hour) DO UPDATE SET
    {", ".join(f"{name} = min({name} + excluded.{name}, {MAX_COUNT})" for name in COUNTS)}
"""

_READ = f"SELECT hour, {_COLUMNS} FROM user_usage WHERE app_name = ? AND user_id = ?"
_READ_ALL = f"{_READ} ORDER BY hour"
_READ_SINCE = f"{_READ} AND hour > ? ORDER BY hour"


def add(conn: sqlite3.Connection, app_name: str, user_id: str, now: float, counts: Mapping[str, int]) -> None:
    """Adds what was spent at a time."""
    conn.execute(_ADD, (app_name, user_id, hour_of(now), *(counts.get(name, 0) for name in COUNTS)))


def read(conn: sqlite3.Connection, app_name: str, user_id: str, since: float | None) -> UserUsage:
    """What `RunStore.user_usage` gives."""
    if since is None:
        rows = conn.execute(_READ_ALL, (app_name, user_id))
    else:
        rows = conn.execute(_READ_SINCE, (app_name, user_id, since - HOUR))
    return UserUsage.of(UsageBucket(hour, Usage(**dict(zip(COUNTS, counts, strict=True)))) for hour, *counts in rows)

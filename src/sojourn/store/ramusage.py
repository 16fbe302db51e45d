"""The ledger in RAM: what users have spent, whatever becomes of their sessions."""

from __future__ import annotations

from collections.abc import Mapping

from sojourn.event import Usage
from sojourn.run.usage import COUNTS, HOUR, MAX_COUNT, UsageBucket, UserUsage, hour_of


class RamLedger:
    """Sums the tokens of each user of each app by the hour."""

    def __init__(self) -> None:
        self._hours: dict[tuple[str, str], dict[int, dict[str, int]]] = {}

    def add(self, app_name: str, user_id: str, now: float, counts: Mapping[str, int]) -> None:
        """Adds what was spent at a time."""
        hours = self._hours.setdefault((app_name, user_id), {})
        bucket = hours.setdefault(hour_of(now), dict.fromkeys(COUNTS, 0))
        for name, count in counts.items():
            bucket[name] = min(bucket[name] + count, MAX_COUNT)

    def users(self) -> list[tuple[str, str]]:
        """The app and the id of the users who have spent anything."""
        return list(self._hours)

    def erase_user(self, app_name: str, user_id: str) -> None:
        """Forgets what a user has spent."""
        self._hours.pop((app_name, user_id), None)

    def read(self, app_name: str, user_id: str, since: float | None) -> UserUsage:
        """What `RunStore.user_usage` gives."""
        hours = self._hours.get((app_name, user_id), {})
        return UserUsage.of(
            UsageBucket(hour, Usage(**hours[hour])) for hour in sorted(hours) if since is None or hour > since - HOUR
        )

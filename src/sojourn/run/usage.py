"""What users have spent: tokens, by the hour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sojourn.event import Usage

HOUR = 3600
"""Seconds of a bucket."""

COUNTS: tuple[str, ...] = tuple(Usage.model_fields)
"""The names of the counts that are kept."""

MAX_COUNT = 2**63 - 1
"""The most that a count of one bucket can be; it stays there."""


class UsageBucket(NamedTuple):
    """What a user has spent in one hour.

    Attributes:
        hour: When the hour began, in UTC: seconds since the epoch, a multiple of 3,600.
        usage: The sums of that hour.
    """

    hour: int
    usage: Usage

    @property
    def end(self) -> int:
        """When the hour is over: seconds since the epoch."""
        return self.hour + HOUR


class UserUsage(NamedTuple):
    """What a user has spent in an app.

    Attributes:
        total: The sums over all buckets.
        buckets: By the hour, oldest first; hours in which nothing was spent are left out.
    """

    total: Usage
    buckets: list[UsageBucket]

    @classmethod
    def of(cls, buckets: Iterable[UsageBucket]) -> UserUsage:
        """Buckets, oldest first, with their sums."""
        listed = list(buckets)
        return cls(Usage(**{name: sum(getattr(b.usage, name) for b in listed) for name in COUNTS}), listed)


def hour_of(timestamp: float) -> int:
    """When the hour of a time began: seconds since the epoch."""
    return int(timestamp // HOUR) * HOUR

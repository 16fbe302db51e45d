"""A clock that a test moves, and ids that it can predict."""

from __future__ import annotations

import hashlib

from sojourn.platform import Platform

NOON = 1_700_000_000.0
"""Where a `ManualPlatform` starts: seconds since the epoch."""


class ManualPlatform(Platform):
    """Time stands still until it is moved; ids and randomness follow from a seed.

        with platform.use(clock := ManualPlatform()):
            await store.create_session(app_name="shop", user_id="alice", session_id="first")
            clock.advance(1)
            await store.create_session(app_name="shop", user_id="alice", session_id="second")

    Args:
        start: Seconds since the epoch.
        seed: Decides ids and randomness; two platforms of one seed give the same in the same order.
    """

    def __init__(self, start: float = NOON, *, seed: object = 0) -> None:
        self._now = start
        self._seed = seed
        self._drawn = 0

    def now(self) -> float:
        """The time it was moved to."""
        return self._now

    def monotonic(self) -> float:
        """The same time."""
        return self._now

    def random(self) -> float:
        """The seed's next number in [0, 1)."""
        return int.from_bytes(self.random_bytes(6), "big") / 2**48

    def random_bytes(self, n: int) -> bytes:
        """The seed's next `n` bytes."""
        self._drawn += 1
        return hashlib.shake_256(f"{self._seed}/{self._drawn}".encode()).digest(n)

    def advance(self, seconds: float) -> float:
        """Moves the time on and returns it; a negative number sets the clock back."""
        self._now += seconds
        return self._now

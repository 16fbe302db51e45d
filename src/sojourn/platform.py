"""Clock, ids and randomness: the only module that reads them.

Everything else asks here, so that a test can own time, ids and chance by installing another `Platform` with `use()`.
Timers are the event loop's own (`loop.call_later`): a test moves them with `sojourn.testing`'s virtual-time loop.
"""

from __future__ import annotations

import os
import random as _random
import time as _time
from collections.abc import Iterator
from contextlib import contextmanager


class Platform:
    """Where the process gets its time, ids and randomness from."""

    def now(self) -> float:
        """Wall clock, seconds since the epoch (UTC)."""
        return _time.time()

    def monotonic(self) -> float:
        """A clock that never goes back, in seconds; only differences mean something."""
        return _time.monotonic()

    def random(self) -> float:
        """A random number in [0, 1)."""
        return _random.random()

    def random_bytes(self, n: int) -> bytes:
        """`n` random bytes, fit for ids and secrets."""
        return os.urandom(n)


_REAL = Platform()
_current: Platform = _REAL


def now() -> float:
    """Wall clock, seconds since the epoch (UTC)."""
    return _current.now()


def monotonic() -> float:
    """A clock that never goes back, in seconds."""
    return _current.monotonic()


def random() -> float:
    """A random number in [0, 1)."""
    return _current.random()


def random_bytes(n: int) -> bytes:
    """`n` random bytes, fit for ids and secrets."""
    return _current.random_bytes(n)


def is_virtual() -> bool:
    """Whether a test owns time: it passes without the world's clock then, and no thread may watch it."""
    return _current is not _REAL


def new_id() -> str:
    """A new unique id: 32 hex digits that sort by time of creation (48 bits of milliseconds, then 80 random bits)."""
    return f"{int(_current.now() * 1000):012x}{_current.random_bytes(10).hex()}"


@contextmanager
def use(platform: Platform) -> Iterator[Platform]:
    """Installs another platform for the whole process while the block runs; for tests."""
    global _current
    before, _current = _current, platform
    try:
        yield platform
    finally:
        _current = before

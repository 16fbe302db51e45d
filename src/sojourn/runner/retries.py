"""What could not be done is tried again after a while, at growing intervals."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_DELAY = 1.0
"""Seconds until something is tried again for the first time; then twice as long each time."""

MAX_DELAY = 300.0
"""Seconds between two tries at most, unless more is asked for."""


class Retries(Generic[K]):
    """Tries again for each key, until that succeeds or nobody wants it any more.

    Args:
        again: What is tried. It asks for another try by itself, and raises nothing.
    """

    def __init__(self, again: Callable[[K], Awaitable[None]]) -> None:
        self._again = again
        self._delays: dict[K, float] = {}
        self._timers: dict[K, tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle]] = {}
        self._tasks: set[asyncio.Future[None]] = set()

    def later(self, key: K, retry_after: float | None = None) -> None:
        """Tries again after a while, or after at least so many seconds."""
        loop = asyncio.get_running_loop()
        waiting = self._timers.get(key)
        if waiting is not None and waiting[0] is loop:
            return
        delay = self._delays.get(key, FIRST_DELAY)
        self._delays[key] = min(2 * delay, MAX_DELAY)
        timer = loop.call_later(max(delay, retry_after or 0.0), self._start, key, context=contextvars.Context())
        self._timers[key] = loop, timer

    def done(self, key: K) -> None:
        """Takes note that nothing is left to do."""
        self._delays.pop(key, None)

    def stop(self) -> None:
        """Tries nothing again any more."""
        loop = asyncio.get_running_loop()
        for of, timer in self._timers.values():
            if of is loop:
                timer.cancel()
        self._timers.clear()
        self._delays.clear()
        for task in self._tasks:
            if task.get_loop() is loop:
                task.cancel()

    def _start(self, key: K) -> None:
        del self._timers[key]
        task = asyncio.ensure_future(self._again(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""Where numpy works on vectors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_LITTLE = 2**21
"""Bytes of vectors on which a call takes no longer than to hand it to a thread: about 1,400 of 384 numbers."""


class Computing:
    """Runs what works on many vectors in a thread, so that the event loop goes on meanwhile, and on few right away."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sojourn-memory-vectors")

    async def run(self, size: int, call: Callable[[], T]) -> T:
        """The result of a call.

        Args:
            size: How many bytes of vectors it works on.
            call: The call.
        """
        if size <= _LITTLE:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """Lets the thread end."""
        self._thread.shutdown(wait=False)

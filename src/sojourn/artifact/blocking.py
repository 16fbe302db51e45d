"""Blocking calls in a thread, without losing sight of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a blocking call in the event loop's executor and returns what it returns.

    A thread cannot be cancelled: if the task is, this waits until the call has ended before it raises
    `CancelledError`, so that what the call works on is not cleaned up under its hands. Its result is dropped then.
    """
    future = asyncio.get_running_loop().run_in_executor(None, lambda: call(*args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    # Looked at, so that asyncio does not report the error as never retrieved.
    future.exception()
    raise cancelled

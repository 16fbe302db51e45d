"""Bytes on their way from a task that has them to an upload that asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

Block = bytes | bytearray | memoryview
"""Bytes that nobody changes any more."""


class Feed(AsyncIterator[Block]):
    """What is given here, for an upload to iterate over; a few blocks wait in between, no more.

    The blocks come from the task that gives them, not from within the upload: a stream of the caller's runs in the caller's
    task, is cancelled with it, and its errors stay its own.
    """

    def __init__(self) -> None:
        self._blocks: asyncio.Queue[Block | BaseException] = asyncio.Queue(maxsize=1)
        self._abandoned = False

    async def give(self, block: Block) -> None:
        """Waits until there is room; drops the block if nobody reads any more."""
        if not self._abandoned:
            await self._blocks.put(block)

    async def end(self) -> None:
        """Says that that was all."""
        if not self._abandoned:
            await self._blocks.put(StopAsyncIteration())

    def fail(self, error: BaseException) -> None:
        """Makes the upload fail, without waiting; what it has not taken yet is dropped."""
        self._drop()
        self._blocks.put_nowait(error)

    def abandon(self) -> None:
        """Says that nobody reads any more."""
        self._abandoned = True
        self._drop()

    def _drop(self) -> None:
        while not self._blocks.empty():
            self._blocks.get_nowait()

    async def __anext__(self) -> Block:
        block = await self._blocks.get()
        if isinstance(block, BaseException):
            raise block
        return block

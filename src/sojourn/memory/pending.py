"""Embeds what could not be embedded when it was added, and what another model has embedded."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from sojourn.errors import SojournError
from sojourn.memory.embedder import Embedder, packed
from sojourn.memory.lenient import vectors_of_each

logger = logging.getLogger("sojourn.memory")

BATCH = 64
"""Texts that are embedded at once."""

WINDOW = 5000
"""Entries that are looked at in one go for those without a vector, of which there may be few among very many."""

_FIRST_DELAY = 1.0
_MAX_DELAY = 300.0


class Pending(NamedTuple):
    """Some entries, of any users, that have no vector.

    Attributes:
        texts: Keys and texts.
        after: The key after which there may be more; None if there is none.
    """

    texts: list[tuple[int, str]]
    after: int | None


Read = Callable[[int, int], Awaitable[Pending]]
"""Gives entries without a vector: those after a key, and at most so many."""

Write = Callable[[Mapping[int, bytes]], Awaitable[None]]
"""Writes vectors by key."""


class PendingVectors:
    """A task that runs while entries are without a vector, and tries again, at growing intervals, while embedding fails.

    Args:
        embedder: The embedder.
        read: Finds the entries.
        write: Writes their vectors.
    """

    def __init__(self, embedder: Embedder, read: Read, write: Write) -> None:
        self._embedder = embedder
        self._read = read
        self._write = write
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._looked = False

    def look(self) -> None:
        """Looks for entries without a vector, the first time this is called."""
        if not self._looked:
            self.start()

    def start(self) -> None:
        """Sees to it that entries without a vector get one."""
        self._looked = self._wanted = True
        if self._task is None or self._task.done() or self._task.get_loop().is_closed():
            # In a context of its own: it is no part of the run that happens to start it.
            task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())
            # What the end of the event loop cuts off is taken up by whoever opens the database next.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self._task = task

    async def stop(self) -> None:
        """Ends the task."""
        task, self._task = self._task, None
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        delay = _FIRST_DELAY
        while self._wanted:
            self._wanted = False
            after: int | None = 0
            while after is not None:
                try:
                    after = await self._embed_some(after)
                except SojournError as error:
                    if error.code == "memory.closed":
                        return
                    if not error.retryable:
                        logger.warning("entries of memory stay without vectors until more is added: %s", error)
                        break
                    wait = max(delay, error.retry_after or 0.0)
                    logger.warning("entries of memory are without vectors; trying again in %g s: %s", wait, error)
                    await asyncio.sleep(wait)
                    delay = min(2 * delay, _MAX_DELAY)
                    continue
                delay = _FIRST_DELAY

    async def _embed_some(self, after: int) -> int | None:
        """Embeds the next entries; the key after which to go on, or None if that was all."""
        some = await self._read(after, BATCH)
        if some.texts:
            await self._embed(some.texts)
        return some.after

    async def _embed(self, texts: Sequence[tuple[int, str]]) -> None:
        """Embeds these; a text that the model rejects stays without a vector."""
        vectors = await vectors_of_each(self._embedder, [text for _, text in texts])
        found = {key: packed(vectors[text]) for key, text in texts if text in vectors}
        if found:
            await self._write(found)
            logger.info("%d entries of memory were given vectors", len(found))

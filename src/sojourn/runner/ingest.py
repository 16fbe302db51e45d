"""Adds what was said to the users' memory: a whole session by hand, or each run at its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

from sojourn.errors import NotFound, SojournError
from sojourn.event import Event
from sojourn.memory.service import MemoryService
from sojourn.page import MAX_PAGE
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.session.types import SessionKey

logger = logging.getLogger("sojourn.run")

MAX_MISSED = 10_000
"""How many sessions are kept in mind that a run of could not be added."""


class Ingest:
    """Fills a memory service from a store. Of a session, one thing is added at a time.

    Args:
        store: Where the events are.
        memory: Where they are added.
    """

    def __init__(self, store: Store, memory: MemoryService) -> None:
        self._store = store
        self._memory = memory
        # Who adds a whole session must not remove what a run has added since it read the log.
        self._turns: WeakValueDictionary[SessionKey, asyncio.Lock] = WeakValueDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._missed: dict[SessionKey, None] = {}
        self._adding: dict[SessionKey, set[asyncio.Task[Any]]] = {}

    async def add_session(self, key: SessionKey) -> None:
        """Adds what counts in a session, in place of what was added of it before.

        Raises:
            NotFound: `session.not_found`.
        """
        async with self._turn(key):
            await self._add_session(key)
            self._missed.pop(key, None)

    async def add_run(self, record: RunRecord) -> None:
        """Adds what a run has said, in place of what was added of it before.

        It reads no events but those of the run. A failure is logged, and makes the session's next run add all of the session.
        """
        key = record.key
        turn = self._turn(key)
        try:
            with self._breakable(key):
                async with turn:
                    await self._add_or_make_up(record)
        except NotFound:
            # The session was deleted meanwhile.
            self._missed.pop(key, None)
        except SojournError as error:
            logger.warning("run %s of session %s was not added to memory: %s", record.id, key, error)
        except Exception:
            # A memory service may raise anything; nobody waits for this who could be told.
            logger.exception("run %s of session %s was not added to memory: an error without a code", record.id, key)

    async def drop_superseded(self, record: RunRecord) -> None:
        """Removes what a run that repeats another has made superseded.

        It reads the log from the repeated run on, and nothing before it unless that run never began. A failure is logged,
        and makes the session's next run add all of the session.
        """
        key = record.key
        try:
            async with self._turn(key):
                await self._drop_superseded(record)
        except NotFound:
            # The session was deleted meanwhile.
            self._missed.pop(key, None)
        except SojournError as error:
            self._miss(key)
            logger.warning("what run %s of session %s repeats was not removed from memory: %s", record.id, key, error)
        except Exception:
            self._miss(key)
            logger.exception(
                "what run %s of session %s repeats was not removed from memory: an error without a code", record.id, key
            )

    async def end_additions(self, key: SessionKey) -> None:
        """Breaks off the additions of runs of a session that was deleted, and waits until nothing is being added of it.

        What an earlier addition has left in memory stays there.
        """
        turn = self._turn(key)
        for task in self._adding.get(key, ()):
            task.cancel()
        async with turn:
            self._missed.pop(key, None)

    def _turn(self, key: SessionKey) -> asyncio.Lock:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Whoever had a turn in an event loop that has ended never gives it back.
            self._loop, self._turns, self._adding = loop, WeakValueDictionary(), {}
        return self._turns.setdefault(key, asyncio.Lock())

    @contextmanager
    def _breakable(self, key: SessionKey) -> Iterator[None]:
        """Lets `end_additions` cancel the running task, which does nothing but add a run."""
        task = asyncio.current_task()
        assert task is not None
        tasks = self._adding.setdefault(key, set())
        tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task)
            if not tasks and self._adding.get(key) is tasks:
                del self._adding[key]

    def _miss(self, key: SessionKey) -> None:
        self._missed[key] = None
        if len(self._missed) > MAX_MISSED:
            del self._missed[next(iter(self._missed))]

    async def _add_or_make_up(self, record: RunRecord) -> None:
        key = record.key
        whole = key in self._missed
        self._miss(key)
        if whole:
            await self._add_session(key)
        else:
            await self._add_run(record)
        self._missed.pop(key, None)

    async def _add_session(self, key: SessionKey) -> None:
        app, user, session = key
        events: list[Event] = []
        while True:
            after = events[-1].seq or 0 if events else 0
            page = await self._store.list_events(app_name=app, user_id=user, session_id=session, after=after, limit=MAX_PAGE)
            events.extend(page)
            if len(page) < MAX_PAGE:
                break
        await self._memory.add_session(app, user, session, events)

    async def _add_run(self, record: RunRecord) -> None:
        app, user, session = record.key
        events, after = [record.message], 0
        while True:
            page = await self._store.run_events(record.uid, after=after, limit=MAX_PAGE)
            events.extend(page)
            await self._memory.add_events(app, user, session, events)
            if len(page) < MAX_PAGE:
                return
            events, after = [], page[-1].pos or 0

    async def _drop_superseded(self, record: RunRecord) -> None:
        app, user, session = record.key
        first = record
        while first.retry_of is not None and (first is record or first.message_seq is None):
            first = await self._store.get_run(app, first.retry_of, user)
        after = (first.message_seq or 1) - 1
        while True:
            page = await self._store.list_events(
                app_name=app, user_id=user, session_id=session, after=after, limit=MAX_PAGE, superseded=True
            )
            await self._memory.add_events(app, user, session, [event for event in page if event.superseded])
            if len(page) < MAX_PAGE:
                return
            after = page[-1].seq or 0

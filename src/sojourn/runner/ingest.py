"""Adds what was said to the users' memory: a whole session by hand, or each run at its end."""

from __future__ import annotations

import asyncio
import logging

from sojourn.errors import NotFound, SojournError
from sojourn.event import Event
from sojourn.memory.service import MemoryService
from sojourn.page import MAX_PAGE
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.runner.additions import Addition, additions_to
from sojourn.runner.retries import Retries
from sojourn.session.types import SessionKey

logger = logging.getLogger("sojourn.run")


class Ingest:
    """Fills a memory service from a store.

    Args:
        store: Where the events are.
        memory: Where they are added.
    """

    def __init__(self, store: Store, memory: MemoryService) -> None:
        self._store = store
        self._memory = memory
        self._additions = additions_to(memory)
        self._retries: Retries[SessionKey] = Retries(self._make_up)

    async def add_session(self, key: SessionKey) -> None:
        """Adds what counts in a session, in place of what was added of it before.

        Raises:
            NotFound: `session.not_found`.
        """
        async with self._additions.turn(key):
            await self._add_session(key)
            self._additions.make_up(key)

    def begin(self, record: RunRecord) -> Addition:
        """Takes note that a run has ended whose words are to be added: what is forgotten from now on is not added."""
        return self._additions.begin(record)

    async def add_run(self, addition: Addition) -> None:
        """Adds what a run has said, in place of what was added of it before, unless it is broken off.

        It reads no events but those of the run. A failure is logged; all of the session is added when its next run has ended,
        or before, by itself after a while.
        """
        record = addition.record
        key = record.key
        addition.task = asyncio.current_task()
        try:
            async with self._additions.turn(key):
                if not addition.broken_off:
                    await self._add_or_make_up(record)
        except NotFound:
            # The session was deleted meanwhile.
            self._additions.make_up(key)
        except SojournError as error:
            logger.warning("run %s of session %s was not added to memory: %s", record.id, key, error)
            self._retry_after(key, error)
        except Exception:
            # A memory service may raise anything; nobody waits for this who could be told.
            logger.exception("run %s of session %s was not added to memory: an error without a code", record.id, key)
        finally:
            addition.end()

    async def drop_superseded(self, record: RunRecord) -> None:
        """Removes what a run that repeats another has made superseded.

        It reads the log from the repeated run on, and nothing before it unless that run never began. A failure is logged,
        and makes the session's next run add all of the session.
        """
        key = record.key
        try:
            async with self._additions.turn(key):
                await self._drop_superseded(record)
        except NotFound:
            # The session was deleted meanwhile.
            self._additions.make_up(key)
        except SojournError as error:
            self._additions.miss(key)
            logger.warning("what run %s of session %s repeats was not removed from memory: %s", record.id, key, error)
            self._retry_after(key, error)
        except Exception:
            self._additions.miss(key)
            logger.exception(
                "what run %s of session %s repeats was not removed from memory: an error without a code", record.id, key
            )

    async def end_additions(self, key: SessionKey) -> None:
        """Breaks off the additions of runs of a session that was deleted, and waits until nothing is being added of it.

        What an earlier addition has left in memory stays there.
        """
        await self._additions.break_off(key)

    async def forget(self, app_name: str, user_id: str, session_id: str | None) -> None:
        """Removes what memory has of a user, or of one session; what is being added of that is removed, too."""
        await self._additions.forget(app_name, user_id, session_id)

    def stop(self) -> None:
        """Makes up for nothing by itself any more."""
        self._retries.stop()

    def _retry_after(self, key: SessionKey, error: SojournError) -> None:
        if error.retryable:
            self._retries.later(key, error.retry_after)

    async def _make_up(self, key: SessionKey) -> None:
        """Adds all of a session if something of it could not be added, and nobody has done so since."""
        try:
            async with self._additions.turn(key):
                if self._additions.is_missed(key):
                    await self._add_session(key)
                    self._additions.make_up(key)
        except NotFound:
            self._additions.make_up(key)
        except SojournError as error:
            logger.warning("session %s was not added to memory: %s", key, error)
            self._retry_after(key, error)
            return
        except Exception:
            logger.exception("session %s was not added to memory: an error without a code", key)
        self._retries.done(key)

    async def _add_or_make_up(self, record: RunRecord) -> None:
        key = record.key
        whole = self._additions.is_missed(key)
        self._additions.miss(key)
        if whole:
            await self._add_session(key)
        else:
            await self._add_run(record)
        self._additions.make_up(key)

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
        # Before the first position that is left there is nothing to read after.
        after = 0 if first.trimmed else (first.message_seq or 1) - 1
        while True:
            page = await self._store.list_events(
                app_name=app, user_id=user, session_id=session, after=after, limit=MAX_PAGE, superseded=True
            )
            await self._memory.add_events(app, user, session, [event for event in page if event.superseded])
            if len(page) < MAX_PAGE:
                return
            after = page[-1].seq or 0

"""The seam for memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sojourn.event import Event
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.page import Page


@runtime_checkable
class MemoryService(Protocol):
    """Remembers for users what was said in their sessions, and what else was added.

    google-adk's `add_session_to_memory`, `add_events_to_memory` and `search_memory` are `add_session`, `add_events` and
    `search` here.

    Rules for all methods:

    - Every call is for one user of one app. It never reads, returns or changes an entry of anybody else, whatever ids,
      queries and entries it is given.
    - Ids are checked first (`InvalidInput`, `id.invalid`), then values; all before anything is written.
    - What goes in or comes out is a copy: changing an argument afterwards, or a result, changes nothing stored.
    - When a call that writes returns, searches and listings by anybody see all of it, and the write is as durable as the
      backend promises.
    - A call that writes and fails or is cancelled may have written some entries, each of them whole. The same call again
      completes it and leaves no duplicates, as long as the entries have ids.
    - A store that fails raises `Unavailable`, `memory.unavailable`, with the driver's error as `__cause__`; that is never
      reported as "nothing found".
    - Any task, and any number of tasks at once, may call any method.
    """

    async def add_session(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in a session, in place of what was added of it before, by this or by `add_events`.

        Each event with text becomes one entry, of its text without thoughts; partial and superseded events and those
        without text become none. The entry of an event has the same id each time. Entries that are in both the old and
        the new set are never missing in between. Entries that came by `add` stay, those of this session too.

        Args:
            app_name: The app.
            user_id: The user.
            session_id: The session.
            events: All its events that count; none removes what was added of it.

        Raises:
            InvalidInput: `id.invalid`.
        """
        ...

    async def add_events(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in some events of a session, each in place of what was added of it before.

        Events become entries as in `add_session`, with the same ids. What was added of an event that becomes none, such as
        one that is superseded by now, is removed. What was added of the session's other events stays, and the cost does
        not depend on how many there are.

        Args:
            app_name: The app.
            user_id: The user.
            session_id: The session.
            events: Events of it, in any order; none changes nothing. Of several with the same id the last one counts.

        Raises:
            InvalidInput: `id.invalid`, also for an event without an id. Nothing is added or removed then.
        """
        ...

    async def add(self, app_name: str, user_id: str, entries: Sequence[Memory]) -> list[Memory]:
        """Adds entries. One whose id the user's memory has already takes the place of the other.

        Args:
            app_name: The app.
            user_id: The user.
            entries: The entries. Their score is ignored.

        Returns:
            The entries as they are stored, in the order given: with id and timestamp.

        Raises:
            InvalidInput: `memory.empty` if one has no text, `id.invalid`. Nothing is added then.
        """
        ...

    async def search(
        self,
        app_name: str,
        user_id: str,
        query: str,
        *,
        limit: int = 5,
        min_score: float | None = None,
        filter: MemoryFilter | None = None,
    ) -> list[Memory]:
        """Finds entries that fit a query, best first; equally good ones newest first, then by id.

        Entries that do not meet the filter are not found, and do not count for the limit. The others have the same score as
        without it.

        Args:
            app_name: The app.
            user_id: The user.
            query: Words or a sentence. One without any letter or digit finds nothing.
            limit: At most this many, 1 to 1,000.
            min_score: Only entries with at least this score.
            filter: Only entries that meet it.

        Returns:
            The entries, with their score.

        Raises:
            InvalidInput: `memory.invalid_query` for a query that is not text, or a limit, score or filter that cannot be;
                `id.invalid` for a filter's session.
        """
        ...

    async def list_memories(self, app_name: str, user_id: str, *, limit: int = 100, after: str | None = None) -> Page[Memory]:
        """Lists the user's entries, newest timestamp first, then by id.

        Entries that are neither added nor forgotten meanwhile are listed exactly once.

        Args:
            app_name: The app.
            user_id: The user.
            limit: At most this many, 1 to 1,000.
            after: `Page.next` of the page before.

        Raises:
            InvalidInput: `page.invalid` for a limit or a token that cannot be.
        """
        ...

    async def forget(
        self, app_name: str, user_id: str, *, session_id: str | None = None, ids: Sequence[str] | None = None
    ) -> None:
        """Removes entries; what is not there is not missed.

        Adding a session or its events again brings their entries back, also those removed by id.

        Args:
            app_name: The app.
            user_id: The user.
            session_id: Only entries of this session, however they were added.
            ids: Only entries with these ids; none at all if empty.

        With both, an entry must fit both. With neither, everything of the user is removed.

        Raises:
            InvalidInput: `id.invalid`.
        """
        ...

"""Memory in RAM, found by its words; the reference for what every other backend does."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.memory.bm25 import Bm25Index
from sojourn.memory.rules import changes_of, check_owner, check_query, checked, copied, entries_of, marks_of, meets
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.memory.words import words_of
from sojourn.page import Page, check_page, page_after, page_token


class _UserMemory:
    """The entries of one user."""

    def __init__(self) -> None:
        self.entries: dict[str, Memory] = {}
        self.by_session: dict[str, set[str]] = {}
        # The entries that events became: these are replaced with them.
        self.from_events: set[str] = set()
        self.index = Bm25Index()

    def put(self, entry: Memory, *, from_events: bool) -> None:
        self.remove(entry.id)
        self.entries[entry.id] = entry
        self.index.add(entry.id, words_of(entry.text))
        if entry.session_id is not None:
            self.by_session.setdefault(entry.session_id, set()).add(entry.id)
        if from_events:
            self.from_events.add(entry.id)

    def put_event(self, entry: Memory) -> None:
        """Puts the entry that an event became."""
        # What is added again is mostly there already.
        if entry.id not in self.from_events or self.entries[entry.id] != entry:
            self.put(entry, from_events=True)

    def remove(self, entry_id: str) -> None:
        entry = self.entries.pop(entry_id, None)
        if entry is None:
            return
        self.index.remove(entry_id)
        self.from_events.discard(entry_id)
        if entry.session_id is not None:
            of_session = self.by_session[entry.session_id]
            of_session.remove(entry_id)
            if not of_session:
                del self.by_session[entry.session_id]


class InMemoryMemoryService:
    """Keeps memory in RAM until the object goes away, and finds entries by the words they share with a query (BM25).

    Case, accents and English plurals make no difference; word order and synonyms are not understood.
    """

    def __init__(self) -> None:
        self._users: dict[tuple[str, str], _UserMemory] = {}

    async def add_session(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in a session, in place of what was added of it before."""
        owner = check_owner(app_name, user_id)
        entries = entries_of(check_id(session_id, "session_id"), events)
        user = self._users.setdefault(owner, _UserMemory())
        for entry_id in (user.by_session.get(session_id, set()) & user.from_events).difference(e.id for e in entries):
            user.remove(entry_id)
        for entry in entries:
            user.put_event(entry)

    async def add_events(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in some events of a session, each in place of what was added of it before."""
        owner = check_owner(app_name, user_id)
        changes = changes_of(check_id(session_id, "session_id"), events)
        user = self._users.setdefault(owner, _UserMemory())
        for entry_id, entry in changes.items():
            if entry is not None:
                user.put_event(entry)
            elif entry_id in user.from_events:
                user.remove(entry_id)

    async def add(self, app_name: str, user_id: str, entries: Sequence[Memory]) -> list[Memory]:
        """Adds entries."""
        owner = check_owner(app_name, user_id)
        stored = [checked(entry) for entry in entries]
        user = self._users.setdefault(owner, _UserMemory())
        for entry in stored:
            user.put(entry, from_events=False)
        return [copied(entry) for entry in stored]

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
        """Finds entries that fit a query, best first."""
        owner = check_owner(app_name, user_id)
        check_query(query, limit, min_score, filter)
        user = self._users.get(owner)
        if user is None:
            return []
        scores = user.index.scores(words_of(query))
        if filter is not None:
            marks = marks_of(filter.metadata)
            scores = {entry_id: score for entry_id, score in scores.items() if meets(user.entries[entry_id], filter, marks)}
        ranks = (
            (-score, *_newest_first(user.entries[entry_id]))
            for entry_id, score in scores.items()
            if min_score is None or score >= min_score
        )
        best = heapq.nsmallest(limit, ranks)
        return [copied(user.entries[entry_id], score=-negative) for negative, _, entry_id in best]

    async def list_memories(self, app_name: str, user_id: str, *, limit: int = 100, after: str | None = None) -> Page[Memory]:
        """Lists the user's entries, newest first."""
        owner = check_owner(app_name, user_id)
        check_page(limit)
        position = page_after(after)
        user = self._users.get(owner)
        ranks = sorted(_newest_first(entry) for entry in user.entries.values()) if user else []
        if position is not None:
            ranks = [rank for rank in ranks if rank > (-position[0], position[1])]
        items = [copied(user.entries[entry_id]) for _, entry_id in ranks[:limit]] if user else []
        return Page(items, page_token(items[-1].timestamp, items[-1].id) if len(ranks) > limit else None)

    async def forget(
        self, app_name: str, user_id: str, *, session_id: str | None = None, ids: Sequence[str] | None = None
    ) -> None:
        """Removes entries."""
        owner = check_owner(app_name, user_id)
        if session_id is not None:
            check_id(session_id, "session_id")
        named = None if ids is None else {check_id(entry_id, "memory id") for entry_id in ids}
        user = self._users.get(owner)
        if user is None:
            return
        if session_id is None and named is None:
            del self._users[owner]
            return
        doomed = set(user.entries) if session_id is None else set(user.by_session.get(session_id, ()))
        for entry_id in doomed if named is None else doomed & named:
            user.remove(entry_id)


def _newest_first(entry: Memory) -> tuple[float, str]:
    return -entry.timestamp, entry.id

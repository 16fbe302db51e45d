"""Memory in Qdrant, found by words and by meaning."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sojourn.errors import SojournError
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.memory.embedder import Embedder
from sojourn.memory.lenient import FAULTY, vector_of, vectors_of, vectors_of_each
from sojourn.memory.qdrant.engine import BY_EVENT, BY_HAND, TIME, Engine, Payload, Vector, Where
from sojourn.memory.qdrant.opening import Place, Synchronous, opened
from sojourn.memory.qdrant.points import Owner, entry_of, meeting, microseconds, point_of
from sojourn.memory.qdrant.search import Question, Search
from sojourn.memory.rules import changes_of, check_owner, check_query, checked, copied, entries_of
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.memory.words import words_of
from sojourn.page import Page, check_page, page_after, page_token

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

logger = logging.getLogger("sojourn.memory")

_BATCH = 128
"""Entries that are written, or embedded, at once."""

_MAX_SCROLL = 1000
"""Entries of one time that are looked for at first."""

_MAX_REMEMBERED = 10_000
"""Owners whose entries are known to have vectors; beyond, it is looked up again."""


class QdrantMemoryService:
    """Keeps memory in Qdrant: on a server, or in a directory with Qdrant's embedded engine.

    Entries are found by the words they share with a query, and with an embedder also by what they mean; the two are fused. Both
    are exact, among the entries of one user. Words are weighed as by `InMemoryMemoryService`, but for one thing: a text counts
    as long or short beside one of 16 words, not beside the user's average.

    **What survives.** A call that writes returns once the server says that it has applied the write. In a directory, with
    `synchronous="full"`, it returns once the disk has it, which takes tens of milliseconds; with `"normal"` the write survives
    the death of the process, but a loss of power may take the newest ones.

    **Other processes.** A server is shared by any number of them. A directory belongs to one process at a time, and to one
    service in it: another one gets `Unavailable`, `memory.in_use`.

    **Embedders.** Entries whose text could not be embedded are found by their words, and are embedded by the next call for
    their user that can; what the embedder rejects is tried again now and then. The same happens to all entries when the
    embedder's name changes. The size of its vectors cannot change: `InvalidInput`, `memory.wrong_dimensions`. If a query cannot
    be embedded, it finds by words alone, which is logged and told to the span. An embedder whose vectors are not what it says
    is an error of the call.

    Args:
        place: The URL of a server, such as `http://localhost:6333`; the path of a directory, which is made if it is missing;
            or an `AsyncQdrantClient`, which belongs to the event loop it is used in and is never closed here.
        embedder: Makes vectors of texts; None finds by words alone.
        collection: Name of the collection, which is made by the first call if it is missing. Others do not matter to it.
        api_key: The key of the server.
        timeout: Seconds that the server may take to answer; fractions are rounded up.
        synchronous: Of a directory: `full` or `normal`, as above.

    Raises:
        InvalidInput: `memory.invalid_option`.
        Unsupported: `memory.not_installed`.
    """

    def __init__(
        self,
        place: str | Path | AsyncQdrantClient,
        *,
        embedder: Embedder | None = None,
        collection: str = "sojourn_memory",
        api_key: str | None = None,
        timeout: float = 10.0,
        synchronous: Synchronous = "full",
    ) -> None:
        self._embedder = embedder
        dimensions = None if embedder is None else embedder.dimensions
        self._engine: Engine = opened(Place(place, collection, api_key, timeout, synchronous), dimensions)
        self._complete: set[str] = set()
        self._written_without = 0

    # -- writing ----------------------------------------------------------------------------------------------------

    async def add_session(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in a session, in place of what was added of it before."""
        owner = Owner(*check_owner(app_name, user_id))
        entries = entries_of(check_id(session_id, "session_id"), events)
        await self._put_events(owner, entries)
        kept = tuple(owner.point_id(entry.id) for entry in entries)
        of_session = (("session_id", session_id), ("origin", BY_EVENT))
        await self._engine.delete(Where(owner.key, equal=of_session, except_ids=kept))
        await self._embed_the_rest(owner)

    async def add_events(self, app_name: str, user_id: str, session_id: str, events: Sequence[Event]) -> None:
        """Adds what was said in some events of a session, each in place of what was added of it before."""
        owner = Owner(*check_owner(app_name, user_id))
        changes = changes_of(check_id(session_id, "session_id"), events)
        await self._put_events(owner, [entry for entry in changes.values() if entry is not None])
        gone = tuple(owner.point_id(id) for id, entry in changes.items() if entry is None)
        if gone:
            await self._engine.delete(Where(owner.key, equal=(("origin", BY_EVENT),), ids=gone))
        await self._embed_the_rest(owner)

    async def add(self, app_name: str, user_id: str, entries: Sequence[Memory]) -> list[Memory]:
        """Adds entries."""
        owner = Owner(*check_owner(app_name, user_id))
        stored = [checked(entry) for entry in entries]
        # Of several with one id the last one counts.
        await self._put(owner, list({entry.id: entry for entry in stored}.values()), BY_HAND)
        await self._embed_the_rest(owner)
        return [copied(entry) for entry in stored]

    async def forget(
        self, app_name: str, user_id: str, *, session_id: str | None = None, ids: Sequence[str] | None = None
    ) -> None:
        """Removes entries."""
        owner = Owner(*check_owner(app_name, user_id))
        equal = () if session_id is None else (("session_id", check_id(session_id, "session_id")),)
        named = None if ids is None else tuple(owner.point_id(check_id(entry_id, "memory id")) for entry_id in ids)
        if named is None or named:
            await self._engine.delete(Where(owner.key, equal=equal, ids=named))

    async def _put_events(self, owner: Owner, entries: Sequence[Memory]) -> None:
        """Stores the entries that events became, without those that are there already."""
        there: dict[str, Payload] = {}
        ids = [owner.point_id(entry.id) for entry in entries]
        for start in range(0, len(ids), _BATCH):
            there |= await self._engine.retrieve(ids[start : start + _BATCH], ("entry", "origin"))
        changed = [
            entry
            for id, entry in zip(ids, entries, strict=True)
            if id not in there or there[id]["origin"] != BY_EVENT or entry_of(there[id]) != entry
        ]
        await self._put(owner, changed, BY_EVENT)

    async def _put(self, owner: Owner, entries: Sequence[Memory], origin: str) -> None:
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            embedder, meanings = self._embedder, await self._meanings(batch)
            model = embedder.name if embedder is not None and meanings else None
            try:
                await self._engine.upsert(
                    [point_of(owner, entry, origin=origin, model=model, meaning=meanings.get(entry.text)) for entry in batch]
                )
            finally:
                # Afterwards: who has looked before for what has no vector did not see these.
                if model is None:
                    self._written_without += 1
                    self._complete.discard(owner.key)

    async def _meanings(self, entries: Sequence[Memory]) -> Mapping[str, Vector]:
        """The vectors of entries, by their text; none at all if there are none, now or ever."""
        return {} if self._embedder is None else await vectors_of(self._embedder, [entry.text for entry in entries])

    async def _embed_the_rest(self, owner: Owner) -> None:
        """Embeds entries of the owner that have no vector of this embedder."""
        embedder = self._embedder
        if embedder is None or owner.key in self._complete:
            return
        while True:
            written_without = self._written_without
            rest = await self._engine.scroll(Where(owner.key, except_model=embedder.name), _BATCH, ("entry", "origin"))
            if not rest:
                break
            entries = [entry_of(payload) for payload in rest]
            try:
                meanings = await vectors_of_each(embedder, [entry.text for entry in entries])
            except SojournError as error:
                if error.code in FAULTY:
                    raise
                logger.warning("%d or more entries of memory are still without vectors: %s", len(entries), error)
                return
            if not meanings:
                # What the embedder rejects stays without.
                break
            # What was forgotten or replaced meanwhile stays so.
            await self._engine.replace(
                {
                    Where(owner.key, equal=tuple(payload.items()), ids=(owner.point_id(entry.id),)): point_of(
                        owner, entry, origin=payload["origin"], model=embedder.name, meaning=meanings[entry.text]
                    )
                    for entry, payload in zip(entries, rest, strict=True)
                    if entry.text in meanings
                }
            )
        if written_without != self._written_without:
            return
        if len(self._complete) >= _MAX_REMEMBERED:
            self._complete.clear()
        self._complete.add(owner.key)

    # -- reading ----------------------------------------------------------------------------------------------------

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
        """Finds entries that fit a query, best first. Of its different words, the first 256 count."""
        owner = Owner(*check_owner(app_name, user_id))
        check_query(query, limit, min_score, filter)
        words = list(dict.fromkeys(words_of(query)))
        if not words:
            return []
        meaning = await self._meaning(owner, query)
        model = None if self._embedder is None else self._embedder.name
        question = Question(words, meaning, model, meeting(owner, filter), filter, limit, min_score)
        return await Search(self._engine, question).run()

    async def _meaning(self, owner: Owner, query: str) -> Vector | None:
        """The vector of a query; None if only words count."""
        if self._embedder is None:
            return None
        meaning = await vector_of(self._embedder, query)
        if meaning is not None:
            await self._embed_the_rest(owner)
        return meaning

    async def list_memories(self, app_name: str, user_id: str, *, limit: int = 100, after: str | None = None) -> Page[Memory]:
        """Lists the user's entries, newest first."""
        owner = Owner(*check_owner(app_name, user_id))
        check_page(limit)
        position = page_after(after)
        listed: list[_Position] = []
        where = Where(owner.key)
        if position is not None:
            time, entry_id = position
            listed = [at for at in await self._of_time(owner, microseconds(time)) if at > (-time, entry_id)]
            where = Where(owner.key, until=microseconds(time) - 1)
        if len(listed) <= limit:
            listed += await self._latest(owner, where, limit + 1 - len(listed))
        entries = await self._whole(owner, listed[:limit])
        last = listed[limit - 1] if len(listed) > limit else None
        return Page(entries, page_token(-last[0], last[1]) if last else None)

    async def _latest(self, owner: Owner, where: Where, limit: int) -> list[_Position]:
        """The newest entries, and all that have the time of the last one."""
        payloads = await self._engine.scroll(where, limit, _POSITION)
        listed = [_position(payload) for payload in payloads]
        if len(payloads) == limit:
            last = min(payload[TIME] for payload in payloads)
            listed = [_position(payload) for payload in payloads if payload[TIME] > last]
            listed += await self._of_time(owner, last)
        return sorted(listed)

    async def _of_time(self, owner: Owner, time: int) -> list[_Position]:
        """All entries of one microsecond."""
        where = Where(owner.key, since=time, until=time)
        limit = _MAX_SCROLL
        while len(payloads := await self._engine.scroll(where, limit, _POSITION)) == limit:
            limit *= 4
        return sorted(_position(payload) for payload in payloads)

    async def _whole(self, owner: Owner, positions: Sequence[_Position]) -> list[Memory]:
        """The entries at these positions, without those that were forgotten meanwhile."""
        ids = [owner.point_id(entry_id) for _, entry_id in positions]
        payloads = await self._engine.retrieve(ids, ("entry",))
        return [entry_of(payloads[id]) for id in ids if id in payloads]

    async def close(self) -> None:
        """Closes what was opened here, not a client that was given. Closing twice is fine."""
        await self._engine.close()


_POSITION = ("id", TIME, "timestamp")
"""The fields of a point that tell its place in listings."""

_Position = tuple[float, str]
"""The place of an entry in listings: they are in ascending order of these."""


def _position(payload: Payload) -> _Position:
    return -float(payload["timestamp"]), payload["id"]

"""How much is kept, session by session."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sojourn.data.services import RetainingStore, Services, scope_of, versions_of
from sojourn.errors import InvalidInput
from sojourn.page import Page, check_page, each_item, page_after, page_token
from sojourn.run.retention import SessionSize


@dataclass(frozen=True, slots=True)
class SessionStorage:
    """How much a session takes up.

    Attributes:
        size: In the store.
        artifacts: Versions of artifacts of its own.
        artifact_bytes: Their bytes.
    """

    size: SessionSize
    artifacts: int = 0
    artifact_bytes: int = 0

    @property
    def bytes(self) -> int:
        """All bytes, in the store and in artifacts."""
        return self.size.bytes + self.artifact_bytes


@dataclass(frozen=True, slots=True)
class StorageReport:
    """How much is kept.

    Attributes:
        page: The sessions, largest first.
        sessions: All sessions, those of other pages included; so are the following.
        runs: All runs.
        events: All events.
        bytes: All bytes, in the store and in artifacts; without what users keep beside their sessions.
    """

    page: Page[SessionStorage]
    sessions: int
    runs: int
    events: int
    bytes: int


async def report(services: Services, apps: list[str], user_id: str | None, limit: int, after: str | None) -> StorageReport:
    """See `DataCare.report`."""
    check_page(limit)
    start = _rank_after(after)
    sessions = runs = events = total = 0
    largest: list[tuple[_Rank, SessionStorage]] = []
    for app_name in apps:
        async for one in _measured(services, app_name, user_id):
            sessions, runs, events = sessions + 1, runs + one.size.runs, events + one.size.events
            total += one.bytes
            rank = -one.bytes, *one.size.key
            if start is None or rank > start:
                largest.append((rank, one))
        # Of all that were looked at, no more are kept than the page may have.
        largest = heapq.nsmallest(limit + 1, largest, key=lambda found: found[0])
    items = [one for _, one in largest[:limit]]
    token = None
    if len(largest) > limit:
        token = page_token(float(items[-1].bytes), _SEPARATOR.join(items[-1].size.key))
    return StorageReport(Page(items, token), sessions, runs, events, total)


_Rank = tuple[int, str, str, str]
_SEPARATOR = "\x1f"


def _rank_after(after: str | None) -> _Rank | None:
    position = page_after(after)
    if position is None:
        return None
    ids = position[1].split(_SEPARATOR)
    if len(ids) != 3:
        raise InvalidInput(f"{after!r} is not a page token; pass Page.next of the page before", code="page.invalid")
    return -int(position[0]), ids[0], ids[1], ids[2]


async def _measured(services: Services, app_name: str, user_id: str | None) -> AsyncIterator[SessionStorage]:
    async for size in _sizes(services.store, app_name, user_id):
        artifacts = artifact_bytes = 0
        if services.artifacts is not None:
            async for version in versions_of(services.artifacts, scope_of(size.key, size.uid), shared=False):
                artifacts += 1
                artifact_bytes += version.size
        yield SessionStorage(size, artifacts, artifact_bytes)


def _sizes(store: RetainingStore, app_name: str, user_id: str | None) -> AsyncIterator[SessionSize]:
    # Small pages: who reads besides waits for one of them.
    return each_item(lambda after: store.session_sizes(app_name, user_id=user_id, limit=_PAGE, after=after))


_PAGE = 20

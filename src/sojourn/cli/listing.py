"""Reading listings of a store to their end, page by page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from sojourn.event import Event
from sojourn.page import Page
from sojourn.run.store import Store
from sojourn.run.types import RunQuery, RunRecord
from sojourn.session.types import Session

T = TypeVar("T")

PAGE = 1000


async def listed(read: Callable[[int, str | None], Awaitable[Page[T]]], limit: int) -> list[T]:
    """The first items of a listing.

    Args:
        read: Reads a page of at most so many items after a token.
        limit: How many; all for 0.
    """
    found: list[T] = []
    after: str | None = None
    while True:
        page = await read(min(PAGE, limit - len(found)) if limit else PAGE, after)
        found += page.items
        after = page.next
        if after is None or (limit and len(found) >= limit):
            return found


async def all_sessions(store: Store, app_name: str, user_id: str | None, limit: int) -> list[Session]:
    """The newest sessions of an app; all for a limit of 0."""
    return await listed(
        lambda size, after: store.list_sessions(app_name=app_name, user_id=user_id, limit=size, after=after), limit
    )


async def all_runs(store: Store, query: RunQuery, limit: int = 0) -> list[RunRecord]:
    """The newest runs that fit; all for a limit of 0."""
    return await listed(lambda size, after: store.list_runs(query, limit=size, after=after), limit)


async def all_events(store: Store, session: Session, *, superseded: bool) -> AsyncIterator[list[Event]]:
    """A session's events, oldest first, in pages."""
    app_name, user_id, session_id = session.key
    after = 0
    while True:
        page = await store.list_events(
            app_name=app_name, user_id=user_id, session_id=session_id, after=after, limit=PAGE, superseded=superseded
        )
        if page:
            yield page
            after = page[-1].seq or 0
        if len(page) < PAGE:
            return


async def events_of_run(store: Store, record: RunRecord) -> list[Event]:
    """The agents' events of a run, superseded ones included; none if retention has removed them."""
    found: list[Event] = []
    if record.trimmed:
        return found
    while True:
        page = await store.run_events(record.uid, after=found[-1].pos or 0 if found else 0, limit=PAGE)
        found += page
        if len(page) < PAGE:
            return found

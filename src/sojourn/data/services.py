"""What the care of data works on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sojourn import platform
from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import USER_PREFIX, ArtifactScope, ArtifactVersion
from sojourn.errors import NotFound, Unsupported
from sojourn.memory.service import MemoryService
from sojourn.page import MAX_PAGE
from sojourn.run.retention import DroppedSession, SupportsRetention
from sojourn.run.store import Store
from sojourn.session.types import Session, SessionKey


class RetainingStore(Store, SupportsRetention, Protocol):
    """A store that can remove, measure and erase what it keeps."""


@runtime_checkable
class SupportsScrub(Protocol):
    """A memory service in whose files something is left of what was removed, until this is called."""

    async def scrub(self) -> None:
        """Sees to it that what was removed cannot be read in the service's files any more.

        Raises:
            Unavailable: It could not be done now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Where the data is.

    Attributes:
        store: Sessions and runs.
        artifacts: Their artifacts; None if there are none.
        memory: What is remembered of users; None if nothing is.
        stop: Stops what this process does for a session that is removed.
        forget: Removes what memory has of a user (app, user), and what is being added to it.
    """

    store: RetainingStore
    artifacts: ArtifactService | None
    memory: MemoryService | None
    stop: Callable[[SessionKey], Awaitable[None]]
    forget: Callable[[str, str], Awaitable[None]]


def retaining(store: Store) -> RetainingStore:
    """The store, which supports retention.

    Raises:
        Unsupported: `data.unsupported` if it does not.
    """
    if not isinstance(store, SupportsRetention):
        raise Unsupported(
            f"{type(store).__name__} does not support retention; see `sojourn.run.retention.SupportsRetention`",
            code="data.unsupported",
        )
    return store


_SHARE = 2.0
_LONGEST_REST = 0.25


@asynccontextmanager
async def considerately() -> AsyncIterator[None]:
    """Rests after a write, the longer the longer that took: other processes get at the database between two of them."""
    began = platform.monotonic()
    yield
    await asyncio.sleep(min(_SHARE * (platform.monotonic() - began), _LONGEST_REST))


async def sessions_of(store: Store, app_name: str, user_id: str | None) -> AsyncIterator[Session]:
    """The sessions of an app or a user, newest first; those that are removed meanwhile hide none."""
    after: str | None = None
    while True:
        page = await store.list_sessions(app_name=app_name, user_id=user_id, limit=MAX_PAGE, after=after)
        for session in page.items:
            yield session
        after = page.next
        if after is None:
            return


def scope_of(key: SessionKey, uid: str) -> ArtifactScope:
    """Whose artifacts are those of a session."""
    return ArtifactScope(*key, uid)


async def versions_of(artifacts: ArtifactService, scope: ArtifactScope, *, shared: bool) -> AsyncIterator[ArtifactVersion]:
    """All versions of the artifacts of a session, or of those that its user's sessions share, name by name."""
    after: str | None = None
    while True:
        names = await artifacts.list_artifact_names(scope, limit=MAX_PAGE, after=after)
        for name in names.items:
            if name.startswith(USER_PREFIX) is shared:
                async for version in _versions(artifacts, scope, name):
                    yield version
        after = names.next
        if after is None:
            return


async def _versions(artifacts: ArtifactService, scope: ArtifactScope, name: str) -> AsyncIterator[ArtifactVersion]:
    after: str | None = None
    while True:
        try:
            page = await artifacts.list_versions(scope, name, limit=MAX_PAGE, after=after)
        except NotFound:
            # It was deleted meanwhile.
            return
        for version in page.items:
            yield version
        after = page.next
        if after is None:
            return


async def settle(services: Services, app_name: str, user_id: str | None = None) -> None:
    """Removes the artifacts of sessions that are gone, also of those whose process died before it came to that."""
    while dropped := await services.store.dropped_sessions(app_name, user_id=user_id):
        for one in dropped:
            await settle_one(services, one)


async def settle_one(services: Services, dropped: DroppedSession) -> None:
    """Removes the artifacts of a session that is gone."""
    if services.artifacts is not None:
        await services.artifacts.delete_session_artifacts(scope_of(dropped.key, dropped.uid))
    await services.store.settle_dropped(dropped.uid)

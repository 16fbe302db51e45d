"""What the care of data works on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sojourn import platform
from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import USER_PREFIX, ArtifactScope, ArtifactVersion
from sojourn.errors import NotFound, SojournError, Unsupported
from sojourn.memory.service import MemoryService
from sojourn.page import MAX_PAGE, each_item
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


def sessions_of(store: Store, app_name: str, user_id: str | None) -> AsyncIterator[Session]:
    """The sessions of an app or a user, newest first; those that are removed meanwhile hide none."""
    return each_item(lambda after: store.list_sessions(app_name=app_name, user_id=user_id, limit=MAX_PAGE, after=after))


def scope_of(key: SessionKey, uid: str) -> ArtifactScope:
    """Whose artifacts are those of a session."""
    return ArtifactScope(*key, uid)


async def versions_of(artifacts: ArtifactService, scope: ArtifactScope, *, shared: bool) -> AsyncIterator[ArtifactVersion]:
    """All versions of the artifacts of a session, or of those that its user's sessions share, name by name."""
    async for name in each_item(lambda after: artifacts.list_artifact_names(scope, limit=MAX_PAGE, after=after)):
        if name.startswith(USER_PREFIX) is shared:
            async for version in _versions(artifacts, scope, name):
                yield version


async def _versions(artifacts: ArtifactService, scope: ArtifactScope, name: str) -> AsyncIterator[ArtifactVersion]:
    # An artifact may be deleted meanwhile.
    with suppress(NotFound):
        async for version in each_item(lambda after: artifacts.list_versions(scope, name, limit=MAX_PAGE, after=after)):
            yield version


_SETTLED_AT_ONCE = 100


async def settle(
    store: SupportsRetention, artifacts: ArtifactService | None, app_name: str, user_id: str | None = None
) -> None:
    """Removes the artifacts of sessions that are gone, also of those whose process died before it came to that.

    Raises:
        SojournError: Some cannot be removed. If trying again will not help, those of the others have been, unless they come
            after 1,000 of these.
    """
    failed: dict[str, SojournError] = {}
    while True:
        # Those that failed stay the first ones.
        listed = await store.dropped_sessions(app_name, user_id=user_id, limit=min(len(failed) + _SETTLED_AT_ONCE, MAX_PAGE))
        dropped = [one for one in listed if one.uid not in failed]
        if not dropped:
            break
        for one in dropped:
            try:
                await settle_one(store, artifacts, one)
            except SojournError as error:
                if error.retryable:
                    raise
                failed[one.uid] = error
    if failed:
        raise next(iter(failed.values()))


async def settle_one(store: SupportsRetention, artifacts: ArtifactService | None, dropped: DroppedSession) -> None:
    """Removes the artifacts of a session that is gone."""
    if artifacts is not None:
        await artifacts.delete_session_artifacts(scope_of(dropped.key, dropped.uid))
    await store.settle_dropped(dropped.uid)

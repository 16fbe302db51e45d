"""Deleting a session with its artifacts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sojourn.artifact.service import ArtifactService
from sojourn.data.services import scope_of, settle_one
from sojourn.run.retention import DroppedSession, SupportsRetention
from sojourn.run.store import Store
from sojourn.session.types import Session, SessionKey

_AT_ONCE = 100_000
"""Events: a session with more of them goes in parts."""


async def delete_session(
    store: Store,
    artifacts: ArtifactService | None,
    key: SessionKey,
    stop: Callable[[SessionKey], Awaitable[None]] | None = None,
) -> Session:
    """Removes a session with its events, runs, own state and artifacts.

    A store that supports retention remembers that the artifacts are still to be removed until they are: if the process dies in
    between, `settle` does the rest.

    Args:
        store: Where the session is.
        artifacts: Where its artifacts are; None if there are none.
        key: The session.
        stop: Ends what this process does for it, once it is gone.

    Returns:
        The session as it was.

    Raises:
        NotFound: `session.not_found`.
    """
    app_name, user_id, session_id = key
    if not isinstance(store, SupportsRetention):
        session = await store.delete_session(app_name=app_name, user_id=user_id, session_id=session_id)
        if stop is not None:
            await stop(key)
        if artifacts is not None:
            await artifacts.delete_session_artifacts(scope_of(key, session.uid))
        return session
    session = await store.get_session(app_name=app_name, user_id=user_id, session_id=session_id)
    while (await store.drop_session(key, limit=_AT_ONCE)).state == "more":
        pass
    if stop is not None:
        await stop(key)
    await settle_one(store, artifacts, DroppedSession(key, session.uid))
    return session

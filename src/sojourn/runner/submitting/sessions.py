"""What a Runner does with sessions besides running agents in them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from sojourn.data import deleting
from sojourn.errors import NotFound, SojournError
from sojourn.event import Event
from sojourn.run.store import Store
from sojourn.runner.delivery import keeping, lifecycle
from sojourn.runner.delivery.dispatch import Dispatcher
from sojourn.runner.submitting.seeding import seed, turns_of
from sojourn.session.types import Session, SessionKey


async def get_session(store: Store, key: SessionKey, *, create: bool) -> Session:
    """See `Runner.get_session`."""
    app, user, session = key
    try:
        return await store.get_session(app_name=app, user_id=user, session_id=session)
    except NotFound:
        if not create:
            raise
    try:
        return await store.create_session(app_name=app, user_id=user, session_id=session)
    except SojournError:
        return await store.get_session(app_name=app, user_id=user, session_id=session)


async def create_session(
    dispatcher: Dispatcher, user_id: str, session_id: str | None, state: dict[str, Any] | None, events: Sequence[Event]
) -> Session:
    """See `Runner.create_session`."""
    services, store = dispatcher.services, dispatcher.store
    root = services.agent
    turns = turns_of(events, root.name if root is not None else "agent")
    if turns:
        await lifecycle.ready(dispatcher)
    session = await store.create_session(app_name=dispatcher.app_name, user_id=user_id, session_id=session_id, state=state)
    try:
        await seed(store, services.artifacts, session, turns, services.merge(None).max_event_bytes)
    except BaseException:
        await asyncio.shield(delete_session(dispatcher, session.key))
        raise
    return session


async def delete_session(dispatcher: Dispatcher, key: SessionKey) -> Session:
    """See `Runner.delete_session`."""
    work = asyncio.ensure_future(_delete_session(dispatcher, key))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        # Once the session is gone, nobody else finds what else there is of it.
        dispatcher.hub.spawn(_awaited(work))
        raise


async def _awaited(work: asyncio.Future[Session]) -> None:
    try:
        await work
    except NotFound:
        # There was none, and nobody is left to be told.
        pass


async def _delete_session(dispatcher: Dispatcher, key: SessionKey) -> Session:
    return await deleting.delete_session(
        dispatcher.store, dispatcher.services.artifacts, key, partial(keeping.stop_session, dispatcher)
    )

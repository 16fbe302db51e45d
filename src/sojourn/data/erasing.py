"""Erasing all that is kept of a user."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sojourn.data.services import Services, considerately, sessions_of, settle_one
from sojourn.run.retention import DroppedSession

NOTICE_SECONDS = 2.0
"""How long another process may take to notice that a run it executes is gone."""


@dataclass(slots=True)
class Erased:
    """What was removed of a user.

    Attributes:
        apps: The apps that were gone through.
        sessions: Sessions.
        runs: Runs.
        events: Events.
    """

    apps: list[str]
    sessions: int = 0
    runs: int = 0
    events: int = 0


async def erase(services: Services, user_id: str, apps: list[str]) -> Erased:
    """See `DataCare.erase`; what it does not finish, the same call again does."""
    erased = Erased(apps)
    under_way = False
    for app_name in apps:
        under_way = await _drop_sessions(services, app_name, user_id, erased) or under_way
    if under_way and services.store.shared:
        # What they save until they notice goes along.
        await asyncio.sleep(NOTICE_SECONDS)
    for app_name in apps:
        if services.artifacts is not None:
            await services.artifacts.delete_user_artifacts(app_name, user_id)
        await services.forget(app_name, user_id)
        await services.store.erase_user(app_name, user_id)
    return erased


async def _drop_sessions(services: Services, app_name: str, user_id: str, erased: Erased) -> bool:
    """Removes a user's sessions; whether a run was under way."""
    under_way = False
    async for session in sessions_of(services.store, app_name, user_id):
        state = "more"
        while state == "more":
            async with considerately():
                dropped = await services.store.drop_session(session.key)
            state = dropped.state
            under_way = under_way or dropped.unfinished > 0
            erased.runs += dropped.runs
            erased.events += dropped.events
            await services.stop(session.key)
        erased.sessions += 1
        await settle_one(services.store, services.artifacts, DroppedSession(session.key, session.uid))
    return under_way

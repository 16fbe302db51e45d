"""Sessions of a user."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query
from starlette.responses import Response

from sojourn.page import MAX_PAGE
from sojourn.runner.runner import Runner
from sojourn.server.access import Caller, CallerDep
from sojourn.server.adk.bodies import NewSession, SessionPatch, StateValues
from sojourn.server.adk.events import AdkSession, session_text
from sojourn.server.adk.responses import LINK, json_response, link
from sojourn.server.clientstate import check_client_state
from sojourn.server.jsonbody import JsonRoute
from sojourn.session.types import Session, SessionKey

router = APIRouter(prefix="/apps/{app_name}/users/{user_id}/sessions", tags=["adk"], route_class=JsonRoute)

EVENTS = 1000
"""How many of a session's events are shown at once; the newest, unless a client asks for others."""


def session_of(caller: Caller, app_name: str, user_id: str, session_id: str) -> tuple[Runner, SessionKey]:
    """The session that a request names, which may not exist, and who has it.

    Raises:
        NotFound: `app.not_found`; `session.not_found` for somebody else's.
        InvalidInput: `id.invalid`.
    """
    runner = caller.runner(app_name)
    return runner, caller.session(runner.app_name, user_id, session_id)


@router.get("", summary="List sessions", response_model=list[AdkSession], responses={200: {"headers": LINK}})
async def list_sessions(
    app_name: str,
    user_id: str,
    caller: CallerDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many.")] = MAX_PAGE,
    after: Annotated[str | None, Query(description="From the `Link` header of the page before.")] = None,
) -> Response:
    """The user's sessions, newest created first, without state and events."""
    runner = caller.runner(app_name)
    page = await runner.store.list_sessions(app_name=runner.app_name, user_id=caller.user(user_id), limit=limit, after=after)
    headers = link("next", limit=limit, after=page.next) if page.next is not None else None
    return json_response(f"[{','.join(map(session_text, page.items))}]", headers)


@router.post("", summary="Create a session", response_model=AdkSession)
async def create_session(app_name: str, user_id: str, caller: CallerDep, new: NewSession | None = None) -> Response:
    """Creates a session, with first values and a conversation if they are given."""
    new = new or NewSession()
    runner = caller.runner(app_name)
    events = caller.serving.limits.check_seed(new.events)
    session = await runner.create_session(
        caller.user(user_id), new.session_id, state=check_client_state(new.state), events=events
    )
    return json_response(session_text(await _read(runner, session.key) if new.events else session))


@router.get("/{session_id}", summary="Get a session", response_model=AdkSession, responses={200: {"headers": LINK}})
async def get_session(
    app_name: str,
    user_id: str,
    session_id: str,
    caller: CallerDep,
    after: Annotated[int | None, Query(ge=0, description="Give the events with a greater `seq`, oldest first.")] = None,
    limit: Annotated[int, Query(ge=0, le=EVENTS, description="How many events.")] = EVENTS,
) -> Response:
    """A session with its state and those of its events that count.

    Without `after` they are the newest ones; if there are more, `Link` says where they begin. With `after` they come in pages,
    and `Link` says where it goes on.
    """
    runner, key = session_of(caller, app_name, user_id, session_id)
    if after is None:
        session = await _read(runner, key, limit)
        more = bool(session.events) and (session.events[0].seq or 1) > 1 and len(session.events) == limit
        return json_response(session_text(session), link("first", after=0, limit=limit) if more else None)
    session = await _read(runner, key, 0)
    if limit == 0:
        return json_response(session_text(session))
    app, user, _ = key
    events = await runner.store.list_events(app_name=app, user_id=user, session_id=session_id, after=after, limit=limit)
    page = session.model_copy(update={"events": tuple(events)})
    headers = link("next", after=events[-1].seq or 0, limit=limit) if len(events) == limit else None
    return json_response(session_text(page), headers)


@router.post("/{session_id}", summary="Create a session with an id", response_model=AdkSession, deprecated=True)
async def create_session_with_id(
    app_name: str,
    user_id: str,
    session_id: str,
    caller: CallerDep,
    state: Annotated[StateValues | None, Body(description="First values; `app:` keys are refused.")] = None,
) -> Response:
    """Creates a session with an id; the body is its state."""
    runner = caller.runner(app_name)
    session = await runner.create_session(caller.user(user_id), session_id, state=check_client_state(state))
    return json_response(session_text(session))


@router.patch("/{session_id}", summary="Change a session's state", response_model=AdkSession)
async def patch_session(app_name: str, user_id: str, session_id: str, caller: CallerDep, patch: SessionPatch) -> Response:
    """Sets keys of the state, without a run. Runs that start afterwards see them."""
    runner, key = session_of(caller, app_name, user_id, session_id)
    app, user, _ = key
    delta = check_client_state(patch.state_delta)
    await runner.store.patch_session(app_name=app, user_id=user, session_id=session_id, state_delta=delta)
    return json_response(session_text(await _read(runner, key)))


@router.delete("/{session_id}", summary="Delete a session")
async def delete_session(app_name: str, user_id: str, session_id: str, caller: CallerDep) -> None:
    """Deletes a session with its events, runs, state and artifacts; a run under way is stopped."""
    runner, key = session_of(caller, app_name, user_id, session_id)
    await runner.delete_session(key.user_id, key.session_id)


async def _read(runner: Runner, key: SessionKey, events: int = EVENTS) -> Session:
    app, user, session = key
    return await runner.store.get_session(app_name=app, user_id=user, session_id=session, events=events)

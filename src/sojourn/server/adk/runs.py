"""`/run` and `/run_sse`: a message, and what the agents say to it."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from sojourn.content import Content
from sojourn.errors import InvalidInput, SojournError
from sojourn.event import USER, Event
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.runner.handle import Run
from sojourn.server.access import Caller, CallerDep
from sojourn.server.adk.answering import as_asked
from sojourn.server.adk.bodies import RunRequest
from sojourn.server.adk.events import events_text
from sojourn.server.adk.responses import json_response
from sojourn.server.clientstate import check_client_state
from sojourn.server.direct import DirectRoute
from sojourn.server.framing import JsonLines, ServerSentEvents, accepted_framing
from sojourn.server.problems import problem_of
from sojourn.server.runs.idempotency import without_digest
from sojourn.server.runs.views import run_location
from sojourn.server.sending import client_gone
from sojourn.server.stream import RUN_ID_HEADER, StreamResponse, header_text
from sojourn.server.vocabulary import AdkEvents

router = APIRouter(tags=["adk"], route_class=DirectRoute)

CLIENT_CLOSED_REQUEST = 499
"""The status, which nobody reads, of a response to a client that has gone."""

_HEADERS: dict[str, Any] = {
    RUN_ID_HEADER: {"description": "The run.", "schema": {"type": "string"}},
    "Location": {"description": "Where the run is found.", "schema": {"type": "string"}},
}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events of the run as they come, each an `Event`; at the end of a run that failed, an object with "
        "`error`.",
        "headers": _HEADERS,
        "content": {ServerSentEvents.media_type: {}, JsonLines.media_type: {}},
    }
}


@router.post("/run", summary="Run and wait", response_model=list[Event], responses={200: {"headers": _HEADERS}})
async def run(body: RunRequest, request: Request, caller: CallerDep) -> Response:
    """Says something in a session, waits for the run's end or until it asks a person, and gives its events.

    A run that fails is answered by its error; what it had said is in the session.
    """
    started = await _start(body, caller, StreamingMode.NONE)
    headers = {RUN_ID_HEADER: header_text(started.id), "Location": run_location(request, started.record)}
    with caller.serving.following.follow(started, started=True):
        reading = asyncio.create_task(_read(started))
        gone = asyncio.create_task(client_gone(request.receive))
        try:
            await asyncio.wait((reading, gone), return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            return json_response(events_text(reading.result()), headers)
        except SojournError as error:
            response = problem_of(error)
            response.headers.update(headers)
            return response
        finally:
            reading.cancel()
            gone.cancel()
            await asyncio.wait((reading, gone))


@router.post("/run_sse", summary="Run and stream", response_class=Response, responses=_STREAM)
async def run_sse(body: RunRequest, request: Request, caller: CallerDep) -> Response:
    """Says something in a session, and streams the run's events until its end, or until it asks a person.

    With `streaming` the pieces of a message come as they are written, with `partial` and the id of the event that will hold it
    all. The run goes on if the client goes, or is cancelled after a while, as the server is configured.
    """
    mode = StreamingMode.SSE if body.streaming else StreamingMode.NONE
    started = await _start(body, caller, mode)
    config = caller.serving.config
    return StreamResponse(
        started,
        AdkEvents(),
        accepted_framing(request.headers.get("accept"), None),
        config,
        partials=body.streaming,
        headers={"Location": run_location(request, started.record)},
        following=caller.serving.following.follow(started, started=True),
    )


async def _start(body: RunRequest, caller: Caller, mode: StreamingMode) -> Run:
    """Starts the run that a request is about, or answers it, after everything was checked.

    Raises:
        NotFound: `app.not_found`; `session.not_found` if it is missing, or somebody else's; `interrupt.not_found`.
        InvalidInput: `message.missing`, `message.too_many_parts`, and what `Runner.start` says.
        Forbidden: `state.app_scope`.
        LimitExceeded: `limit.runs_per_user`.
    """
    runner = caller.runner(body.app_name)
    user_id = caller.user(None) if body.user_id is None else body.user_id
    key = caller.session(runner.app_name, user_id, body.session_id)
    message = caller.serving.limits.check_message(_message(body))
    state_delta = check_client_state(body.state_delta)
    run_config = RunConfig(streaming_mode=mode)
    if (metadata := without_digest(body.custom_metadata)) is not None:
        run_config = RunConfig(streaming_mode=mode, custom_metadata=metadata)

    async def start(content: Content) -> Run:
        return await runner.start(
            key.user_id, key.session_id, content, run_config=run_config, create_session=False, state_delta=state_delta
        )

    if message.get_function_responses():
        # What goes on needs no new room.
        await runner.get_session(key.user_id, key.session_id)
        return await start(await as_asked(runner, key, message))
    async with caller.serving.limits.room_for_run(runner, key.user_id):
        return await start(message)


def _message(body: RunRequest) -> Content:
    content = body.new_message
    if content is None:
        raise InvalidInput(
            "newMessage is missing; to go on with a run that waits, answer it with a function response", code="message.missing"
        )
    # Whoever calls is the user, whatever role the message gives itself.
    return content if content.role == USER else content.model_copy(update={"role": USER})


async def _read(started: Run) -> list[Event]:
    return [item async for item in started.events(started.start_pos, partials=False) if isinstance(item, Event)]

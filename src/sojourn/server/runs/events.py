"""`GET /runs/{runId}/events`: a run from any point on, as often as one likes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from sojourn.errors import InvalidInput
from sojourn.run.status import RunStatus
from sojourn.run.types import RunRecord
from sojourn.server.framing import JsonLines, ServerSentEvents, accepted_framing
from sojourn.server.paths import PathRoute
from sojourn.server.problems import MEDIA_TYPE
from sojourn.server.runs.access import TargetDep
from sojourn.server.stream import RUN_ID_HEADER, StreamResponse
from sojourn.server.vocabulary import Items, vocabulary_of

router = APIRouter(tags=["runs"], route_class=PathRoute)


@router.get(
    "/runs/{runId}/events",
    summary="Follow a run",
    response_class=Response,
    responses={
        200: {
            "description": "What the run says: what was said already, then what it says, until it ends or waits for a person.",
            "content": {ServerSentEvents.media_type: {}, JsonLines.media_type: {}},
            "headers": {RUN_ID_HEADER: {"description": "The run.", "schema": {"type": "string"}}},
        },
        204: {"description": "The run has ended, or waits for a person, and the reader has been told everything."},
        410: {
            "description": "Retention has removed what comes next.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
    },
)
async def follow_run(
    target: TargetDep,
    after: Annotated[str | None, Query(description="Leaves out frames up to this `pos`.")] = None,
    last_event_id: Annotated[str | None, Header(description="The same, as browsers send it; it takes precedence.")] = None,
    items: Annotated[Items, Query(description="The run's own frames, or events as on google-adk's wire.")] = "frames",
    partials: Annotated[
        bool | None, Query(description="Whether to send pieces of messages; as the run is configured if left out.")
    ] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Replays what the run has said after a point, and goes on with what it says, without gap or repetition."""
    serving = target.caller.serving
    record = target.record
    pos = _position(last_event_id or after, record)
    run = await target.runner.follow(record.id, user_id=record.user_id)
    response = StreamResponse(
        run,
        vocabulary_of(items),
        accepted_framing(accept, serving.config.reconnect_after),
        serving.config,
        after=pos,
        partials=partials,
        following=serving.following.follow(run),
    )
    settled = record.status.terminal or record.status is RunStatus.WAITING
    if settled and not await response.begin():
        return Response(status_code=204)
    return response


def _position(given: str | None, record: RunRecord) -> int:
    """Where a reader goes on.

    Raises:
        InvalidInput: `cursor.invalid`, `cursor.ahead`.
    """
    if not given:
        return 0
    if not (given.isascii() and given.isdigit() and len(given) <= _DIGITS):
        raise InvalidInput(
            f"{given!r} is no position in a run; give the id of the last event that was read", code="cursor.invalid"
        )
    pos = int(given)
    if pos > record.last_pos:
        raise InvalidInput(
            f"run {record.id!r} has {record.last_pos} frames, and none to follow {pos}; read it from the beginning",
            code="cursor.ahead",
        )
    return pos


_DIGITS = 18

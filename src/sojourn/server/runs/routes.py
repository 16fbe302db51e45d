"""`/runs`: runs that live on without their client: start, list, look up, cancel, repeat."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request
from starlette.responses import JSONResponse, Response

from sojourn.page import MAX_PAGE
from sojourn.run.status import RunStatus
from sojourn.server.access import CallerDep
from sojourn.server.jsonbody import JsonRoute
from sojourn.server.operations.logs import note
from sojourn.server.runs import starting
from sojourn.server.runs.access import AppName, TargetDep, UserId
from sojourn.server.runs.models import CancelRun, RetryRun, RunInfo, RunPage, StartRun
from sojourn.server.runs.starting import Started
from sojourn.server.runs.views import run_location, run_view

router = APIRouter(tags=["runs"], route_class=JsonRoute)

IdempotencyKey = Annotated[
    str | None,
    Header(description="Any text of the client's choice: the same request with the same key starts nothing again."),
]

_LOCATION = {"Location": {"description": "Where the run is.", "schema": {"type": "string"}}}
_STARTED: dict[int | str, dict[str, Any]] = {
    200: {"model": RunInfo, "description": "This request has started the run before.", "headers": _LOCATION},
    201: {"model": RunInfo, "description": "The run, which goes on without its client.", "headers": _LOCATION},
}


@router.post("/runs", status_code=201, summary="Start a run", responses=_STARTED)
async def start_run(request: Request, caller: CallerDep, body: StartRun, idempotency_key: IdempotencyKey = None) -> Response:
    """Starts a detached run: it goes on whether or not anybody follows it, and is resumed after a crash."""
    return _started(request, await starting.start(caller, body, idempotency_key))


@router.get("/runs", response_model=RunPage, summary="List runs")
async def list_runs(
    caller: CallerDep,
    app_name: AppName = None,
    user_id: UserId = None,
    session_id: Annotated[str | None, Query(alias="sessionId", description="Only those of a session.")] = None,
    status: Annotated[list[RunStatus] | None, Query(description="Only those with one of these.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> Response:
    """Lists the caller's runs, newest submitted first; an operator's are everybody's."""
    runner = caller.runner(app_name)
    page = await runner.list_runs(
        user_id=caller.scope(user_id), session_id=session_id, status=status or (), limit=limit, after=after
    )
    return JSONResponse({"items": [run_view(record) for record in page.items], "next": page.next})


@router.get("/runs/{runId}", response_model=RunInfo, summary="Look up a run")
async def get_run(target: TargetDep) -> Response:
    """A run's record."""
    return JSONResponse(run_view(target.record))


@router.post("/runs/{runId}:cancel", response_model=RunInfo, summary="Cancel a run")
async def cancel_run(target: TargetDep, body: Annotated[CancelRun | None, Body()] = None) -> Response:
    """Asks for a run's end.

    A queued or waiting run is cancelled at once; a running one is given time to clean up, so follow it to see its end. One that
    has ended is left as it is.
    """
    record = target.record
    reason = (body or CancelRun()).reason
    return JSONResponse(run_view(await target.runner.cancel(record.id, user_id=record.user_id, reason=reason)))


@router.post("/runs/{runId}:retry", status_code=201, summary="Repeat a run", responses=_STARTED)
async def retry_run(
    request: Request,
    target: TargetDep,
    body: Annotated[RetryRun | None, Body()] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Runs a finished run again in its place: with the same message, or with another one.

    The run and what came after it in its session cease to count, and can still be read.
    """
    started = await starting.retry(target.caller, target.runner, target.record, body or RetryRun(), idempotency_key)
    return _started(request, started)


def _started(request: Request, started: Started) -> Response:
    record = started.record
    note(session_id=record.session_id, run_id=record.id)
    location = run_location(request, record)
    return JSONResponse(run_view(record), 200 if started.known else 201, {"Location": location})

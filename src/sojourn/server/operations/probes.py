"""What orchestrators and operators ask a server: is it alive, is it ready, what is it, how does it do."""

from __future__ import annotations

import asyncio
import importlib.metadata
import platform
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Response
from pydantic import BaseModel
from starlette.requests import Request

from sojourn.content import Value
from sojourn.errors import Unavailable
from sojourn.server.access import CallerDep
from sojourn.server.operations.metrics import Metrics
from sojourn.server.problems import MEDIA_TYPE
from sojourn.server.serving import Serving, serving_of
from sojourn.server.telling import draining_error

READY_SECONDS = 2.0
"""How long a store may take to answer before the server does not pass for ready."""

VERSION = importlib.metadata.version("sojourn")

router = APIRouter(tags=["operations"])


class Status(Value):
    """How a server is.

    Attributes:
        status: `ok`; anything else is told as a problem.
    """

    status: str = "ok"


class Version(BaseModel):
    """What a server is; the names are google-adk's.

    Attributes:
        version: The version of Sojourn.
        language: `python`.
        language_version: The version of Python.
    """

    version: str
    language: str = "python"
    language_version: str


@router.get("/livez", summary="Whether the process is alive", response_model=Status)
async def livez() -> Status:
    """Answers as long as the process can: it asks nothing else."""
    return Status()


@router.get("/health", summary="The same as /livez", response_model=Status)
async def health() -> Status:
    """Another usual name for it."""
    return Status()


@router.get(
    "/readyz",
    summary="Whether the server takes requests",
    response_model=Status,
    responses={503: {"description": "It shuts down, or a store does not answer.", "content": {MEDIA_TYPE: {}}}},
)
async def readyz(request: Request) -> Status:
    """Answers if the stores do, within two seconds, and the server is not about to end."""
    serving = serving_of(request)
    if serving.draining:
        raise draining_error()
    await check_stores(serving)
    return Status()


@router.get("/version", summary="What the server is", response_model=Version)
async def version() -> Version:
    """The version of Sojourn and of Python."""
    return Version(version=VERSION, language_version=platform.python_version())


async def _operator(caller: CallerDep) -> None:
    caller.require_admin()


async def metrics(request: Request, accept: Annotated[str, Header(include_in_schema=False)] = "") -> Response:
    """For operators, unless the server is configured to tell everybody."""
    numbers: Metrics = request.app.state.metrics
    body, media_type = await numbers.exposition(accept)
    return Response(body, headers={"content-type": media_type})


def include_operations(app: FastAPI, numbers: Metrics, *, public_metrics: bool) -> None:
    """Adds these routes to an app.

    Args:
        app: The app.
        numbers: What `/metrics` tells.
        public_metrics: Whether it tells everybody.
    """
    app.state.metrics = numbers
    app.include_router(router)
    app.add_api_route(
        "/metrics",
        metrics,
        tags=["operations"],
        summary="Numbers for Prometheus",
        dependencies=[] if public_metrics else [Depends(_operator)],
        response_class=Response,
        responses={200: {"description": "In the text format of Prometheus, or as OpenMetrics.", "content": {"text/plain": {}}}},
    )


async def check_stores(serving: Serving) -> None:
    """Asks each store of a server whether it answers.

    Raises:
        Unavailable: `store.unavailable`.
    """
    by_store = {id(runner.store): runner for runner in serving.runners.values()}
    try:
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.gather(*(runner.check_store() for runner in by_store.values()))
    except TimeoutError:
        raise Unavailable(f"the store did not answer within {READY_SECONDS:g} seconds; try again later") from None

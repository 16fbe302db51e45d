"""What orchestrators and operators ask a server: is it alive, is it ready, what is it, how does it do."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Response
from pydantic import BaseModel
from starlette.requests import Request

from sojourn.content import Value
from sojourn.server.access import CallerDep
from sojourn.server.operations.metrics import Metrics
from sojourn.server.operations.stores import Stores
from sojourn.server.problems import MEDIA_TYPE
from sojourn.server.serving import serving_of
from sojourn.server.telling import draining_error

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


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Whether the process is alive", response_model=Status)
async def livez() -> Status:
    """Answers as long as the process can: it asks nothing else."""
    return Status()


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="The same as /livez", response_model=Status)
async def health() -> Status:
    """Another usual name for it."""
    return Status()


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Whether the server takes requests",
    response_model=Status,
    responses={503: {"description": "It shuts down, or a store fails.", "content": {MEDIA_TYPE: {}}}},
)
async def readyz(request: Request) -> Status:
    """Answers if the stores do, within two seconds, take what is written, and the server is not about to end."""
    if serving_of(request).draining:
        raise draining_error()
    stores: Stores = request.app.state.stores
    await stores.check()
    return Status()


@router.head("/version", include_in_schema=False)
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


def include_operations(app: FastAPI, numbers: Metrics, stores: Stores, *, public_metrics: bool) -> None:
    """Adds these routes to an app.

    Args:
        app: The app.
        numbers: What `/metrics` tells.
        stores: What `/readyz` asks.
        public_metrics: Whether it tells everybody.
    """
    app.state.metrics = numbers
    app.state.stores = stores
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

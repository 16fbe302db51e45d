"""Errors as `application/problem+json` (RFC 9457): the coded error, never a stack trace."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from sojourn.errors import SojournError
from sojourn.server.serving import serving_of
from sojourn.server.telling import draining_error, internal_error, told

logger = logging.getLogger("sojourn.server")

MEDIA_TYPE = "application/problem+json"
MAX_PLACES = 20
"""Of what is wrong with a request, so much is told."""


MAX_TEXT = 2000
"""Characters of a message, or of a place, that are told: both may quote what was sent."""


class Place(BaseModel):
    """One thing that is wrong with a request."""

    at: str = Field(description="Where it is: the part of the request, then the way into it, with slashes.")
    message: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="`urn:sojourn:error:` and the code.")
    title: str = Field(description="The name of the HTTP status.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What happened, to which id, and what to do about it; may change.")
    code: str = Field(description="What exactly happened; stable.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    errors: list[Place] | None = Field(None, description="With the code `request.invalid`: what is wrong, and where.")


def problem(
    status: int, detail: str, *, code: str, retryable: bool = False, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """An error as a response.

    Args:
        status: The HTTP status.
        detail: What happened and what to do about it.
        code: The error's stable code; the type of the problem is `urn:sojourn:error:CODE`.
        retryable: Whether the same request may succeed later.
        headers: More headers.
        **more: More members.
    """
    content = {
        "type": f"urn:sojourn:error:{code}",
        "title": _title(status),
        "status": status,
        "detail": _short(detail),
        "code": code,
        "retryable": retryable,
        **more,
    }
    # What is told may quote the request, which may hold what is no text: as ASCII, anything can be written.
    return Response(json.dumps(content), status, headers, MEDIA_TYPE)


def problem_of(error: SojournError) -> Response:
    """A coded error as a response."""
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.http_status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return problem(error.http_status, told(error), code=error.code, retryable=error.retryable, headers=headers)


def internal_problem() -> Response:
    """What is told of an error that nobody has foreseen."""
    return problem_of(internal_error())


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class _Meaning(NamedTuple):
    """What a refusal of the framework means."""

    code: str
    detail: str


_REFUSED = _Meaning("request.refused", "the request is refused")
_MEANINGS = {
    HTTPStatus.BAD_REQUEST: _Meaning("request.unreadable", "the body cannot be read; send JSON, in UTF-8"),
    HTTPStatus.NOT_FOUND: _Meaning("route.not_found", "there is no such route; /openapi.json lists them"),
    HTTPStatus.METHOD_NOT_ALLOWED: _Meaning("route.method_not_allowed", "the route does not have this method; see `Allow`"),
    HTTPStatus.REQUEST_TIMEOUT: _Meaning("request.timeout", "the body took too long to arrive; send it again"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: _Meaning("request.too_large", "the body is larger than this server takes"),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: _Meaning("request.media_type", "the body is of a type that this route does not take"),
}


async def _on_sojourn_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SojournError)
    if error.code == "runner.closed" and serving_of(request).draining:
        error = draining_error()
    if error.http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("request failed: %s", error, exc_info=None if error.retryable else error)
    return problem_of(error)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    places = [
        {"at": _short("/".join(str(step) for step in found["loc"])), "message": _short(str(found["msg"]))}
        for found in error.errors()[:MAX_PLACES]
    ]
    first = places[0] if places else {"at": "request", "message": "it cannot be read"}
    detail = f"{first['at']}: {first['message']}"
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, code="request.invalid", errors=places)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework tells of the first route with this path only.
        headers = {"Allow": ", ".join(sorted(_methods_at(request)))}
    return refusal(error.status_code, headers)


def _methods_at(request: Request) -> set[str]:
    """The methods that there are for the path of a request."""
    at = [route for route in iter_route_contexts(request.app.routes) if route.matches(request.scope)[0] is not Match.NONE]
    return set().union(*(route.methods or () for route in at))


def refusal(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal that the framework makes as a response; what it says itself may quote anything, and is not told."""
    meaning = next((meaning for known, meaning in _MEANINGS.items() if known == status), _REFUSED)
    return problem(status, meaning.detail, code=meaning.code, headers=headers)


async def _on_anything(_: Request, error: Exception) -> Response:
    # Starlette raises it again once this is sent, and the server logs it with its traceback.
    return internal_problem()


def answer_with_problems(app: FastAPI) -> None:
    """Makes every error that leaves a route, or finds none, a problem."""
    app.add_exception_handler(SojournError, _on_sojourn_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_anything)

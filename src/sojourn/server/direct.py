"""Routes that are asked for so often that FastAPI's way to their arguments would be a good part of what they cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sojourn.server.access import caller_of
from sojourn.server.jsonbody import check_values


class DirectRoute(APIRoute):
    """The route of an endpoint whose arguments are `body`, `request` and `caller`, and no others.

    It is documented by them like any other route, and answers the same to what is wrong; `app.dependency_overrides` do not
    reach it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute`."""
        endpoint = self.endpoint
        validate = TypeAdapter(get_type_hints(endpoint)["body"]).validate_python

        async def handle(request: Request) -> Response:
            caller = await caller_of(request)
            sent = await _json_of(request)
            try:
                body = validate(sent)
            except ValidationError as error:
                errors = error.errors(include_url=False)
                raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in errors]) from None
            response: Response = await endpoint(body=body, request=request, caller=caller)
            return response

        return handle


async def _json_of(request: Request) -> Any:
    """The body.

    Raises:
        RequestValidationError: It is no JSON, or is not said to be.
        TooManyValues: `request.too_many_values`.
        HTTPException: It cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise _invalid("missing", "send JSON, with `Content-Type: application/json`")
    try:
        body = await request.body()
        if body:
            return json.loads(check_values(body))
    except json.JSONDecodeError as error:
        raise _invalid("json_invalid", "JSON decode error", error.pos) from None
    except (ValueError, RecursionError, ClientDisconnect):
        raise HTTPException(HTTPStatus.BAD_REQUEST) from None
    raise _invalid("missing", "Field required")


def _invalid(kind: str, message: str, *at: int) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", *at), "msg": message, "input": None}])

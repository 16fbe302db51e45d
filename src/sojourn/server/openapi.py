"""What the OpenAPI document says of access and errors, which no route says for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import RouteContext, iter_route_contexts

from sojourn.server.access import caller_of
from sojourn.server.problems import MEDIA_TYPE, Problem
from sojourn.server.serving import Serving

_REF = {"$ref": "#/components/schemas/Problem"}
_WAIT = {"Retry-After": {"description": "Seconds until the same request makes sense.", "schema": {"type": "integer"}}}
_RATE = {
    "RateLimit-Policy": {"description": "The caller's rate: requests `q` per `w` seconds.", "schema": {"type": "string"}},
    "RateLimit": {"description": "What is left of it: requests `r`, seconds `t` until all.", "schema": {"type": "string"}},
}


def document_access(app: FastAPI) -> None:
    """Has an app's OpenAPI document say how callers are identified, and which problems any route may answer."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        known = app.openapi_schema
        document = describe()
        if document is not known:
            _complete(app, document)
        return document

    # FastAPI's own way of extending the document.
    app.openapi = openapi  # type: ignore[method-assign]


def asks_who_calls(route: RouteContext) -> bool:
    """Whether a route is for identified callers: whether it depends on `caller_of`."""
    dependant = getattr(route, "dependant", None)
    return dependant is not None and _depends(dependant)


def _depends(dependant: Dependant) -> bool:
    return dependant.call is caller_of or any(_depends(each) for each in dependant.dependencies)


def _complete(app: FastAPI, document: dict[str, Any]) -> None:
    serving: Serving = app.state.serving
    schemes = serving.config.auth.schemes
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas["Problem"] = schema
    if schemes:
        components["securitySchemes"] = {name: dict(scheme) for name, scheme in schemes.items()}
    for route, operation in _operations(app, document):
        # Clients that are generated name their functions so.
        operation["operationId"] = route.name
        asked = asks_who_calls(route)
        if asked and schemes:
            operation["security"] = [{name: []} for name in schemes]
        _add_problems(operation, identified=asked and bool(schemes), limited=asked)


def _operations(app: FastAPI, document: dict[str, Any]) -> Iterator[tuple[RouteContext, dict[str, Any]]]:
    for route in iter_route_contexts(app.routes):
        item = document.get("paths", {}).get(route.path_format, {})
        for method in route.methods or ():
            operation = item.get(method.lower())
            if operation is not None:
                yield route, operation


def _add_problems(operation: dict[str, Any], *, identified: bool, limited: bool) -> None:
    responses: dict[str, Any] = operation["responses"]
    for response in responses.values():
        content = response.get("content", {})
        # What FastAPI says of bodies that do not fit is not what is answered here.
        if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
            response.update(_problem("What was sent does not fit."))
    if identified:
        challenge = {"WWW-Authenticate": {"description": "`Bearer`", "schema": {"type": "string"}}}
        responses.setdefault("401", {**_problem("Nobody is identified."), "headers": challenge})
    if limited:
        responses.setdefault("429", {**_problem("A limit is reached."), "headers": {**_WAIT, **_RATE}})
    responses.setdefault("4XX", _problem("The request cannot be served; `code` says why."))
    responses.setdefault("5XX", _problem("The server, or something that it needs, failed."))


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": _REF}}}

"""What stands before all routes: who is addressed, which page asks, how much comes in and how long it takes."""

from __future__ import annotations

import asyncio
import logging
import re
from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sojourn import platform
from sojourn.errors import Forbidden, InvalidInput, SojournError
from sojourn.runner.observe import request_id
from sojourn.server.config import ServerConfig
from sojourn.server.problems import internal_problem, problem_of, refusal

logger = logging.getLogger("sojourn.server")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
"""What is taken over as the id of a request: it ends up in logs and headers."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
_NO_EMBEDDING = ((b"cross-origin-resource-policy", b"same-origin"),)
_EXPOSED_HEADERS = ("X-Request-Id", "Retry-After", "RateLimit", "RateLimit-Policy", "Location", "Link", "ETag", "Content-Range")


def guard(app: FastAPI, config: ServerConfig, expose: tuple[str, ...] = ()) -> None:
    """Puts the guards before an app.

    Args:
        app: The app.
        config: What they let through.
        expose: More headers that pages of allowed origins may read.
    """
    app.add_middleware(Guards, config=config)
    if config.allowed_origins:
        # Outermost, so that a page can read why it is refused.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=("*",),
            allow_headers=("*",),
            # A page shows its key or token in a header; nothing here goes by cookies.
            allow_credentials=False,
            allow_private_network="*" not in config.allowed_origins,
            expose_headers=(*_EXPOSED_HEADERS, *expose),
        )


class Guards:
    """Middleware that refuses what no route is to see, and gives every response its id and its security headers.

    A request is refused that names another host than those allowed (a page whose name was pointed here: DNS rebinding); that
    changes something, or opens a WebSocket, on behalf of a page of another origin; or whose body is too large or too slow.

    Args:
        app: What comes behind.
        config: What is let through.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._any_host = "*" in config.allowed_hosts
        self._hosts = frozenset(host.lower() for host in config.allowed_hosts if not host.startswith("*"))
        self._domains = tuple(host[1:].lower() for host in config.allowed_hosts if host.startswith("*."))
        self._any_origin = "*" in config.allowed_origins
        self._origins = frozenset(origin.lower() for origin in config.allowed_origins)
        self._max_body_bytes = config.max_body_bytes
        self._body_timeout = config.body_timeout
        self._headers = _SECURITY_HEADERS + (() if config.allowed_origins else _NO_EMBEDDING)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        request = _Request(scope, send, self._headers)
        on_send = request.on_websocket if scope["type"] == "websocket" else request.on_http
        try:
            refused = self._refused(scope, request.headers)
            if refused is not None:
                await _refuse(refused, scope, receive, on_send)
            elif request.has_body:
                await self._app(scope, _Body(receive, self._body_timeout, self._max_body_bytes).receive, on_send)
            else:
                await self._app(scope, receive, on_send)
        except Exception:
            if request.started or scope["type"] == "websocket":
                raise
            logger.exception("request %s failed", request.id.decode())
            await internal_problem()(scope, receive, on_send)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        try:
            host = _text(headers.get(b"host", b""))
            self._check_host(host)
            if scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS:
                self._check_origin(headers.get(b"origin"), host)
        except SojournError as error:
            return problem_of(error)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body_bytes:
            return refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return None

    def _check_host(self, host: str) -> None:
        if not host:
            raise InvalidInput("the request names no host, or several", code="host.invalid")
        name = (host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]).lower()
        if not (self._any_host or name in self._hosts or (self._domains and name.endswith(self._domains))):
            raise Forbidden(
                f"this server does not answer to the name {name!r}; its operator allows names with `allowed_hosts`",
                code="host.not_allowed",
            )

    def _check_origin(self, origin: bytes | None, host: str) -> None:
        # Not the scheme: behind a proxy that ends TLS, only the page knows it.
        if origin is None or self._any_origin:
            return
        text = _text(origin).lower()
        if text not in self._origins and text.partition("://")[2] != host.lower():
            raise Forbidden(
                f"pages of the origin {text!r} may not use this server; its operator allows origins with `allowed_origins`",
                code="origin.not_allowed",
            )


class _Request:
    """One request on its way through."""

    __slots__ = ("_extra", "_scope", "_send", "has_body", "headers", "id", "started")

    def __init__(self, scope: Scope, send: Send, extra: tuple[tuple[bytes, bytes], ...]) -> None:
        self.headers = _single_headers(scope)
        self.id = self.headers.get(b"x-request-id", b"")
        if not REQUEST_ID.fullmatch(self.id):
            self.id = platform.new_id().encode()
        text = self.id.decode()
        scope.setdefault("state", {})["request_id"] = text
        request_id.set(text)
        websocket = scope["type"] == "websocket"
        # Over HTTP/2, a body may come without any of these headers.
        self.has_body = not websocket and (
            scope["method"] not in _SAFE_METHODS
            or b"transfer-encoding" in self.headers
            or self.headers.get(b"content-length", b"0") != b"0"
        )
        self.started = False
        self._scope, self._send, self._extra = scope, send, extra

    async def on_http(self, message: Message) -> None:
        """Sends what an HTTP response is made of."""
        if message["type"] == "http.response.start":
            self.started = True
            self._add_headers(message)
        await self._send(message)

    async def on_websocket(self, message: Message) -> None:
        """Sends what is said over a WebSocket."""
        if message["type"] in ("websocket.accept", "websocket.http.response.start"):
            self._add_headers(message)
        await self._send(message)

    def _add_headers(self, message: Message) -> None:
        headers = [*message.get("headers", ()), (b"x-request-id", self.id), *self._extra]
        if message["type"] != "websocket.accept" and not any(name == b"cache-control" for name, _ in headers):
            headers.append((b"cache-control", b"no-store"))
        allowance = self._scope["state"].get("sojourn.allowance")
        if allowance is not None:
            headers += allowance.headers()
        message["headers"] = headers


class _Body:
    """The body of a request, which has to arrive within a time, and within a size, whatever its headers say."""

    __slots__ = ("_at", "_left", "_receive")

    def __init__(self, receive: Receive, seconds: float, size: int) -> None:
        self._receive = receive
        self._left = size
        self._at: float | None = asyncio.get_running_loop().time() + seconds

    async def receive(self) -> Message:
        """The next message; once the body is there, what follows may take its time."""
        if self._at is None:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._at):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, headers={"connection": "close"}) from None
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, headers={"connection": "close"})
        if not message.get("more_body", False):
            self._at = None
        return message


async def _refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    await response(scope, receive, send)


def _single_headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers that guards look at; of one that is given several times, the value is empty, which fits nothing."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _LOOKED_AT:
            found[name] = b"" if name in found else value
    return found


_LOOKED_AT = frozenset({b"host", b"origin", b"x-request-id", b"content-length", b"transfer-encoding"})


def _text(header: bytes) -> str:
    return header.decode("latin-1")

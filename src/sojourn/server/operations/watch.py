"""Watches every request from outside of all else: its line in the log, and its numbers."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sojourn import platform
from sojourn.server.framing import JsonLines, ServerSentEvents
from sojourn.server.operations.logs import about_request
from sojourn.server.operations.metrics import Metrics
from sojourn.server.stream import RUN_ID_HEADER

logger = logging.getLogger("sojourn.access")

PROBES = frozenset({"/livez", "/readyz", "/health", "/metrics"})
"""Paths that are asked for so often that they are logged at a level of their own, DEBUG, and not traced."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_RUN_ID = RUN_ID_HEADER.lower().encode()
_STREAMS = (ServerSentEvents.media_type.encode(), JsonLines.media_type.encode())


class Watch:
    """Middleware.

    Args:
        app: What comes behind.
        metrics: Where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        watched = _Watched(scope, send, self._metrics)
        on_send = watched.on_http if scope["type"] == "http" else watched.on_websocket
        with about_request(watched.about):
            try:
                await self._app(scope, receive, on_send)
            finally:
                watched.end()


class _Watched:
    """One request."""

    __slots__ = ("_metrics", "_scope", "_send_on", "_started", "_status", "_streaming", "about")

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self.about: dict[str, Any] = {}
        self._scope, self._send_on, self._metrics = scope, send, metrics
        self._started = platform.monotonic()
        # What a client sees that has gone before there was an answer.
        self._status = 499
        self._streaming = False

    async def on_http(self, message: Message) -> None:
        """Sends what an HTTP response is made of."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            for name, value in message.get("headers", ()):
                if name == b"content-type" and value.startswith(_STREAMS):
                    self._stream()
                elif name == _RUN_ID:
                    self.about["run_id"] = value.decode("latin-1")
        elif self._streaming:
            self._metrics.streamed_bytes += len(message.get("body", b""))
        await self._send_on(message)

    async def on_websocket(self, message: Message) -> None:
        """Sends what is said over a WebSocket."""
        match message["type"]:
            case "websocket.accept":
                self._status = 101
                self._stream()
            case "websocket.send":
                self._metrics.streamed_bytes += len(message.get("bytes") or (message.get("text") or "").encode())
            case "websocket.close" if not self._streaming:
                self._status = 403
            case "websocket.http.response.start":
                self._status = message["status"]
        await self._send_on(message)

    def _stream(self) -> None:
        if not self._streaming:
            self._streaming = True
            self._metrics.open_streams.inc()

    def end(self) -> None:
        seconds = platform.monotonic() - self._started
        if self._streaming:
            self._metrics.open_streams.dec()
        scope = self._scope
        method = scope.get("method", "WEBSOCKET")
        route = getattr(scope.get("route"), "path", None) or "(none)"
        label = method if method in _METHODS or method == "WEBSOCKET" else "(other)"
        self._metrics.request_took(label, route, self._status, seconds)
        level = logging.DEBUG if is_probe(scope) else logging.INFO
        if logger.isEnabledFor(level):
            # Without the query: people put secrets there.
            told = {"method": method, "path": scope["path"], "status": self._status, "seconds": round(seconds, 6)}
            logger.log(level, "%s %s %d", method, scope["path"], self._status, extra=told)


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is one of those that are asked for all the time."""
    return scope.get("path") in PROBES


def watch(app: FastAPI, metrics: Metrics) -> None:
    """Puts the watch before an app, and before what stands before it already."""
    app.add_middleware(Watch, metrics=metrics)

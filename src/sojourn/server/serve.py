"""`serve`: a server of its own, from the first request to the last, on uvicorn.

Measured beside granian, which is written in Rust, uvicorn spends less CPU for a request that goes through Python all the same,
and its connections can be told apart and dropped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from sojourn.errors import InvalidInput, Unavailable
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.server.auth.bind import check_bind
from sojourn.server.config import ServerConfig
from sojourn.server.connections import ServingProtocol
from sojourn.server.garbage import rare_collections
from sojourn.server.serving import Serving
from sojourn.server.transport import DroppingWebSocketProtocol

GRACE_SECONDS = 30.0
"""How long runs may take to come to their end when the server is told to stop."""

KEEP_ALIVE_SECONDS = 75.0
"""How long a connection may be idle: longer than the minute after which proxies drop theirs."""

CLOSE_SECONDS = 5
"""How long connections may take to close once all runs have ended or were interrupted."""

BACKLOG = 2048

Started = Callable[[str], None]
"""Is told the address, such as `http://127.0.0.1:8000`, once requests are answered there."""


async def serve(
    runner: Runner | Sequence[Runner],
    config: ServerConfig | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    grace: float = GRACE_SECONDS,
    on_started: Started | None = None,
) -> None:
    """Serves Runners until SIGTERM or SIGINT, or until this is cancelled.

    Then `/readyz` says so, no connection is accepted any more, and runs get `grace` to come to their end. What still executes
    is interrupted, and goes on when a Runner of its app is entered again; clients are told `run.suspended` and may come back. A
    second signal, or cancel, leaves no more grace; a third signal ends the process, which loses nothing either.

    The Runners are entered, and closed at the end. Signals are heard in the main thread only. Meanwhile the garbage collector
    looks at fewer objects, and less often, unless the program has set its thresholds itself.

    Args:
        runner: A Runner, or several of different apps.
        config: How they are served.
        host: The address to listen on.
        port: The port; 0 for any that is free.
        grace: Seconds.
        on_started: Is told the address.

    Raises:
        InvalidInput: `auth.needs_loopback`, `server.invalid`.
        Unavailable: `server.address_in_use` if the address cannot be listened on.
        SojournError: What entering the Runners raises, such as `store.in_use`.
    """
    config = config or ServerConfig()
    check_bind(config, host)
    app = create_app(runner, config)
    serving: Serving = app.state.serving
    with _listening(host, port) as listener:
        stopping = _Stopping(serving, grace)
        server = _Server(_uvicorn_config(app, config), stopping, lambda: _tell(on_started, listener))
        with stopping.by_signals():
            # Not by uvicorn, which tells why it failed to its log alone.
            async with app.router.lifespan_context(app):
                with rare_collections():
                    await _to_its_end(server, stopping, listener)


def _uvicorn_config(app: Any, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http=ServingProtocol,
        ws=DroppingWebSocketProtocol,
        ws_max_size=config.max_frame_bytes,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(KEEP_ALIVE_SECONDS),
        timeout_graceful_shutdown=CLOSE_SECONDS,
        # A request that waits behind another one on its connection would inherit what that one is about.
        reset_contextvars=True,
    )


async def _to_its_end(server: _Server, stopping: _Stopping, listener: socket.socket) -> None:
    serving = asyncio.ensure_future(server.serve([listener]))
    cancelled = False
    while not serving.done():
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            cancelled = True
            stopping.ask()
    serving.result()
    if cancelled:
        raise asyncio.CancelledError


class _Server(uvicorn.Server):
    """uvicorn's server, which drains what it serves before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, stopping: _Stopping, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._tell_started = started

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leaves them to `_Stopping`: uvicorn would end the process by the signal once more."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell_started()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._stopping.asked

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listening in self.servers:
            listening.close()
        for connection in list(self.server_state.connections):
            # Those who speak with an agent are told by it that this ends.
            if not isinstance(connection, DroppingWebSocketProtocol):
                connection.shutdown()
        await self._stopping.drain()
        await self._last_words()
        await super().shutdown(sockets)

    async def _last_words(self) -> None:
        """Returns when nothing more is said over WebSockets, or when it takes too long."""
        sockets = [each for each in self.server_state.connections if isinstance(each, DroppingWebSocketProtocol)]
        if speaking := [each.spoken for each in sockets if each.spoken is not None]:
            await asyncio.wait(speaking, timeout=CLOSE_SECONDS)


class _Stopping:
    """How a server comes to its end.

    Args:
        serving: What is drained.
        grace: Seconds.

    Attributes:
        asked: Whether it is to end.
    """

    def __init__(self, serving: Serving, grace: float) -> None:
        self.asked = False
        self._serving = serving
        self._grace = grace
        self._draining = False
        self._loop = asyncio.get_running_loop()
        self._signals = 0

    def ask(self) -> None:
        """Asks for the end; asked again, it comes at once."""
        if self.asked:
            self._grace = 0.0
            if self._draining:
                self._hurrying = asyncio.ensure_future(self._serving.drain(0))
        self.asked = self._serving.draining = True

    async def drain(self) -> None:
        """Lets what is under way come to its end."""
        self._draining = True
        await self._serving.drain(self._grace)

    @contextmanager
    def by_signals(self) -> Iterator[None]:
        """Asks at each signal while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            # Under nohup, a SIGHUP is not to be heard.
            numbers.append(signal.SIGHUP)
        # Not loop.add_signal_handler: its callbacks would wait for an agent that blocks the loop.
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 2:
            # What was acknowledged is stored: the next process takes it up as after any crash.
            os._exit(128 + number)
        self._serving.draining = True
        self._loop.call_soon_threadsafe(self.ask)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to an address, which nobody can connect to yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"{host!r} is no address to listen on: {error}", code="server.invalid") from error
    with socket.socket(family, kind, protocol) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise Unavailable(
                f"cannot listen on {host} port {port}: {error.strerror}; choose another port, or 0 for any that is free",
                code="server.address_in_use",
                retryable=False,
            ) from error
        yield listener


def _tell(on_started: Started | None, listener: socket.socket) -> None:
    if on_started is not None:
        host, port = listener.getsockname()[:2]
        on_started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

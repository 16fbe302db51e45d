"""A real server on loopback, in the test's event loop."""

import asyncio
import socket
from contextlib import asynccontextmanager

import uvicorn

from sojourn.server.transport import DroppingHttpProtocol


class Server(uvicorn.Server):
    """A server that says where it is, and when it is ready.

    Attributes:
        url: Its address.
        port: Its port.
    """

    def __init__(self, config, port):
        super().__init__(config)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.ready = asyncio.Event()
        self.stopping = asyncio.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self):
        await self.on_tick(0)
        # uvicorn's own looks ten times a second.
        await self.stopping.wait()


@asynccontextmanager
async def running(app, *, http=DroppingHttpProtocol, send_buffer=None, **options):
    """Serves an ASGI app; gives the server.

    Args:
        app: The app.
        http: The protocol class; "httptools" or "h11" for uvicorn's own.
        send_buffer: Bytes that the kernel holds for a client who does not read; a lot if None.
        options: More of `uvicorn.Config`.
    """
    listener = socket.socket()
    if send_buffer is not None:
        # Connections inherit it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.bind(("127.0.0.1", 0))
    options = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 5, "lifespan": "auto", **options}
    server = Server(uvicorn.Config(app, http=http, **options), listener.getsockname()[1])
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait((serving, ready), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        yield server
    finally:
        ready.cancel()
        server.stopping.set()
        await serving


@asynccontextmanager
async def serve(app, **options):
    """Serves an ASGI app; gives its address. Takes what `running` takes."""
    async with running(app, **options) as server:
        yield server.url

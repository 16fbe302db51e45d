"""The servers that are measured.

`python -m bench.servers SERVER AGENT DIRECTORY` says on stdout where it listens, then what it has used for each
line on stdin.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import resource
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from bench import agents
from bench.served import allow_connections, fast_loop
from sojourn import Runner
from sojourn.server.app import create_app
from sojourn.server.operations.logs import logging_to
from sojourn.server.serve import serve
from sojourn.store.database import DatabaseSessionService

AGENTS = {
    "returns": agents.returns,
    "burst": agents.writes_as_told(paced=False),
    "paced": agents.writes_as_told(paced=True),
    "stays": agents.stays,
}

Started = Callable[[int], None]


async def _on_uvicorn(runner: Runner, started: Started) -> None:
    """`sojourn.server`, as it is."""
    await serve(runner, port=0, on_started=lambda url: started(int(url.rpartition(":")[2])))


async def _logged(runner: Runner, started: Started) -> None:
    """The same with the log of `sojourn serve`: the start and the end of each run, and each request."""
    with logging_to(format="text", level=logging.INFO):
        await _on_uvicorn(runner, started)


async def _on_granian(runner: Runner, started: Started) -> None:
    """The same app on granian, in one process and with one thread of its own."""
    from granian.constants import Interfaces
    from granian.server.embed import Server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server(create_app(runner), port=port, interface=Interfaces.ASGI, log_enabled=False, backlog=2048)
    serving = asyncio.ensure_future(server.serve())
    while not serving.done():
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            # It does not tell when it is ready.
            await asyncio.sleep(0.05)
    started(port)
    await serving


async def _floor(_: Runner, started: Started) -> None:
    """FastAPI on uvicorn with a route that streams and does nothing else."""
    app = FastAPI(telemetry={"auto_configure": False})

    async def said(pieces: int) -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b'data: {"content":{"parts":[{"text":"tok "}]},"partial":true}\n\n'
            await asyncio.sleep(0)

    @app.post("/run_sse")
    async def trivial(request: Request) -> StreamingResponse:
        text = (await request.json())["newMessage"]["parts"][0]["text"]
        return StreamingResponse(said(int(text) if text.isdigit() else 1), media_type="text/event-stream")

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    # Who connects before uvicorn is ready waits for it.
    listener.listen(2048)
    config = uvicorn.Config(app, loop="none", http="httptools", lifespan="off", log_config=None, access_log=False, backlog=2048)
    started(listener.getsockname()[1])
    await uvicorn.Server(config).serve([listener])


SERVERS: dict[str, Callable[[Runner, Started], Awaitable[None]]] = {
    "uvicorn": _on_uvicorn,
    "logged": _logged,
    "granian": _on_granian,
    "floor": _floor,
}


async def _serve(server: str, agent: str, path: str) -> None:
    store = DatabaseSessionService(f"sqlite:///{path}/bench.db")
    runner = Runner(app_name="bench", agent=AGENTS[agent], session_service=store, max_concurrency=0)

    def started(port: int) -> None:
        print(port, flush=True)
        threading.Thread(target=_tell_usage, daemon=True).start()

    await SERVERS[server](runner, started)


def _tell_usage() -> None:
    for _ in sys.stdin:
        gc.collect()
        used = resource.getrusage(resource.RUSAGE_SELF)
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "resident": resident}), flush=True)


if __name__ == "__main__":
    allow_connections()
    with asyncio.Runner(loop_factory=fast_loop()) as loop:
        loop.run(_serve(*sys.argv[1:]))

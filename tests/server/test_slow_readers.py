"""Readers that do not read: their streams are cut, the run and other readers are not held up, and nothing piles up."""

import asyncio
import logging
import socket
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest

from sojourn.agents.function import agent
from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.server.config import ServerConfig
from sojourn.server.download import PIECE_BYTES, Download
from sojourn.server.stream import CHUNK_BYTES
from sojourn.server.transport import DroppingHttpProtocol
from tests.server.eventsource import EventSource
from tests.server.serving import running

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    """On both event loops: they treat what a client does not take in their own ways."""
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


IMPATIENT = ServerConfig(slow_reader_timeout=0.2, heartbeat=0.05, reconnect_after=0.0)
PIECE = "0123456789abcdef" * 256
LONGEST = 10 * len(PIECE) + 1000
"""Bytes of the longest item that is told."""

HIGH_WATER = 65_536
"""Bytes that asyncio's transports hold before they say that it is enough."""


@contextmanager
def watching(caplog, text):
    """Gives an event that is set when something is logged."""
    told = asyncio.Event()

    class Watch(logging.Handler):
        def emit(self, record):
            if text in record.getMessage():
                told.set()

    watch, logger = Watch(), logging.getLogger("sojourn.server")
    logger.addHandler(watch)
    caplog.set_level(logging.INFO, "sojourn.server")
    try:
        yield told
    finally:
        logger.removeHandler(watch)


class Deaf:
    """A client that asks for a stream and does not read it, with as small a buffer as there is."""

    def __init__(self, port, path):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self._socket.setblocking(False)
        self._port, self._path = port, path

    async def ask(self):
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        await loop.sock_sendall(self._socket, f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        self.name = self._socket.getsockname()
        return self

    async def read_to_the_end(self):
        """What was sent before the connection was dropped."""
        received = b""
        try:
            while chunk := await asyncio.get_running_loop().sock_recv(self._socket, 65_536):
                received += chunk
        except ConnectionResetError:
            pass
        return received

    def close(self):
        self._socket.close()


@asynccontextmanager
async def serving_torrent(caplog, **options):
    """A server whose agent says much more than a connection holds, and ends when `enough` is set."""
    enough = asyncio.Event()

    @agent
    async def torrent(ctx):
        for n in range(600):
            yield PIECE
            await asyncio.sleep(0)
            if n % 10 == 9:
                yield Event(output=n)
        await enough.wait()

    runner = Runner(app_name="app", agent=torrent)
    app = create_app(runner, IMPATIENT)
    async with (
        runner,
        running(app, lifespan="off", send_buffer=16_384, **options) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        response = await client.post("/runs", json={"userId": "ann", "newMessage": "Go"})
        with watching(caplog, "its response is cut") as cut:
            yield runner, server, client, response.headers["location"], cut, enough


async def test_a_reader_who_takes_nothing_is_dropped_while_another_reads_it_all(caplog):
    async with serving_torrent(caplog) as (runner, server, client, at, cut, enough):
        deaf = await Deaf(server.port, f"{at}/events").ask()
        while not any(c.client == deaf.name for c in server.server_state.connections):
            await asyncio.sleep(0)
        reading = asyncio.create_task(EventSource(client, f"{at}/events").read())
        held = [0]
        while sizes := [c.transport.get_write_buffer_size() for c in server.server_state.connections if c.client == deaf.name]:
            held += sizes
            await asyncio.sleep(0)
        assert cut.is_set()
        enough.set()
        frames = [m.json() for m in await reading]
        numbered = [f for f in frames if "pos" in f]
        assert [f["pos"] for f in numbered] == list(range(1, len(numbered) + 1))
        assert numbered[-1]["kind"] == "run.completed"
        # What the connection held was bounded, though much more was said.
        assert HIGH_WATER < max(held) < HIGH_WATER + CHUNK_BYTES + 2 * LONGEST
        received = await deaf.read_to_the_end()
        assert b"HTTP/1.1 200" in received
        assert not received.endswith(b"0\r\n\r\n")
        deaf.close()
        run = await runner.follow(at.rpartition("/")[2])
        assert run.status is RunStatus.COMPLETED


@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_under_another_server_the_stream_of_a_slow_reader_ends_too(caplog, http):
    async with serving_torrent(caplog, http=http) as (runner, server, client, at, cut, enough):
        deaf = await Deaf(server.port, f"{at}/events").ask()
        await cut.wait()
        enough.set()
        run = await runner.follow(at.rpartition("/")[2])
        assert (await run.wait()).status is RunStatus.COMPLETED
        # Nothing of the request is left, but for what the transport still holds.
        while any(connection.client == deaf.name for connection in server.server_state.connections):
            received = await deaf.read_to_the_end()
        assert not received.endswith(b"0\r\n\r\n")
        deaf.close()


async def test_a_connection_that_is_closed_with_unread_bytes_is_dropped_after_a_while(monkeypatch):
    @agent
    async def listener(ctx):
        return "Well."

    runner = Runner(app_name="app", agent=listener)
    async with runner, running(create_app(runner), lifespan="off", timeout_keep_alive=0, send_buffer=16_384) as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            response = await client.post("/runs", json={"userId": "ann", "newMessage": "x" * 1_000_000})
            at = response.headers["location"]
        monkeypatch.setattr(DroppingHttpProtocol, "linger", 0.05)
        deaf = await Deaf(server.port, at).ask()
        while not any(c.client == deaf.name for c in server.server_state.connections):
            await asyncio.sleep(0)
        # The whole response is with the transport, and the client takes nothing of it.
        while any(c.client == deaf.name for c in server.server_state.connections):
            await asyncio.sleep(0)
        assert len(await deaf.read_to_the_end()) < 1_000_000
        deaf.close()


async def test_a_download_is_sent_in_pieces_that_a_slow_client_takes_in_time():
    sent = []

    async def chunks():
        yield b"1" * 200_000
        yield b"2" * 10

    async def send(message):
        sent.append(message.get("body", b""))

    response = Download(chunks(), IMPATIENT, headers={}, media_type="text/plain")
    await response({"type": "http"}, asyncio.Event().wait, send)
    assert b"".join(sent) == b"1" * 200_000 + b"2" * 10
    assert max(map(len, sent)) == PIECE_BYTES


@pytest.mark.parametrize("http", [DroppingHttpProtocol, "httptools"])
async def test_a_download_that_nobody_takes_is_cut(caplog, http):
    @agent
    async def saver(ctx):
        await ctx.artifacts.save("large", b"x" * 8_000_000)

    runner = Runner(app_name="app", agent=saver)
    app = create_app(runner, IMPATIENT)
    async with runner, running(app, lifespan="off", send_buffer=16_384, http=http) as server:
        run = await runner.start("ann", "s", "Save")
        await run.wait()
        at = "/apps/app/users/ann/sessions/s/artifacts/large?alt=media"
        with watching(caplog, "its response is cut") as cut:
            deaf = await Deaf(server.port, at).ask()
            await cut.wait()
        received = b""
        while any(connection.client == deaf.name for connection in server.server_state.connections):
            received += await deaf.read_to_the_end()
        assert len(received) < 8_000_000
        deaf.close()

"""What clients send around their requests is bounded, and what they do not read is not kept for them."""

import asyncio
import base64
import socket
from contextlib import suppress

import pytest

from sojourn.agents.function import agent
from sojourn.runner.runner import Runner
from sojourn.server import create_app
from sojourn.server.connections import ServingProtocol
from sojourn.server.transport import DroppingWebSocketProtocol
from tests.server.serving import running

pytestmark = pytest.mark.anyio

HANDSHAKE = (
    b"GET /run_live?userId=ann&sessionId=s HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: " + base64.b64encode(b"k" * 16) + b"\r\n\r\n"
)
PING = b"\x89\xfd\0\0\0\0" + b"p" * 125
MESSAGE = b"\x81\x82\0\0\0\0{}"


@agent
async def quiet(ctx):
    async for _ in ctx.live:
        pass


def serving():
    app = create_app(Runner(app_name="app", agent=quiet))
    return running(app, http=ServingProtocol, ws=DroppingWebSocketProtocol, send_buffer=16_384)


async def connection_to(server):
    return await asyncio.open_connection("127.0.0.1", server.port)


async def write_until_cut(writer, data):
    """Writes until the server has had enough of it."""
    with pytest.raises(ConnectionError):
        for _ in range(20_000):
            writer.write(data)
            await writer.drain()
    writer.close()


async def send_until_cut(client, data):
    with suppress(ConnectionError):
        while True:
            await asyncio.get_running_loop().sock_sendall(client, data)


@pytest.mark.parametrize("path", [b"/livez", b"/no-such-route"])
@pytest.mark.parametrize(("start", "more"), [(b"", b"x-many: 1\r\n" * 1000), (b"x-large: ", b"a" * 1000)])
async def test_trailers_without_end_are_not_taken(path, start, more):
    async with serving() as server:
        reader, writer = await connection_to(server)
        writer.write(b"GET %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n" % path)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 ")
        writer.write(b"0\r\n" + start)
        await write_until_cut(writer, more)


async def test_a_trailer_is_no_header():
    seen = []

    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        seen.extend(name for name, _ in scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with running(app, http=ServingProtocol, lifespan="off") as server:
        reader, writer = await connection_to(server)
        request = b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-api-key: k\r\n\r\n"
        for _ in range(2):
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        writer.close()
    assert seen == [b"host", b"transfer-encoding"] * 2


async def test_a_body_in_many_small_pieces_is_taken():
    async with serving() as server:
        reader, writer = await connection_to(server)
        writer.write(b"POST /no-such-route HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(20_000):
            writer.write(b"1\r\na\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\nGET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert await reader.readuntil(b'{"status":"ok"}')
        writer.close()


async def refused_early(server, length):
    """A connection over which a request is answered whose body is still to come."""
    reader, writer = await connection_to(server)
    writer.write(b"POST /no-such-route HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % length)
    assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 404 ")
    return reader, writer


@pytest.mark.parametrize("part", [b"", b"x"])
async def test_what_is_left_of_a_request_that_is_answered_is_not_waited_for(part, monkeypatch):
    monkeypatch.setattr(ServingProtocol, "header_timeout", 0.05)
    async with serving() as server:
        reader, writer = await refused_early(server, 100_000)
        writer.write(part)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize("rest", [b"0123456789", b"0123456789\r\n\r\n"])
async def test_a_connection_over_which_nothing_more_is_asked_is_closed(rest):
    async with serving() as server:
        reader, writer = await refused_early(server, 10)
        (connection,) = server.server_state.connections
        connection.timeout_keep_alive = 0.05
        writer.write(rest)
        assert await reader.read() == b""
        writer.close()


async def test_the_next_request_behind_one_that_was_refused_early_is_read_rightly():
    async with serving() as server:
        reader, writer = await refused_early(server, 45)
        # What stands in a body is no request, whatever it looks like.
        writer.write(b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n".ljust(45))
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b'\r\n\r\n{"status":"ok"}')
        writer.close()


async def test_headers_that_begin_behind_a_slow_answer_are_not_waited_for_after_it(monkeypatch):
    monkeypatch.setattr(ServingProtocol, "header_timeout", 0.05)
    gone_on = asyncio.Event()

    async def app(scope, receive, send):
        await gone_on.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with running(app, http=ServingProtocol, lifespan="off") as server:
        reader, writer = await connection_to(server)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\n")
        # Returns only when the timeout of another connection has passed.
        others_reader, others_writer = await connection_to(server)
        assert (await others_reader.read()).startswith(b"HTTP/1.1 408 ")
        others_writer.close()
        gone_on.set()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        writer.write(b"x")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize("first", [b"", b"GET /first HTTP/1.1\r\nhost: localhost\r\n\r\n"])
@pytest.mark.parametrize("more", [b"", b"GET /more HTTP/1.1\r\nhost: localhost\r\n\r\n"])
async def test_a_request_learns_that_its_client_is_gone_whatever_is_asked_behind_it(first, more):
    answering, gone = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        if scope["path"] == "/slow":
            answering.set()
            assert (await receive())["type"] == "http.disconnect"
            gone.set()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with running(app, lifespan="off") as server:
        reader, writer = await connection_to(server)
        writer.write(first + b"GET /slow HTTP/1.1\r\nhost: localhost\r\n\r\n" + more)
        await answering.wait()
        writer.close()
        await gone.wait()


async def test_a_websocket_on_a_connection_of_earlier_requests_is_not_taken_for_idle():
    async with serving() as server:
        await server_session(server)
        reader, writer = await connection_to(server)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b'{"status":"ok"}')
        (before,) = server.server_state.connections
        writer.write(HANDSHAKE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert before.timeout_keep_alive_task is None
        writer.close()


@pytest.mark.parametrize("body", [b"", b"12", b"12345"])
async def test_a_websocket_with_a_body_is_refused(body):
    async with serving() as server:
        reader, writer = await connection_to(server)
        writer.write(HANDSHAKE.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n") + body)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def deaf_client(server):
    """A WebSocket whose client reads nothing but the beginning of the server's first answer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", server.port))
    await loop.sock_sendall(client, HANDSHAKE)
    assert (await loop.sock_recv(client, 12)).startswith(b"HTTP/1.1 101")
    return client


def held_for(server):
    """Bytes that the server holds for clients who have not read them; None if there is no connection."""
    held = [c.transport.get_write_buffer_size() for c in server.server_state.connections]
    return sum(held) if held else None


async def test_pings_of_a_client_who_reads_nothing_are_not_answered_into_memory():
    async with serving() as server:
        await server_session(server)
        client = await deaf_client(server)
        loop = asyncio.get_running_loop()
        for _ in range(100):
            await loop.sock_sendall(client, PING * 1000)
        assert held_for(server) < 500_000
        # Once the client reads, the newest ping is answered.
        await loop.sock_sendall(client, b"\x89\x84\0\0\0\0last")
        read = b""
        while not read.endswith(b"\x8a\x04last"):
            read += await loop.sock_recv(client, 65_536)
        client.close()


async def test_a_client_who_reads_nothing_of_the_end_is_dropped(monkeypatch):
    monkeypatch.setattr(DroppingWebSocketProtocol, "linger", 0.05)
    async with serving() as server:
        await server_session(server)
        client = await deaf_client(server)
        # Each is answered by an error, until nothing fits into the buffers any more.
        sending = asyncio.create_task(send_until_cut(client, MESSAGE * 1000))
        while not held_for(server):
            await asyncio.sleep(0)
        (connection,) = server.server_state.connections
        connection.keepalive_timeout()
        while held_for(server) is not None:
            await asyncio.sleep(0)
        await sending
        client.close()


async def server_session(server):
    """Makes the session that clients speak in."""
    reader, writer = await connection_to(server)
    writer.write(
        b"POST /apps/app/users/ann/sessions/s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()

"""A server of its own: how it starts, how it stops, and that nothing acknowledged is lost either way."""

import asyncio
import gc
import json
import logging
import os
import random  # noqa: TID251 - seeded
import signal
import subprocess
import sys
from collections import Counter

import httpx
import pytest
from httpx_sse import aconnect_sse
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sojourn.agents.function import agent
from sojourn.errors import InvalidInput, Unavailable
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.auth.principal import Principal
from sojourn.server.config import ServerConfig
from sojourn.server.connections import ServingProtocol
from sojourn.server.serve import serve
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService

pytestmark = pytest.mark.anyio

AGENTS = '''
import asyncio, os
from sojourn import agent

@agent
async def worker(ctx):
    """Says five things, each once, in steps that note when they are done."""
    for n in range(5):
        def done():
            with open("ledger.txt", "a") as ledger:
                ledger.write(f"{ctx.run_id} {n}\\n")
            return n
        await ctx.step(f"s{n}", done)
        yield f"{n} "
        await asyncio.sleep(0.02)

@agent
async def gated(ctx):
    """Waits until a file is there."""
    yield "begun "
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    yield "done"

@agent
async def partner(ctx):
    async for request in ctx.live:
        yield f"You said: {request.content.text}"
    yield "Bye."

@agent
async def blocking(ctx):
    yield "begun "
    await asyncio.sleep(0)
    while True:
        pass
'''


@pytest.fixture(autouse=True)
def left_out_of_collections():
    """What a server in this process has given back to the garbage collector."""
    yield
    gc.freeze()


@pytest.fixture
def home(tmp_path):
    (tmp_path / "agents.py").write_text(AGENTS)
    return tmp_path


class Server:
    """`sojourn serve` in a process of its own."""

    def __init__(self, home, target, *args):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "sojourn", "serve", f"agents.py:{target}", "--port", "0", *args]
        with open(home / "stderr.txt", "a") as errors:
            self.process = subprocess.Popen(
                command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
            )
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), (home / "stderr.txt").read_text()

    def send_signal(self, number):
        self.process.send_signal(number)

    async def ended(self):
        return await asyncio.to_thread(self.process.wait, 40)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class ServerGoes(Exception):
    """The server starts nothing new."""


async def start_run(client, number, session=None):
    body = {
        "runId": f"r{number}",
        "userId": "alice",
        "sessionId": session or f"s{number}",
        "newMessage": {"role": "user", "parts": [{"text": "go"}]},
    }
    response = await client.post("/runs", json=body, headers={"Idempotency-Key": f"key-{number}"})
    if response.status_code == 503:
        raise ServerGoes(response.text)
    assert response.status_code in (200, 201), response.text
    return response.json()["id"]


async def follow(client, run_id, after=None, begun=None):
    """The frames of a run that are numbered, until its stream ends or breaks; sets `begun` at the first one."""
    frames, headers = [], {"Last-Event-ID": str(after)} if after else {}
    try:
        async with aconnect_sse(client, "GET", f"/runs/{run_id}/events", headers=headers) as source:
            if source.response.status_code == 204:
                return frames
            async for event in source.aiter_sse():
                frame = json.loads(event.data)
                if frame.get("pos") is not None:
                    frames.append(frame)
                    if begun is not None:
                        begun.set()
    except httpx.TransportError:
        pass
    return frames


async def record_of(client, run_id):
    return (await client.get(f"/runs/{run_id}")).json()


def assert_whole(frames):
    """No gap, no repetition, one end."""
    assert [frame["pos"] for frame in frames] == list(range(1, len(frames) + 1))
    assert frames[0]["kind"] == "run.started"
    assert [frame["kind"] for frame in frames[1:]].count("run.completed") == 1
    assert frames[-1]["kind"] == "run.completed"


async def until_nobody_listens(server):
    """Returns when a server that was told to stop does not accept connections any more; until then it says that it ends."""
    with pytest.raises(httpx.TransportError):
        while True:
            async with httpx.AsyncClient(base_url=server.url) as client:
                assert (await client.get("/readyz")).status_code in (200, 503)


# -- in this process ----------------------------------------------------------------------------------------------------


@agent
async def speaker(ctx):
    yield "one "
    if ctx.user_content.text == "hang":
        await asyncio.Event().wait()
    yield "two"


class Here:
    """A server in this event loop."""

    def __init__(self, runner, **options):
        self.url = asyncio.get_running_loop().create_future()
        self.task = asyncio.ensure_future(serve(runner, port=0, on_started=self.url.set_result, **options))

    async def __aenter__(self):
        await asyncio.wait((self.url, self.task), return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            await self.task
        self.client = httpx.AsyncClient(base_url=self.url.result())
        return self

    async def __aexit__(self, *exc):
        await self.client.aclose()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def runner_of(agent_=speaker, store=None):
    return Runner(app_name="app", agent=agent_, session_service=store or InMemorySessionService())


async def test_it_answers_at_the_address_that_it_tells():
    async with Here(runner_of()) as server:
        response = await server.client.get("/livez")
    assert response.json() == {"status": "ok"}
    assert "server" not in response.headers


async def test_a_page_that_is_refused_is_no_error_of_the_servers(caplog):
    async with Here(runner_of()) as server:
        address = server.url.result().replace("http", "ws")
        with pytest.raises(InvalidStatus) as refused:
            async with connect(f"{address}/run_live?session_id=s", origin="https://evil.example"):
                pass
    assert json.loads(refused.value.response.body)["code"] == "origin.not_allowed"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_it_tells_those_who_follow_a_run_that_it_is_suspended(caplog):
    store = InMemorySessionService()
    body = {"userId": "alice", "sessionId": "s1", "newMessage": {"role": "user", "parts": [{"text": "hang"}]}}
    async with Here(runner_of(store=store), grace=0) as server:
        run_id = (await server.client.post("/runs", json=body)).json()["id"]
        async with aconnect_sse(server.client, "GET", f"/runs/{run_id}/events") as source:
            frames = source.aiter_sse()
            assert json.loads((await anext(frames)).data)["kind"] == "run.started"
            server.task.cancel()
            last = [json.loads(frame.data) async for frame in frames][-1]
        with pytest.raises(asyncio.CancelledError):
            await server.task
    assert last["error"]["code"] == "run.suspended"
    assert last["error"]["retryable"] is True
    assert [line.message for line in caplog.records if line.levelno >= logging.WARNING] == []  # it was told to
    record = await store.get_run("app", run_id, "alice")
    assert (record.status, record.deaths) == (RunStatus.QUEUED, 0)


async def speak(url):
    """Says one thing over a WebSocket; then, gives what comes until the end, and how it ends."""
    async with connect(f"{url.replace('http', 'ws')}/run_live?user_id=alice&session_id=s1") as socket:
        await socket.send(json.dumps({"content": {"parts": [{"text": "hi"}]}}))
        while not (said := json.loads(await socket.recv())).get("turnComplete"):
            pass
        yield said
        try:
            while True:
                yield json.loads(await socket.recv())
        except ConnectionClosed as end:
            yield end.rcvd.code, end.rcvd.reason


@agent
async def partner(ctx):
    async for request in ctx.live:
        yield f"You said: {request.content.text}"
    yield "Bye."


@pytest.mark.parametrize("grace", [0, 30])
async def test_it_tells_those_who_speak_with_an_agent_that_it_ends(grace):
    store = InMemorySessionService()
    async with Here(runner_of(partner, store), grace=grace) as server:
        await server.client.post("/apps/app/users/alice/sessions", json={"sessionId": "s1"})
        said = speak(server.url.result())
        run_id = (await anext(said))["invocationId"]
        server.task.cancel()
        *_, told, end = [each async for each in said]
        with pytest.raises(asyncio.CancelledError):
            await server.task
    assert (told["code"], end) == ("server.draining", (1013, "server.draining"))
    record = await store.get_run("app", run_id, "alice")
    assert record.status in ({RunStatus.COMPLETED} if grace else set(RunStatus))


class Thoughtful:
    """Lets everybody in, after a while."""

    needs_loopback = True

    def __init__(self):
        self.asked, self.decided = asyncio.Event(), asyncio.Event()

    async def authenticate(self, connection):
        self.asked.set()
        await self.decided.wait()
        return Principal("alice")


async def test_it_tells_those_who_are_about_to_speak_that_it_ends():
    auth, drained = Thoughtful(), asyncio.Event()

    class Drained(Runner):
        async def close(self, grace=None):
            await super().close(grace)
            drained.set()

    async with Here(Drained(app_name="app", agent=partner), config=ServerConfig(auth=auth)) as server:
        url = server.url.result()
        async with connect(f"{url.replace('http', 'ws')}/run_live?session_id=s1") as socket:
            await auth.asked.wait()
            server.task.cancel()
            await drained.wait()
            with pytest.raises(ConnectionClosed) as closed:
                await (await socket.ping())
                auth.decided.set()
                while True:
                    await socket.recv()
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1013, "server.draining")


@pytest.mark.parametrize("closes_too", [False, True])
async def test_text_that_is_none_is_no_error_of_the_servers(caplog, closes_too):
    async with Here(runner_of(partner)) as server:
        await server.client.post("/apps/app/users/alice/sessions", json={"sessionId": "s1"})
        async with connect(f"{server.url.result().replace('http', 'ws')}/run_live?user_id=alice&session_id=s1") as socket:
            socket.protocol.send_text(b"\xff\xfe")
            if closes_too:
                socket.protocol.send_close(1000)
            socket.transport.write(b"".join(socket.protocol.data_to_send()))
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await socket.recv()
    assert closed.value.rcvd.code == (1000 if closes_too else 1007)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_others_are_not_let_in_without_being_asked_who_they_are():
    with pytest.raises(InvalidInput) as caught:
        await serve(runner_of(), host="0.0.0.0", port=0)
    assert caught.value.code == "auth.needs_loopback"


async def test_an_address_that_is_taken():
    async with Here(runner_of()) as server:
        port = int(server.url.result().rpartition(":")[2])
        with pytest.raises(Unavailable) as caught:
            await serve(runner_of(), port=port)
    assert caught.value.code == "server.address_in_use"


async def test_it_says_why_it_cannot_start(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    mine, other = DatabaseSessionService(url), DatabaseSessionService(url, role="client")
    async with runner_of(store=mine):
        with pytest.raises(Exception, match="client"):
            await serve(runner_of(store=other), port=0)
    await other.close()
    await mine.close()


async def connection_to(url):
    return await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-slow: "])
async def test_headers_that_do_not_come_are_not_waited_for(monkeypatch, sent):
    monkeypatch.setattr(ServingProtocol, "header_timeout", 0.05)
    async with Here(runner_of()) as server:
        reader, writer = await connection_to(server.url.result())
        writer.write(sent)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_headers_of_a_later_request_are_not_waited_for_either(monkeypatch):
    async with Here(runner_of()) as server:
        reader, writer = await connection_to(server.url.result())
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b'{"status":"ok"}')
        monkeypatch.setattr(ServingProtocol, "header_timeout", 0.05)
        writer.write(b"GET /livez HTTP/1.1\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_frame_that_is_too_large_is_not_even_let_in():
    runner = runner_of()
    await runner.create_session("alice", "s1")
    async with Here(runner, config=ServerConfig(max_frame_bytes=1000)) as server:
        address = server.url.result().replace("http", "ws")
        async with connect(f"{address}/run_live?user_id=alice&session_id=s1") as socket:
            await socket.send(b"\0" * 1002)
            await socket.wait_closed()
    assert socket.close_code == 1009


async def test_headers_without_end_are_not_taken():
    async with Here(runner_of()) as server:
        reader, writer = await connection_to(server.url.result())
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-large: ")
        for _ in range(80):
            writer.write(b"a" * 1024)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_a_slow_answer_is_no_slow_request(monkeypatch):
    monkeypatch.setattr(ServingProtocol, "header_timeout", 0.05)
    gone_on = asyncio.Event()

    @agent
    async def slow(ctx):
        yield "one "
        await gone_on.wait()

    async with Here(runner_of(slow)) as server:
        run_id = await start_run(server.client, 1)
        following = asyncio.ensure_future(follow(server.client, run_id))
        reader, writer = await connection_to(server.url.result())
        # Returns only when the timeout of another connection has passed.
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()
        gone_on.set()
        assert_whole(await following)


# -- in a process of its own --------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_it_ends_well_when_told_to(home):
    with Server(home, "worker") as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            run_id = await start_run(client, 1)
            frames = await follow(client, run_id)
            assert_whole(frames)
        server.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert "Traceback" not in (home / "stderr.txt").read_text()


@pytest.mark.slow
async def test_it_ends_conversations_when_told_to(home):
    with Server(home, "partner") as server:
        async with httpx.AsyncClient(base_url=server.url) as client:
            await client.post("/apps/partner/users/alice/sessions", json={"sessionId": "s1"})
        said = speak(server.url)
        await anext(said)
        server.send_signal(signal.SIGTERM)
        *_, told, end = [each async for each in said]
        assert await server.ended() == 0
    assert (told["code"], end) == ("server.draining", (1013, "server.draining"))
    assert "Traceback" not in (home / "stderr.txt").read_text()


@pytest.mark.slow
async def test_it_drains_what_ends_in_time_and_suspends_what_does_not(home):
    with Server(home, "gated", "--grace", "30") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=30) as client,
            httpx.AsyncClient(base_url=server.url) as other,
        ):
            drained = await start_run(client, 1)
            begun = asyncio.Event()
            following = asyncio.ensure_future(follow(client, drained, begun=begun))
            await begun.wait()
            assert (await other.get("/readyz")).status_code == 200
            server.send_signal(signal.SIGTERM)
            await until_nobody_listens(server)
            (home / "go").touch()
            assert_whole(await following)
        assert await server.ended() == 0
    (home / "go").unlink()
    with Server(home, "gated", "--grace", "3600") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            cut = await start_run(client, 2)
            queued = await start_run(client, 3, session="s2")
            begun = asyncio.Event()
            following = asyncio.ensure_future(follow(client, cut, begun=begun))
            await begun.wait()
            server.send_signal(signal.SIGTERM)
            await until_nobody_listens(server)
            # A second one leaves no more grace.
            server.send_signal(signal.SIGTERM)
            first = await following
        assert await server.ended() == 0
    (home / "go").touch()
    with Server(home, "gated") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            rest = await follow(client, cut, first[-1]["pos"])
            assert_whole([*first, *rest])
            assert_whole(await follow(client, queued))
            record = await record_of(client, cut)
            assert record["deaths"] == 0
        server.send_signal(signal.SIGINT)
        assert await server.ended() == 0


@pytest.mark.slow
async def test_a_third_signal_ends_what_blocks_everything(home):
    with Server(home, "blocking") as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            await start_run(client, 1)
        for _ in range(100):
            server.send_signal(signal.SIGTERM)
            if await asyncio.to_thread(_ends_within, server.process, 0.2):
                break
        assert await server.ended() == 128 + signal.SIGTERM


def _ends_within(process, seconds):
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


class Load:
    """Clients that start runs and follow each, over restarts of the server, until each has ended."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.url = None
        self.up = asyncio.Event()
        self.frames = {}
        self.acknowledged = []

    def server_is(self, url):
        self.url = url
        self.up.set()

    def server_goes(self):
        self.up.clear()

    async def client(self, number):
        run_id, seen = None, []
        while not (seen and seen[-1]["kind"] == "run.completed"):
            await self.up.wait()
            try:
                async with httpx.AsyncClient(base_url=self.url, timeout=30) as client:
                    if run_id is None:
                        run_id = await start_run(client, number, session=f"s{number % 10}")
                        self.acknowledged.append(run_id)
                    seen += await follow(client, run_id, seen[-1]["pos"] if seen else None)
            except (httpx.TransportError, ServerGoes):
                continue  # The server goes, and says so, or has gone; the request is repeated with its key.
        self.frames[run_id] = seen


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_under_load_nothing_acknowledged_is_lost(home, number):
    load, rounds, count = Load(number), 4, 40
    clients = [asyncio.ensure_future(load.client(n)) for n in range(count)]
    try:
        for round_ in range(rounds):
            with Server(home, "worker", "--grace", "0.05") as server:
                load.server_is(server.url)
                # Every run takes a tenth of a second and more, and ten go at once.
                done = len(load.frames)
                while round_ < rounds - 1 and len(load.frames) < min(count, done + load.random.randrange(1, 10)):
                    left = [client for client in clients if not client.done()]
                    await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                if round_ == rounds - 1:
                    await asyncio.wait_for(asyncio.gather(*clients), 120)
                load.server_goes()
                server.send_signal(number)
                assert await server.ended() == (0 if number == signal.SIGTERM else -number)
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    assert len(set(load.acknowledged)) == count
    store = DatabaseSessionService(f"sqlite:///{home}/.sojourn/sojourn.db")
    for run_id, frames in load.frames.items():
        assert_whole(frames)
        record = await store.get_run("worker", run_id, "alice")
        assert record.status is RunStatus.COMPLETED
        if number == signal.SIGTERM:
            assert record.deaths == 0
        said = [
            f["event"]["content"]["parts"][0]["text"]
            for f in frames
            if f["kind"] == "event" and not f["event"].get("superseded")
        ]
        assert "".join(said) == "0 1 2 3 4 "
    await store.close()
    done = Counter((home / "ledger.txt").read_text().splitlines())
    for run_id in load.frames:
        assert all(done[f"{run_id} {n}"] >= 1 for n in range(5))

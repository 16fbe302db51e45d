"""Hundreds of streams at once, whose readers go at any moment: what was started ends, and nothing is left of it."""

import asyncio
import json
import random  # noqa: TID251 - seeded
from contextlib import asynccontextmanager

import httpx
import pytest

from sojourn.agents.function import agent
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.server.config import ServerConfig
from sojourn.store.sqlite.service import SqliteSessionService
from tests.server.serving import running

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

STREAMS = 300
WORDS = ["a", "word ", "ein längeres Stück, \u2028 ", "\U0001f600" * 5]


def pieces_of(seed):
    chance = random.Random(f"said {seed}")
    return [chance.choice(WORDS) for _ in range(chance.randint(1, 30))]


def talker_of(everybody):
    """An agent that says the pieces of its message's seed, from when everybody's run is executed."""
    here = 0
    all_here = asyncio.Event()

    @agent
    async def talker(ctx):
        nonlocal here
        here += 1
        if here == everybody:
            all_here.set()
        chance = random.Random(f"turns {ctx.user_content.text}")
        yield "begun "
        await all_here.wait()
        for piece in pieces_of(ctx.user_content.text):
            yield piece
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)

    return talker


class Reader:
    """A client on a socket of its own, who asks, reads so many bytes of the answer, and goes.

    Args:
        port: The server's.
        limit: How many bytes; None for all.
        resets: Whether it goes with a reset, and not with an orderly end.
    """

    def __init__(self, port, limit, resets):
        self._port = port
        self._limit = limit
        self._resets = resets

    async def post(self, path, body):
        return await self._ask("POST", path, json.dumps(body).encode())

    async def get(self, path):
        return await self._ask("GET", path, b"")

    async def _ask(self, method, path, body):
        """The headers of the answer, and what was read of its lines."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            assert status.split()[1] == "200", status
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            # Frames of the transfer stand on lines of their own.
            return headers, (await (reader.read() if self._limit is None else self._read(reader))).split(b"\n")
        finally:
            if self._resets:
                writer.transport.abort()
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError:
                pass

    async def _read(self, reader):
        got = b""
        while len(got) < self._limit and (more := await reader.read(self._limit - len(got))):
            got += more
        return got


def said_in(lines):
    return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]


async def idle(server, runner):
    """Waits until no request is served and no run is executed."""
    serving = server.config.app.state.serving
    while server.server_state.tasks or server.server_state.connections or serving.following._cancelling:
        await asyncio.sleep(0)
    for record in (await runner.list_runs(status=(RunStatus.QUEUED, RunStatus.RUNNING), limit=1000)).items:
        await (await runner.follow(record.id)).wait()


@asynccontextmanager
async def nothing_left(path, config):
    """A server with an app, `app`; once it is idle, nothing is left of what it has done."""
    before = asyncio.all_tasks()
    store = SqliteSessionService(path / "s.db")
    runner = Runner(app_name="app", agent=talker_of(STREAMS), session_service=store, max_concurrency=STREAMS)
    app = create_app(runner, config)
    async with runner, running(app, lifespan="off", backlog=STREAMS) as server:
        for seed in range(STREAMS):
            await runner.get_session(f"user {seed % 7}", f"s{seed}", create=True)
        yield server, runner
        await idle(server, runner)

        following = app.state.serving.following
        assert [following._followers, following._started, following._timers] == [{}, {}, {}]
        limiter = runner.limiter
        assert (limiter.active, limiter.queued, limiter.abandoned) == (0, 0, 0)
        hub = runner.dispatcher.hub
        assert (hub.live, hub.jobs) == ({}, {})
        async with httpx.AsyncClient(base_url=server.url) as client:
            numbers = (await client.get("/metrics")).text
            assert "sojourn_open_streams 0.0" in numbers
            assert 'sojourn_runs{app="app",status="running"} 0.0' in numbers
    await store.close()
    assert asyncio.all_tasks() == before


async def all_at_once(one):
    async def named(seed):
        try:
            return await one(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(named(seed)) for seed in range(STREAMS)]
    return [task.result() for task in tasks]


def reader_of(seed, server):
    """A reader who stays to the end, or goes after a while; a fifth of them at once."""
    chance = random.Random(f"cut {seed}")
    limit = None if chance.random() < 0.3 else chance.choice([0, 1, 250, 500, 1000, 3000])
    return Reader(server.port, limit, chance.random() < 0.5)


async def ask(seed, reader):
    message = {"role": "user", "parts": [{"text": str(seed)}]}
    body = {"appName": "app", "userId": f"user {seed % 7}", "sessionId": f"s{seed}", "newMessage": message, "streaming": True}
    headers, lines = await reader.post("/run_sse", body)
    return headers["x-run-id"], lines


def is_whole(seed, text):
    return text == "begun " + "".join(pieces_of(seed))


def final_text(events):
    (final,) = [event for event in events if not event.get("partial")]
    return final["content"]["parts"][0]["text"]


@pytest.mark.parametrize("read_by", ["who stays", "who comes back"])
async def test_runs_outlive_readers_who_go(tmp_path, read_by):
    async with nothing_left(tmp_path, ServerConfig(heartbeat=0.05)) as (server, runner):

        async def one(seed):
            reader = reader_of(seed, server)
            run_id, lines = await ask(seed, reader)
            if reader._limit is None:
                assert is_whole(seed, final_text(said_in(lines)))
            elif read_by == "who comes back":
                _, lines = await Reader(server.port, None, False).get(f"/runs/{run_id}/events?items=adk&partials=true")
                events = said_in(lines)
                assert is_whole(seed, final_text(events))
                assert is_whole(
                    seed, "".join(e["content"]["parts"][0]["text"] for e in events if e.get("partial")) or final_text(events)
                )
            return run_id

        told = await all_at_once(one)
        await idle(server, runner)
        records = (await runner.list_runs(limit=1000)).items
        assert sorted(told) == sorted(record.id for record in records)
        assert {record.status for record in records} == {RunStatus.COMPLETED}
        for record in records:
            said = [event.text for event in await runner.store.run_events(record.uid)]
            assert [is_whole(int(record.session_id[1:]), text) for text in said] == [True]


async def test_runs_whose_readers_go_are_cancelled_where_that_is_asked_for(tmp_path):
    config = ServerConfig(on_disconnect="cancel", disconnect_grace=0.0, heartbeat=0.05)
    async with nothing_left(tmp_path, config) as (server, runner):
        stayed = set()

        async def one(seed):
            reader = reader_of(seed, server)
            run_id, lines = await ask(seed, reader)
            if reader._limit is None:
                stayed.add(run_id)
                assert is_whole(seed, final_text(said_in(lines)))

        await all_at_once(one)
        await idle(server, runner)
        records = {record.id: record.status for record in (await runner.list_runs(limit=1000)).items}
        assert len(records) == STREAMS
        assert {records[run_id] for run_id in stayed} == {RunStatus.COMPLETED}
        assert set(records.values()) == {RunStatus.COMPLETED, RunStatus.CANCELLED}

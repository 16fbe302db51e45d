"""Clients that go at any moment, and come back or do not: no run is lost, no slot leaks, nothing is read twice."""

import asyncio
import random  # noqa: TID251 - seeded
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

import sojourn.server
from sojourn.agents.function import agent
from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.server.config import ServerConfig
from sojourn.store.sqlite.service import SqliteSessionService
from tests.server.eventsource import EventSource
from tests.server.serving import running

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(180)]

ROUNDS = 200
AT_ONCE = 8
CONFIG = ServerConfig(heartbeat=0.01, reconnect_after=0.0)


@agent
async def talker(ctx):
    """Speaks at random, as its message's seed says; the loop turns at random between."""
    chance = random.Random(ctx.user_content.text)
    for n in range(chance.randint(1, 6)):
        for _ in range(chance.randint(0, 8)):
            yield chance.choice(["a", "word ", "ein längeres Stück, \u2028 ", "\U0001f600" * 5])
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
        yield Event(output=n)
    if chance.random() < 0.2:
        raise ValueError("now and then")


@asynccontextmanager
async def serving(runner, app):
    async with (
        runner,
        running(app, lifespan="off") as server,
        httpx.AsyncClient(base_url=server.url, limits=httpx.Limits(max_keepalive_connections=0)) as client,
    ):
        yield server, client


async def in_rounds(one):
    """Runs the rounds, some at once; a failure names its seed."""
    seeds = iter(range(ROUNDS))

    async def some():
        for seed in seeds:
            try:
                await one(seed)
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())


async def settle(runner, server):
    """Waits until no run is executed and no request is served."""
    for record in (await runner.list_runs(status=(RunStatus.QUEUED, RunStatus.RUNNING), limit=1000)).items:
        await (await runner.follow(record.id)).wait()
    while server.server_state.tasks:
        await asyncio.sleep(0)


async def test_a_reader_who_comes_back_reads_every_frame_once(tmp_path):
    runner = Runner(app_name="app", agent=talker, session_service=SqliteSessionService(tmp_path / "s.db"))
    async with serving(runner, create_app(runner, CONFIG)) as (server, client):

        async def one(seed):
            chance = random.Random(f"cut {seed}")
            items = ("frames", "adk")[seed % 2]
            body = {"userId": f"user {seed % 3}", "sessionId": f"s{seed % 7}", "newMessage": f"seed {seed}"}
            at = (await client.post("/runs", json=body)).headers["location"]
            cuts = chance.randint(0, 6)

            def cut_after():
                nonlocal cuts
                cuts -= 1
                return chance.randint(1, 1500) if cuts >= 0 else None

            url = f"{at}/events?items={items}&userId=user {seed % 3}"
            source = EventSource(client, url, cut_after)
            told = [m.json() for m in await source.read()]
            assert source.status == 204
            whole = [m.json() for m in await EventSource(client, url).read()]
            if items == "frames":
                numbered = [f for f in told if "pos" in f]
                assert [f["pos"] for f in numbered] == list(range(1, len(numbered) + 1))
                assert numbered[-1]["kind"] in ("run.completed", "run.failed")
                assert numbered == [f for f in whole if "pos" in f]
            else:
                assert [e for e in told if not e.get("partial")] == [e for e in whole if not e.get("partial")]

        await in_rounds(one)
        await settle(runner, server)
        finished = (await runner.list_runs(limit=1000)).items
        assert len(finished) == ROUNDS
        assert {r.status for r in finished} == {RunStatus.COMPLETED, RunStatus.FAILED}
        assert runner.limiter.active == 0


async def test_attached_runs_of_clients_that_go_are_ended_and_free_their_slots():
    runner = Runner(app_name="app", agent=talker, max_concurrency=AT_ONCE)
    app = FastAPI()

    @app.get("/chat")
    async def chat(text: str, session: str):
        return sojourn.server.sse(runner.run("ann", session, text), config=CONFIG)

    async with serving(runner, app) as (server, client):

        async def one(seed):
            chance = random.Random(f"cut {seed}")
            left = chance.choice([0, 1, 300, 3000, 10**9])
            params = {"text": f"seed {seed}", "session": f"s{seed % 16}"}
            async with client.stream("GET", "/chat", params=params) as response:
                assert response.status_code == 200
                if left:
                    async for chunk in response.aiter_raw():
                        left -= len(chunk)
                        if left <= 0:
                            break

        await in_rounds(one)
        await settle(runner, server)
        finished = (await runner.list_runs(limit=1000)).items
        assert len(finished) == ROUNDS
        assert {r.status for r in finished} == {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}
        assert runner.limiter.active == 0


async def test_clients_of_adks_routes_that_go_leave_their_runs_to_themselves():
    runner = Runner(app_name="app", agent=talker)
    async with serving(runner, create_app(runner, CONFIG)) as (server, client):
        for n in range(7):
            await runner.get_session("ann", f"s{n}", create=True)

        async def one(seed):
            left = random.Random(f"cut {seed}").choice([0, 1, 300, 3000])
            body = {
                "appName": "app", "userId": "ann", "sessionId": f"s{seed % 7}", "streaming": True,
                "newMessage": {"role": "user", "parts": [{"text": f"seed {seed}"}]},
            }  # fmt: skip
            async with client.stream("POST", "/run_sse", json=body) as response:
                assert response.status_code == 200, await response.aread()
                async for chunk in response.aiter_raw():
                    left -= len(chunk)
                    if left <= 0:
                        break

        await in_rounds(one)
        await settle(runner, server)
        finished = (await runner.list_runs(limit=1000)).items
        assert len(finished) == ROUNDS
        assert {r.status for r in finished} == {RunStatus.COMPLETED, RunStatus.FAILED}
        assert runner.limiter.active == 0

"""Streams over a real socket, read by the readers that people use."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import httpx_sse
import openai
import pytest
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

import sojourn.server
from sojourn.agents.function import agent
from sojourn.event import Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.server.config import ServerConfig
from sojourn.server.framing import JsonLines
from sojourn.server.stream import StreamResponse
from sojourn.server.vocabulary import RunFrames
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.faults import FaultyStore, fail_before
from tests.server.eventsource import EventSource, Parser
from tests.server.serving import serve

pytestmark = pytest.mark.anyio

QUICK = ServerConfig(heartbeat=0.02, reconnect_after=0.0)


class Beats:
    """Middleware that opens when the app has sent two heartbeats in a row."""

    def __init__(self, app):
        self._app = app
        self.two = asyncio.Event()

    async def __call__(self, scope, receive, send):
        beats = 0

        async def counted(message):
            nonlocal beats
            if message["type"] == "http.response.body":
                beats = beats + 1 if message["body"] in (b": ping\n", b"\n") else 0
                if beats == 2:
                    self.two.set()
            await send(message)

        await self._app(scope, receive, counted)


def make_runner(target, **fields):
    return Runner(app_name="app", agent=target, **fields)


def poet(gate):
    """Says something, waits for the gate, and says more."""

    @agent
    async def poet(ctx):
        yield "Rosé "
        yield "is\u2028"
        await gate.wait()
        yield "red."
        yield Event(output={"done": True})
        if "fail" in ctx.user_content.text:
            raise ValueError("a secret of the code")
        if "ask" in ctx.user_content.text:
            yield f" {await ctx.ask('sure', 'Sure?', schema=bool)}"

    return poet


@asynccontextmanager
async def serving_poet(config=QUICK, **fields):
    beats = Beats(None)
    runner = make_runner(poet(beats.two), **fields)
    beats._app = create_app(runner, config)
    async with runner, serve(beats, lifespan="off") as url, httpx.AsyncClient(base_url=url) as client:
        yield runner, client


async def started(client, text, **more):
    response = await client.post("/runs", json={"userId": "ann", "sessionId": "s", "newMessage": text, **more})
    assert response.status_code == 201, response.text
    return response.headers["location"]


async def by_eventsource(client, url):
    return [(m.json(), m.last_event_id) for m in await EventSource(client, url).read()]


async def by_httpx_sse(client, url):
    items = []
    async with httpx_sse.aconnect_sse(client, "GET", url) as source:
        async for event in source.aiter_sse():
            items.append((event.json(), event.id))
    return items


async def by_openai(client, url):
    items = []
    async with openai.AsyncOpenAI(base_url=str(client.base_url), api_key="none", max_retries=0) as reader:
        stream = await reader.get(url, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object])
        async for event in stream._iter_events():
            items.append((event.json(), event.id))
    return items


async def by_lines(client, url):
    async with client.stream("GET", url, headers={"accept": "application/x-ndjson"}) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        return [(json.loads(line), None) async for line in response.aiter_lines() if line]


READERS = [by_eventsource, by_httpx_sse, by_openai, by_lines]


@pytest.mark.parametrize("read", READERS)
async def test_each_reader_reads_frames_between_heartbeats(read):
    async with serving_poet() as (runner, client):
        items = await read(client, await started(client, "Go") + "/events")
        told = [(item["kind"], item.get("pos")) for item, _ in items]
        assert [kind for kind in told if kind[1]] == [
            ("run.started", 1),
            ("event", 2),
            ("event", 3),
            ("run.completed", 4),
        ]
        pieces = [item["event"]["content"]["parts"][0]["text"] for item, _ in items if item["kind"] == "partial"]
        assert "".join(pieces) == "Rosé is\u2028red."
        assert len(pieces) >= 2
        final = next(item["event"] for item, _ in items if item["kind"] == "event")
        assert final["content"]["parts"] == [{"text": "Rosé is\u2028red."}]
        assert {item["event"]["id"] for item, _ in items if item["kind"] == "partial"} == {final["id"]}
        if read is not by_lines:
            last = ""
            for item, ident in items:
                last = str(item["pos"]) if "pos" in item else last
                assert (ident or "") == last


@pytest.mark.parametrize("read", READERS)
async def test_each_reader_reads_adks_events(read):
    async with serving_poet() as (runner, client):
        items = [item for item, _ in await read(client, await started(client, "Go") + "/events?items=adk")]
        assert all("error" not in item and item["author"] == "poet" for item in items)
        whole = [item for item in items if not item.get("partial")]
        assert [(item["pos"], item.get("output")) for item in whole] == [(2, None), (3, {"done": True})]


async def test_openais_reader_raises_the_error_of_a_run():
    async with serving_poet() as (runner, client):
        url = await started(client, "fail") + "/events?items=adk"
        async with openai.AsyncOpenAI(base_url=str(client.base_url), api_key="none", max_retries=0) as reader:
            stream = await reader.get(url, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object])
            with pytest.raises(openai.APIError, match="An error occurred"):
                async for _ in stream:
                    pass


async def test_the_headers_of_a_stream():
    async with serving_poet() as (runner, client):
        url = await started(client, "Go")
        headers = {"accept-encoding": "gzip", "accept": "text/event-stream"}
        async with client.stream("GET", url + "/events", headers=headers) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-cache, no-transform"
            assert response.headers["x-accel-buffering"] == "no"
            assert response.headers["x-run-id"] == url.rpartition("/")[2]
            assert "connection" not in response.headers
            assert "content-encoding" not in response.headers
            assert "content-length" not in response.headers
            assert b"run.completed" in await response.aread()


@pytest.mark.parametrize("items", ["frames", "adk"])
async def test_a_failure_is_one_coded_item_and_no_stack_trace(items):
    async with serving_poet() as (runner, client):
        url = await started(client, "fail") + f"/events?items={items}"
        source = EventSource(client, url)
        messages = await source.read()
        assert source.status == 204
        errors = [m for m in messages if "error" in m.json()]
        assert [m.last_event_id for m in errors] == ["4"]
        assert errors == messages[-1:]
        error = errors[0].json() if items == "adk" else errors[0].json()["error"]
        assert (error["code"], error["retryable"]) == ("agent.failed", False)
        whole = "".join(m.data for m in messages)
        assert "a secret of the code" not in whole
        assert "Traceback" not in whole


async def test_a_stream_of_a_run_that_waits_says_so_and_is_not_read_again():
    async with serving_poet() as (runner, client):
        url = await started(client, "ask")
        source = EventSource(client, url + "/events")
        kinds = [m.json()["kind"] for m in await source.read()]
        assert kinds[-2:] == ["interrupt", "run.waiting"]
        assert kinds.count("run.waiting") == 1
        assert (source.connections, source.status) == (2, 204)
        asked = (await client.get(url + "/interrupts")).json()["items"]
        assert (await client.get(url + "/events?items=adk&after=4")).status_code == 204
        await client.post(f"{url}/interrupts/{asked[0]['id']}:answer", json={"answer": True})
        # The same reader, come back, is told the rest.
        kinds = [m.json()["kind"] for m in await source.read()]
        assert [kind for kind in kinds if kind != "partial"] == ["event", "run.completed"]


async def test_a_reader_comes_in_the_middle_of_a_message_and_gets_it_joined():
    gate, written = asyncio.Event(), asyncio.Event()

    @agent
    async def writer(ctx):
        for piece in "abcdef":
            yield piece
        written.set()
        await gate.wait()
        yield "g"

    runner = make_runner(writer)
    async with runner, serve(create_app(runner, QUICK), lifespan="off") as url, httpx.AsyncClient(base_url=url) as client:
        at = await started(client, "Go")
        await written.wait()
        reading = asyncio.create_task(by_eventsource(client, at + "/events?after=1"))
        async with client.stream("GET", at + "/events?after=1") as response:
            async for _ in response.aiter_raw():
                break
        gate.set()
        pieces = [item["event"]["content"]["parts"][0]["text"] for item, _ in await reading if item["kind"] == "partial"]
        assert "".join(pieces) == "abcdefg"
        assert pieces[-1] == "g"


async def test_a_stream_without_pieces_has_whole_events():
    async with serving_poet() as (runner, client):
        for url in (
            await started(client, "Go") + "/events?partials=false",
            await started(client, "Go", runConfig={"streamingMode": "none"}) + "/events",
        ):
            kinds = [item["kind"] for item, _ in await by_eventsource(client, url)]
            assert kinds == ["run.started", "event", "event", "run.completed"]


# -- the store ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", ["frames", "adk"])
async def test_a_store_that_goes_away_is_told_in_the_stream_and_the_run_can_be_read_later(items, monkeypatch):
    monkeypatch.setattr("sojourn.runner.attempt.log.APPEND_RETRIES", (0.0,))
    monkeypatch.setattr("sojourn.runner.delivery.records.CLOSE_RETRY_SECONDS", (0.0, 0.01))
    store = FaultyStore(InMemorySessionService())
    said, gate = asyncio.Event(), asyncio.Event()

    @agent
    async def writer(ctx):
        yield Event(output=1)
        said.set()
        await gate.wait()
        yield Event(output=2)

    runner = make_runner(writer, session_service=store)
    async with runner, serve(create_app(runner, QUICK), lifespan="off") as url, httpx.AsyncClient(base_url=url) as client:
        at = await started(client, "Go")
        await said.wait()
        async with client.stream("GET", f"{at}/events?items={items}", headers={"accept": "application/x-ndjson"}) as response:
            assert response.status_code == 200
            lines = response.aiter_lines()
            first = json.loads(await anext(line async for line in lines if line))
            store.plan.append(fail_before())
            gate.set()
            rest = [json.loads(line) async for line in lines if line]
        error = rest[-1] if items == "adk" else rest[-1]["error"]
        assert (error["code"], error["retryable"]) == ("store.unavailable", True)
        assert "pos" not in rest[-1]
        refused = await client.get(f"{at}/events")
        assert (refused.status_code, refused.json()["code"]) == (503, "store.unavailable")
        store.plan.clear()
        run = await runner.follow(at.rpartition("/")[2])
        assert (await run.wait()).status is RunStatus.FAILED
        again = [item for item, _ in await by_eventsource(client, f"{at}/events")]
        assert [item["kind"] for item in again] == ["run.started", "event", "run.failed"]
        assert first in again or items == "adk"


# -- in one's own handler -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def own_app(runner, **options):
    """An app of somebody else's, which has no handlers for our errors."""
    app = FastAPI()

    @app.get("/chat")
    async def chat(text: str, session: str = "s", create: bool = True):
        stream = runner.run("ann", session, text, create_session=create)
        return sojourn.server.sse(stream, config=QUICK, headers={"x-mine": "1"}, **options)

    @app.get("/lines")
    async def lines(text: str):
        return sojourn.server.ndjson(await runner.start("ann", "s", text), items="frames", config=QUICK)

    async with runner, serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


@agent
async def echo(ctx):
    yield "You said: "
    yield ctx.user_content.text
    if "ask" in ctx.user_content.text:
        await ctx.ask("sure", "Sure?")


async def test_a_handler_of_ones_own_streams_an_attached_run():
    async with own_app(make_runner(echo)) as client:
        response = await client.get("/chat", params={"text": "Hi"})
        assert (response.status_code, response.headers["x-mine"]) == (200, "1")
        events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data:")]
        assert "".join(e["content"]["parts"][0]["text"] for e in events if e.get("partial")) == "You said: Hi"
        assert events[-1]["content"]["parts"] == [{"text": "You said: Hi"}]
        assert "retry:" not in response.text


async def test_a_handler_of_ones_own_streams_lines():
    async with own_app(make_runner(echo)) as client:
        response = await client.get("/lines", params={"text": "Hi"})
        frames = [json.loads(line) for line in response.text.splitlines() if line]
        assert [f["kind"] for f in frames if "pos" in f] == ["run.started", "event", "run.completed"]


async def test_a_run_that_cannot_be_started_is_answered_as_a_problem():
    async with own_app(make_runner(echo)) as client:
        for params, status, code in (
            ({"text": ""}, 400, "message.invalid"),
            ({"text": "Hi", "session": "\0"}, 400, "id.invalid"),
            ({"text": "Hi", "session": "new", "create": False}, 404, "session.not_found"),
        ):
            response = await client.get("/chat", params=params)
            assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
            assert response.json()["code"] == code


async def test_a_full_queue_and_a_busy_session_are_answered_before_the_stream():
    begun, gate = asyncio.Event(), asyncio.Event()

    @agent
    async def slow(ctx):
        begun.set()
        await gate.wait()
        yield "Done."

    runner = make_runner(slow, max_concurrency=1, max_queue=0, run_config=RunConfig(when_busy="reject"))
    async with own_app(runner) as client:
        first = asyncio.create_task(client.get("/chat", params={"text": "Hi"}))
        await begun.wait()
        full = await client.get("/chat", params={"text": "Hi", "session": "other"})
        assert (full.status_code, full.json()["code"]) == (429, "limit.queue_full")
        assert int(full.headers["retry-after"]) >= 1
        gate.set()
        assert (await first).status_code == 200
    begun.clear()
    gate.clear()
    runner = make_runner(slow, run_config=RunConfig(when_busy="reject"))
    async with own_app(runner) as client:
        first = asyncio.create_task(client.get("/chat", params={"text": "Hi"}))
        await begun.wait()
        busy = await client.get("/chat", params={"text": "Hi"})
        assert (busy.status_code, busy.json()["code"]) == (409, "session.busy")
        gate.set()
        assert (await first).status_code == 200


async def test_an_attached_run_ends_with_its_client_and_a_waiting_one_stays():
    ended = asyncio.Event()

    @agent
    async def endless(ctx):
        try:
            while True:
                yield "on and on "
                await asyncio.sleep(0)
        finally:
            ended.set()

    runner = make_runner(endless)
    async with own_app(runner) as client:
        async with client.stream("GET", "/chat", params={"text": "Hi"}) as response:
            async for _ in response.aiter_raw():
                break
        await ended.wait()
        (record,) = (await runner.list_runs()).items
        run = await runner.follow(record.id)
        assert (await run.wait()).status is RunStatus.CANCELLED
    runner = make_runner(echo)
    async with own_app(runner) as client:
        response = await client.get("/chat", params={"text": "ask"})
        assert response.status_code == 200
        (record,) = (await runner.list_runs()).items
        assert record.status is RunStatus.WAITING


# -- restarts -----------------------------------------------------------------------------------------------------------


async def test_a_reader_goes_on_where_it_was_when_the_server_has_been_restarted(tmp_path):
    gate = asyncio.Event()

    @agent
    async def counter(ctx):
        for n in range(5):
            await ctx.step(f"step {n}", done)
            yield Event(output=n)
            if n == 2:
                await gate.wait()

    async def done():
        return True

    @asynccontextmanager
    async def served():
        store = SqliteSessionService(tmp_path / "s.db")
        runner = make_runner(counter, session_service=store)
        async with runner, serve(create_app(runner, QUICK), lifespan="off") as url, httpx.AsyncClient(base_url=url) as client:
            yield runner, client
        await store.close()

    parser, told = Parser(), []
    async with served() as (runner, client):
        at = await started(client, "Go")
        async with client.stream("GET", at + "/events") as response:
            async for chunk in response.aiter_raw():
                told += parser.feed(chunk)
                if len(told) == 4:
                    closing = asyncio.create_task(runner.close(grace=0))
        await closing
    assert told.pop().json()["error"]["code"] == "run.suspended"
    gate.set()
    async with served() as (runner, client):
        source = EventSource(client, at + "/events")
        source.parser = parser
        told += await source.read()
        frames = [m.json() for m in told]
        assert [f["pos"] for f in frames] == list(range(1, len(frames) + 1))
        assert [f["event"]["output"] for f in frames if f["kind"] == "event"] == [0, 1, 2, 3, 4]
        assert (frames[0]["kind"], frames[-1]["kind"]) == ("run.started", "run.completed")


# -- what goes wrong while streaming ------------------------------------------------------------------------------------


async def call(response, *, send=None, receive=None, extensions=None):
    """What a response sends."""
    sent = []

    async def keep(message):
        sent.append(message)
        if send is not None:
            await send(message)

    await response({"type": "http", "extensions": extensions or {}}, receive or asyncio.Event().wait, keep)
    return sent


async def test_a_bug_after_the_status_is_told_without_what_it_is(caplog):
    class Broken(RunFrames):
        def item(self, item):
            if item.pos == 2:
                raise ValueError("a secret of the code")
            return super().item(item)

    async with make_runner(echo) as runner:
        run = await runner.start("ann", "s", "Hi")
        await run.wait()
        sent = await call(StreamResponse(run, Broken(), JsonLines(), ServerConfig()))
        items = [json.loads(line) for message in sent[1:] for line in message["body"].splitlines()]
        assert items[-1] == {
            "kind": "error",
            "error": {"code": "internal", "message": "the server failed; its log says why", "retryable": False},
        }
        assert [message["more_body"] for message in sent[1:]][-1] is False
        assert "a secret of the code" in caplog.text


async def test_a_server_that_refuses_to_send_ends_the_stream_quietly():
    async def gone(message):
        if message["type"] == "http.response.body":
            raise OSError("the client has gone")

    async with make_runner(echo) as runner:
        stream = runner.run("ann", "s", "Hi")
        sent = await call(sojourn.server.sse(stream), send=gone)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert (await stream.run.wait()).status.terminal


async def test_the_end_of_the_task_that_streams_ends_an_attached_run():
    begun = asyncio.Event()

    @agent
    async def endless(ctx):
        begun.set()
        await asyncio.Event().wait()

    async with make_runner(endless) as runner:
        stream = runner.run("ann", "s", "Hi")
        task = asyncio.create_task(call(sojourn.server.sse(stream)))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stream.run.status is RunStatus.CANCELLED


async def test_a_stream_of_events_is_started_once_and_not_after_its_end():
    async with make_runner(echo) as runner:
        stream = runner.run("ann", "s", "Hi")
        run = await stream.start()
        assert await stream.start() is run is stream.run
        assert "".join([item.delta async for item in stream]) == "You said: Hi"
        closed = runner.run("ann", "s", "Hi")
        await closed.aclose()
        with pytest.raises(RuntimeError):
            await closed.start()
        left = runner.run("ann", "s", "Hi")
        run = await left.start()
        await left.aclose()
        assert run.status.terminal
        assert len((await runner.list_runs()).items) == 2


@pytest.mark.parametrize("middleware", ["http", "cors"])
async def test_streams_pass_through_the_middleware_of_ones_own_app(middleware):
    runner = make_runner(echo)
    app = FastAPI()

    @app.get("/chat")
    async def chat(text: str):
        return sojourn.server.sse(runner.run("ann", "s", text), config=QUICK)

    if middleware == "http":

        @app.middleware("http")
        async def marked(request, call_next):
            response = await call_next(request)
            response.headers["x-passed"] = "1"
            return response
    else:
        app.add_middleware(CORSMiddleware, allow_origins=["*"])
        app.add_middleware(GZipMiddleware, minimum_size=1)
    async with runner, serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.get("/chat", params={"text": "Hi"}, headers={"accept-encoding": "gzip", "origin": "http://a"})
        assert "You said: " in response.text
        assert "content-encoding" not in response.headers
        refused = await client.get("/chat", params={"text": ""})
        assert refused.json()["code"] == "message.invalid"

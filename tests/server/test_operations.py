"""What orchestrators and operators ask a server, and what its log says."""

import asyncio
import io
import json
import logging
import subprocess
import sys

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.errors import Unauthorized
from sojourn.runner.runner import Runner
from sojourn.server import Principal, ServerConfig, create_app
from sojourn.server.operations import metrics as metrics_module
from sojourn.server.operations import probes, stores
from sojourn.server.operations.logs import logging_to
from sojourn.server.operations.stores import FAILED_SECONDS
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.faults import FaultyStore, fail_before
from tests.server.identity import client_of
from tests.server.serving import serve

pytestmark = pytest.mark.anyio


@agent
async def helper(ctx):
    match ctx.user_content.text:
        case "ask":
            await ctx.ask("q", "?")
        case "fail":
            raise ValueError("the password is 1234")
        case "hang":
            yield "one"
            await asyncio.Event().wait()
    logging.getLogger("mine").info("thinking")
    yield "done"


def served(store=None, agent=helper, **config):
    runner = Runner(app_name="app", agent=agent, session_service=store or InMemorySessionService())
    return runner, create_app(runner, ServerConfig(**config))


def body(text, user="alice", session="s1"):
    return {"appName": "app", "userId": user, "sessionId": session, "newMessage": {"role": "user", "parts": [{"text": text}]}}


async def sse(client, text, session="s1"):
    await client.post(f"/apps/app/users/alice/sessions/{session}")
    return await client.post("/run_sse", json=body(text, session=session))


class ByHeader:
    """Believes a header; for tests."""

    needs_loopback = False
    schemes = {}

    async def authenticate(self, connection):
        user = connection.headers.get("x-user")
        if user is None:
            raise Unauthorized("who?", code="auth.missing")
        return Principal(user, admin=user == "root")


def read_metrics(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# -- probes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/health", "/readyz"])
async def test_a_server_that_is_well_says_so_to_anybody(path):
    runner, app = served(auth=ByHeader())
    async with runner, client_of(app) as client:
        response = await client.get(path)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_the_version():
    _, app = served()
    async with client_of(app) as client:
        told = (await client.get("/version")).json()
    assert told == {
        "version": probes.VERSION,
        "language": "python",
        "language_version": ".".join(map(str, sys.version_info[:3])),
    }


async def test_a_server_without_its_store_is_alive_but_not_ready():
    store = FaultyStore(InMemorySessionService(), [fail_before("get_run", 1)])
    runner, app = served(store)
    async with client_of(app) as client:
        away = await client.get("/readyz")
        assert (away.status_code, away.json()["code"]) == (503, "store.unavailable")
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
    await runner.close()


async def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch):
    class Stuck(InMemorySessionService):
        async def get_run(self, *args):
            await asyncio.Event().wait()

    monkeypatch.setattr(stores, "READY_SECONDS", 0.01)
    _, app = served(Stuck())
    async with client_of(app) as client:
        response = await client.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "store.unavailable")


async def test_a_server_that_cannot_store_anything_is_not_ready_for_a_while():
    store = FaultyStore(InMemorySessionService())
    with platform.use(clock := ManualPlatform()):
        runner, app = served(store)
        async with client_of(app) as client:

            async def is_ready():
                response = await client.get("/readyz")
                assert response.status_code == 200 or response.json()["code"] == "store.unavailable"
                return response.status_code == 200

            async def say(session="s1"):
                return (
                    await client.post("/runs", json={"userId": "ann", "sessionId": session, "newMessage": "hi"})
                ).status_code

            store.plan = [fail_before("submit", number) for number in range(1, 100)]
            assert (await say(), await is_ready()) == (503, False)
            clock.advance(FAILED_SECONDS)
            # Who is sent nothing would never see whether it is well again.
            assert await is_ready()
            assert (await say(), await is_ready()) == (503, False)
            store.plan.clear()
            # What a store refuses says nothing about what it can store.
            missing = await client.post("/run", json=body("hi", session="none"))
            assert (missing.status_code, await is_ready()) == (404, False)
            assert (await say(), await is_ready()) == (201, True)
            missing = await client.post("/run", json=body("hi", session="none"))
            assert (missing.status_code, await is_ready()) == (404, True)
        await runner.close()


async def test_each_store_is_asked_and_what_one_stores_says_nothing_of_another():
    broken = FaultyStore(InMemorySessionService(), [fail_before("submit", number) for number in range(1, 100)])
    runners = [Runner(app_name=name, agent=helper, session_service=store) for name, store in
               (("one", broken), ("two", InMemorySessionService()))]  # fmt: skip
    async with client_of(create_app(runners)) as client:
        for name, status in (("one", 503), ("two", 201)):
            response = await client.post("/runs", json={"appName": name, "userId": "ann", "newMessage": "hi"})
            assert response.status_code == status
        assert (await client.get("/readyz")).status_code == 503
    for runner in runners:
        await runner.close()


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/version"])
async def test_a_probe_may_leave_out_the_answer(path):
    _, app = served()
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        whole, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/livez", "GET, HEAD"),
        ("/runs", "GET, POST"),
        ("/runs/r:cancel", "GET, POST"),
        ("/apps/app/users/ann/sessions/s", "DELETE, GET, PATCH, POST"),
    ],
)
async def test_a_method_that_there_is_not_is_told_with_those_that_there_are(path, allowed):
    _, app = served()
    async with client_of(app) as client:
        response = await client.put(path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert response.json()["code"] == "route.method_not_allowed"


async def test_a_server_that_ends_is_not_ready():
    _, app = served()
    async with client_of(app) as client:
        app.state.serving.draining = True
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["code"]) == (503, "server.draining")
        assert (await client.get("/livez")).status_code == 200


async def test_a_server_that_ends_starts_nothing_and_sends_elsewhere():
    _, app = served()
    async with client_of(app) as client:
        run = (await client.post("/runs", json=body("hi"))).json()
        await app.state.serving.drain(0)
        response = await client.post("/runs", json=body("hi"))
        assert (response.status_code, response.json()["code"]) == (503, "server.draining")
        assert response.json()["retryable"] is True
        assert (await client.get(f"/runs/{run['id']}")).status_code == 200


# -- metrics ------------------------------------------------------------------------------------------------------------


async def test_metrics_count_what_happens():
    runner, app = served()
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.post("/run", json=body("hi", session="none"))).status_code == 404
        for n, text in enumerate(["hi", "fail", "ask"]):
            await sse(client, text, f"s{n}")
        await client.post("/apps/app/users/alice/sessions/s9")
        async with client.stream("POST", "/run_sse", json={**body("hang", session="s9"), "streaming": True}) as stream:
            async for _ in stream.aiter_lines():
                break
            second = await client.post("/runs", json=body("hi", session="s9"))
            assert second.status_code == 201
            response = await client.get("/metrics")
            found = read_metrics(response.text)
            # Ends what hangs, whatever becomes of its reader.
            for record in (await runner.list_runs(session_id="s9")).items:
                await runner.cancel(record.id)
        assert (await client.get("/nowhere/alice")).status_code == 404
        later = read_metrics((await client.get("/metrics")).text)
    app_ = ("app", "app")
    assert response.headers["content-type"].startswith("text/plain")
    runs = {status: found["sojourn_runs", app_, ("status", status)] for status in ("running", "queued", "waiting", "abandoned")}
    assert runs == {"running": 1, "queued": 1, "waiting": 1, "abandoned": 0}
    ended = {s: found["sojourn_runs_ended_total", app_, ("status", s)] for s in ("completed", "failed", "waiting", "cancelled")}
    assert ended == {"completed": 1, "failed": 1, "waiting": 1, "cancelled": 0}
    assert found["sojourn_run_seconds_count", app_] == 3
    assert found["sojourn_queue_seconds_count", app_] == 4
    assert found["sojourn_events_total", app_] == 2
    assert found["sojourn_store_seconds_count", app_, ("operation", "submit")] == 6
    assert found["sojourn_store_errors_total", app_, ("operation", "append")] == 0
    assert found["sojourn_store_errors_total", app_, ("operation", "submit")] == 0  # no session: the store is well
    assert found["sojourn_open_streams",] == 1
    assert found["sojourn_streamed_bytes_total",] > 100
    requests = ("sojourn_http_request_seconds_count", ("method", "POST"), ("route", "/run_sse"), ("status", "200"))
    assert found[requests] == 3
    assert later["sojourn_open_streams",] == 0
    assert later["sojourn_http_request_seconds_count", ("method", "GET"), ("route", "(none)"), ("status", "404")] == 1
    assert found["process_resident_memory_bytes",] > 0


async def test_bytes_are_counted_whatever_letters_are_said():
    @agent
    async def singer(ctx):
        yield "ß" * 10_000

    runner, app = served(agent=singer)
    await runner.create_session("ann", "s")
    async with serve(app) as url, connect(f"{url.replace('http', 'ws')}/run_live?user_id=ann&session_id=s") as websocket:
        sent = [message async for message in websocket]
    assert app.state.metrics.streamed_bytes == sum(len(message.encode()) for message in sent) > 20_000


async def test_labels_are_no_ids():
    _, app = served()
    async with serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        for user in ("the-user", "another-user"):
            run = (await client.post("/runs", json=body("hi", user, "the-session"))).json()
            await client.get(f"/runs/{run['id']}/events")
            await client.get(f"/apps/app/users/{user}/sessions/the-session")
            await client.request("BREW", f"/{user}")
        told = (await client.get("/metrics")).text
    for secret in ("the-user", "another-user", "the-session", run["id"], "BREW"):
        assert secret not in told
    assert 'route="/apps/{' in told


async def test_runs_that_wait_are_not_counted_at_each_scrape(monkeypatch):
    reads = 0

    class Counting(InMemorySessionService):
        async def list_runs(self, *args, **options):
            nonlocal reads
            reads += 1
            return await super().list_runs(*args, **options)

    runner, app = served(Counting())
    run = await runner.start("alice", "s1", "ask")
    await run.wait()
    now = 1000.0
    monkeypatch.setattr(metrics_module.platform, "monotonic", lambda: now)
    async with client_of(app) as client:
        for _ in range(5):
            found = read_metrics((await client.get("/metrics")).text)
            assert found["sojourn_runs", ("app", "app"), ("status", "waiting")] == 1
        assert reads == 1
        now += metrics_module.WAITING_SECONDS
        await client.get("/metrics")
        assert reads == 2
    await runner.close()


async def test_each_app_has_metrics_of_its_own():
    one, two = served()[1], served()[1]
    async with client_of(one) as client:
        await client.get("/livez")
    async with client_of(two) as client:
        assert 'route="/livez"' not in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("config", "user", "status"),
    [
        ({}, None, 200),
        ({"auth": ByHeader()}, None, 401),
        ({"auth": ByHeader()}, "alice", 403),
        ({"auth": ByHeader()}, "root", 200),
        ({"auth": ByHeader(), "public_metrics": True}, None, 200),
    ],
)
async def test_metrics_are_for_operators(config, user, status):
    _, app = served(**config)
    async with client_of(app, headers={"x-user": user} if user else {}) as client:
        assert (await client.get("/metrics")).status_code == status


def test_without_a_server_nothing_is_counted():
    script = "import sys, sojourn; from sojourn import Runner; assert 'prometheus_client' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


# -- logs ---------------------------------------------------------------------------------------------------------------


class Log:
    def __init__(self, format):
        self._stream = io.StringIO()
        self._logging = logging_to(self._stream, format=format)

    def __enter__(self):
        self._logging.__enter__()
        return self

    def __exit__(self, *exc):
        self._logging.__exit__(*exc)

    @property
    def text(self):
        return self._stream.getvalue()

    @property
    def lines(self):
        return [json.loads(line) for line in self.text.splitlines()]


async def test_each_line_says_what_it_is_about():
    _, app = served(auth=ByHeader())
    headers = {"x-user": "alice", "x-request-id": "req-1"}
    with Log("json") as log:
        async with serve(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
            response = await sse(client, "hi")
    run_id = response.headers["x-run-id"]
    ids = {"request_id": "req-1", "user_id": "alice", "run_id": run_id}
    by_message = {line["message"]: line for line in log.lines}
    access = by_message["POST /run_sse 200"]
    assert access.items() >= {**ids, "level": "info", "logger": "sojourn.access", "status": 200, "method": "POST"}.items()
    assert 0 <= access["seconds"] < 30
    for message in ("run started", "run completed", "thinking"):
        assert by_message[message].items() >= {**ids, "app_name": "app", "session_id": "s1", "attempt": 1}.items()
    assert by_message["run completed"]["status"] == "completed"


async def test_a_request_is_said_to_be_about_what_it_names():
    _, app = served()
    with Log("json") as log:
        async with client_of(app) as client:
            run = (await client.post("/runs", json=body("ask"))).json()
            await client.get(f"/runs/{run['id']}/interrupts")
            await client.get("/apps/app/users/alice/sessions/s1")
    access = {line["method"] + " " + line["path"]: line for line in log.lines if line["logger"] == "sojourn.access"}
    ids = {"session_id": "s1", "run_id": run["id"]}
    assert access["POST /runs"].items() >= {"user_id": "alice", **ids}.items()
    assert access[f"GET /runs/{run['id']}/interrupts"].items() >= ids.items()
    assert access["GET /apps/app/users/alice/sessions/s1"].items() >= {"user_id": "alice", "session_id": "s1"}.items()


@pytest.mark.parametrize("format", ["text", "json"])
async def test_nobody_writes_log_lines_of_their_own(format):
    _, app = served(auth=ByHeader())
    with Log(format) as log:
        async with client_of(app, headers={"x-user": "ann  request_id=forged"}) as client:
            for path in ("/a%0A2027-01-01 ERROR sojourn: forged", "/a%0D%1B%5B2J%C2%9B2J%E2%80%A8b", "/list-apps"):
                await client.get(path)
        logging.getLogger("app").warning("half a character: %s", "\ud83d")
    assert len(log.text.splitlines()) == 4
    assert all(c == "\n" or c.isprintable() for c in log.text)
    assert "\\u000a2027" in log.text if format == "text" else log.lines[0]["path"].startswith("/a\n2027")
    assert format == "json" or ' user_id="ann  request_id=forged"' in log.text


async def test_the_line_of_an_operators_request_names_the_operator():
    _, app = served(auth=ByHeader())
    with Log("json") as log:
        async with client_of(app, headers={"x-user": "root"}) as client:
            await client.post("/runs", json=body("hi"))
    [line] = [line for line in log.lines if line["logger"] == "sojourn.access"]
    assert (line["user_id"], line["session_id"]) == ("root", "s1")


async def test_each_request_has_a_line_also_if_it_is_refused():
    _, app = served(auth=ByHeader())
    with Log("json") as log:
        async with client_of(app) as client:
            await client.get("/list-apps")
            await client.get("/list-apps", headers={"host": "evil.example.com"})
            await client.get("/livez")
    assert [line["message"] for line in log.lines if line["logger"] == "sojourn.access"] == [
        "GET /list-apps 401",
        "GET /list-apps 403",
    ]


async def test_the_log_tells_no_secrets():
    _, app = served(auth=ByHeader())
    with Log("json") as log:
        headers = {"x-user": "alice", "authorization": "Bearer the-token", "cookie": "the-cookie"}
        async with client_of(app, headers=headers) as client:
            await client.get("/list-apps?token=the-query")
            await client.post("/runs", json=body("the-message"))
    assert log.text
    for secret in ("the-token", "the-cookie", "the-query", "the-message"):
        assert secret not in log.text


async def test_text_for_people():
    _, app = served()
    with Log("text") as log:
        async with client_of(app) as client:
            await client.get("/list-apps", headers={"x-request-id": "req-1"})
    [line] = log.text.splitlines()
    assert " INFO sojourn.access: GET /list-apps 200  request_id=req-1 status=200 seconds=" in line


def test_a_failure_is_logged_with_its_traceback():
    with Log("json") as log:
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("sojourn.server").exception("it failed")
    [line] = log.lines
    assert line["exception"].endswith("ValueError: broken")


def test_what_was_set_up_for_logging_comes_back():
    root, mine = logging.getLogger(), logging.NullHandler()
    root.addHandler(mine)
    before = root.handlers[:], root.level
    with Log("json"):
        assert mine not in root.handlers
    assert (root.handlers, root.level) == before
    root.removeHandler(mine)


# -- traces -------------------------------------------------------------------------------------------------------------


async def test_a_request_and_its_run_belong_to_the_callers_trace(monkeypatch):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    _, app = served()
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    async with serve(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        await sse(client, "hi")
        await client.get("/livez")
    assert "GET /livez" not in [span.name for span in exporter.get_finished_spans()]
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request, run = spans["POST /run_sse"], spans["invoke_agent helper"]
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert run.parent.span_id == request.context.span_id
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {"0af7651916cd43dd8448eb211c80319c"}

"""What stands before all routes: hosts, origins, bodies, request ids, security headers."""

import asyncio
import json
import math
import re

import httpx
import pytest

from sojourn import platform
from sojourn.errors import InvalidInput, LimitExceeded, Unavailable
from sojourn.run.types import RunError
from sojourn.server import ApiKeyAuth, KeyFile, NoAuth, ServerConfig, check_bind
from sojourn.server.problems import problem_of
from sojourn.server.vocabulary import AdkEvents, RunFrames
from sojourn.testing.loop import for_seeds
from tests.server.identity import bearer, client_of, who_app
from tests.server.serving import serve

pytestmark = pytest.mark.anyio


def app_of(**config):
    app = who_app(config.pop("auth", NoAuth()), **config)

    @app.post("/change")
    async def change(body: dict):
        return {"size": len(str(body))}

    @app.get("/fails")
    async def fails():
        raise ZeroDivisionError("a secret")

    return app


def code_of(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:sojourn:error:{answer.json()['code']}"
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.json()["code"]


# -- hosts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost", None),
        ("LOCALHOST:8000", None),
        ("127.0.0.1:8000", None),
        ("[::1]:8000", None),
        ("evil.example.com", "host.not_allowed"),
        ("localhost.evil.example.com", "host.not_allowed"),
        ("evil.example.com:localhost", "host.not_allowed"),
        ("localhost@evil.example.com", "host.not_allowed"),
        ("localhost.", "host.not_allowed"),
        ("[::1", "host.not_allowed"),
        ("127.0.0.1.nip.io", "host.not_allowed"),
        ("0.0.0.0", "host.not_allowed"),
        ("", "host.invalid"),
    ],
)
async def test_a_page_whose_name_points_here_is_refused(host, code):
    async with client_of(app_of()) as client:
        for path in ("/who?x=1", "/openapi.json", "/nowhere"):
            answer = await client.get(path, headers={"Host": host})
            if code is None:
                assert answer.status_code in (200, 404)
            else:
                assert code_of(answer) == (400 if code == "host.invalid" else 403, code)


async def test_a_host_is_named_once():
    app = app_of()
    async with serve(app) as url:
        port = int(url.rpartition(":")[2])
        for request in (
            b"GET /who HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\nConnection: close\r\n\r\n",
            b"GET /who HTTP/1.0\r\n\r\n",
        ):
            assert b'"code": "host.invalid"' in await exchange(port, request)


async def test_hosts_can_be_allowed():
    async with client_of(app_of(allowed_hosts=("agents.example.com", "*.internal"))) as client:
        hosts = {"agents.example.com": 200, "a.b.internal:80": 200, "internal": 403, "xinternal": 403, "localhost": 403}
        assert {host: (await client.get("/who", headers={"Host": host})).status_code for host in hosts} == hosts
    async with client_of(app_of(allowed_hosts=("*",))) as client:
        assert (await client.get("/who", headers={"Host": "anything"})).status_code == 200


# -- origins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost", True),
        ("https://localhost", True),  # a proxy ends TLS
        ("http://localhost:3000", False),
        ("https://evil.example.com", False),
        ("null", False),
        ("", False),
        ("localhost", False),
        ("http://localhost.evil.example.com", False),
        ("http://evil.example.com/http://localhost", False),
    ],
)
async def test_a_page_of_another_origin_changes_nothing(origin, allowed):
    async with client_of(app_of()) as client:
        headers = {"Origin": origin} if origin is not None else {}
        answer = await client.post("/change", json={}, headers=headers)
        assert answer.status_code == 200 if allowed else code_of(answer) == (403, "origin.not_allowed")
        assert not any(name.startswith("access-control-") for name in answer.headers)
        # What only reads is answered: without CORS, the browser does not show it to the page.
        answer = await client.get("/who", headers=headers)
        assert answer.status_code == 200
        assert not any(name.startswith("access-control-") for name in answer.headers)


async def test_cors_is_off_unless_origins_are_allowed():
    asked = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "POST"}
    async with client_of(app_of()) as client:
        assert code_of(await client.options("/change", headers=asked)) == (405, "route.method_not_allowed")
    async with client_of(app_of(allowed_origins=("https://app.example.com",))) as client:
        answer = await client.options(
            "/change", headers={**asked, "Access-Control-Request-Headers": "x-api-key, last-event-id"}
        )
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
        assert "access-control-allow-credentials" not in answer.headers
        answer = await client.options("/change", headers={**asked, "Origin": "https://evil.example.com"})
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers
        for path, status in (("/change", 200), ("/nowhere", 404), ("/who", 405)):
            answer = await client.post(path, json={}, headers={"Origin": "https://app.example.com"})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://app.example.com"  # errors can be read, too
            assert {"X-Request-Id", "Link", "Retry-After"} <= set(answer.headers["access-control-expose-headers"].split(", "))
        answer = await client.post("/change", json={}, headers={"Origin": "https://evil.example.com"})
        assert code_of(answer) == (403, "origin.not_allowed")
        assert "access-control-allow-origin" not in answer.headers
    async with client_of(app_of(allowed_origins=("*",))) as client:
        answer = await client.post("/change", json={}, headers={"Origin": "https://anything.example.com"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "config",
    [
        {"allowed_hosts": ("https://agents.example.com",)},
        {"allowed_hosts": ("agents.example.com:80",)},
        {"allowed_hosts": ("",)},
        {"allowed_hosts": ("*agents",)},
        {"allowed_origins": ("app.example.com",)},
        {"allowed_origins": ("https://app.example.com/",)},
        {"allowed_origins": ("https://*.example.com",)},
        {"allowed_origins": ("null",)},
        {"max_body_bytes": 0},
        {"rate_per_user": 0},
        {"max_unfinished_runs_per_user": 0},
        {"allowed_hosts": "localhost"},
        {"on_disconnect": "stop"},
        {"heartbeat": 0},
        {"heartbeat": math.nan},
        {"slow_reader_timeout": -1.0},
        {"body_timeout": 0},
        {"live_idle_timeout": 0},
        {"live_max_duration": 0},
    ],
)
def test_what_cannot_be_or_would_never_match_is_refused(config):
    with pytest.raises(InvalidInput) as caught:
        ServerConfig(**config)
    assert caught.value.code == "server.invalid"


# -- bodies -------------------------------------------------------------------------------------------------------------


async def chunks(size):
    for _ in range(size // 100):
        yield b" " * 100


async def test_a_body_that_is_too_large_is_refused_however_it_is_sent():
    async with client_of(app_of(max_body_bytes=1000), headers={"Content-Type": "application/json"}) as client:
        assert (await client.post("/change", content=b"{}" + b" " * 998)).status_code == 200
        assert code_of(await client.post("/change", content=b"{}" + b" " * 999)) == (413, "request.too_large")
        assert code_of(await client.post("/change", content=chunks(2000))) == (413, "request.too_large")
        assert code_of(await client.request("GET", "/who", content=b" " * 1001)) == (413, "request.too_large")
        assert code_of(await client.post("/nowhere", content=b" " * 1001)) == (413, "request.too_large")


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent():
    async with serve(app_of(max_body_bytes=1000)) as url:
        port = int(url.rpartition(":")[2])
        head = b"POST /change HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        said = await exchange(port, head + b"Content-Length: 100000000\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 413 ")
        assert b"request.too_large" in said
        for length in (b"-1", b"1e3", b"18446744073709551616", b"0x10", b"10\r\nContent-Length: 20"):
            said = await exchange(port, head + b"Content-Length: " + length + b"\r\n\r\n")
            assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")), length


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
        b'"\\ud800"',
        b"NaN",
        b"[1]",
        b"null",
        b"\x00",
        b'{"a": 1} x',
        b"\xef\xbb\xbf{",
    ],
)
async def test_a_body_that_cannot_be_read_is_told_of(body):
    async with client_of(app_of()) as client:
        answer = await client.post("/change", content=body, headers={"Content-Type": "application/json"})
        assert code_of(answer) in [(400, "request.unreadable"), (422, "request.invalid")]
        if answer.status_code == 422:
            assert all(set(place) == {"at", "message"} for place in answer.json()["errors"])


def test_a_body_has_to_arrive_in_time():
    @for_seeds(5)
    async def scenario():
        app = app_of(body_timeout=20.0)
        sent = []

        async def receive():
            await asyncio.sleep(7)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/change",
            "raw_path": b"/change",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"host", b"localhost"), (b"transfer-encoding", b"chunked"), (b"content-type", b"application/json")],
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
        }
        await app(scope, receive, send)
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]
        assert json.loads(sent[1]["body"])["code"] == "request.timeout"
        assert asyncio.get_running_loop().time() == 20.0

    scenario()


# -- responses ----------------------------------------------------------------------------------------------------------


async def test_every_response_has_an_id_and_security_headers():
    async with client_of(app_of()) as client:
        for method, path, status in [("GET", "/who", 200), ("GET", "/no", 404), ("PUT", "/who", 405), ("GET", "/fails", 500)]:
            answer = await client.request(method, path, headers={"X-Request-Id": "abc-1.2:3_4"})
            assert answer.status_code == status
            assert answer.headers["x-request-id"] == "abc-1.2:3_4"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        made = set()
        for given in (None, "", "a b", "x" * 129, "a\tb", "é", "<script>"):
            headers = {"X-Request-Id": given.encode("latin-1")} if given is not None else {}
            made.add((await client.get("/who", headers=headers)).headers["x-request-id"])
        assert len(made) == 7
        assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


async def test_an_error_that_nobody_foresaw_tells_nothing(caplog):
    async with serve(app_of()) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/fails", headers={"X-Request-Id": "r-1"})
        assert code_of(answer) == (500, "internal")
        assert "secret" not in answer.text
        assert "Zero" not in answer.text
        assert (await client.get("/who")).status_code == 200
    (record,) = [each for each in caplog.records if each.exc_info]
    assert "r-1" in record.getMessage()
    assert "a secret" in caplog.text


@pytest.mark.parametrize("code", ["store.unavailable", "store.corrupt", "artifact.unavailable"])
async def test_what_stores_say_of_themselves_is_for_operators(code, caplog):
    app = app_of()

    @app.get("/store")
    async def store():
        raise Unavailable("/var/lib/agents.db cannot be used: no space left", code=code)

    async with client_of(app) as client:
        answer = await client.get("/store")
        assert code_of(answer) == (503, code)
        assert "/var/lib" not in answer.text
    assert "/var/lib/agents.db" in caplog.text
    error = RunError(code, "/var/lib/agents.db cannot be used", True)
    for vocabulary in (AdkEvents(), RunFrames()):
        assert "/var/lib" not in vocabulary.error(error)


async def test_problems_quote_what_is_no_text():
    app = app_of()

    @app.post("/strict")
    async def strict(body: dict[str, int]):
        return body

    async with client_of(app) as client:
        answer = await client.post("/strict", content=b'{"\\ud800": "x"}', headers={"Content-Type": "application/json"})
        assert code_of(answer) == (422, "request.invalid")
        assert answer.json()["errors"][0]["at"].startswith("body/")


# -- limits -------------------------------------------------------------------------------------------------------------


async def test_a_rate_is_told_and_kept_per_user(tmp_path):
    from sojourn.testing.clock import ManualPlatform

    keys = KeyFile(tmp_path / "keys.json")
    ann, ben = keys.add("ann")[0], keys.add("ben")[0]
    with platform.use(clock := ManualPlatform()):
        async with client_of(app_of(auth=ApiKeyAuth(keys), rate_per_user=3)) as client:

            async def ask(key):
                answer = await client.get("/who", headers=bearer(key))
                assert answer.headers["ratelimit-policy"] == '"default";q=3;w=60'
                return answer.status_code, answer.headers["ratelimit"], answer.headers.get("retry-after")

            assert await ask(ann) == (200, '"default";r=2;t=20', None)
            assert await ask(ann) == (200, '"default";r=1;t=40', None)
            assert await ask(ann) == (200, '"default";r=0;t=60', None)
            assert await ask(ann) == (429, '"default";r=0;t=60', "20")
            assert await ask(ben) == (200, '"default";r=2;t=20', None)
            clock.advance(19)
            assert await ask(ann) == (429, '"default";r=0;t=41', "1")
            clock.advance(1)
            assert await ask(ann) == (200, '"default";r=0;t=60', None)
            clock.advance(60)
            assert await ask(ann) == (200, '"default";r=2;t=20', None)
            # What is shown in vain counts for its address, not for the user it names.
            wrong = [(await client.get("/who", headers=bearer("sjn_x"))).status_code for _ in range(4)]
            assert wrong == [401, 401, 401, 429]
            assert (await ask(ann))[0] == 200


@pytest.mark.parametrize(("seconds", "told"), [(0.01, "1"), (1.0, "1"), (1.2, "2")])
def test_who_comes_back_when_told_to_does_not_come_too_early(seconds, told):
    error = LimitExceeded("wait", code="limit.rate", retry_after=seconds)
    assert problem_of(error).headers["retry-after"] == told


async def test_without_authentication_the_address_counts():
    app = app_of(rate_per_user=1)
    async with client_of(app, client=("192.0.2.1", 1)) as one, client_of(app, client=("192.0.2.2", 1)) as other:
        assert [(await client.get("/who")).status_code for client in (one, one, other, other)] == [200, 429, 200, 429]


def test_a_rate_lets_through_what_it_says_and_forgets():
    from sojourn.server.limits import RATE_WINDOW, Rate
    from sojourn.testing.clock import ManualPlatform

    with platform.use(clock := ManualPlatform()):
        for limit in (1, 3, 7, 600, 999):
            rate = Rate(limit)
            taken = [rate.take("ann") for _ in range(limit + 1)]
            assert [each.remaining for each in taken] == [*range(limit - 1, -1, -1), 0]
            assert [bool(each.retry_after) for each in taken] == [False] * limit + [True]
            passed = 0
            for _ in range(4 * limit):
                clock.advance(RATE_WINDOW / limit / 2)
                passed += not rate.take("ann").retry_after
            assert abs(passed - 2 * limit) <= 1
        rate = Rate(10)
        for n in range(30_000):
            rate.take(f"address {n}")
            clock.advance(RATE_WINDOW / 10_000)
        assert len(rate._full_at) <= 20_000
        for n in range(200_000):
            rate.take(f"user {n}")
        for _ in range(2):
            clock.advance(RATE_WINDOW)
            rate.take("ann")
        assert len(rate._full_at) == 1


async def test_a_user_has_so_many_unfinished_runs_and_no_more():
    from sojourn.agents.function import agent
    from sojourn.runner.runner import Runner
    from sojourn.server.limits import Limits

    @agent
    async def asker(ctx):
        await ctx.ask("sure", "Sure?", schema=bool)

    class FarAway(Runner):
        async def list_runs(self, **query):
            page = await super().list_runs(**query)
            await asyncio.sleep(0)  # others go on while the answer is on its way
            return page

    limits = Limits(ServerConfig(max_unfinished_runs_per_user=2))
    async with FarAway(app_name="app", agent=asker) as runner:

        async def start(user, n):
            async with limits.room_for_run(runner, user):
                return await runner.start(user, f"s{n}", "Go")

        results = await asyncio.gather(*(start("ann", n) for n in range(5)), return_exceptions=True)
        refused = [each for each in results if isinstance(each, LimitExceeded)]
        assert {each.code for each in refused} == {"limit.runs_per_user"}
        assert len(refused) == 3
        await start("ben", 1)
        first = next(each for each in results if not isinstance(each, Exception))
        await runner.cancel(first.id)
        await start("ann", 9)
        with pytest.raises(LimitExceeded):
            await start("ann", 10)


# -- binds --------------------------------------------------------------------------------------------------------------


def test_who_asks_nobody_listens_on_loopback_only(tmp_path):
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3", "::ffff:127.0.0.1"):
        check_bind(ServerConfig(), host)
    for host in ("0.0.0.0", "::", "", "192.0.2.1", "example.com", "localhost.example.com", "::ffff:192.0.2.1", "0"):
        with pytest.raises(InvalidInput) as caught:
            check_bind(ServerConfig(), host)
        assert caught.value.code == "auth.needs_loopback"
        check_bind(ServerConfig(auth=ApiKeyAuth(tmp_path / "keys.json")), host)


@pytest.mark.parametrize(
    ("address", "status"), [("192.0.2.1", 403), ("::ffff:192.0.2.1", 403), ("127.0.0.1", 200), ("::1", 200)]
)
async def test_who_listens_elsewhere_all_the_same_answers_nobody(address, status):
    app = app_of()

    async def elsewhere(scope, receive, send):
        await app({**scope, "server": (address, 8000)}, receive, send)

    async with client_of(elsewhere) as client:
        answer = await client.get("/who")
        assert answer.status_code == status
        if status == 403:
            assert code_of(answer) == (403, "auth.needs_loopback")


async def exchange(port, request):
    """Sends bytes; gives all that is answered until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionResetError:
            pass

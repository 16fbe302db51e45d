"""Bodies that are made of very much: they are refused before that costs anything, and little of them is told."""

import json

import httpx
import pytest
from websockets.asyncio.client import connect

from sojourn.agents.function import agent
from sojourn.runner.runner import Runner
from sojourn.server import ApiKeyAuth, ServerConfig, create_app
from sojourn.server.jsonbody import MAX_VALUES, TooManyValues, check_values
from sojourn.server.problems import MAX_TEXT
from tests.server.identity import client_of
from tests.server.serving import serve

pytestmark = pytest.mark.anyio

SESSIONS = "/apps/app/users/ann/sessions"
ROUTES = [
    ("POST", "/run"),
    ("POST", "/run_sse"),
    ("POST", "/runs"),
    ("POST", "/runs/r:cancel"),
    ("POST", "/runs/r:retry"),
    ("POST", "/runs/r/interrupts/i:answer"),
    ("POST", SESSIONS),
    ("POST", f"{SESSIONS}/s"),
    ("PATCH", f"{SESSIONS}/s"),
    ("POST", f"{SESSIONS}/s/artifacts"),
    ("PATCH", "/apps/app/users/ann/memory"),
]
JSON = {"content-type": "application/json"}


@agent
async def echo(ctx):
    yield f"{len(ctx.user_content.text)}"


@agent
async def listener(ctx):
    async for _ in ctx.live:
        pass


def app_of(root=echo):
    return create_app(Runner(app_name="app", agent=root))


def test_every_route_that_takes_a_body_is_here():
    paths = app_of().openapi()["paths"]
    taking = [(m.upper(), p) for p, item in paths.items() for m, operation in item.items() if "requestBody" in operation]
    assert len(taking) == len(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_what_strangers_send_is_not_read(method, path, tmp_path):
    read = []

    async def body():
        read.append(True)
        yield b"{}"

    app = create_app(Runner(app_name="app", agent=echo), ServerConfig(auth=ApiKeyAuth(tmp_path / "keys.json")))
    async with client_of(app) as client:
        answer = await client.request(method, path, content=body(), headers=JSON)
    assert (answer.status_code, answer.json()["code"], read) == (401, "auth.missing", [])


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_request_with_a_body_counts_once(method, path):
    app = create_app(Runner(app_name="app", agent=echo), ServerConfig(rate_per_user=10))
    async with client_of(app) as client:
        answer = await client.request(method, path, json={})
    assert answer.headers["ratelimit"].startswith('"default";r=9;')


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("value", [b"{}", b"[]", b"1", b'""', b'{"a":[1]}'])
async def test_what_is_made_of_too_much_is_refused(method, path, value):
    body = b'{"newMessage":[' + b",".join([value] * MAX_VALUES) + b"]}"
    async with client_of(app_of()) as client:
        answer = await client.request(method, path, content=body, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, "request.too_many_values")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps("a, b, [c], {d} " * MAX_VALUES),
        json.dumps({"\\": '\\"],' * MAX_VALUES, "b": '"' * MAX_VALUES + ","}),
        json.dumps(["x,"] * (MAX_VALUES - 1)),
        "[" * (MAX_VALUES - 1),
    ],
)
def test_what_stands_in_texts_does_not_count(text):
    assert check_values(text.encode()) == text.encode()


@pytest.mark.parametrize(
    "text", ['["' + '","' * MAX_VALUES + '"]', "[" * (MAX_VALUES + 1), '{"a\\\\":"' + '","":"' * MAX_VALUES]
)
def test_what_stands_around_texts_counts(text):
    with pytest.raises(TooManyValues):
        check_values(text.encode())


async def test_a_long_text_full_of_commas_is_taken():
    async with client_of(app_of()) as client:
        await client.post(f"{SESSIONS}/s", json={})
        message = {"parts": [{"text": ",[{" * 200_000}]}
        answer = await client.post("/run", json={"userId": "ann", "sessionId": "s", "newMessage": message})
        assert answer.json()[-1]["content"]["parts"] == [{"text": "600000"}]


async def test_a_frame_that_is_made_of_too_much_is_refused():
    async with serve(app_of(listener)) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            await client.post(f"{SESSIONS}/s", json={})
        async with connect(f"{url.replace('http', 'ws')}/run_live?userId=ann&sessionId=s") as socket:
            await socket.send('{"content":{"parts":[' + ",".join(["1"] * MAX_VALUES) + "]}}")
            assert json.loads(await socket.recv())["code"] == "request.too_many_values"


@pytest.mark.parametrize("member", ["stateDelta", "customMetadata"])
@pytest.mark.parametrize("path", ["/run", "/runs"])
async def test_of_members_that_cannot_be_one_is_told(path, member):
    members = {str(n): "\ud800" for n in range(1000)}
    body = {"newMessage": {"parts": [{"text": "x"}]}, "userId": "ann", "sessionId": "s", member: members}
    async with client_of(app_of()) as client:
        answer = await client.post(path, content=json.dumps(body), headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (422, "request.invalid")
        assert [each["at"] for each in answer.json()["errors"]] == [f"body/{member}"]


async def test_little_is_told_of_what_was_sent():
    key = "k" * 1_000_000
    async with client_of(app_of()) as client:
        for body in (
            {"newMessage": "x", "userId": "ann", "stateDelta": {key: [[]] * 10, "b": {key: "\ud800"}}},
            {"newMessage": "x", "userId": "ann", "customMetadata": {key: {"b": "\ud800"}}},
            {"newMessage": "x", "userId": "ann", "appName": key},
        ):
            answer = await client.post("/runs", content=json.dumps(body), headers=JSON)
            assert answer.is_client_error
            assert len(answer.content) < 4 * MAX_TEXT

"""Routes that read their arguments themselves: what is wrong is answered as FastAPI has it answered elsewhere."""

import pytest

from sojourn.agents.function import agent
from sojourn.runner.runner import Runner
from sojourn.server.adk import runs
from sojourn.server.app import create_app
from sojourn.server.config import ServerConfig
from tests.server.identity import client_of

pytestmark = pytest.mark.anyio

JSON = "application/json"


@agent
async def says_ok(ctx):
    return "ok"


def app_of():
    app = create_app(Runner(app_name="app", agent=says_ok), ServerConfig(max_body_bytes=1000))
    app.post("/usual")(runs.run)
    return app


async def in_pieces(body):
    for at in range(0, len(body), 100):
        yield body[at : at + 100]


BODY = b'{"userId": "ann", "sessionId": "s1", "newMessage": {"role": "user", "parts": [{"text": "hi"}]}}'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b""),
        (JSON, b"{"),
        (JSON, b'{"a": 1} x'),
        (JSON, b"\xff{}"),
        (JSON, b"null"),
        (JSON, b"[1]"),
        (JSON, b"{}"),
        (JSON, b"[" * 900),
        (JSON, BODY.replace(b'"ann"', b"7")),
        (JSON, BODY.replace(b'[{"text": "hi"}]', b'[{"text": 7}, {"text": []}]')),
        (JSON, BODY.replace(b"hi", b"\\ud800")),
        (JSON, BODY + b" " * 1000),
        ("text/plain", BODY),
        ("application/x-www-form-urlencoded", BODY),
        ("application/jsonp", BODY),
        ("nonsense", BODY),
    ],
)
async def test_what_is_wrong_is_told_as_elsewhere(kind, body):
    async with client_of(app_of()) as client:
        said = []
        for path in ("/usual", "/run"):
            answer = await client.post(path, content=body, headers={"Content-Type": kind})
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            said.append((answer.status_code, problem["code"], sorted(e["at"] for e in problem.get("errors", ()))))
        # In which member of the body it is not told of bodies that are no JSON.
        usual, here = said
        assert here[:2] == usual[:2]
        assert here[2] == usual[2] or kind != JSON


@pytest.mark.parametrize("kind", [JSON, "application/json; charset=utf-8", "Application/JSON", "application/vnd.mine+json"])
async def test_json_by_its_names_is_read(kind):
    async with client_of(app_of()) as client:
        assert (await client.post("/apps/app/users/ann/sessions/s1")).status_code == 200
        for path in ("/usual", "/run"):
            answer = await client.post(path, content=BODY, headers={"Content-Type": kind})
            assert answer.json()[-1]["content"]["parts"][0]["text"] == "ok"


async def test_a_body_that_grows_too_large_is_refused():
    async with client_of(app_of()) as client:
        answer = await client.post("/run", content=in_pieces(b" " * 2000), headers={"Content-Type": JSON})
        assert (answer.status_code, answer.json()["code"]) == (413, "request.too_large")

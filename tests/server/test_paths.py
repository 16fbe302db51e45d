"""Ids and names that hold slashes: each address is of one thing, and each thing has an address."""

from urllib.parse import quote

import pytest
from fastapi import FastAPI

from sojourn.agents.function import agent
from sojourn.runner.runner import Runner
from sojourn.server import create_app
from tests.server.identity import client_of
from tests.server.serving import serve

pytestmark = pytest.mark.anyio

SESSIONS = "/apps/app/users/ann/sessions"
NAMES = [
    "doc",
    "doc/versions",
    "doc/versions/0",
    "doc/versions/latest",
    "doc/versions/metadata",
    "doc/versions/0/metadata",
    "user:doc",
    "user:doc/versions/0",
    "doc%2Fversions%2F0",
    "a/b",
    "ü/ß",
]
SESSION_IDS = ["s", "s/artifacts", "s/artifacts/doc", "s/artifacts/doc/versions/0", "a/b", "/", "//", "s%2Fartifacts"]


@agent
async def echo(ctx):
    yield f"You said: {ctx.user_content.text}"


def runner_of():
    return Runner(app_name="app", agent=echo)


def part(text):
    """An id or a name as a part of an address."""
    return quote(text, safe="")


async def test_each_artifact_has_an_address():
    async with client_of(create_app(runner_of())) as client:
        await client.post(SESSIONS, json={"sessionId": "s"})
        at = f"{SESSIONS}/s/artifacts"
        for name in NAMES:
            await client.post(at, json={"filename": name, "artifact": {"text": f"this is {name}"}})
        for name in NAMES:
            for address in (f"{at}/{part(name)}", f"{at}/{part(name)}/versions/0", f"{at}/{part(name)}/versions/latest"):
                assert (await client.get(address)).json() == {"text": f"this is {name}"}, address
            assert (await client.get(f"{at}/{part(name)}/versions")).json() == [0]
        left = set(NAMES)
        for name in NAMES:
            assert (await client.delete(f"{at}/{part(name)}")).status_code == 200
            left.remove(name)
            assert set((await client.get(at)).json()) == left


async def test_each_session_has_an_address():
    async with client_of(create_app(runner_of())) as client:
        await client.post(SESSIONS, json={"sessionId": "s"})
        await client.post(f"{SESSIONS}/s/artifacts", json={"filename": "doc", "artifact": {"text": "of s"}})
        for id_ in SESSION_IDS[1:]:
            missing = await client.get(f"{SESSIONS}/{part(id_)}")
            assert (missing.status_code, missing.json()["code"]) == (404, "session.not_found")
            assert (await client.post(f"{SESSIONS}/{part(id_)}")).json()["id"] == id_
        for id_ in SESSION_IDS:
            assert (await client.get(f"{SESSIONS}/{part(id_)}")).json()["id"] == id_
            assert (await client.get(f"/debug/trace/session/{part(id_)}")).json() == []
        for id_ in SESSION_IDS[1:]:
            assert (await client.delete(f"{SESSIONS}/{part(id_)}")).status_code == 200
        assert (await client.get(f"{SESSIONS}/s/artifacts/doc")).json() == {"text": "of s"}


async def test_each_run_and_user_has_an_address():
    runner = runner_of()
    async with serve(create_app(runner)) as url, client_of(create_app(runner)) as client:
        client.base_url = url
        for id_ in ("a/b", "a/b:cancel", "a/events"):
            run = await runner.start("x/sessions/y", "s", "Hello", run_id=id_)
            await run.wait()
            assert (await client.get(f"/runs/{part(id_)}")).json()["id"] == id_
            assert "You said" in (await client.get(f"/runs/{part(id_)}/events")).text
        (session,) = (await client.get(f"/apps/app/users/{part('x/sessions/y')}/sessions")).json()
        assert session["userId"] == "x/sessions/y"


async def test_below_a_path_of_another_app():
    runner = runner_of()
    outer = FastAPI()
    outer.mount("/{tenant:int}/agents", create_app(runner))
    async with runner, client_of(outer) as client:
        for id_ in SESSION_IDS:
            address = f"/7/agents{SESSIONS}/{part(id_)}"
            assert (await client.post(address)).json()["id"] == id_
            assert (await client.get(address)).json()["id"] == id_


async def test_behind_something_that_changes_paths_the_changed_one_counts():
    app = create_app(runner_of())

    async def without_prefix(scope, receive, send):
        if scope["type"] == "http":
            scope["path"] = scope["path"].removeprefix("/agents")
        await app(scope, receive, send)

    async with client_of(without_prefix) as client:
        assert (await client.post(f"/agents{SESSIONS}/s")).json()["id"] == "s"
        await client.post(f"/agents{SESSIONS}/s/artifacts", json={"filename": "a/b", "artifact": {"text": "x"}})
        assert (await client.get(f"/agents{SESSIONS}/s/artifacts/a%2Fb")).json() == {"text": "x"}

"""The examples of sessions inside somebody's own web app: real servers, fifty users at once."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn
from werkzeug.serving import make_server

from examples import web_fastapi, web_flask
from sojourn import SessionManager, agent

USERS = [f"user-{n}" for n in range(50)]


def said(user, message, number):
    return f"Hello {user}, you said {message!r}. That was message {number}."


@pytest.fixture
async def fastapi_url(monkeypatch):
    monkeypatch.setattr(web_fastapi, "manager", SessionManager(agent=web_fastapi.clerk, app_name="clerk", max_queue=100))
    config = uvicorn.Config(web_fastapi.app, host="127.0.0.1", port=0, log_level="error", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await serving


@pytest.fixture
def flask_url(monkeypatch):
    sessions = web_flask.Sessions(SessionManager(agent=web_flask.clerk, app_name="clerk", max_queue=100))
    monkeypatch.setattr(web_flask, "sessions", sessions)
    sessions.start()
    server = make_server("127.0.0.1", 0, web_flask.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    sessions.close()


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["", "/stream"])
async def test_fifty_users_of_the_fastapi_app(fastapi_url, path):
    async with httpx.AsyncClient(base_url=fastapi_url, timeout=50, limits=httpx.Limits(max_connections=50)) as client:

        async def talk(user):
            first = await client.post(f"/chat/{user}{path}", content="Hi")
            second = await client.post(f"/chat/{user}{path}", content="Again")
            return [r.text if path else r.json()["answer"] for r in (first, second)]

        answers = await asyncio.gather(*map(talk, USERS))
    assert answers == [[said(user, "Hi", 1), said(user, "Again", 2)] for user in USERS]


@pytest.mark.parametrize("path", ["", "/stream"])
def test_fifty_users_of_the_flask_app(flask_url, path):
    with httpx.Client(base_url=flask_url, timeout=50, limits=httpx.Limits(max_connections=50)) as client:

        def talk(user):
            first = client.post(f"/chat/{user}{path}", content="Hi")
            second = client.post(f"/chat/{user}{path}", content="Again")
            return [r.text if path else r.json()["answer"] for r in (first, second)]

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(talk, USERS))
    assert answers == [[said(user, "Hi", 1), said(user, "Again", 2)] for user in USERS]


@agent
async def endless(ctx):
    while True:
        yield "more "
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_who_leaves_the_fastapi_app_in_mid_stream_leaves_no_run_behind(fastapi_url, monkeypatch):
    manager = SessionManager(agent=endless, app_name="clerk", max_concurrency=1)
    monkeypatch.setattr(web_fastapi, "manager", manager)
    async with httpx.AsyncClient(base_url=fastapi_url, timeout=50) as client:
        for user in USERS[:5]:
            async with client.stream("POST", f"/chat/{user}/stream", content="Hi") as response:
                async for text in response.aiter_text():
                    assert text.startswith("more")
                    break
    async with manager.session(user_id="next"):
        runs = (await (await manager.runner()).list_runs()).items
    assert [run.status.value for run in runs] == ["cancelled"] * 5


def test_who_leaves_the_flask_app_in_mid_stream_leaves_no_run_behind(flask_url, monkeypatch):
    manager = SessionManager(agent=endless, app_name="clerk", max_concurrency=1)
    sessions = web_flask.Sessions(manager)
    monkeypatch.setattr(web_flask, "sessions", sessions)
    sessions.start()
    try:
        with httpx.Client(base_url=flask_url, timeout=50) as client:
            for user in USERS[:5]:
                with client.stream("POST", f"/chat/{user}/stream", content="Hi") as response:
                    for text in response.iter_text():
                        assert text.startswith("more")
                        break

        async def statuses():
            async with manager.session(user_id="next"):
                return [run.status.value for run in (await (await manager.runner()).list_runs()).items]

        assert sessions._portal.call(statuses) == ["cancelled"] * 5
    finally:
        sessions.close()


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["", "/stream"])
async def test_the_fastapi_app_tells_why_it_refuses(fastapi_url, path):
    async with httpx.AsyncClient(base_url=fastapi_url) as client:
        response = await client.post(f"/chat/{'a' * 257}{path}", content="Hi")
    assert (response.status_code, response.json()["code"]) == (400, "id.invalid")


@pytest.mark.parametrize("path", ["", "/stream"])
def test_the_flask_app_tells_why_it_refuses(flask_url, path):
    response = httpx.post(f"{flask_url}/chat/ada{path}", content="")
    assert (response.status_code, response.json()["code"]) == (400, "message.invalid")

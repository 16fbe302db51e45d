"""What tests of google-adk's dialect share: an app with an agent that does all that its clients see, and who calls it."""

import json
from contextlib import asynccontextmanager

import httpx

from sojourn.agents.function import agent
from sojourn.agents.llm.calls import CONFIRMATION
from sojourn.agents.question import Question
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import FunctionCall
from sojourn.errors import Unauthorized
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.runner.runner import Runner
from sojourn.server import Principal, ServerConfig, create_app
from sojourn.store.inmemory import InMemorySessionService
from tests.server.serving import serve

APP = "demo"
LOGIN = {
    "authScheme": {"type": "oauth2"},
    "rawAuthCredential": {"authType": "oauth2", "oauth2": {"clientId": "us", "clientSecret": "SECRET-of-ours"}},
    "exchangedAuthCredential": {"authType": "oauth2", "oauth2": {"authUri": "https://id.example.com/auth", "state": "s1"}},
    "credentialKey": "k",
}


@agent(description="Does what it is told.")
async def helper(ctx):
    match ctx.user_content.text.split():
        case ["ask"]:
            yield f"Hello {await ctx.ask('name', 'Your name?', schema=str)}."
        case ["age"]:
            yield f"Next year you will be {await ctx.ask('age', 'Your age?', schema=int) + 1}."
        case ["buy"]:
            call = FunctionCall(id=f"{ctx.run_id}-buy", name="buy", args={"price": 30})
            [answer] = await ctx.ask_all([Question("ok", "Buy it?", CONFIRMATION, kind="confirm", call=call)])
            confirmed = answer if isinstance(answer, bool) else answer["confirmed"]
            yield "Bought." if confirmed else "Left it."
        case ["login"]:
            given = await ctx.ask_credential("login", LOGIN)
            uri = given if isinstance(given, str) else given["exchangedAuthCredential"]["oauth2"]["authResponseUri"]
            yield f"Logged in by {len(uri)} characters."
        case ["save", name]:
            await ctx.artifacts.save(name, f"the text of {name}")
            yield "Saved."
        case ["state"]:
            ctx.state.pop("gone", None)
            ctx.state.increment("count", 2)
            yield json.dumps({key: value for key, value in sorted(ctx.state.items()) if key != "count"})
        case ["fail"]:
            yield "I begin."
            raise RuntimeError("a secret of ours")
        case _:
            ctx.state["last"] = ctx.user_content.text
            yield "You said: "
            yield ctx.user_content.text


class ByName:
    """Believes the header `X-User`; `root` is an operator."""

    needs_loopback = True

    async def authenticate(self, connection):
        name = connection.headers.get("x-user")
        if name is None:
            raise Unauthorized("nobody", code="auth.missing")
        return Principal(name, admin=name == "root")


def make_runner(agent=helper, **fields):
    fields = {
        "app_name": APP,
        "session_service": InMemorySessionService(),
        "artifact_service": InMemoryArtifactService(),
        "memory_service": InMemoryMemoryService(),
        **fields,
    }
    return Runner(agent=agent, **fields)


@asynccontextmanager
async def client_of(runner=None, *, user=None, **config):
    """A client of a real server of a Runner."""
    if user is not None:
        config.setdefault("auth", ByName())
    headers = {"X-User": user} if user is not None else {}
    app = create_app(runner or make_runner(), ServerConfig(**config))
    async with serve(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        yield client


def sessions(user="ann", session=None, app=APP):
    path = f"/apps/{app}/users/{user}/sessions"
    return path if session is None else f"{path}/{session}"


def text_message(text):
    return {"role": "user", "parts": [{"text": text}]}


def answer_message(call, response):
    return {"role": "user", "parts": [{"functionResponse": {"id": call["id"], "name": call["name"], "response": response}}]}


def run_body(message, session="s", user="ann", **more):
    message = text_message(message) if isinstance(message, str) else message
    return {"appName": APP, "userId": user, "sessionId": session, "newMessage": message, **more}


async def new_session(client, session="s", user="ann", **more):
    response = await client.post(sessions(user), json={"sessionId": session, **more})
    assert response.status_code == 200, response.text
    return response.json()


async def say(client, message, **more):
    """What `/run` gives."""
    response = await client.post("/run", json=run_body(message, **more))
    assert response.status_code == 200, response.text
    return response.json()


async def stream(client, message, **more):
    """What `/run_sse` gives, as google-adk's clients read it: lines with `data:`."""
    async with client.stream("POST", "/run_sse", json=run_body(message, **more)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].partition(";")[0] == "text/event-stream"
        return [json.loads(line[5:]) async for line in response.aiter_lines() if line.startswith("data:")]


def texts(events):
    return ["".join(part.get("text", "") for part in event.get("content", {}).get("parts", ())) for event in events]


def call_in(events):
    """The one function call of the last event, which waits for somebody."""
    [part] = events[-1]["content"]["parts"]
    assert events[-1]["longRunningToolIds"] == [part["functionCall"]["id"]]
    return part["functionCall"]


def assert_problem(response, status, code):
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"]

"""The runs API: start, look up, list, follow, cancel, answer, repeat."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from sojourn.agents.function import agent
from sojourn.data import Retention
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.server.auth.principal import Principal
from sojourn.server.config import ServerConfig
from sojourn.server.runs.models import InterruptList, RunInfo, RunPage
from tests.server.eventsource import EventSource
from tests.server.serving import serve

pytestmark = pytest.mark.anyio


class ByHeader:
    """Believes the header `x-user`; `root` is an operator."""

    needs_loopback = True
    schemes = {}

    async def authenticate(self, connection):
        user = connection.headers["x-user"]
        return Principal(None, admin=True) if user == "root" else Principal(user)


@agent
async def helper(ctx):
    text = ctx.user_content.text
    if text == "fail":
        raise ValueError("it fails")
    if text == "ask":
        return f"You answered {await ctx.ask('sure', 'Sure?', schema=bool)}."
    if text == "state":
        return f"{ctx.state.get('topic')} {ctx.state.get('user:name')}"
    return f"You said: {text}"


@asynccontextmanager
async def serving(target=helper, *, config=None, **fields):
    runner = Runner(app_name="app", agent=target, **fields)
    transport = httpx.ASGITransport(create_app(runner, config))
    async with runner, httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield runner, client


async def start(client, text="Hi", **more):
    return await client.post("/runs", json={"userId": "ann", "newMessage": text, **more})


async def done(runner, response):
    """The run that a response is about, once it has ended or waits."""
    run = await runner.follow(response.json()["id"])
    await run.wait()
    return run


# -- starting -----------------------------------------------------------------------------------------------------------


async def test_a_run_is_started_and_goes_on_without_its_client():
    async with serving() as (runner, client):
        response = await start(client, sessionId="s1", customMetadata={"from": "a test"})
        assert response.status_code == 201
        info = response.json()
        assert response.headers["location"] == f"/runs/{info['id']}"
        assert (info["appName"], info["userId"], info["sessionId"]) == ("app", "ann", "s1")
        assert (info["attached"], info["customMetadata"], info["config"]) == (False, {"from": "a test"}, {})
        await done(runner, response)
        info = (await client.get(response.headers["location"])).json()
        RunInfo.model_validate(info)
        assert set(info) == {field.alias for field in RunInfo.model_fields.values()}
        assert (info["status"], info["lastPos"], info["error"]) == ("completed", 3, None)


async def test_a_session_is_made_for_a_run_without_one():
    async with serving() as (runner, client):
        one, two = await start(client), await start(client)
        assert one.json()["sessionId"] != two.json()["sessionId"]
        await runner.get_session("ann", one.json()["sessionId"])


async def test_a_message_may_be_content_and_snake_case():
    async with serving() as (runner, client):
        message = {"role": "model", "parts": [{"text": "Hi"}, {"inline_data": {"mime_type": "text/plain", "data": "YQ=="}}]}
        response = await client.post("/runs", json={"user_id": "ann", "new_message": message, "run_config": {"max_turns": 2}})
        assert response.status_code == 201
        info = response.json()
        assert info["message"]["content"]["role"] == "user"
        assert info["message"]["content"]["parts"][1]["inlineData"] == {"mimeType": "text/plain", "data": "YQ=="}
        assert info["config"] == {"maxTurns": 2}
        assert await (await done(runner, response)).result() == "You said: Hi"


async def test_state_goes_with_the_message_and_the_apps_is_not_the_clients():
    async with serving() as (runner, client):
        response = await start(client, "state", stateDelta={"topic": "lamps", "user:name": "Ann"})
        assert await (await done(runner, response)).result() == "lamps Ann"
        refused = await start(client, stateDelta={"app:motto": "mine"})
        assert (refused.status_code, refused.json()["code"]) == (403, "state.app_scope")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"newMessage": "Hi"}, 400, "user.missing"),
        ({"userId": "ann"}, 422, "request.invalid"),
        ({"userId": "ann", "newMessage": ""}, 400, "message.invalid"),
        ({"userId": "ann", "newMessage": {"parts": []}}, 400, "message.invalid"),
        ({"userId": "ann", "newMessage": {"parts": [{"functionCall": {"name": "f"}}]}}, 400, "message.invalid"),
        ({"userId": "ann", "newMessage": {"parts": [{"functionResponse": {"name": "f"}}]}}, 400, "message.invalid"),
        ({"userId": "ann", "newMessage": {"parts": [{"text": "a"}] * 4}}, 400, "message.too_many_parts"),
        ({"userId": "ann", "newMessage": 7}, 422, "request.invalid"),
        ({"userId": "a\u0000", "newMessage": "Hi"}, 400, "id.invalid"),
        ({"userId": "ann", "sessionId": "", "newMessage": "Hi"}, 400, "id.invalid"),
        ({"userId": "ann", "newMessage": "Hi", "appName": "other"}, 404, "app.not_found"),
        ({"userId": "ann", "newMessage": "Hi", "runConfig": {"maxTurns": 51}}, 400, "run_config.exceeds"),
        ({"userId": "ann", "newMessage": "Hi", "runConfig": {"timeout": 61}}, 400, "run_config.exceeds"),
        ({"userId": "ann", "newMessage": "Hi", "runConfig": {"maxTokens": 1001}}, 400, "run_config.exceeds"),
        ({"userId": "ann", "newMessage": "Hi", "runConfig": {"maxTransfers": 11}}, 400, "run_config.exceeds"),
        ({"userId": "ann", "newMessage": "Hi", "runConfig": {"includeHistory": 201}}, 400, "run_config.exceeds"),
        ({"userId": "ann", "newMessage": "Hi", "runConfig": {"maxTurns": 0}}, 422, "request.invalid"),
        ({"userId": "ann", "newMessage": "Hi", "customMetadata": {"x": "y" * 2_000_000}}, 400, "run.metadata_too_large"),
    ],
)
async def test_what_cannot_be_started_is_refused_and_nothing_is_recorded(body, status, code):
    bounds = RunConfig(timeout=60, max_tokens=1000)
    async with serving(config=ServerConfig(max_parts=3), run_config=bounds) as (runner, client):
        response = await client.post("/runs", json=body)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert response.headers["content-type"] == "application/problem+json"
        assert (await runner.list_runs()).items == []


async def test_a_client_may_lower_bounds_and_nothing_else():
    async with serving(run_config=RunConfig(timeout=60)) as (runner, client):
        config = {
            "timeout": 5,
            "maxTurns": 3,
            "whenBusy": "reject",
            "streamingMode": "none",
            "cancelGrace": 9999,
            "onCrash": "fail",
        }
        response = await start(client, runConfig=config)
        assert response.json()["config"] == {"timeout": 5, "maxTurns": 3, "whenBusy": "reject", "streamingMode": "none"}


async def test_a_full_queue_is_told_with_the_time_to_wait():
    gate = asyncio.Event()

    @agent
    async def slow(ctx):
        await gate.wait()

    async with serving(slow, max_concurrency=1, max_queue=0) as (runner, client):
        await start(client)
        refused = await start(client)
        assert (refused.status_code, refused.json()["code"]) == (429, "limit.queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        gate.set()


async def test_a_users_unfinished_runs_are_bounded():
    async with serving(config=ServerConfig(max_unfinished_runs_per_user=2)) as (runner, client):
        responses = await asyncio.gather(*(start(client, "ask", sessionId=f"s{n}") for n in range(5)))
        assert sorted(r.status_code for r in responses) == [201, 201, 429, 429, 429]
        assert {r.json()["code"] for r in responses if r.status_code == 429} == {"limit.runs_per_user"}
        assert (await client.post("/runs", json={"userId": "ben", "newMessage": "Hi"})).status_code == 201


# -- reading ------------------------------------------------------------------------------------------------------------


async def test_runs_are_listed_by_page_and_filter():
    async with serving() as (runner, client):
        for n, text in enumerate(["Hi", "fail", "ask", "Hi", "Hi"]):
            await done(runner, await start(client, text, sessionId=f"s{n % 2}"))
        await done(runner, await client.post("/runs", json={"userId": "ben", "newMessage": "Hi"}))
        page = (await client.get("/runs", params={"userId": "ann", "limit": 2})).json()
        RunPage.model_validate(page)
        ids = [run["id"] for run in page["items"]]
        while page["next"] is not None:
            page = (await client.get("/runs", params={"userId": "ann", "limit": 2, "after": page["next"]})).json()
            ids += [run["id"] for run in page["items"]]
        assert len(set(ids)) == 5
        whole = (await client.get("/runs", params={"userId": "ann"})).json()["items"]
        assert [run["id"] for run in whole] == ids
        assert [run["no"] for run in whole] == [2, 2, 3, 1, 1] or sorted(run["no"] for run in whole) == [1, 1, 2, 2, 3]
        statuses = {"status": ["failed", "waiting"], "userId": "ann"}
        assert {r["status"] for r in (await client.get("/runs", params=statuses)).json()["items"]} == {"failed", "waiting"}
        of_session = (await client.get("/runs", params={"sessionId": "s1", "userId": "ann"})).json()["items"]
        assert [run["sessionId"] for run in of_session] == ["s1", "s1"]
        assert len((await client.get("/runs")).json()["items"]) == 6
        for params, code in (
            ({"status": "lost"}, "request.invalid"),
            ({"limit": 0}, "request.invalid"),
            ({"after": "x"}, "page.invalid"),
        ):
            assert (await client.get("/runs", params=params)).json()["code"] == code


@pytest.mark.parametrize(
    ("cursor", "status", "code"),
    [("0", 200, None), ("1", 200, None), ("3", 204, None), ("4", 400, "cursor.ahead"), ("9" * 30, 400, "cursor.invalid"),
     ("-1", 400, "cursor.invalid"), ("x", 400, "cursor.invalid"), ("1.5", 400, "cursor.invalid"), ("١", 400, "cursor.invalid")],
)  # fmt: skip
async def test_a_cursor_is_checked_before_the_stream(cursor, status, code):
    async with serving() as (runner, client):
        at = (await done(runner, await start(client))).id
        by_query = await client.get(f"/runs/{at}/events", params={"after": cursor})
        responses = [by_query]
        if cursor.isascii():
            # What a browser read last is newer than the address that it was given.
            responses.append(await client.get(f"/runs/{at}/events?after=2", headers={"last-event-id": cursor}))
        for response in responses:
            assert response.status_code == status
            if code is not None:
                assert response.json()["code"] == code
            if status == 204:
                assert response.content == b""
                assert "content-type" not in response.headers


async def test_a_run_of_a_long_log_is_read_from_anywhere():
    @agent
    async def lister(ctx):
        for n in range(700):
            yield f"line {n}"
            yield ctx.run_id

    async with serving(lister) as (runner, client):
        at = (await done(runner, await start(client))).id
        whole = [m.json() for m in await EventSource(client, f"/runs/{at}/events").read()]
        numbered = [f for f in whole if "pos" in f]
        for after in (0, 1, 255, 256, 257, len(numbered) - 1):
            rest = [m.json() for m in await EventSource(client, f"/runs/{at}/events?after={after}").read()]
            assert [f for f in rest if "pos" in f] == numbered[after:]


# -- cancelling ---------------------------------------------------------------------------------------------------------


async def test_a_run_is_cancelled_with_a_reason_and_again_without_effect():
    begun = asyncio.Event()

    @agent
    async def endless(ctx):
        begun.set()
        await asyncio.Event().wait()

    async with serving(endless) as (runner, client):
        response = await start(client)
        await begun.wait()
        at = response.headers["location"]
        reading = asyncio.create_task(EventSource(client, at + "/events").read())
        cancelled = await client.post(at + ":cancel", json={"reason": "no longer needed"})
        assert (cancelled.status_code, cancelled.json()["cancelRequested"]) == (200, "no longer needed")
        last = (await reading)[-1].json()
        assert (last["kind"], last["error"]["code"]) == ("run.cancelled", "run.cancelled")
        again = await client.post(at + ":cancel")
        assert (again.status_code, again.json()["status"], again.json()["cancelRequested"]) == (
            200,
            "cancelled",
            "no longer needed",
        )
        assert (await client.post(at + ":cancel", json={"reason": "x" * 1001})).status_code == 422


# -- questions ----------------------------------------------------------------------------------------------------------


async def test_a_question_is_answered_exactly_once():
    async with serving() as (runner, client):
        response = await start(client, "ask", sessionId="s1")
        await done(runner, response)
        at = response.headers["location"]
        listed = (await client.get(at + "/interrupts")).json()
        InterruptList.model_validate(listed)
        (asked,) = listed["items"]
        assert (asked["prompt"], asked["schema"], asked["status"], asked["kind"]) == (
            "Sure?",
            {"type": "boolean"},
            "open",
            "input",
        )
        assert (asked["runId"], asked["userId"], asked["sessionId"]) == (response.json()["id"], "ann", "s1")
        for params, count in (
            ({}, 1),
            ({"userId": "ann"}, 1),
            ({"userId": "ben"}, 0),
            ({"sessionId": "s1"}, 1),
            ({"sessionId": "s2"}, 0),
        ):
            assert len((await client.get("/interrupts", params=params)).json()["items"]) == count
        answer = f"{at}/interrupts/{asked['id']}:answer"
        for body, status, code in (
            ({}, 422, "request.invalid"),
            ({"answer": "perhaps"}, 400, "interrupt.invalid_answer"),
        ):
            refused = await client.post(answer, json=body)
            assert (refused.status_code, refused.json()["code"]) == (status, code)
        first = await client.post(answer, json={"answer": True})
        assert first.status_code == 200
        same = await client.post(answer, json={"answer": True})
        assert same.status_code == 200
        other = await client.post(answer, json={"answer": False})
        assert (other.status_code, other.json()["code"]) == (409, "interrupt.conflict")
        assert await (await done(runner, response)).result() == "You answered True."
        missing = await client.post(f"{at}/interrupts/none:answer", json={"answer": True})
        assert (missing.status_code, missing.json()["code"]) == (404, "interrupt.not_found")


async def test_answers_at_once_are_one():
    async with serving() as (runner, client):
        response = await start(client, "ask")
        await done(runner, response)
        at = response.headers["location"]
        (asked,) = (await client.get(at + "/interrupts")).json()["items"]
        answer = f"{at}/interrupts/{asked['id']}:answer"
        given = await asyncio.gather(*(client.post(answer, json={"answer": n % 2 == 0}) for n in range(20)))
        assert sorted({r.status_code for r in given}) == [200, 409]
        assert sum(r.status_code == 200 for r in given) == 10
        assert len(await (await runner.follow(response.json()["id"])).interrupts()) == 0
        assert (await done(runner, response)).record.attempt == 2


# -- repeating ----------------------------------------------------------------------------------------------------------


async def test_a_run_is_repeated_in_its_place_and_edited():
    async with serving() as (runner, client):
        first = await start(client, "one", sessionId="s1", runConfig={"maxTurns": 7}, customMetadata={"k": 1})
        await done(runner, first)
        again = await client.post(first.headers["location"] + ":retry")
        assert again.status_code == 201
        assert again.headers["location"] == f"/runs/{again.json()['id']}"
        assert (again.json()["retryOf"], again.json()["config"]) == (first.json()["id"], {"maxTurns": 7})
        assert again.json()["customMetadata"] == {"k": 1}
        await done(runner, again)
        assert (await client.get(first.headers["location"])).json()["supersededBy"] == again.json()["id"]
        edited = await client.post(
            again.headers["location"] + ":retry", json={"newMessage": "two", "runConfig": {"maxTurns": 2}}
        )
        assert await (await done(runner, edited)).result() == "You said: two"
        assert edited.json()["config"] == {"maxTurns": 2}
        gone = await client.post(first.headers["location"] + ":retry")
        assert (gone.status_code, gone.json()["code"]) == (409, "run.superseded")


async def test_what_came_later_is_dropped_only_on_purpose():
    async with serving() as (runner, client):
        first = await start(client, "one", sessionId="s1")
        await done(runner, first)
        await done(runner, await start(client, "two", sessionId="s1"))
        refused = await client.post(first.headers["location"] + ":retry", json={})
        assert (refused.status_code, refused.json()["code"]) == (409, "run.has_later")
        assert (await client.post(first.headers["location"] + ":retry", json={"dropLater": True})).status_code == 201


async def test_what_is_refused_at_the_start_is_refused_at_a_repetition():
    async with serving() as (runner, client):
        first = await start(client)
        await done(runner, first)
        for body, code in (
            ({"newMessage": {"parts": [{"functionResponse": {"name": "f"}}]}}, "message.invalid"),
            ({"runConfig": {"maxTurns": 51}}, "run_config.exceeds"),
        ):
            assert (await client.post(first.headers["location"] + ":retry", json=body)).json()["code"] == code


# -- whose --------------------------------------------------------------------------------------------------------------


async def test_somebody_elses_run_is_like_none_at_all():
    async with serving(config=ServerConfig(auth=ByHeader())) as (runner, client):
        ann, ben = {"x-user": "ann"}, {"x-user": "ben"}
        response = await client.post("/runs", json={"newMessage": "ask"}, headers=ann)
        assert response.json()["userId"] == "ann"
        await done(runner, response)
        run_id = response.json()["id"]
        (asked,) = (await client.get("/interrupts", headers=ann)).json()["items"]
        requests = [
            ("GET", "/runs/{id}", None),
            ("GET", "/runs/{id}/events", None),
            ("GET", "/runs/{id}/events?after=99", None),
            ("GET", "/runs/{id}/events?after=x", None),
            ("GET", "/runs/{id}/interrupts", None),
            ("POST", "/runs/{id}:cancel", {}),
            ("POST", "/runs/{id}:retry", {}),
            ("POST", f"/runs/{{id}}/interrupts/{asked['id']}:answer", {"answer": True}),
            ("GET", "/runs/{id}?userId=ann", None),
            ("POST", "/runs/{id}:cancel?userId=ann", {}),
        ]
        for method, path, body in requests:
            foreign, missing = [
                await client.request(method, path.format(id=each), json=body, headers=ben)
                for each in (run_id, "0" * len(run_id))
            ]
            assert foreign.status_code == missing.status_code == 404, path
            assert foreign.text.replace(run_id, "ID") == missing.text.replace("0" * len(run_id), "ID"), path
        assert (await client.get("/runs", headers=ben)).json()["items"] == []
        assert (await client.get("/interrupts", headers=ben)).json()["items"] == []
        for path in ("/runs?userId=ann", "/interrupts?userId=ann"):
            assert (await client.get(path, headers=ben)).json()["code"] == "user.not_found"
        refused = await client.post("/runs", json={"newMessage": "Hi", "userId": "ann"}, headers=ben)
        assert (refused.status_code, refused.json()["code"]) == (404, "user.not_found")
        record = await runner.store.get_run("app", run_id, "ann")
        assert (record.status, record.cancel_requested) == (RunStatus.WAITING, None)
        assert len((await client.get("/runs", headers={"x-user": "root"})).json()["items"]) == 1


async def test_runs_of_several_apps_and_below_a_path():
    runners = [Runner(app_name=name, agent=helper) for name in ("one", "two")]
    app = FastAPI()
    app.mount("/agents", create_app(runners))
    async with runners[0], runners[1], serve(app) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/agents/runs", json={"appName": "two", "userId": "ann", "newMessage": "Hi"})
        assert response.headers["location"] == f"/agents/runs/{response.json()['id']}?appName=two"
        assert (await client.get(response.headers["location"])).json()["id"] == response.json()["id"]
        assert (await client.get(f"/agents/runs/{response.json()['id']}")).json()["code"] == "app.missing"
        assert (await client.get(f"/agents/runs/{response.json()['id']}?appName=one")).json()["code"] == "run.not_found"


async def test_two_users_runs_of_one_id_are_told_apart():
    async with serving() as (runner, client):
        for user in ("ann", "ben"):
            await (await runner.start(user, "s", f"Hi from {user}", run_id="same")).wait()
        assert (await client.get("/runs/same")).json()["code"] == "run.ambiguous"
        assert (await client.get("/runs/same?userId=ben")).json()["userId"] == "ben"


async def test_what_retention_has_removed_is_gone():
    async with serving() as (runner, client):
        run = await done(runner, await start(client))
        await done(runner, await start(client, "ask"))
        await runner.data.prune("app", Retention(max_events=0))
        for cursor in ("", "0", "1"):
            response = await client.get(f"/runs/{run.id}/events", params={"after": cursor})
            assert (response.status_code, response.json()["code"]) == (410, "cursor.trimmed")
        assert (await client.get(f"/runs/{run.id}/events", params={"after": "2"})).status_code == 200
        assert (await client.get(f"/runs/{run.id}")).json()["status"] == "completed"
        waiting = (await client.get("/runs", params={"status": "waiting"})).json()["items"][0]
        assert (await client.get(f"/runs/{waiting['id']}/events")).status_code == 200
        retried = await client.post(f"/runs/{run.id}:retry", json={"dropLater": True})
        assert (retried.status_code, retried.json()["code"]) == (410, "run.trimmed")

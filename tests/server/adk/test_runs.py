"""`/run` and `/run_sse`."""

import asyncio
import json

import httpx
import pytest

from sojourn.agents.function import agent
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server import ServerConfig, create_app
from tests.server.adk.support import (
    APP,
    assert_problem,
    client_of,
    helper,
    make_runner,
    new_session,
    run_body,
    say,
    sessions,
    stream,
    text_message,
    texts,
)

pytestmark = pytest.mark.anyio


async def test_a_run_gives_its_events():
    runner = make_runner()
    async with client_of(runner) as client:
        await new_session(client)
        response = await client.post("/run", json=run_body("hi", customMetadata={"trace": 7}))
        [event] = response.json()
        assert (event["author"], texts([event])) == ("helper", ["You said: hi"])
        assert response.headers["x-run-id"] == event["invocationId"]
        assert response.headers["location"] == f"/runs/{event['invocationId']}"
        record = (await runner.follow(event["invocationId"])).record
        assert (record.attached, record.custom_metadata) == (False, {"trace": 7})
        assert (await client.get(response.headers["location"])).json()["id"] == record.id


async def test_pieces_have_the_id_of_the_event_that_holds_them():
    async with client_of() as client:
        await new_session(client)
        *pieces, final = await stream(client, "hi", streaming=True)
        assert pieces, "a run that streams sends pieces"
        assert {piece["id"] for piece in pieces} == {final["id"]}
        assert all(piece["partial"] and piece["author"] == "helper" for piece in pieces)
        assert "".join(texts(pieces)) == "You said: hi" == texts([final])[0]
        assert not final.get("partial")
        assert (await client.get(sessions(session="s"))).json()["events"][-1]["id"] == final["id"]


async def test_without_streaming_events_come_whole():
    async with client_of() as client:
        await new_session(client)
        for more in ({}, {"streaming": False}):
            assert texts(await stream(client, "hi", **more)) == ["You said: hi"]


async def test_a_stream_is_framed_for_proxies_and_readers():
    async with client_of() as client:
        await new_session(client)
        response = await client.post("/run_sse", json=run_body("hi"))
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-run-id"] in response.headers["location"]
        lines = await client.post("/run_sse", json=run_body("hi"), headers={"Accept": "application/x-ndjson"})
        assert lines.headers["content-type"].partition(";")[0] == "application/x-ndjson"
        assert texts(json.loads(line) for line in lines.text.splitlines() if line) == ["You said: hi"]


async def test_snake_case_and_unknown_members_are_taken():
    async with client_of() as client:
        await new_session(client)
        body = {
            "app_name": APP,
            "user_id": "ann",
            "session_id": "s",
            "new_message": {"parts": [{"text": "hi"}], "role": None},
            "state_delta": {"k": 1},
            "function_call_event_id": None,
            "invocation_id": None,
            "service_tier": "fast",
        }
        response = await client.post("/run", json=body)
        assert texts(response.json()) == ["You said: hi"]
        assert (await client.get(sessions(session="s"))).json()["state"] == {"k": 1, "last": "hi"}


async def test_the_app_may_be_left_out_where_there_is_one():
    async with client_of() as client:
        await new_session(client)
        body = run_body("hi")
        del body["appName"]
        assert (await client.post("/run", json=body)).status_code == 200
    two = create_app([make_runner(), Runner(app_name="other", agent=helper)], ServerConfig(allowed_hosts=("*",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(two), base_url="http://localhost") as client:
        await client.post(sessions(), json={"sessionId": "s"})
        assert_problem(await client.post("/run", json=body), 400, "app.missing")
        response = await client.post("/run", json=run_body("hi"))
        assert response.headers["location"].endswith(f"?appName={APP}")
        assert (await client.get(response.headers["location"])).status_code == 200


@pytest.mark.parametrize("path", ["/run", "/run_sse"])
async def test_what_the_server_notes_with_a_run_is_not_a_clients(path):
    runner = make_runner()
    async with client_of(runner) as client:
        await new_session(client)
        metadata = {"trace": 7, "sojourn:request": "theirs"}
        response = await client.post(path, json=run_body("hi", customMetadata=metadata))
        record = await runner.store.get_run(APP, response.headers["x-run-id"], "ann")
        assert record.custom_metadata == {"trace": 7}


@pytest.mark.parametrize("route", ["/run", "/run_sse"])
async def test_what_cannot_run_is_refused_before_the_stream(route):
    runner = make_runner()
    async with client_of(runner, max_parts=2) as client:
        await new_session(client)
        call = {"functionCall": {"id": "c", "name": "pay", "args": {}}}
        answer = {"functionResponse": {"id": "c", "name": "pay", "response": {"ok": 1}}}
        refused = [
            (run_body("hi", session="missing"), 404, "session.not_found"),
            (run_body("hi", session="missing", newMessage={"parts": [answer]}), 404, "session.not_found"),
            (run_body("hi") | {"appName": "nope"}, 404, "app.not_found"),
            (run_body("hi") | {"newMessage": None, "invocationId": "x"}, 400, "message.missing"),
            (run_body({"parts": []}), 400, "message.invalid"),
            (run_body({"parts": [{"text": "x"}] * 3}), 400, "message.too_many_parts"),
            (run_body({"parts": [call]}), 400, "message.invalid"),
            (run_body({"parts": [{"text": "x"}, answer]}), 400, "message.invalid"),
            (run_body({"parts": [answer]}), 404, "interrupt.not_found"),
            (run_body("hi", stateDelta={"app:": 1}), 400, "state.invalid_key"),
            (run_body("hi") | {"sessionId": None}, 422, "request.invalid"),
        ]
        for body, status, code in refused:
            assert_problem(await client.post(route, json=body), status, code)
        assert_problem(
            await client.post(route, content=b"{", headers={"content-type": "application/json"}), 422, "request.invalid"
        )
    assert (await runner.list_runs()).items == []


async def test_a_failure_is_told_with_its_code_and_nothing_of_its_cause():
    async with client_of() as client:
        await new_session(client)
        response = await client.post("/run", json=run_body("fail"))
        assert_problem(response, 500, "agent.failed")
        assert "secret" not in response.text
        assert response.headers["x-run-id"] in response.headers["location"]
        *events, last = await stream(client, "fail")
        assert texts(events) == ["I begin."]
        assert (last["errorCode"], last["error"]) == ("agent.failed", last["errorMessage"])
        assert "secret" not in json.dumps([events, last])


async def test_a_client_that_goes_leaves_its_run():
    begun, go_on = asyncio.Event(), asyncio.Event()

    @agent
    async def slow(ctx):
        begun.set()
        await go_on.wait()
        return "done"

    runner = make_runner(slow)
    async with client_of(runner) as client:
        await new_session(client)
        for route in ("/run", "/run_sse"):
            begun.clear()
            go_on.clear()
            request = asyncio.create_task(client.post(route, json=run_body("hi")))
            await begun.wait()
            request.cancel()
            await asyncio.wait((request,))
            record = (await runner.list_runs()).items[0]
            run = await runner.follow(record.id)
            go_on.set()
            assert await run.result() == "done"


async def test_a_client_that_goes_ends_its_run_if_the_operator_wants_that():
    begun = asyncio.Event()

    @agent
    async def endless(ctx):
        begun.set()
        await asyncio.Event().wait()

    runner = make_runner(endless)
    async with client_of(runner, on_disconnect="cancel", disconnect_grace=0.0) as client:
        await new_session(client)
        for route in ("/run", "/run_sse"):
            begun.clear()
            request = asyncio.create_task(client.post(route, json=run_body("hi")))
            await begun.wait()
            request.cancel()
            await asyncio.wait((request,))
            record = (await runner.list_runs()).items[0]
            assert (await (await runner.follow(record.id)).wait()).status is RunStatus.CANCELLED


async def test_the_caller_is_the_user():
    runner = make_runner()
    async with client_of(runner, user="ann") as client:
        await new_session(client)
        body = run_body({"role": "model", "parts": [{"text": "hi"}]})
        del body["userId"]
        assert texts((await client.post("/run", json=body)).json()) == ["You said: hi"]
    [event, _] = await runner.store.list_events(app_name=APP, user_id="ann", session_id="s")
    assert (event.author, event.content.role) == ("user", "user")


async def test_users_have_only_so_many_runs():
    async with client_of(max_unfinished_runs_per_user=1) as client:
        await new_session(client)
        await new_session(client, "t")
        [event] = await say(client, "ask")
        assert_problem(await client.post("/run", json=run_body("hi", session="t")), 429, "limit.runs_per_user")
        call = event["content"]["parts"][0]["functionCall"]
        answer = {"functionResponse": {"id": call["id"], "name": call["name"], "response": {"result": "Ann"}}}
        assert texts(await say(client, {"parts": [answer]})) == ["Hello Ann."]


async def test_state_comes_with_the_message():
    async with client_of() as client:
        await new_session(client, state={"gone": 1, "count": 1})
        delta = {"a": {"deep": [1]}, "user:b": 2, "temp:c": 3}
        [event] = await say(client, "state", stateDelta=delta)
        assert json.loads(texts([event])[0]) == delta
        got = (await client.get(sessions(session="s"))).json()
        assert got["state"] == {"a": {"deep": [1]}, "user:b": 2, "count": 3}
        assert got["events"][0]["actions"] == {"stateDelta": {"a": {"deep": [1]}, "user:b": 2}}
        assert (await client.get(sessions(session="s"), params={"limit": 0})).json()["events"] == []


async def test_a_message_that_is_refused_changes_no_state():
    async with client_of() as client:
        await new_session(client)
        answer = {"functionResponse": {"id": "c", "name": "pay", "response": {}}}
        for message, status in (({"parts": []}, 400), ({"parts": [answer]}, 404)):
            assert (await client.post("/run", json=run_body(message, stateDelta={"k": 1}))).status_code == status
        assert (await client.get(sessions(session="s"))).json()["state"] == {}


async def test_users_do_not_meet():
    """Ten users with a session of the same name each; what one says is in no other's."""
    async with client_of() as client:
        users = [f"u{n}" for n in range(10)]
        await asyncio.gather(*(new_session(client, "s", user=user) for user in users))
        said = await asyncio.gather(*(stream(client, f"I am {user}", user=user) for user in users))
        assert [texts(events) for events in said] == [[f"You said: I am {user}"] for user in users]
        for user in users:
            got = (await client.get(sessions(user, "s"))).json()
            assert texts(got["events"]) == [f"I am {user}", f"You said: I am {user}"]


async def test_the_message_of_a_user_may_hold_files():
    async with client_of() as client:
        await new_session(client)
        parts = [{"text": "look"}, {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo=", "displayName": "a.png"}}]
        await say(client, {"role": "user", "parts": parts})
        got = (await client.get(sessions(session="s"))).json()["events"][0]
        assert got["content"] == {"role": "user", "parts": parts}
        assert text_message("x")["role"] == "user"

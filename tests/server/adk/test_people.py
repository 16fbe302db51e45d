"""People in the loop: questions as google-adk's clients show them, and answers as they give them."""

import json

import pytest

from sojourn.event import CREDENTIAL_CALL
from sojourn.store.sqlite.service import SqliteSessionService
from tests.server.adk.support import (
    LOGIN,
    answer_message,
    assert_problem,
    call_in,
    client_of,
    make_runner,
    new_session,
    run_body,
    say,
    sessions,
    stream,
    texts,
)

pytestmark = pytest.mark.anyio


async def test_a_question_is_answered_by_its_id():
    async with client_of() as client:
        await new_session(client)
        asked = await stream(client, "ask", streaming=True)
        call = call_in(asked)
        assert call["name"] == "adk_request_input"
        assert call["args"] == {"key": "name", "message": "Your name?", "response_schema": {"type": "string"}}
        answer = answer_message(call, {"result": "Ann"})
        told = await stream(client, answer, functionCallEventId=asked[-1]["id"], invocationId=asked[-1]["invocationId"])
        assert texts(told) == ["Hello Ann."]
        assert told[-1]["invocationId"] == asked[-1]["invocationId"], "the run that asked goes on"
        got = (await client.get(sessions(session="s"))).json()["events"]
        assert [event["author"] for event in got] == ["user", "helper", "user", "helper"]


@pytest.mark.parametrize(
    ("response", "reply"),
    [
        ({"confirmed": True, "payload": {"price": 30}}, "Bought."),
        ({"confirmed": False, "payload": {}}, "Left it."),
        ({"result": True}, "Bought."),
        ({"result": "false"}, "Left it."),
        ({"response": json.dumps({"confirmed": True})}, "Bought."),
    ],
)
async def test_leave_is_given_in_each_form_that_clients_use(response, reply):
    async with client_of() as client:
        await new_session(client)
        call = call_in(await say(client, "buy"))
        assert call["name"] == "adk_request_confirmation"
        assert call["args"]["toolConfirmation"] == {"hint": "Buy it?", "confirmed": False}
        assert call["args"]["originalFunctionCall"]["args"] == {"price": 30}
        assert texts(await say(client, answer_message(call, response))) == [reply]


async def test_what_was_typed_becomes_what_was_asked_for():
    async with client_of() as client:
        await new_session(client)
        call = call_in(await say(client, "age"))
        for response in ({"result": "old"}, {"result": None}, {"result": "[1]"}, {"result": "[" * 100_000}, {}):
            refused = await client.post("/run", json=run_body(answer_message(call, response)))
            assert_problem(refused, 400, "interrupt.invalid_answer")
        assert texts(await say(client, answer_message(call, {"result": "41"}))) == ["Next year you will be 42."]
        assert await say(client, answer_message(call, {"result": "41"})) == []


async def test_text_that_looks_like_json_stays_text_where_text_is_asked_for():
    async with client_of() as client:
        await new_session(client)
        call = call_in(await say(client, "ask"))
        assert texts(await say(client, answer_message(call, {"result": "42"}))) == ["Hello 42."]


async def test_an_answer_counts_once():
    async with client_of() as client:
        await new_session(client)
        call = call_in(await say(client, "ask"))
        answer = answer_message(call, {"result": "Ann"})
        assert texts(await say(client, answer)) == ["Hello Ann."]
        assert await say(client, answer) == []
        other = await client.post("/run", json=run_body(answer_message(call, {"result": "Bob"})))
        assert_problem(other, 409, "interrupt.conflict")
        got = (await client.get(sessions(session="s"))).json()["events"]
        assert len(got) == 4


async def test_nobody_answers_for_somebody_else():
    async with client_of(user="ann") as client:
        await new_session(client)
        call = call_in(await say(client, "buy"))
        bob = {"X-User": "bob"}
        await client.post(sessions("bob"), json={"sessionId": "s"}, headers=bob)
        body = run_body(answer_message(call, {"confirmed": True}))
        assert_problem(await client.post("/run", json=body, headers=bob), 404, "session.not_found")
        assert_problem(await client.post("/run", json=body | {"userId": "bob"}, headers=bob), 404, "interrupt.not_found")
        assert texts(await say(client, answer_message(call, {"confirmed": True}))) == ["Bought."]


async def test_state_may_come_with_an_answer():
    async with client_of() as client:
        await new_session(client)
        call = call_in(await say(client, "ask"))
        await say(client, answer_message(call, {"result": "Ann"}), stateDelta={"k": 1, "temp:x": 2})
        assert (await client.get(sessions(session="s"))).json()["state"] == {"k": 1}


def completed(call):
    """What the web UI answers after a login."""
    given = json.loads(json.dumps(call["args"]["authConfig"]))
    oauth2 = given["exchangedAuthCredential"]["oauth2"]
    oauth2 |= {"authResponseUri": "https://here/?code=SECRET-code&state=s1", "redirectUri": "https://here/"}
    return given


@pytest.fixture(params=["inmemory", "sqlite"])
def store(request, tmp_path):
    return None if request.param == "inmemory" else SqliteSessionService(tmp_path / "sojourn.db")


async def test_a_login_is_asked_for_and_its_secrets_are_shown_to_nobody(store):
    runner = make_runner(**({} if store is None else {"session_service": store}))
    async with client_of(runner) as client:
        await new_session(client)
        asked = await stream(client, "login", streaming=True)
        call = call_in(asked)
        assert call["name"] == CREDENTIAL_CALL == "adk_request_credential"
        shown = call["args"]["authConfig"]
        assert shown["exchangedAuthCredential"] == LOGIN["exchangedAuthCredential"]
        assert shown["rawAuthCredential"] == {"authType": "oauth2", "oauth2": {"clientId": "us"}}
        told = await stream(client, answer_message(call, completed(call)))
        assert texts(told) == ["Logged in by 39 characters."]
        run_id = told[-1]["invocationId"]
        got = await client.get(sessions(session="s"))
        seen = [json.dumps(asked), json.dumps(told), got.text]
        for address in (f"/runs/{run_id}", f"/runs/{run_id}/events?after=0", f"/runs/{run_id}/interrupts", "/interrupts"):
            response = await client.get(address)
            assert response.status_code == 200
            seen.append(response.text)
        assert not [text for text in seen if "SECRET" in text]
        events = got.json()["events"]
        assert events[2]["content"]["parts"][0]["functionResponse"]["response"] == {"status": "redacted"}
        # The web UI opens the address that it finds here, each time it loads the session.
        assert "exchangedAuthCredential" not in events[1]["content"]["parts"][0]["functionCall"]["args"]["authConfig"]
    [asked_once] = await runner.store.list_interrupts("demo", open_only=False)
    assert asked_once.kind == "credential"
    assert "SECRET-code" in json.dumps(asked_once.answer)


async def test_a_login_that_is_not_answered_is_shown_whole_when_the_session_is_loaded():
    async with client_of() as client:
        await new_session(client)
        call = call_in(await say(client, "login"))
        events = (await client.get(sessions(session="s"))).json()["events"]
        assert call_in(events) == call


async def test_a_key_may_be_typed():
    async with client_of() as client:
        await new_session(client)
        call = call_in(await say(client, "login"))
        assert texts(await say(client, answer_message(call, {"result": "SECRET"}))) == ["Logged in by 6 characters."]
        assert "SECRET" not in (await client.get(sessions(session="s"))).text

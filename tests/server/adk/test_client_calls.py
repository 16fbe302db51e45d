"""What google-adk's clients send, in their order and with their bodies, as they were recorded: nothing of it may change.

Recorded from the web UI of google-adk 2.13 in a browser, and from its `AdkWebServerClient`. `tests/adk_clients` runs the real
client.
"""

import json

import pytest

from tests.server.adk.support import APP, client_of

pytestmark = pytest.mark.anyio

USER = f"/apps/{APP}/users/user"
UI_HEADERS = {"Accept": "text/event-stream", "Content-Type": "application/json"}


def ui_body(session, message, **more):
    return {
        "appName": APP,
        "userId": "user",
        "sessionId": session,
        "newMessage": message,
        "streaming": True,
        "stateDelta": None,
        **more,
    }


def as_the_ui_reads(text):
    """The lines that begin with `data:`, each JSON; all others are ignored."""
    return [json.loads(line.removeprefix("data:").strip()) for line in text.splitlines() if line.startswith("data:")]


async def test_the_web_ui():
    async with client_of() as client:

        async def send(message, **more):
            response = await client.post("/run_sse", content=json.dumps(ui_body(session, message, **more)), headers=UI_HEADERS)
            assert response.status_code == 200
            return as_the_ui_reads(response.text)

        assert (await client.get("/list-apps?relative_path=./")).json() == [APP]
        version = (await client.get("/version")).json()
        assert all(isinstance(value, str) for value in version.values())
        # It goes on without these.
        for address in (
            "/config/telemetry",
            f"/dev/apps/{APP}/build_graph",
            f"/dev/apps/{APP}/build_graph_image?dark_mode=true",
            f"/dev/apps/{APP}/builder?ts=1795277913846",
            f"/dev/apps/{APP}/eval_sets",
            f"/dev/apps/{APP}/eval_results",
        ):
            assert (await client.get(address)).status_code == 404
        made = await client.post(f"{USER}/sessions", json={"state": {"__session_metadata__": {"displayName": "hello"}}})
        session = made.json()["id"]

        *pieces, whole = await send({"role": "user", "parts": [{"text": "hello"}]})
        assert all(piece["partial"] and piece["id"] == whole["id"] for piece in pieces)
        assert whole["content"]["parts"][0]["text"] == "You said: hello"
        assert whole["actions"]["stateDelta"] == {"last": "hello"}
        assert (await client.get(f"/dev/apps/{APP}/debug/trace/session/{session}")).status_code == 200

        [asked] = await send({"role": "user", "parts": [{"text": "buy"}]})
        call = asked["content"]["parts"][0]["functionCall"]
        assert asked["longRunningToolIds"] == [call["id"]]
        assert call["args"]["toolConfirmation"]["confirmed"] is False
        response = {"confirmed": True, "payload": call["args"]["originalFunctionCall"]["args"]}
        part = {"functionResponse": {"id": call["id"], "name": call["name"], "response": response}}
        *_, told = await send({"role": "user", "parts": [part]}, functionCallEventId=asked["id"])
        assert told["content"]["parts"][0]["text"] == "Bought."

        [asked] = await send({"role": "user", "parts": [{"text": "age"}]})
        call = asked["content"]["parts"][0]["functionCall"]
        assert call["args"]["response_schema"] == {"type": "integer"}
        part = {"functionResponse": {"id": call["id"], "name": call["name"], "response": {"result": "41"}}}
        *_, told = await send({"role": "user", "parts": [part]}, functionCallEventId=asked["id"])
        assert told["content"]["parts"][0]["text"] == "Next year you will be 42."

        [asked] = await send({"role": "user", "parts": [{"text": "login"}]})
        call = asked["content"]["parts"][0]["functionCall"]
        given = call["args"]["authConfig"]
        given["exchangedAuthCredential"]["oauth2"] |= {"authResponseUri": "http://127.0.0.1/dev-ui/?code=1", "redirectUri": "u"}
        part = {"functionResponse": {"id": call["id"], "name": call["name"], "response": given}}
        *_, told = await send({"role": "user", "parts": [part]}, functionCallEventId=asked["id"])
        assert told["content"]["parts"][0]["text"] == "Logged in by 31 characters."

        *_, saved = await send({"role": "user", "parts": [{"text": "save notes/a.txt"}]})
        assert saved["actions"]["artifactDelta"] == {"notes/a.txt": 0}
        loaded = await client.get(f"{USER}/sessions/{session}/artifacts/notes/a.txt/versions/0")
        assert loaded.json() == {"text": "the text of notes/a.txt"}

        *_, failed = await send({"role": "user", "parts": [{"text": "fail"}]})
        assert isinstance(failed["error"], str), "shown in a bar at the bottom"

        loaded = (await client.get(f"{USER}/sessions/{session}")).json()
        assert [event["author"] for event in loaded["events"]] == ["user", "helper"] + ["user", "helper", "user", "helper"] * 3 + [
            "user", "helper", "user", "helper",
        ]  # fmt: skip
        patched = await client.patch(f"{USER}/sessions/{session}", json={"stateDelta": {"note": "x"}})
        assert patched.json()["state"]["note"] == "x"
        assert [each["id"] for each in (await client.get(f"{USER}/sessions")).json()] == [session]
        assert (await client.delete(f"{USER}/sessions/{session}")).status_code == 200
        assert (await client.get(f"{USER}/sessions")).json() == []


async def test_the_python_client():
    async with client_of() as client:
        made = (await client.post(f"{USER}/sessions", json={"state": {"a": 1}})).json()
        path = f"{USER}/sessions/{made['id']}"
        body = {
            "appName": APP,
            "userId": "user",
            "sessionId": made["id"],
            "newMessage": {"parts": [{"text": "hello"}], "role": "user"},
            "streaming": False,
            "stateDelta": {"_adk_replay_config": {"dir": "d", "user_message_index": 0, "streaming_mode": "none"}},
        }
        [event] = as_the_ui_reads((await client.post("/run_sse", json=body)).text)
        assert event["content"]["parts"][0]["text"] == "You said: hello"
        assert (await client.patch(path, json={"state_delta": {"b": 2}})).json()["state"]["b"] == 2
        await client.post("/run_sse", json=body | {"newMessage": {"parts": [{"text": "save a.txt"}], "role": "user"}})
        versions = (await client.get(f"{path}/artifacts/a.txt/versions/metadata")).json()
        assert versions == [(await client.get(f"{path}/artifacts/a.txt/versions/0/metadata")).json()]
        assert versions[0].keys() >= {"version", "canonicalUri", "createTime"}
        missing = await client.post("/run_sse", json=body | {"sessionId": "none"})
        assert (missing.status_code, "none" in missing.json()["detail"]) == (404, True)
        await client.delete(path)
        assert (await client.get(path)).status_code == 404

"""Drives a server with google-adk's own client, and prints what it was given: `python client.py BASE_URL`.

Runs in an environment that has google-adk, and nothing of ours.
"""

import asyncio
import json
import sys

import httpx
from google.adk.cli.adk_web_server import RunAgentRequest
from google.adk.cli.conformance.adk_web_server_client import AdkWebServerClient
from google.genai import types

APP, USER = "demo", "ann"


async def main(base_url):
    async with AdkWebServerClient(base_url) as client:
        session = await client.create_session(app_name=APP, user_id=USER, state={"a": 1})
        here = {"app_name": APP, "user_id": USER, "session_id": session.id}

        async def run(message, **more):
            request = RunAgentRequest(**here, new_message=message, **more)
            return [event async for event in client.run_agent(request)]

        def said(text):
            return types.Content(role="user", parts=[types.Part(text=text)])

        def answered(events, response):
            [call] = events[-1].get_function_calls()
            assert events[-1].long_running_tool_ids == {call.id}
            given = types.FunctionResponse(id=call.id, name=call.name, response=response)
            return types.Content(role="user", parts=[types.Part(function_response=given)])

        told = {"version": await client.get_version_data(), "state": session.state}
        events = await run(said("hi"), streaming=True)
        told["ids"] = sorted({event.id for event in events})
        told["final"] = [event.content.parts[0].text for event in events if not event.partial]
        told["pieces"] = "".join(event.content.parts[0].text for event in events if event.partial)
        told["whole"] = [event.content.parts[0].text for event in await run(said("hi"))]
        asked = await run(said("buy"))
        resumed = {"invocation_id": asked[-1].invocation_id, "function_call_event_id": asked[-1].id}
        told["bought"] = (await run(answered(asked, {"confirmed": True}), **resumed))[-1].content.parts[0].text
        told["asked"] = (await run(answered(await run(said("ask")), {"result": "Ann"})))[-1].content.parts[0].text
        login = await run(said("login"))
        config = login[-1].get_function_calls()[0].args["authConfig"]
        config["exchangedAuthCredential"]["oauth2"]["authResponseUri"] = "https://here/?code=1"
        told["login"] = (await run(answered(login, config)))[-1].content.parts[0].text
        [changed] = await run(said("state"), state_delta={"b": 2, "temp:c": 3})
        told["seen"] = json.loads(changed.content.parts[0].text)
        [saved] = await run(said("save notes/a.txt"))
        told["artifacts"] = saved.actions.artifact_delta
        versions = await client.list_artifact_versions_metadata(**here, artifact_name="notes/a.txt")
        assert versions == [await client.get_artifact_version_metadata(**here, artifact_name="notes/a.txt", version=0)]
        told["mime_type"] = versions[0].mime_type
        try:
            await run(said("fail"))
        except RuntimeError as error:
            told["error"] = str(error)
        updated = await client.update_session(**here, state_delta={"d": 4})
        got = await client.get_session(**here)
        assert got == updated
        told["after"] = got.state
        told["authors"] = [event.author for event in got.events]
        await client.delete_session(**here)
        try:
            await client.get_session(**here)
        except httpx.HTTPStatusError as error:
            told["gone"] = error.response.status_code
    print(json.dumps(told))


asyncio.run(main(sys.argv[1]))

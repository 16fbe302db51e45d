"""Memory on google-adk's wire."""

import pytest

from sojourn.runner.runner import Runner
from tests.server.adk.support import APP, assert_problem, client_of, helper, new_session, say

pytestmark = pytest.mark.anyio


def memory(user="ann"):
    return f"/apps/{APP}/users/{user}/memory"


async def test_a_session_is_remembered_and_found_by_its_user_only():
    async with client_of() as client:
        await new_session(client)
        await say(client, "My lamp is red")
        assert (await client.get(memory(), params={"query": "lamp"})).json() == {"memories": []}
        for member in ("sessionId", "session_id"):
            assert (await client.patch(memory(), json={member: "s"})).json() is None
        found = (await client.get(memory(), params={"query": "lamp", "limit": 1})).json()["memories"]
        [best] = found
        assert (best["author"], best["sessionId"]) in (("user", "s"), ("helper", "s"))
        assert "My lamp is red" in best["content"]["parts"][0]["text"]
        assert best["timestamp"].endswith("+00:00")
        assert len((await client.get(memory(), params={"query": "lamp"})).json()["memories"]) == 2
        assert (await client.get(memory("bob"), params={"query": "lamp"})).json() == {"memories": []}


async def test_what_is_missing_is_told():
    async with client_of() as client:
        assert_problem(await client.patch(memory(), json={"sessionId": "none"}), 404, "session.not_found")
        assert_problem(await client.patch(memory(), json={}), 422, "request.invalid")
        assert_problem(await client.get(memory()), 422, "request.invalid")
    async with client_of(Runner(app_name=APP, agent=helper, memory_service=None)) as client:
        await new_session(client)
        assert_problem(await client.patch(memory(), json={"sessionId": "s"}), 501, "memory.not_configured")
        assert_problem(await client.get(memory(), params={"query": "x"}), 501, "memory.not_configured")

"""`Idempotency-Key`: a request that is sent again starts nothing again."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from sojourn.agents.function import agent
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.server.app import create_app
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before, hold

pytestmark = pytest.mark.anyio

BODY = {"userId": "ann", "newMessage": "Hi"}
KEY = {"Idempotency-Key": "order 17"}


@agent
async def echo(ctx):
    return f"You said: {ctx.user_content.text}"


@asynccontextmanager
async def serving(store=None, *, names=("app",)):
    store = store or InMemorySessionService()
    runners = [Runner(app_name=name, agent=echo, session_service=store) for name in names]
    transport = httpx.ASGITransport(create_app(runners))
    for runner in runners:
        await runner.recover()
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield runners[0], client
    for runner in runners:
        await runner.close()


async def let_all_come(held):
    """Lets a held call go on when the requests that were sent with its own have come as far as they can."""
    await held.reached.wait()
    for _ in range(1000):
        await asyncio.sleep(0)
    held.go.set()


def shown(response):
    """Of a run's record, what does not change while it is executed."""
    return {name: response.json()[name] for name in ("id", "sessionId", "message", "config", "customMetadata", "createdAt")}


async def test_the_same_request_is_answered_with_the_same_run():
    async with serving() as (runner, client):
        first = await client.post("/runs", json={**BODY, "customMetadata": {"a": 1}}, headers=KEY)
        again = await client.post(
            "/runs",
            content=b'{ "customMetadata": {"a":1}, "newMessage":"Hi","userId":"ann" }',
            headers={**KEY, "content-type": "application/json"},
        )
        assert (first.status_code, again.status_code) == (201, 200)
        assert shown(again) == shown(first)
        assert again.headers["location"] == first.headers["location"]
        assert first.json()["customMetadata"] == {"a": 1}
        assert len((await runner.list_runs()).items) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"newMessage": "Something else"},
        {"sessionId": "s"},
        {"runConfig": {"maxTurns": 3}},
        {"customMetadata": {"a": 1}},
        {"stateDelta": {"a": 1}},
    ],
)
async def test_another_request_with_the_key_is_refused(other):
    async with serving() as (runner, client):
        assert (await client.post("/runs", json=BODY, headers=KEY)).status_code == 201
        refused = await client.post("/runs", json={**BODY, **other}, headers=KEY)
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency.mismatch")
        assert refused.headers["content-type"] == "application/problem+json"
        assert len((await runner.list_runs()).items) == 1


async def test_a_key_is_its_users_and_its_apps():
    async with serving(names=("one", "two")) as (runner, client):
        bodies = [{**BODY, "userId": user, "appName": app} for user in ("ann", "ben") for app in ("one", "two")]
        responses = [await client.post("/runs", json=body, headers=KEY) for body in bodies]
        assert [r.status_code for r in responses] == [201] * 4
        assert len({r.json()["id"] for r in responses}) == 4


async def test_requests_without_a_key_are_each_their_own():
    async with serving() as (runner, client):
        assert (await client.post("/runs", json=BODY)).json()["id"] != (await client.post("/runs", json=BODY)).json()["id"]


@pytest.mark.parametrize("key", ["", "x" * 257])
async def test_a_key_that_cannot_be_is_refused(key):
    async with serving() as (runner, client):
        refused = await client.post("/runs", json=BODY, headers={"Idempotency-Key": key})
        assert (refused.status_code, refused.json()["code"]) == (400, "id.invalid")


@pytest.mark.parametrize("sqlite", [False, True])
async def test_twenty_at_once_start_one_run(tmp_path, sqlite):
    inner = SqliteSessionService(tmp_path / "s.db") if sqlite else InMemorySessionService()
    held = hold("submit", 1)
    store = FaultyStore(inner, [held])
    async with serving(store) as (runner, client):
        asked = [asyncio.create_task(client.post("/runs", json=BODY, headers=KEY)) for _ in range(20)]
        await let_all_come(held)
        responses = await asyncio.gather(*asked)
        assert {r.status_code for r in responses} <= {200, 201}
        assert len({str(shown(r)) for r in responses}) == 1
        assert len((await runner.list_runs()).items) == 1
        record = (await runner.list_runs()).items[0]
        await (await runner.follow(record.id)).wait()
        history = await store.list_events(app_name="app", user_id="ann", session_id=record.session_id)
        assert [event.author for event in history] == ["user", "echo"]
    await inner.close()


@pytest.mark.parametrize(
    "bodies",
    [
        [{**BODY, "newMessage": f"Hi {n}"} for n in range(10)],
        # The store takes them for the same.
        [{**BODY, "runConfig": {"maxTurns": n + 1}} for n in range(10)],
    ],
)
async def test_of_different_requests_at_once_one_wins_and_the_others_are_refused(bodies):
    held = hold("submit", 1)
    store = FaultyStore(InMemorySessionService(), [held])
    async with serving(store) as (runner, client):
        asked = [asyncio.create_task(client.post("/runs", json=body, headers=KEY)) for body in bodies]
        await let_all_come(held)
        responses = await asyncio.gather(*asked)
        assert sorted(r.status_code for r in responses) == [201] + [422] * 9
        assert {r.json()["code"] for r in responses if r.status_code == 422} == {"idempotency.mismatch"}
        assert len((await runner.list_runs()).items) == 1


async def test_repetitions_at_once_are_one():
    held = hold("submit", 2)
    async with serving(FaultyStore(InMemorySessionService(), [held])) as (runner, client):
        first = await client.post("/runs", json=BODY)
        await (await runner.follow(first.json()["id"])).wait()
        at = first.headers["location"] + ":retry"
        asked = [asyncio.create_task(client.post(at, headers=KEY)) for _ in range(10)]
        await let_all_come(held)
        responses = await asyncio.gather(*asked)
        assert sorted(r.status_code for r in responses) == [200] * 9 + [201]
        assert len({str(shown(r)) for r in responses}) == 1
        assert len((await runner.list_runs()).items) == 2


async def test_requests_that_replace_what_runs_do_not_replace_their_own_run():
    held = hold("submit", 1)
    async with serving(FaultyStore(InMemorySessionService(), [held])) as (runner, client):
        body = {**BODY, "sessionId": "s", "runConfig": {"whenBusy": "replace"}}
        asked = [asyncio.create_task(client.post("/runs", json=body, headers=KEY)) for _ in range(5)]
        await let_all_come(held)
        responses = await asyncio.gather(*asked)
        assert len({r.json()["id"] for r in responses}) == 1
        run = await runner.follow(responses[0].json()["id"])
        assert (await run.wait()).status is RunStatus.COMPLETED


async def test_a_session_that_was_made_for_a_request_is_found_when_it_is_sent_again():
    store = FaultyStore(InMemorySessionService(), [fail_before("submit")])
    async with serving(store) as (runner, client):
        # So large a message is taken apart before its run is recorded, and its parts are kept with the session.
        body = {**BODY, "newMessage": "x" * 2_000_000}
        for _ in range(2):
            assert (await client.post("/runs", json=body, headers=KEY)).status_code == 503
        store.plan.clear()
        assert (await client.post("/runs", json=body, headers=KEY)).status_code == 201
        assert len((await store.list_sessions(app_name="app", user_id="ann")).items) == 1


async def test_a_key_is_known_after_a_restart(tmp_path):
    async with serving(SqliteSessionService(tmp_path / "s.db")) as (runner, client):
        first = await client.post("/runs", json=BODY, headers=KEY)
        await (await runner.follow(first.json()["id"])).wait()
        await runner.store.close()
    async with serving(SqliteSessionService(tmp_path / "s.db")) as (runner, client):
        again = await client.post("/runs", json=BODY, headers=KEY)
        assert (again.status_code, shown(again)) == (200, shown(first))
        refused = await client.post("/runs", json={**BODY, "newMessage": "other"}, headers=KEY)
        assert refused.json()["code"] == "idempotency.mismatch"
        assert len((await runner.list_runs()).items) == 1
        await runner.store.close()


async def test_a_request_that_was_refused_has_not_used_its_key():
    store = FaultyStore(InMemorySessionService(), [fail_before("submit")])
    async with serving(store) as (runner, client):
        refused = await client.post("/runs", json=BODY, headers=KEY)
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (503, "store.unavailable", True)
        store.plan.clear()
        assert (await client.post("/runs", json=BODY, headers=KEY)).status_code == 201


async def test_a_reply_that_was_lost_is_asked_for_again():
    store = FaultyStore(InMemorySessionService(), [fail_after("submit", 1)])
    async with serving(store) as (runner, client):
        first = await client.post("/runs", json=BODY, headers=KEY)
        assert first.status_code == 201
        again = await client.post("/runs", json=BODY, headers=KEY)
        assert (again.status_code, shown(again)) == (200, shown(first))
        run = await runner.follow(first.json()["id"])
        assert (await run.wait()).status is RunStatus.COMPLETED
        assert len((await runner.list_runs()).items) == 1


@pytest.mark.parametrize("body", [{}, {"newMessage": "Another"}])
async def test_a_repetition_has_a_key_too(body):
    async with serving() as (runner, client):
        first = await client.post("/runs", json=BODY, headers=KEY)
        await (await runner.follow(first.json()["id"])).wait()
        at = first.headers["location"] + ":retry"
        assert (await client.post(at, json=body, headers=KEY)).json()["code"] == "idempotency.mismatch"
        key = {"Idempotency-Key": "again"}
        asked = await asyncio.gather(*(client.post(at, json=body, headers=key) for _ in range(5)))
        assert {r.status_code for r in asked} <= {200, 201}
        assert len({str(shown(r)) for r in asked}) == 1
        assert (await client.post(at, json={"newMessage": "x"}, headers=key)).json()["code"] == "idempotency.mismatch"
        other = asked[0].json()["id"]
        assert (await client.post(f"/runs/{other}:retry", json=body, headers=key)).json()["code"] == "idempotency.mismatch"
        assert len((await runner.list_runs()).items) == 2
        again = await client.post(at, json=body, headers=key)
        assert (again.status_code, shown(again)) == (200, shown(asked[0]))
        assert again.json()["customMetadata"] is None


async def test_a_server_that_drains_starts_nothing_and_still_knows_what_it_has_started():
    runner = Runner(app_name="app", agent=echo)
    app = create_app(runner)
    async with runner, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        first = await client.post("/runs", json=BODY, headers=KEY)
        app.state.serving.draining = True
        refused = await client.post("/runs", json=BODY)
        assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (503, "server.draining", True)
        again = await client.post("/runs", json=BODY, headers=KEY)
        assert (again.status_code, shown(again)) == (200, shown(first))

"""Sessions on google-adk's wire."""

import asyncio

import pytest

from sojourn.content import Content, Part
from sojourn.event import Event
from sojourn.runner.runner import Runner
from tests.server.adk.support import (
    APP,
    assert_problem,
    client_of,
    helper,
    make_runner,
    new_session,
    say,
    sessions,
    text_message,
    texts,
)

pytestmark = pytest.mark.anyio

# google-adk's client refuses a session with any other member.
MEMBERS = {"id", "appName", "userId", "state", "events", "lastUpdateTime"}


async def test_apps_are_listed():
    other = Runner(app_name="other", agent=helper)
    async with client_of() as client:
        assert (await client.get("/list-apps?relative_path=./")).json() == [APP]
        [app] = (await client.get("/list-apps?detailed=true")).json()["apps"]
    assert app == {
        "name": APP,
        "rootAgentName": "helper",
        "description": "Does what it is told.",
        "language": "python",
        "isComputerUse": False,
    }
    assert other.app_name == "other"


async def test_a_session_lives():
    async with client_of() as client:
        made = (await client.post(sessions(), json={"state": {"a": 1, "user:b": [None]}})).json()
        path = sessions(session=made["id"])
        assert made.keys() == MEMBERS
        assert (made["appName"], made["userId"], made["state"], made["events"]) == (APP, "ann", {"a": 1, "user:b": [None]}, [])
        await say(client, "hi", session=made["id"])
        got = (await client.get(path)).json()
        assert got.keys() == MEMBERS
        assert got["state"] == {"a": 1, "user:b": [None], "last": "hi"}
        assert [event["author"] for event in got["events"]] == ["user", "helper"]
        assert texts(got["events"]) == ["hi", "You said: hi"]
        assert got["events"][1]["actions"] == {"stateDelta": {"last": "hi"}}
        assert got["lastUpdateTime"] >= made["lastUpdateTime"] > 1e9
        patched = (await client.patch(path, json={"state_delta": {"a": None, "c": 3}})).json()
        assert patched["state"] == {"a": None, "user:b": [None], "last": "hi", "c": 3}
        assert len(patched["events"]) == 2
        [listed] = (await client.get(sessions())).json()
        assert listed == {**got, "state": {}, "events": [], "lastUpdateTime": listed["lastUpdateTime"]}
        assert (await client.delete(path)).json() is None
        assert_problem(await client.get(path), 404, "session.not_found")
        assert (await client.get(sessions())).json() == []


@pytest.mark.parametrize("body", [None, {}, {"state": None, "events": None, "session_id": None, "options": {}}])
async def test_a_session_is_made_from_nothing(body):
    async with client_of() as client:
        made = await client.post(sessions(), json=body) if body is not None else await client.post(sessions())
        assert made.status_code == 200
        assert (made.json()["state"], made.json()["events"]) == ({}, [])


async def test_a_session_with_an_id_is_made_once():
    async with client_of() as client:
        assert (await new_session(client, "a b/c"))["id"] == "a b/c"
        assert_problem(await client.post(sessions(), json={"session_id": "a b/c"}), 409, "session.exists")
        assert (await client.post(sessions(session="old"), json={"k": 1})).json()["state"] == {"k": 1}
        assert (await client.post(sessions(session="older"))).json()["state"] == {}
        assert_problem(await client.post(sessions(session="old")), 409, "session.exists")
        assert_problem(await client.post(sessions(), json={"sessionId": "x\n"}), 400, "id.invalid")


async def test_nobody_writes_the_state_of_the_app():
    async with client_of() as client:
        await new_session(client)
        state = {"app:price": 1, "fine": 1}
        refused = [
            await client.post(sessions(), json={"sessionId": "t", "state": state}),
            await client.post(sessions(session="t"), json=state),
            await client.patch(sessions(session="s"), json={"stateDelta": state}),
            await client.post(
                "/run", json={"userId": "ann", "sessionId": "s", "newMessage": text_message("hi"), "stateDelta": state}
            ),
        ]
        for response in refused:
            assert_problem(response, 403, "state.app_scope")
        got = (await client.get(sessions(session="s"))).json()
        assert (got["state"], got["events"]) == ({}, [])
        assert_problem(await client.get(sessions(session="t")), 404, "session.not_found")


async def test_sessions_are_listed_in_pages():
    async with client_of() as client:
        made = [(await new_session(client, f"s{n}"))["id"] for n in range(5)]
        await new_session(client, "foreign", user="bob")
        found, address, pages = [], f"{sessions()}?limit=2", 0
        while address is not None:
            page = await client.get(address)
            found += [session["id"] for session in page.json()]
            pages += 1
            address = str(page.url.join(page.links["next"]["url"])) if "next" in page.links else None
        assert (found, pages) == (made[::-1], 3)
        assert [s["id"] for s in (await client.get(sessions())).json()] == made[::-1]
        assert_problem(await client.get(f"{sessions()}?after=nonsense"), 400, "page.invalid")
        assert_problem(await client.get(f"{sessions()}?limit=0"), 422, "request.invalid")


async def test_events_are_given_in_pages():
    async with client_of() as client:
        await new_session(client)
        for n in range(4):
            await say(client, f"m{n}")
        path = sessions(session="s")
        everything = (await client.get(path)).json()["events"]
        assert len(everything) == 8
        newest = await client.get(f"{path}?limit=3")
        assert newest.json()["events"] == everything[-3:]
        found, address = [], str(newest.url.join(newest.links["first"]["url"]))
        while address is not None:
            page = await client.get(address)
            assert len(page.json()["events"]) <= 3
            found += page.json()["events"]
            address = str(page.url.join(page.links["next"]["url"])) if "next" in page.links else None
        assert found == everything
        assert "first" not in (await client.get(path)).links
        assert (await client.get(f"{path}?limit=0")).json()["events"] == []


def seeded(*said, **more):
    return [{"author": author, "content": text_message(text), **more} for author, text in said]


async def test_a_conversation_is_taken_over():
    heard = []

    async def hear(ctx):
        heard.extend([(event.author, event.text) for event in await ctx.history()])
        yield "Right."

    from sojourn.agents.function import agent

    async with client_of(make_runner(agent(hear))) as client:
        events = seeded(("user", "Hi"), ("guide", "Hello"), ("guide", "How are you?"), ("user", "Well"))
        events[1] |= {"timestamp": 12.5, "id": "theirs", "invocationId": "theirs", "actions": {"stateDelta": {}}}
        events.insert(2, {"author": "guide", "content": text_message("How"), "partial": True})
        made = await new_session(client, state={"k": 1}, events=events)
        assert [e["author"] for e in made["events"]] == ["user", "guide", "guide", "user"]
        assert texts(made["events"]) == ["Hi", "Hello", "How are you?", "Well"]
        assert made["events"][1]["timestamp"] == 12.5
        assert "theirs" not in (made["events"][1]["id"], made["events"][1]["invocationId"])
        assert made["state"] == {"k": 1}
        await say(client, "So?")
        assert heard == [("user", "Hi"), ("guide", "Hello"), ("guide", "How are you?"), ("user", "Well"), ("user", "So?")]


CALL = {"functionCall": {"id": "c", "name": "pay", "args": {}}}
RESPONSE = {"functionResponse": {"id": "c", "name": "adk_request_confirmation", "response": {"confirmed": True}}}


@pytest.mark.parametrize(
    "event",
    [
        {"author": "guide", "content": {"parts": [CALL]}},
        {"author": "user", "content": {"parts": [{"text": "yes"}, RESPONSE]}},
        {"author": "guide", "content": text_message("x"), "longRunningToolIds": ["c"]},
        {"author": "guide", "content": text_message("x"), "actions": {"stateDelta": {"app:x": 1}}},
        {"author": "guide", "content": text_message("x"), "actions": {"transferToAgent": "boss"}},
        {"author": "guide", "content": text_message("x"), "actions": {"requestedToolConfirmations": {"c": {}}}},
        {"author": "guide", "partial": True, "content": {"parts": [CALL]}},
        {"author": "guide", "timestamp": 1e300, "content": text_message("x")},
        {"author": "guide", "timestamp": -1.0, "content": text_message("x")},
    ],
)
async def test_what_only_runs_do_is_not_taken_over(event):
    async with client_of() as client:
        body = {"sessionId": "s", "events": [*seeded(("user", "Hi")), event]}
        assert_problem(await client.post(sessions(), json=body), 400, "session.seed_refused")
        assert_problem(await client.get(sessions(session="s")), 404, "session.not_found")


async def test_a_conversation_begins_with_its_user():
    async with client_of() as client:
        body = {"sessionId": "s", "events": seeded(("guide", "Hi"))}
        assert_problem(await client.post(sessions(), json=body), 400, "session.seed_refused")
        assert (await client.get(sessions())).json() == []


async def test_a_conversation_is_taken_over_up_to_a_length():
    async with client_of(max_seeded_events=2) as client:
        events = seeded(("user", "Hi"), ("guide", "Hello"), ("user", "Well"))
        refused = await client.post(sessions(), json={"sessionId": "s", "events": events})
        assert_problem(refused, 400, "session.too_many_events")
        assert (await client.get(sessions())).json() == []
        assert texts((await new_session(client, events=events[:2]))["events"]) == ["Hi", "Hello"]


async def test_others_go_on_while_a_conversation_is_taken_over():
    async with make_runner() as runner:
        events = [Event(author="user", content=Content("user", (Part(text="Hi"),)))] * 100
        taking = asyncio.ensure_future(runner.create_session("ann", "s", events=events))
        turns = 0
        while not taking.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await taking).id == "s"
        assert turns > 100


async def test_a_conversation_that_cannot_be_stored_leaves_nothing():
    runner = make_runner(artifact_service=None)
    async with client_of(runner) as client:
        large = {"author": "user", "content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "A" * 200_000}}]}}
        body = {"sessionId": "s", "events": [*seeded(("user", "Hi"), ("guide", "Hello")), large]}
        assert_problem(await client.post(sessions(), json=body), 400, "event.too_large")
        assert (await client.get(sessions())).json() == []
        assert (await runner.list_runs()).items == []


async def test_what_is_somebody_elses_is_not_there():
    runner = make_runner()
    async with client_of(runner, user="ann") as client:
        bob = {"X-User": "bob"}
        await client.post(sessions("bob"), json={"sessionId": "s"}, headers=bob)
        path, missing = sessions("bob", "s"), sessions("ann", "s")
        calls = [
            ("GET", "", None),
            ("PATCH", "", {"stateDelta": {"k": 1}}),
            ("DELETE", "", None),
            ("GET", "/artifacts", None),
            ("POST", "/artifacts", {"filename": "a", "artifact": {"text": "x"}}),
            ("GET", "/artifacts/a", None),
            ("GET", "/artifacts/a/versions", None),
            ("GET", "/artifacts/a/versions/0", None),
            ("GET", "/artifacts/a/versions/metadata", None),
            ("GET", "/artifacts/a/versions/0/metadata", None),
            ("DELETE", "/artifacts/a", None),
        ]
        for method, rest, body in calls:
            theirs = await client.request(method, path + rest, json=body)
            mine = await client.request(method, missing + rest, json=body)
            assert_problem(theirs, 404, "session.not_found")
            assert theirs.text.replace("bob", "ann") == mine.text, (method, rest)
        for route in ("/run", "/run_sse"):
            body = {"sessionId": "s", "newMessage": text_message("hi")}
            theirs = await client.post(route, json={"userId": "bob", **body})
            mine = await client.post(route, json={"userId": "ann", **body})
            assert_problem(theirs, 404, "session.not_found")
            assert theirs.text.replace("bob", "ann") == mine.text
        for response in (
            await client.get(sessions("bob")),
            await client.post(sessions("bob"), json={}),
            await client.post(sessions("bob", "t")),
            await client.patch(f"/apps/{APP}/users/bob/memory", json={"sessionId": "s"}),
            await client.get(f"/apps/{APP}/users/bob/memory?query=x"),
        ):
            assert_problem(response, 404, "user.not_found")
        assert (await client.get(f"/dev/apps/{APP}/debug/trace/session/s")).json() == []
        assert_problem(await client.get(sessions("ann", "s", app="nope")), 404, "app.not_found")
        assert (await client.get(path, headers={"X-User": "root"})).status_code == 200
        assert_problem(await client.get(path, headers={"X-User": ""}), 404, "session.not_found")
        del client.headers["X-User"]
        for method, rest, body in calls:
            assert_problem(await client.request(method, path + rest, json=body), 401, "auth.missing")
        for response in (await client.get("/list-apps"), await client.post("/run", json={"sessionId": "s"})):
            assert_problem(response, 401, "auth.missing")
    session = await runner.get_session("bob", "s")
    assert (session.state, session.event_count) == ({}, 0)


async def test_many_sessions_are_made_at_once():
    async with client_of() as client:
        made = await asyncio.gather(*(client.post(sessions(), json={"sessionId": "same"}) for _ in range(10)))
        assert sorted(response.status_code for response in made) == [200] + [409] * 9


async def test_events_do_what_adk_knows_of():
    async with client_of() as client:
        await new_session(client, state={"gone": 1, "count": 1})
        [event] = await say(client, "state")
        # google-adk's client refuses actions that it does not know.
        assert event["actions"] == {"stateDelta": {"gone": None}}
        assert event["customMetadata"] == {"sojournActions": {"stateDeleted": ["gone"], "stateIncrements": {"count": 2}}}
        got = (await client.get(sessions(session="s"))).json()
        assert got["state"] == {"count": 3}
        assert got["events"][-1] == event
        assert Event.model_validate(event).text == "{}"

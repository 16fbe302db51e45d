"""Conversations from elsewhere: `Runner.create_session(events=…)`."""

import pytest

from sojourn.agents.function import agent
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content, Part
from sojourn.errors import AlreadyExists, InvalidInput
from sojourn.event import Event, EventActions
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.suite import raises
from tests.runner.support import USER, read_events

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["inmemory", "sqlite"])
async def store(request, tmp_path):
    if request.param == "inmemory":
        yield InMemorySessionService()
        return
    store = DatabaseSessionService(f"sqlite:///{tmp_path / 'sessions.db'}")
    yield store
    await store.close()


def said(author, text, **more):
    return Event(author=author, content=Content(None, (Part(text=text),)), **more)


TALK = [
    said("user", "Hi"),
    said("guide", "Hello"),
    said("guide", "Well?"),
    said("user", "Bye"),
    said("", "Gone", timestamp=5.0),
]


async def test_a_conversation_goes_on_where_it_was(store):
    heard = []

    @agent
    async def helper(ctx):
        heard.extend((e.author, e.text) for e in await ctx.history())
        yield "Welcome back."

    async with Runner(app_name="app", agent=helper, session_service=store) as runner:
        session = await runner.create_session(USER, "s", state={"k": 1}, events=TALK)
        assert session.state == {"k": 1}
        records = (await runner.list_runs()).items
        assert [record.status for record in records] == [RunStatus.COMPLETED] * 2
        assert [record.message.text for record in records] == ["Bye", "Hi"]
        assert await (await runner.follow(records[0].id)).result() == "Gone"
        events = await store.list_events(app_name="app", user_id=USER, session_id="s")
        assert [event.seq for event in events] == [1, 2, 3, 4, 5]
        assert [event.author for event in events] == ["user", "guide", "guide", "user", "helper"]
        assert events[-1].timestamp == 5.0
        assert all(event.id and event.run_id for event in events)
        await read_events(runner.run(USER, "s", "I am back"))
        assert heard == [(e.author, e.text) for e in events] + [("user", "I am back")]
        retried = await runner.retry(records[0].id, drop_later=True)
        assert await retried.result() == "Welcome back."


async def test_what_is_refused_leaves_nothing(store):
    @agent
    async def helper(ctx):
        yield "x"

    async with Runner(app_name="app", agent=helper, session_service=store) as runner:
        call = Content("model", (Part.from_function_call("f", id="c"),))
        answer = Content("user", (Part.from_function_response("f", {}, id="c"),))
        for event in (
            Event(author="guide", content=call),
            Event(author="user", content=answer),
            said("guide", "x", actions=EventActions(escalate=True)),
            said("guide", "x", long_running_tool_ids=("c",)),
        ):
            with raises(InvalidInput, "session.seed_refused"):
                await runner.create_session(USER, "s", events=[*TALK, event])
        with raises(InvalidInput, "session.seed_refused"):
            await runner.create_session(USER, "s", events=TALK[1:])
        large = Event(author="user", content=Content("user", (Part.from_bytes(b"x" * 100_000),)))
        bare = Runner(app_name="app", agent=helper, session_service=store, artifact_service=None)
        with raises(InvalidInput, "event.too_large"):
            await bare.create_session(USER, "s", events=[*TALK, large])
        assert (await runner.list_runs()).items == []
        assert (await store.list_sessions(app_name="app")).items == []
        await runner.create_session(USER, "s", events=TALK)
        with raises(AlreadyExists, "session.exists"):
            await runner.create_session(USER, "s", events=TALK)
        assert (await store.get_session(app_name="app", user_id=USER, session_id="s")).event_count == 5


async def test_large_parts_become_artifacts(store):
    @agent
    async def helper(ctx):
        yield "x"

    artifacts = InMemoryArtifactService()
    async with Runner(app_name="app", agent=helper, session_service=store, artifact_service=artifacts) as runner:
        large = Event(author="user", content=Content("user", (Part.from_bytes(b"x" * 100_000, "image/png"),)))
        await runner.create_session(USER, "s", events=[large, *TALK])
        [event, *_] = await store.list_events(app_name="app", user_id=USER, session_id="s")
        assert event.content.parts[0].file_data.file_uri.startswith("artifact:")

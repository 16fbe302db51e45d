"""State that comes with a message: `Runner.run(state_delta=…)`."""

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.errors import SojournError
from sojourn.event import ASK_CALL
from sojourn.run.config import RunConfig
from sojourn.runner.runner import Runner
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.suite import raises
from tests.runner.support import SESSION, USER, read_events

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["inmemory", "sqlite"])
async def store(request, tmp_path):
    if request.param == "inmemory":
        yield InMemorySessionService()
        return
    store = DatabaseSessionService(f"sqlite:///{tmp_path / 'sessions.db'}")
    yield store
    await store.close()


def telling(told):
    @agent
    async def helper(ctx):
        told.append(ctx.state.to_dict())
        if ctx.user_content.text == "ask":
            await ctx.ask("q", "?")
            told.append(ctx.state.to_dict())
        yield "done"

    return helper


async def state_of(store):
    return (await store.get_session(app_name="app", user_id=USER, session_id=SESSION)).state


async def test_the_agent_and_the_store_have_it_with_the_message(store):
    told = []
    async with Runner(app_name="app", agent=telling(told), session_service=store) as runner:
        delta = {"a": [1], "user:b": 2, "app:c": 3, "temp:d": {"e": 4}}
        await read_events(runner.run_async(user_id=USER, session_id=SESSION, new_message="hi", state_delta=delta))
        delta["a"].append(2)
        assert told == [{"a": [1], "user:b": 2, "app:c": 3, "temp:d": {"e": 4}}]
        kept = {"a": [1], "user:b": 2, "app:c": 3}
        assert await state_of(store) == kept
        message, _ = await store.list_events(app_name="app", user_id=USER, session_id=SESSION)
        assert message.actions.state_delta == kept, "temp: keys are in no event"
        await (await runner.start(USER, SESSION, "again", state_delta=None)).result()
        assert told[1] == kept


async def test_a_run_that_waits_for_its_turn_has_it_when_it_begins(store):
    told = []
    async with Runner(app_name="app", agent=telling(told), session_service=store, max_concurrency=1) as runner:
        first = await runner.start(USER, SESSION, "1", state_delta={"k": 1, "temp:k": 1})
        second = await runner.start(USER, SESSION, "2", state_delta={"k": 2, "temp:l": 2})
        await first.result()
        await second.result()
    assert told == [{"k": 1, "temp:k": 1}, {"k": 2, "temp:l": 2}]


async def test_temp_keys_are_gone_when_a_person_has_answered(store):
    told = []
    async with Runner(app_name="app", agent=telling(told), session_service=store) as runner:
        run = await runner.start(USER, SESSION, "ask", state_delta={"k": 1, "temp:x": 1})
        await run.wait()
        [question] = await run.interrupts()
        answer = Content("user", (Part.from_function_response(ASK_CALL, {"result": 5}, id=question.id),))
        await read_events(runner.run(USER, SESSION, answer, state_delta={"later": 2, "temp:y": 1}))
        assert told == [{"k": 1, "temp:x": 1}, {"k": 1, "later": 2}, {"k": 1, "later": 2}]
        assert await state_of(store) == {"k": 1, "later": 2}


async def test_a_run_that_is_refused_sets_nothing(store):
    async with Runner(app_name="app", agent=telling([]), session_service=store) as runner:
        await store.create_session(app_name="app", user_id=USER, session_id=SESSION)
        for message, delta, code in (
            ("", {"k": 1}, "message.invalid"),
            ("hi", {"k": float("nan")}, "json.invalid"),
            ("hi", {"user:": 1}, "state.invalid_key"),
            ("hi", {"k": "x" * 2000}, "event.too_large"),
        ):
            config = RunConfig(max_event_bytes=1024)
            with raises(SojournError, code):
                await runner.start(USER, SESSION, message, run_config=config, state_delta=delta)
        assert await state_of(store) == {}
        assert (await runner.list_runs()).items == []


async def test_the_same_run_again_sets_nothing_again(store):
    told = []
    async with Runner(app_name="app", agent=telling(told), session_service=store) as runner:
        await (await runner.start(USER, SESSION, "hi", run_id="r", state_delta={"k": 1})).result()
        await store.patch_session(app_name="app", user_id=USER, session_id=SESSION, state_delta={"k": 2})
        await (await runner.start(USER, SESSION, "hi", run_id="r", state_delta={"k": 1})).result()
        assert await state_of(store) == {"k": 2}
        assert len(told) == 1

"""Messages, steps and questions as an agent that talks to a model uses them: on a real database, over restarts."""

import asyncio

import pytest

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.agents.question import Question
from sojourn.content import Content, FunctionCall, Part
from sojourn.event import CONFIRM_CALL, CallDelta, Event, Usage
from sojourn.run.status import RunStatus
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.faults import FaultyStore
from tests.runner.support import KEY, SESSION, USER, assert_whole, log_of, make_runner, outcome_of, read_frames, state_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def opened(tmp_path):
    """Opens the database again and again, as one process after the other would; the one before is closed."""
    stores = []

    async def open_store():
        for store in stores:
            await store.close()
        stores.append(DatabaseSessionService(f"sqlite:///{tmp_path / 'sessions.db'}"))
        return FaultyStore(stores[-1])

    yield open_store
    for store in stores:
        await store.close()


def model():
    """An agent that streams a response with two calls, asks for leave to make both, and answers; and what it has done."""
    effects = []

    @agent
    async def helper(ctx):
        def respond(n):
            effects.append(f"model {n}")
            return {"text": f"Response {n} \x00🎈.", "calls": [f"{ctx.run_id}-{c}" for c in "ab"] if n == 1 else []}

        async def turn(n):
            response = await ctx.step(f"model {n}", lambda: respond(n), with_next_event=True)
            calls = [FunctionCall(id=id, name="buy", args={"n": 2**70}) for id in response["calls"]]
            parts = (Part(text=response["text"]), *(Part(function_call=c) for c in calls))
            usage = Usage(total_token_count=10)
            return calls, Whole(Event(content=Content("model", parts), usage_metadata=usage))

        yield "Response "
        yield CallDelta(f"{ctx.run_id}-a", "buy", '{"n": ')
        await asyncio.sleep(0)
        calls, said = await turn(1)
        ctx.state.increment("turns")
        yield said
        questions = [Question(f"ok {c.id[-1]}", "Buy?", {"type": "boolean"}, kind="confirm", call=c) for c in calls]
        answers = await ctx.ask_all(questions)
        results = []
        for call, allowed in zip(calls, answers, strict=True):
            outcome = (
                await ctx.step(f"tool {call.id[-1]}", lambda c=call: effects.append(c.id[-1]) or "bought") if allowed else "no"
            )
            results.append(Part.from_function_response("buy", {"result": outcome}, id=call.id))
        yield Content("user", tuple(results))
        yield "Response 2"
        _, said = await turn(2)
        ctx.state.increment("turns")
        yield said

    return helper, effects


async def test_a_conversation_over_restarts(opened):
    helper, effects = model()
    store = await opened()
    async with make_runner(helper, store) as runner, asyncio.timeout(30):
        run = await runner.start(USER, SESSION, "go")
        live = await read_frames(run)
        assert live.screen == "Response 1 \x00🎈."
        assert store.calls["append"] == 3, "a response with its step, the questions, the wait"
        assert [s.key for s in await store.list_steps(run.record.uid)] == ["model 1"]
    for key, value in (("ok b", False), ("ok a", True)):
        store = await opened()
        async with make_runner(helper, store) as runner, asyncio.timeout(30):
            [question] = [i for i in await runner.list_interrupts() if i.key == key]
            assert (question.kind, question.call_id) == ("confirm", f"{run.id}-{key[-1]}")
            run = await runner.answer(run.id, question.id, value)
            await run.wait()
    assert run.status is RunStatus.COMPLETED
    assert effects == ["model 1", "a", "model 2"]
    assert [(s.key, s.attempt) for s in await store.list_steps(run.record.uid)] == [
        ("model 1", 1),
        ("tool a", 3),
        ("model 2", 3),
    ]
    assert run.record.usage["total_token_count"] == 20
    assert await state_of(store) == {"turns": 2}
    log = await log_of(store, superseded=True)
    assert not [e for e in log if e.superseded]
    assert [c.name for c in log[2].get_function_calls()] == [CONFIRM_CALL] * 2
    assert [r.response for e in log for r in e.get_function_responses()] == [
        {"result": False}, {"result": True}, {"result": "bought"}, {"result": "no"},
    ]  # fmt: skip
    assert (await store.history(KEY, 0)).pinned == []
    runner = make_runner(helper, store)
    reading = await read_frames(await runner.follow(run.id))
    assert_whole(reading)
    assert reading.screen == "Response 1 \x00🎈.Response 2 \x00🎈."


async def test_many_conversations_at_once(opened):
    helper, effects = model()
    store = await opened()
    runner = make_runner(helper, store)

    async def converse(n):
        run = await runner.start(USER, f"s{n}", "go")
        for value in (True, n % 2 == 0):
            await run.wait()
            run = await runner.answer(run.id, (await run.interrupts())[0].id, value)
        result = await run.result()
        assert_whole(await read_frames(run))
        return result

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(converse(n) for n in range(30)))
    assert results == ["Response 2 \x00🎈."] * 30
    assert sorted(effects) == sorted(["model 1", "model 2"] * 30 + ["a"] * 30 + ["b"] * 15)


async def test_pending_calls_and_a_question_that_changes_on_a_database(opened):
    prompts, seen = ["Buy it?"], []
    call = FunctionCall(id="c1", name="buy", args={})

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "meanwhile":
            events = await ctx.history()
            seen.append({r.id: r.response for e in events for r in e.get_function_responses()})
            return
        yield Event(content=Content("model", (Part(function_call=call),)))
        answers = await ctx.ask_all([Question("name", "Name?"), Question("ok", prompts[-1], kind="confirm", call=call)])
        yield Content("user", (Part.from_function_response("buy", {"answers": answers}, id="c1"),))

    store = await opened()
    runner = make_runner(helper, store)
    async with asyncio.timeout(30):
        run = await runner.start(USER, SESSION, "go")
        await run.wait()
        name, ok = await run.interrupts()
        await (await runner.start(USER, SESSION, "meanwhile")).wait()
        assert seen.pop() == {id: {"status": "pending"} for id in ("c1", name.id, ok.id)}
        run = await runner.answer(run.id, name.id, "Ann")
        await run.wait()
        await (await runner.start(USER, SESSION, "meanwhile")).wait()
        pending = {"status": "pending"}
        assert seen.pop() == {"c1": pending, name.id: {"result": "Ann"}, ok.id: pending}
        prompts.append("Really buy it?")
        await runner.close(grace=1)

        store = await opened()
        runner = make_runner(helper, store)
        run = await runner.answer(run.id, ok.id, True)
        assert (await run.wait()).status is RunStatus.WAITING
        [again] = await run.interrupts()
        await (await runner.start(USER, SESSION, "meanwhile")).wait()
        assert seen.pop() == {"c1": pending, name.id: {"result": "Ann"}, again.id: pending}
        run = await runner.answer(run.id, again.id, True)
        await run.wait()
        await (await runner.start(USER, SESSION, "meanwhile")).wait()
    assert seen.pop() == {"c1": {"answers": ["Ann", True]}, name.id: {"result": "Ann"}, again.id: {"result": True}}
    statuses = [(i.prompt, i.status) for i in await store.list_interrupts("app", open_only=False)]
    assert statuses == [("Name?", "answered"), ("Buy it?", "answered"), ("Really buy it?", "answered")]
    assert (await store.history(KEY, 0)).pinned == []


async def test_cancelled_in_mid_message_on_a_database(opened):
    @agent
    async def helper(ctx):
        await ctx.step("think", lambda: "a thought", with_next_event=True)
        yield "let me "
        yield CallDelta("c1", "buy", "{}")
        await asyncio.Event().wait()

    store = await opened()
    runner = make_runner(helper, store)
    async with asyncio.timeout(30):
        run = await runner.start(USER, SESSION, "go")
        reading = asyncio.ensure_future(read_frames(run))
        async for item in run.frames():
            if getattr(item, "call", None) is not None:
                break
        await run.cancel()
        assert await outcome_of(run) == "run.cancelled"
        assert_whole(got := await reading)
    _, event = await log_of(store)
    assert (event.text, event.interrupted, event.get_function_calls()) == ("let me ", True, [])
    assert got.screen == "let me "
    assert [(s.key, s.result) for s in await store.list_steps(run.record.uid)] == [("think", "a thought")]

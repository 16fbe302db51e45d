"""C2: a run waits for a person, over restarts, and is answered once."""

import asyncio

import pytest
from pydantic import BaseModel

from sojourn.agents.function import agent
from sojourn.agents.question import Question
from sojourn.agents.workflow import ParallelAgent
from sojourn.content import Content, Part
from sojourn.errors import Conflict, InvalidInput, NotFound
from sojourn.event import ASK_CALL
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    KEY,
    SESSION,
    USER,
    assert_at_rest,
    assert_whole,
    idle,
    log_of,
    make_runner,
    outcome_of,
    process,
    read_events,
    read_frames,
    said_in,
)


def booking():
    """An agent that pays once its person has confirmed; and what it did."""
    effects = []

    @agent
    async def helper(ctx):
        ctx.state.increment("tries")
        yield "The flight is 300. "
        if await ctx.ask("confirm", {"text": "Book it?", "price": 300}, schema=bool):
            await ctx.step("pay", lambda: effects.append("paid"))
            yield "Booked."
        else:
            yield "Never mind."

    return helper, effects


async def asked(runner, message="go"):
    """A run that waits, and its question."""
    run = await runner.start(USER, SESSION, message)
    assert (await run.wait()).status is RunStatus.WAITING
    return run, (await run.interrupts())[0]


@for_seeds(10)
async def test_a_question_stands_in_the_log_and_in_the_list_and_an_answer_lets_the_run_go_on():
    store = InMemorySessionService()
    helper, effects = booking()
    runner = make_runner(helper, store)
    run, question = await asked(runner)
    assert (question.key, question.prompt, question.schema, question.status) == (
        "confirm", {"text": "Book it?", "price": 300}, {"type": "boolean"}, "open",
    )  # fmt: skip
    assert (question.run_id, question.session_id, question.user_id) == (run.id, SESSION, USER)
    assert await runner.list_interrupts(user_id=USER, session_id=SESSION) == [question]
    assert await runner.list_interrupts(user_id="bob") == []
    event = (await log_of(store))[-1]
    call = event.get_function_calls()[0]
    assert (call.id, call.name, call.args["message"]) == (question.id, ASK_CALL, question.prompt)
    assert event.long_running_tool_ids == (question.id,)
    assert_at_rest(runner)
    answered = await runner.answer(run.id, question.id, True)
    assert await answered.result() == "Booked."
    assert effects == ["paid"]
    assert (await store.get_session(app_name="app", user_id=USER, session_id=SESSION)).state == {"tries": 1}
    assert [t for _, t in await said_in(store)] == ["go", "The flight is 300. ", "", "", "Booked."]
    assert await runner.list_interrupts() == []


@for_seeds(10)
async def test_a_waiting_run_survives_the_restart_of_everything():
    store = InMemorySessionService()
    helper, effects = booking()
    async with process(helper, store) as first:
        run, question = await asked(first.runner)
        first.die()
        async with process(helper, store, enter=True) as second:
            await idle()
            assert effects == []
            assert (await second.runner.follow(run.id)).status is RunStatus.WAITING
            second.die()
            async with process(helper, store) as third:
                answered = await third.runner.answer(run.id, question.id, True)
                assert await answered.result() == "Booked."
                assert_whole(await read_frames(answered))
                assert answered.record.deaths == 0
    assert effects == ["paid"]


@for_seeds(10)
async def test_the_same_answer_again_is_a_no_op_and_another_one_a_conflict():
    helper, effects = booking()
    runner = make_runner(helper)
    run, question = await asked(runner)
    runs = await asyncio.gather(*(runner.answer(run.id, question.id, True) for _ in range(5)))
    assert [await r.result() for r in runs] == ["Booked."] * 5
    assert await (await runner.answer(run.id, question.id, True)).result() == "Booked."
    with raises(Conflict, "interrupt.conflict"):
        await runner.answer(run.id, question.id, False)
    assert effects == ["paid"]


@for_seeds(5)
async def test_an_answer_that_does_not_fit_is_refused_and_the_run_goes_on_waiting():
    helper, effects = booking()
    runner = make_runner(helper)
    run, question = await asked(runner)
    for value in ("yes", 1, None, {"ok": True}):
        with raises(InvalidInput, "interrupt.invalid_answer"):
            await runner.answer(run.id, question.id, value)
    with raises(InvalidInput, "json.invalid"):
        await runner.answer(run.id, question.id, object())
    with raises(NotFound, "interrupt.not_found"):
        await runner.answer(run.id, "other", True)
    with raises(NotFound, "run.not_found"):
        await runner.answer("other", question.id, True)
    with raises(NotFound, "run.not_found"):
        await runner.answer(run.id, question.id, True, user_id="bob")
    assert (await run.refresh()).status is RunStatus.WAITING
    assert await (await runner.answer(run.id, question.id, False)).result() == "Never mind."
    assert effects == []


@for_seeds(5)
async def test_a_changed_prompt_or_schema_is_another_question():
    price = [300]
    answers = []

    @agent
    async def helper(ctx):
        answers.append(await ctx.ask("confirm", f"Book for {price[0]}?"))
        return "booked"

    runner = make_runner(helper)
    run, question = await asked(runner)
    price[0] = 400
    answered = await runner.answer(run.id, question.id, "yes")
    assert await outcome_of(answered) == "run.waiting"
    again = (await answered.interrupts())[0]
    assert again.id != question.id
    assert again.prompt == "Book for 400?"
    assert answers == []
    assert await (await runner.answer(run.id, again.id, "yes")).result() == "booked"
    with raises(Conflict, "interrupt.conflict"):
        await runner.answer(run.id, question.id, "no")


class Person(BaseModel):
    name: str
    age: int


@pytest.mark.parametrize(
    ("schema", "answer", "gives", "wrong"),
    [(None, {"any": [1]}, {"any": [1]}, None), (str, "Ann", "Ann", 5), (int, 5, 5, "five"), (Person, {"name": "Ann", "age": 5}, Person(name="Ann", age=5), {"name": "Ann"}),
     ({"type": "array", "items": {"type": "number"}}, [1, 2.5], [1, 2.5], ["a"])],
)  # fmt: skip
def test_the_schema_may_be_a_type_or_a_json_schema(schema, answer, gives, wrong):
    @for_seeds(2)
    async def case():
        got = []

        @agent
        async def helper(ctx):
            got.append(await ctx.ask("q", "?", schema=schema))

        runner = make_runner(helper)
        run, question = await asked(runner)
        if wrong is not None:
            with raises(InvalidInput, "interrupt.invalid_answer"):
                await runner.answer(run.id, question.id, wrong)
        await (await runner.answer(run.id, question.id, answer)).result()
        assert got == [gives]

    case()


@for_seeds(5)
async def test_several_questions_one_after_the_other():
    @agent
    async def helper(ctx):
        names = [await ctx.ask(f"name {n}", "name?") for n in range(3)]
        return ", ".join(names)

    runner = make_runner(helper)
    run, question = await asked(runner)
    for name in ("Ann", "Bob", "Eve"):
        run = await runner.answer(run.id, question.id, name)
        await run.settled()
        open_ones = await run.interrupts()
        question = open_ones[0] if open_ones else None
    assert await run.result() == "Ann, Bob, Eve"


@for_seeds(3)
async def test_a_question_asked_twice_in_one_attempt_is_refused():
    codes = []

    @agent
    async def helper(ctx):
        await ctx.ask("q", "?")
        try:
            await ctx.ask("q", "?")
        except Conflict as error:
            codes.append(error.code)

    runner = make_runner(helper)
    run, question = await asked(runner)
    await (await runner.answer(run.id, question.id, 1)).result()
    assert codes == ["interrupt.duplicate_key"]


@for_seeds(5)
async def test_asking_unwinds_the_agent():
    trace = []

    @agent
    async def helper(ctx):
        try:
            try:
                await ctx.ask("q", "?")
            except Exception:
                trace.append("an exception")
        finally:
            trace.append("unwound")
        return "answered"

    runner = make_runner(helper)
    run, question = await asked(runner)
    assert trace == ["unwound"]
    assert await (await runner.answer(run.id, question.id, 1)).result() == "answered"


@for_seeds(5)
async def test_an_agent_that_swallows_the_pause_waits_all_the_same():
    store = InMemorySessionService()

    @agent
    async def helper(ctx):
        try:
            answer = await ctx.ask("q", "?")
        except BaseException:
            answer = "nobody"
        yield f"{answer} said"

    runner = make_runner(helper, store)
    run, question = await asked(runner)
    assert "nobody said" not in [t for _, t in await said_in(store)]
    assert await (await runner.answer(run.id, question.id, "Ann")).result() == "Ann said"


# -- time ---------------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_a_question_expires():
    @agent
    async def helper(ctx):
        await ctx.ask("q", "?", expires=60)

    runner = make_runner(helper)
    run, question = await asked(runner)
    await asyncio.sleep(59)
    assert (await run.refresh()).status is RunStatus.WAITING
    await asyncio.sleep(2)
    record = await run.refresh()
    assert (record.status, record.error.code) == (RunStatus.FAILED, "interrupt.expired")
    with raises(Conflict, "interrupt.closed"):
        await runner.answer(run.id, question.id, 1)
    assert (await read_frames(await runner.follow(run.id))).kinds[-1] == "run.failed"


@for_seeds(5)
async def test_a_question_that_was_answered_in_time_does_not_expire():
    @agent
    async def helper(ctx):
        await ctx.ask("q", "?", expires=60)
        await asyncio.sleep(100)
        return "done"

    runner = make_runner(helper)
    run, question = await asked(runner)
    await asyncio.sleep(50)
    answered = await runner.answer(run.id, question.id, 1)
    assert await answered.result() == "done"


@for_seeds(5)
async def test_a_question_expires_in_the_next_process_too():
    @agent
    async def helper(ctx):
        await ctx.ask("q", "?", expires=60)

    store = InMemorySessionService()
    async with process(helper, store) as first:
        run, _ = await asked(first.runner)
        first.die()
        await asyncio.sleep(1000)
        assert (await store.get_run("app", run.id)).status is RunStatus.WAITING
        async with process(helper, store, enter=True) as second:
            await idle()
            assert await outcome_of(await second.runner.follow(run.id)) == "interrupt.expired"


# -- branches -----------------------------------------------------------------------------------------------------------


def _asking(name, seconds=0.0):
    @agent(name=name)
    async def ask(ctx):
        await asyncio.sleep(seconds)
        answer = await ctx.ask("q", f"{name}?")
        yield f"{name} got {answer}"

    return ask


@for_seeds(10)
async def test_one_branch_asks_while_the_others_finish():
    @agent
    async def busy(ctx):
        await asyncio.sleep(5)
        yield "busy is done"

    store = InMemorySessionService()
    runner = make_runner(ParallelAgent(name="all", sub_agents=[_asking("x"), busy]), store)
    run, question = await asked(runner)
    assert ("busy", "busy is done") in await said_in(store)
    answered = await runner.answer(run.id, question.id, "yes")
    await answered.wait()
    assert [t for _, t in await said_in(store) if t] == ["go", "busy is done", "x got yes"]


@for_seeds(10)
async def test_two_branches_ask_and_are_answered_one_after_the_other():
    store = InMemorySessionService()
    runner = make_runner(ParallelAgent(name="all", sub_agents=[_asking("x"), _asking("y", 1)]), store)
    run, _ = await asked(runner)
    questions = {i.prompt: i.id for i in await run.interrupts()}
    assert set(questions) == {"x?", "y?"}
    first = await runner.answer(run.id, questions["y?"], 1)
    assert await outcome_of(first) == "run.waiting"
    assert [i.prompt for i in await first.interrupts()] == ["x?"]
    second = await runner.answer(run.id, questions["x?"], 2)
    assert (await second.wait()).status is RunStatus.COMPLETED
    assert sorted(t for _, t in await said_in(store) if "got" in t) == ["x got 2", "y got 1"]


@for_seeds(10)
async def test_a_question_that_is_answered_while_the_run_is_still_busy():
    @agent
    async def busy(ctx):
        await asyncio.sleep(5)
        yield "busy is done"

    store = InMemorySessionService()
    runner = make_runner(ParallelAgent(name="all", sub_agents=[_asking("x"), busy]), store)
    run = await runner.start(USER, SESSION, "go")
    reading = asyncio.ensure_future(read_frames(run))
    await asyncio.sleep(1)
    question = (await runner.list_interrupts())[0]
    assert (await run.refresh()).status is RunStatus.RUNNING
    answered = await runner.answer(run.id, question.id, "yes")
    assert (await answered.wait()).status is RunStatus.COMPLETED
    assert [t for _, t in await said_in(store) if t] == ["go", "busy is done", "x got yes"]
    assert_whole(await reading)
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_branch_that_fails_closes_the_questions_of_the_others():
    @agent
    async def broken(ctx):
        await asyncio.sleep(1)
        raise ValueError("broken")

    store = InMemorySessionService()
    runner = make_runner(ParallelAgent(name="all", sub_agents=[_asking("x"), broken]), store)
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "agent.failed"
    assert await runner.list_interrupts() == []
    history = await store.history(KEY, None)
    calls = {c.id for e in history.events for c in e.get_function_calls()}
    assert calls == {r.id for e in history.events for r in e.get_function_responses()}


# -- answers as messages ------------------------------------------------------------------------------------------------


def _answer(question, value):
    return Content("user", (Part.from_function_response(ASK_CALL, {"result": value}, id=question.id),))


@for_seeds(5)
async def test_a_message_that_is_only_a_function_response_answers_the_call_it_names():
    helper, effects = booking()
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, question = await asked(runner)
    reading = await read_events(runner.run(USER, SESSION, _answer(question, True)))
    assert [e.text for e in reading.events] == ["Booked."]
    assert effects == ["paid"]
    assert len((await runner.list_runs()).items) == 1
    assert (await store.get_run("app", run.id)).status is RunStatus.COMPLETED


@for_seeds(5)
async def test_the_answering_message_sent_again_is_a_no_op_and_another_answer_a_conflict():
    helper, effects = booking()
    runner = make_runner(helper)
    run, question = await asked(runner)
    for _ in range(2):
        answered = await runner.start(USER, SESSION, _answer(question, True))
        assert answered.id == run.id
        assert await answered.result() == "Booked."
    with raises(Conflict, "interrupt.conflict"):
        await runner.start(USER, SESSION, _answer(question, False))
    assert effects == ["paid"]
    assert len((await runner.list_runs()).items) == 1


@for_seeds(5)
async def test_nobody_else_answers_by_naming_the_call():
    helper, effects = booking()
    runner = make_runner(helper)
    run, question = await asked(runner)
    with raises(NotFound, "interrupt.not_found"):
        await runner.start("bob", SESSION, _answer(question, True))
    assert (await run.refresh()).status is RunStatus.WAITING
    assert effects == []


@for_seeds(5)
async def test_a_message_to_another_session_does_not_answer():
    helper, effects = booking()
    runner = make_runner(helper)
    run, question = await asked(runner)
    with raises(NotFound, "interrupt.not_found"):
        await runner.start(USER, "other", _answer(question, True))
    assert (await run.refresh()).status is RunStatus.WAITING
    assert effects == []


# -- history ------------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_an_open_question_is_shown_with_a_pending_answer_and_the_late_one_right_after_its_call():
    seen = {}

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "ask":
            await ctx.ask("q", "?")
        events = await ctx.history()
        seen[ctx.user_content.text] = [
            "call"
            if e.get_function_calls()
            else e.get_function_responses()[0].response
            if e.get_function_responses()
            else e.text
            for e in events
        ]
        return "ok"

    runner = make_runner(helper)
    run, question = await asked(runner, "ask")
    await (await runner.start(USER, SESSION, "meanwhile")).result()
    assert seen["meanwhile"] == ["ask", "call", {"status": "pending"}, "meanwhile"]
    await (await runner.answer(run.id, question.id, 42)).result()
    assert seen["ask"][:3] == ["ask", "call", {"result": 42}]
    await (await runner.start(USER, SESSION, "later")).result()
    assert seen["later"][:4] == ["ask", "call", {"result": 42}, "meanwhile"]


@for_seeds(3)
@pytest.mark.parametrize(
    "parts",
    [
        [Part.from_function_call("pay", {"amount": 5}, id="c1")],
        [Part(text="yes"), Part.from_function_response("adk_request_input", {"result": 1}, id="q")],
    ],
    ids=["a call", "a response beside text"],
)
async def test_a_message_cannot_hold_what_only_agents_say(parts):
    runner = make_runner(booking()[0])
    with pytest.raises(InvalidInput) as caught:
        await runner.start(USER, SESSION, Content("user", tuple(parts)))
    assert caught.value.code == "message.invalid"
    assert (await runner.list_runs()).items == []


@for_seeds(3)
async def test_a_response_to_what_nobody_asked_is_refused():
    runner = make_runner(booking()[0])
    with pytest.raises(NotFound, match="no question 'c1' for 'pay'") as caught:
        await runner.start(USER, SESSION, Content("user", (Part.from_function_response("pay", {"paid": 1}, id="c1"),)))
    assert caught.value.code == "interrupt.not_found"
    assert (await runner.list_runs()).items == []


@for_seeds(3)
async def test_one_message_answers_several_questions():
    @agent
    async def asker(ctx):
        answers = await ctx.ask_all([Question("a", "A?"), Question("b", "B?")])
        return ",".join(answers)

    runner = make_runner(asker)
    run = await runner.start(USER, SESSION, "go")
    await run.wait()
    parts = tuple(Part.from_function_response("adk_request_input", {"result": i.key}, id=i.id) for i in await run.interrupts())
    answered = await runner.start(USER, SESSION, Content("user", parts))
    assert (answered.id, await answered.result()) == (run.id, "a,b")

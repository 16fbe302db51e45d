"""C2: several questions at once, and questions about function calls."""

import asyncio
from enum import StrEnum

import pytest

from sojourn.agents.base import Whole
from sojourn.agents.function import agent
from sojourn.agents.question import Question
from sojourn.agents.workflow import ParallelAgent
from sojourn.content import Content, FunctionCall, Part
from sojourn.errors import Conflict, InvalidInput, NotFound, SojournError
from sojourn.event import ASK_CALL, CONFIRM_CALL, Event
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    KEY,
    SESSION,
    TRIES,
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
    state_of,
)

BUY = FunctionCall(id="c1", name="buy", args={"seat": "12A"})


def asking(*questions):
    """An agent that asks them all and tells the answers; and what it was told."""
    told = []

    @agent
    async def helper(ctx):
        ctx.state.increment("tries")
        yield "Some questions. "
        told.append(await ctx.ask_all(questions))
        yield f"Told {told[-1]}."

    return helper, told


async def asked(runner, message="go"):
    """A run that waits, and its questions by key."""
    run = await runner.start(USER, SESSION, message)
    assert (await run.wait()).status is RunStatus.WAITING
    return run, {i.key: i for i in await run.interrupts()}


async def answer(runner, run, interrupt, value):
    """Answers a question; returns the run when it has ended or waits again."""
    run = await runner.answer(run.id, interrupt.id, value)
    await run.wait()
    return run


async def statuses(store):
    """All questions that were ever asked, as (prompt, status)."""
    return [(i.prompt, i.status) for i in await store.list_interrupts("app", open_only=False)]


NAME, AGE = Question("name", "Name?", {"type": "string"}), Question("age", "Age?", {"type": "integer"})

# -- several at once ----------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_they_are_one_event_and_one_frame():
    helper, told = asking(NAME, AGE)
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    assert store.calls["append"] == 2
    reading = await read_frames(run)
    assert reading.kinds == ["run.started", "event", "interrupt"]
    event = reading.events[-1]
    assert event.long_running_tool_ids == (questions["name"].id, questions["age"].id)
    assert [(c.id, c.name, c.args) for c in event.get_function_calls()] == [
        (questions["name"].id, ASK_CALL, {"key": "name", "message": "Name?", "response_schema": {"type": "string"}}),
        (questions["age"].id, ASK_CALL, {"key": "age", "message": "Age?", "response_schema": {"type": "integer"}}),
    ]
    assert list(questions) == ["name", "age"]
    assert {(q.kind, q.call_id, q.status) for q in questions.values()} == {("input", None, "open")}
    assert told == []
    assert_at_rest(runner)


@pytest.mark.parametrize("order", [("name", "age"), ("age", "name")])
def test_all_answers_are_needed_and_come_in_the_order_of_the_questions(order):
    @for_seeds(10)
    async def case():
        values = {"name": "Ann", "age": 7}
        helper, told = asking(NAME, AGE)
        store = InMemorySessionService()
        runner = make_runner(helper, store)
        run, questions = await asked(runner)
        run = await answer(runner, run, questions[order[0]], values[order[0]])
        assert run.status is RunStatus.WAITING
        assert [i.key for i in await run.interrupts()] == [order[1]]
        assert told == []
        run = await answer(runner, run, questions[order[1]], values[order[1]])
        assert await run.result() == "Told ['Ann', 7]."
        assert told == [["Ann", 7]]
        assert_whole(reading := await read_frames(run))
        assert reading.kinds.count("interrupt") == 1
        assert not [e for e in await log_of(store, superseded=True) if e.superseded]
        assert await state_of(store) == {"tries": 1}
        with raises(Conflict, "interrupt.conflict"):
            await runner.answer(run.id, questions["name"].id, "Bob")

    case()


@for_seeds(20)
async def test_answers_that_come_all_at_once_are_all_taken():
    questions = [Question(f"q{n}", f"{n}?") for n in range(5)]
    helper, told = asking(*questions)
    runner = make_runner(helper)
    run, interrupts = await asked(runner)
    runs = await asyncio.gather(*(runner.answer(run.id, interrupts[f"q{n}"].id, n) for n in range(5)))
    async with asyncio.timeout(600):
        while (await run.refresh()).status is not RunStatus.COMPLETED:
            await asyncio.sleep(1)
    assert told == [[0, 1, 2, 3, 4]]
    assert {r.id for r in runs} == {run.id}
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_answering_goes_on_after_every_restart():
    questions = [Question(f"q{n}", f"{n}?") for n in range(3)]
    helper, told = asking(*questions)
    store = InMemorySessionService()
    async with process(helper, store) as first:
        run, interrupts = await asked(first.runner)
        first.die()
        for n in (2, 0, 1):
            async with process(helper, store, enter=True) as later:
                assert told == []
                found = await later.runner.follow(run.id)
                assert {i.key for i in await found.interrupts()} == {i.key for i in interrupts.values() if i.status == "open"}
                found = await answer(later.runner, found, interrupts.pop(f"q{n}"), {"n": n})
                later.die()
    assert told == [[{"n": 0}, {"n": 1}, {"n": 2}]]
    record = await store.get_run("app", run.id)
    assert (record.status, record.deaths) == (RunStatus.COMPLETED, 0)


@for_seeds(10)
async def test_a_process_that_dies_with_some_answers_taken_loses_none_of_them():
    helper, told = asking(NAME, AGE)
    store = InMemorySessionService()
    async with process(helper, store) as first:
        run, questions = await asked(first.runner)
        # The run goes on with one answer, finds the other question open, and dies when it is to wait again.
        first.die_at("append", 3, after=False)
        await first.runner.answer(run.id, questions["name"].id, "Ann")
        await asyncio.sleep(1)
        assert (await store.get_run("app", run.id)).status is RunStatus.RUNNING
        async with process(helper, store, enter=True) as second:
            await asyncio.sleep(1)
            found = await second.runner.follow(run.id)
            assert [i.key for i in await found.interrupts()] == ["age"]
            found = await answer(second.runner, found, questions["age"], 7)
            assert await found.result() == "Told ['Ann', 7]."


@for_seeds(5)
async def test_answers_are_copies():
    helper, told = asking(Question("a", "?"))
    runner = make_runner(helper)
    run, questions = await asked(runner)
    value = {"list": [1]}
    answering = runner.answer(run.id, questions["a"].id, value)
    await (await answering).wait()
    value["list"].append(2)
    assert told == [[{"list": [1]}]]


@for_seeds(5)
async def test_no_questions_are_no_event():
    helper, told = asking()
    store = InMemorySessionService()
    run = await make_runner(helper, store).start(USER, SESSION, "go")
    assert await run.result() == "Some questions. Told []."
    assert [e.text for e in await log_of(store)] == ["go", "Some questions. Told []."]
    assert told == [[]]


# -- asked differently --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer_first", [True, False])
def test_what_is_asked_differently_is_another_question_and_the_old_one_is_dropped(answer_first):
    @for_seeds(10)
    async def case():
        price, told, seen = [300], [], []

        @agent
        async def helper(ctx):
            told.append(await ctx.ask_all([Question("name", "Name?"), Question("price", f"For {price[0]}?")]))
            events = await ctx.history()
            seen.extend(r.response["result"] for e in events for r in e.get_function_responses())
            return "booked"

        store = InMemorySessionService()
        runner = make_runner(helper, store)
        run, questions = await asked(runner)
        if answer_first:
            run = await answer(runner, run, questions["name"], "Ann")
        price[0] = 400
        other = await answer(runner, run, questions["price" if answer_first else "name"], "Ann")
        assert other.status is RunStatus.WAITING
        dropped = "answered" if answer_first else "dropped"
        assert await statuses(store) == [("Name?", "answered"), ("For 300?", dropped), ("For 400?", "open")]
        [again] = await other.interrupts()
        assert again.id != questions["price"].id
        if not answer_first:
            with raises(Conflict, "interrupt.closed"):
                await runner.answer(run.id, questions["price"].id, "yes")
        other = await answer(runner, other, again, "yes")
        assert await other.result() == "booked"
        assert told == [["Ann", "yes"]]
        # The answer of before stands in the history again, behind the question where that stands now.
        assert sorted(seen) == ["Ann", "yes"]
        calls, pinned = (await store.history(KEY, None)).events, (await store.history(KEY, 0)).pinned
        assert [c.args["message"] for e in calls for c in e.get_function_calls()] == ["Name?", "For 400?"]
        assert pinned == [], "nothing is left open"
        [old] = [e for e in await log_of(store, superseded=True) if e.superseded and e.get_function_calls()]
        assert old.long_running_tool_ids == (questions["name"].id, questions["price"].id)

    case()


@for_seeds(10)
async def test_an_answer_follows_its_question_to_where_a_later_attempt_asks_it():
    seen = []

    @agent
    async def helper(ctx):
        yield Content("model").with_text(f"attempt {min(ctx.attempt, 2)}")
        if ctx.attempt > 1:
            yield Content("model").with_text("and another thing")
        name = await ctx.ask("name", "Name?")
        seen.append([r.response for e in await ctx.history() for r in e.get_function_responses()])
        yield Content("model").with_text(f"{name}, {await ctx.ask('sure', 'Sure?')}")

    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    run = await answer(runner, run, questions["name"], "Ann")
    run = await answer(runner, run, (await run.interrupts())[0], True)
    assert await run.result() == "Ann, True"
    assert seen == [[{"result": "Ann"}]] * 2
    log = await log_of(store, superseded=True)
    assert [e.seq for e in log] == list(range(1, len(log) + 1))
    responses = [(r.response["result"], e.superseded) for e in log for r in e.get_function_responses()]
    assert responses == [("Ann", True), ("Ann", False), (True, False)]
    assert len({e.id for e in log}) == len(log)
    assert (await store.history(KEY, 0)).pinned == []
    assert_whole(await read_frames(run))
    await (await runner.start(USER, SESSION, "again")).wait()


CHANGES = {
    "prompt": {"prompt": "May it be bought?"},
    "schema": {"schema": {"type": "boolean"}},
    "arguments of the call": {"call": BUY.model_copy(update={"args": {"seat": "1A"}})},
    "name of the call": {"call": BUY.model_copy(update={"name": "sell"})},
    "id of the call": {"call": BUY.model_copy(update={"id": "c2"})},
    "no call": {"call": None},
    "kind": {"kind": "result"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_answer_is_for_what_was_asked_and_nothing_else(change):
    @for_seeds(3)
    async def case():
        fields = {"key": "ok", "prompt": "Buy it?", "kind": "confirm", "call": BUY}
        told = []

        @agent
        async def helper(ctx):
            told.append(await ctx.ask_all([Question(**fields)]))

        runner = make_runner(helper)
        run, questions = await asked(runner)
        fields.update(change)
        run = await answer(runner, run, questions["ok"], True)
        assert (run.status, told) == (RunStatus.WAITING, [])
        run = await answer(runner, run, (await run.interrupts())[0], False)
        assert told == [[False]]

    case()


def test_the_digest_of_a_plain_question_is_that_of_its_prompt_and_schema():
    """Open questions in databases of earlier versions are found by it."""
    digest = "f030fb8c725af26ea83cda88a945242860d8353ba347b29feae0f4fff39c8b63"
    assert Question("any", {"text": "Book it?", "price": 300}, {"type": "boolean"}, expires=5).digest() == digest


@for_seeds(3)
async def test_prompts_are_json_whatever_they_were_made_of():
    class Colour(StrEnum):
        RED = "red"

    question = Question("q", {"colours": (Colour.RED, 1.5), "none": None})
    helper, told = asking(question)
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    assert questions["q"].prompt == {"colours": ["red", 1.5], "none": None}
    run = await answer(runner, run, questions["q"], 1)
    assert told == [[1]]
    assert not [e for e in await log_of(store, superseded=True) if e.superseded]


# -- refused ------------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_of_questions_with_a_key_twice_none_is_asked():
    codes = []

    @agent
    async def helper(ctx):
        for questions in ([NAME, AGE, NAME], [NAME, Question("bad", {1, 2})], [NAME, Question("bad", "?", {"type": object()})]):
            try:
                await ctx.ask_all(questions)
            except (Conflict, InvalidInput) as error:
                codes.append(error.code)
        first = await ctx.ask_all([NAME, AGE])
        for questions in ([Question("other", "?"), AGE], [NAME]):
            try:
                await ctx.ask_all(questions)
            except Conflict as error:
                codes.append(error.code)
        return [*first, await ctx.ask("other", "?")]

    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    assert codes == ["interrupt.duplicate_key", "json.invalid", "json.invalid"]
    assert await statuses(store) == [("Name?", "open"), ("Age?", "open")]
    run = await answer(runner, run, questions["name"], "Ann")
    run = await answer(runner, run, questions["age"], 7)
    assert codes[-2:] == ["interrupt.duplicate_key"] * 2
    run = await answer(runner, run, (await run.interrupts())[0], "x")
    assert await run.result() == ["Ann", 7, "x"]


class Refusing(Plugin):
    """Refuses the events of questions until it has done so `times` times."""

    def __init__(self, times):
        self.times = times

    async def on_event(self, ctx, event):
        if event.long_running_tool_ids and self.times:
            self.times -= 1
            raise InvalidInput("not like that", code="policy.refused")


@pytest.mark.parametrize("again", ["the same", "another"])
@pytest.mark.parametrize("why", ["too large", "by a plugin", "the store is away", "its replies are lost"])
def test_what_was_refused_may_be_asked_again_under_its_key(why, again):
    @for_seeds(5)
    async def case():
        codes = []
        fault = {"the store is away": fail_before, "its replies are lost": fail_after}.get(why)
        large = "x" * 5000 if why == "too large" else "?"
        second = Question("a", large if again == "the same" else "short?")

        @agent
        async def helper(ctx):
            if ctx.attempt == 1:
                if fault is not None:
                    store.plan.append(fault("append", *range(store.calls["append"] + 1, store.calls["append"] + TRIES + 1)))
                try:
                    await ctx.ask_all([Question("a", large), NAME])
                except SojournError as error:
                    codes.append(error.code)
                if why == "too large" and again == "the same":
                    with pytest.raises(SojournError):
                        await ctx.ask_all([second])
                    return "told"
            return await ctx.ask_all([second, NAME])

        store = FaultyStore(InMemorySessionService())
        refusing = [Refusing(1)] if why == "by a plugin" else []
        runner = make_runner(helper, store, plugins=refusing, run_config=RunConfig(max_event_bytes=2048))
        run = await runner.start(USER, SESSION, "go")
        await run.wait()
        assert codes == [{"too large": "event.too_large", "by a plugin": "policy.refused"}.get(why, "store.unavailable")]
        if why == "too large" and again == "the same":
            assert await run.result() == "told"
            assert await statuses(store) == []
            return
        questions = {i.key: i for i in await run.interrupts()}
        assert {key: i.prompt for key, i in questions.items()} == {"a": second.prompt, "name": "Name?"}
        run = await answer(runner, run, questions["a"], 1)
        run = await answer(runner, run, questions["name"], "Ann")
        assert await run.result() == [1, "Ann"]
        left = [("?", "dropped")] if (why, again) == ("its replies are lost", "another") else []
        assert sorted(await statuses(store)) == sorted([*left, (second.prompt, "answered"), ("Name?", "answered")])

    case()


@for_seeds(5)
async def test_each_answer_must_fit_its_own_question():
    helper, told = asking(NAME, AGE)
    runner = make_runner(helper)
    run, questions = await asked(runner)
    for key, value in (("name", 7), ("age", "Ann")):
        with raises(InvalidInput, "interrupt.invalid_answer"):
            await runner.answer(run.id, questions[key].id, value)
    with raises(NotFound, "interrupt.not_found"):
        await runner.answer(run.id, "name", "Ann")
    assert (await run.refresh()).status is RunStatus.WAITING
    assert len(await run.interrupts()) == 2


# -- time, cancel -------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_the_first_that_nobody_answers_in_time_fails_the_run():
    helper, told = asking(Question("slow", "?", expires=600), Question("quick", "!", expires=60), NAME)
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    assert questions["slow"].expires_at - questions["quick"].expires_at == 540
    await asyncio.sleep(30)
    run = await answer(runner, run, questions["name"], "Ann")
    await asyncio.sleep(29)
    assert (await run.refresh()).status is RunStatus.WAITING
    await asyncio.sleep(2)
    assert await outcome_of(run) == "interrupt.expired"
    assert await statuses(store) == [("?", "dropped"), ("!", "expired"), ("Name?", "answered")]
    assert told == []


@for_seeds(5)
async def test_one_that_was_answered_in_time_does_not_expire_while_others_wait():
    helper, told = asking(Question("quick", "!", expires=60), NAME)
    runner = make_runner(helper)
    run, questions = await asked(runner)
    await asyncio.sleep(50)
    run = await answer(runner, run, questions["quick"], 1)
    await asyncio.sleep(1000)
    assert (await run.refresh()).status is RunStatus.WAITING
    run = await answer(runner, run, questions["name"], "Ann")
    assert told == [[1, "Ann"]]


@pytest.mark.parametrize("answered", [[], ["name"]])
def test_a_cancel_while_they_wait_drops_those_that_are_open(answered):
    @for_seeds(5)
    async def case():
        helper, told = asking(NAME, AGE)
        store = InMemorySessionService()
        runner = make_runner(helper, store)
        run, questions = await asked(runner)
        for key in answered:
            run = await answer(runner, run, questions[key], "Ann")
        await run.cancel()
        assert (await run.wait()).status is RunStatus.CANCELLED
        assert await statuses(store) == [("Name?", "answered" if answered else "dropped"), ("Age?", "dropped")]
        with raises(Conflict, "interrupt.closed"):
            await runner.answer(run.id, questions["age"].id, 7)
        assert told == []
        assert_whole(await read_frames(await runner.follow(run.id)))

    case()


@for_seeds(10)
async def test_a_cancel_while_the_run_looks_for_the_other_answers():
    questions = [NAME, AGE]

    @agent
    async def helper(ctx):
        if ctx.attempt == 2:
            await asyncio.sleep(10)
        await ctx.ask_all(questions)

    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, interrupts = await asked(runner)
    run = await runner.answer(run.id, interrupts["name"].id, "Ann")
    await asyncio.sleep(5)
    await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    assert await runner.list_interrupts() == []
    calls = {c.id for e in (await store.history(KEY, None)).events for c in e.get_function_calls()}
    assert calls == {i.id for i in interrupts.values()}
    assert_at_rest(runner)


# -- branches, agents inside of others ----------------------------------------------------------------------------------


@for_seeds(10)
async def test_branches_ask_for_themselves():
    def branch(name):
        @agent(name=name)
        async def ask(ctx):
            a, b = await ctx.ask_all([Question("a", f"{name}a?"), Question("b", f"{name}b?")])
            yield f"{a} {b}"

        return ask

    store = InMemorySessionService()
    runner = make_runner(ParallelAgent(name="all", sub_agents=[branch("x"), branch("y")]), store)
    run, questions = await asked(runner)
    assert sorted(i.prompt for i in questions.values()) == ["xa?", "xb?", "ya?", "yb?"]
    for interrupt in sorted(questions.values(), key=lambda i: i.prompt[1]):
        assert run.status is RunStatus.WAITING
        run = await answer(runner, run, interrupt, interrupt.prompt[:2])
    assert run.status is RunStatus.COMPLETED
    assert sorted(e.text for e in await log_of(store) if e.text) == ["go", "xa xb", "ya yb"]


# -- a store that fails -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [fail_before, fail_after])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_questions_are_asked_once_and_answers_taken_whatever_reply_is_lost(fault, call):
    @for_seeds(5)
    async def case():
        helper, told = asking(NAME, AGE)
        store = FaultyStore(InMemorySessionService(), [fault("append", call)])
        runner = make_runner(helper, store)
        run, questions = await asked(runner)
        run = await answer(runner, run, questions["name"], "Ann")
        run = await answer(runner, run, questions["age"], 7)
        assert await run.result() == "Told ['Ann', 7]."
        assert await statuses(store) == [("Name?", "answered"), ("Age?", "answered")]
        log = await log_of(store, superseded=True)
        assert len(log) == 6
        assert not [e for e in log if e.superseded]

    case()


# -- function calls that wait -------------------------------------------------------------------------------------------


def calling(kind, prompt="Buy it?", schema=None):
    """An agent that makes a function call which waits for a person, and tells what it saw meanwhile."""
    seen = []

    @agent
    async def helper(ctx):
        if ctx.user_content.text != "go":
            events = [e for e in await ctx.history() if e.get_function_calls() or e.get_function_responses()]
            seen.append([(c.id, r.response) for e in events for c in e.get_function_calls() for r in _answers(events, c.id)])
            return
        yield "One moment. "
        yield Whole(Event(content=Content("model", (Part(text="One moment. "), Part(function_call=BUY)))))
        [given] = await ctx.ask_all([Question("ok", prompt, schema, kind=kind, call=BUY)])
        yield Content("user", (Part.from_function_response("buy", {"given": given}, id="c1"),))
        yield "Done."

    return helper, seen


def _answers(events, call_id):
    return [r for e in events for r in e.get_function_responses() if r.id == call_id]


@for_seeds(5)
async def test_leave_to_call_a_function_stands_in_the_log_as_adks_clients_know_it():
    helper, _ = calling("confirm")
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    question = questions["ok"]
    assert (question.kind, question.call_id, question.prompt) == ("confirm", "c1", "Buy it?")
    [call] = (await log_of(store))[-1].get_function_calls()
    assert (call.id, call.name) == (question.id, CONFIRM_CALL) == (question.id, "adk_request_confirmation")
    assert call.args == {
        "originalFunctionCall": {"id": "c1", "name": "buy", "args": {"seat": "12A"}},
        "toolConfirmation": {"hint": "Buy it?", "confirmed": False},
    }
    run = await answer(runner, run, question, True)
    assert await run.result() == "Done."
    responses = [(r.id, r.name, r.response) for e in await log_of(store) for r in e.get_function_responses()]
    assert responses == [(question.id, CONFIRM_CALL, {"result": True}), ("c1", "buy", {"given": True})]


@for_seeds(5)
async def test_the_result_of_a_function_that_somebody_else_carries_out():
    helper, _ = calling("result", {"tool": "buy"}, {"type": "object"})
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    question = questions["ok"]
    assert (question.kind, question.call_id, question.schema) == ("result", "c1", {"type": "object"})
    [call] = (await log_of(store))[-1].get_function_calls()
    assert (call.id, call.name) == (question.id, ASK_CALL) == (question.id, "adk_request_input")
    assert call.args == {
        "key": "ok",
        "message": {"tool": "buy"},
        "response_schema": {"type": "object"},
        "originalFunctionCall": {"id": "c1", "name": "buy", "args": {"seat": "12A"}},
    }
    run = await answer(runner, run, question, {"ticket": 7})
    responses = [(r.id, r.name, r.response) for e in await log_of(store) for r in e.get_function_responses()]
    assert responses == [(question.id, ASK_CALL, {"result": {"ticket": 7}}), ("c1", "buy", {"given": {"ticket": 7}})]


@pytest.mark.parametrize("kind", ["input", "confirm", "result"])
@pytest.mark.parametrize("call", [None, BUY, FunctionCall(name="buy")], ids=["no call", "a call", "a call without id"])
def test_a_question_and_its_answer_have_one_name_in_the_log(kind, call):
    @for_seeds(2)
    async def case():
        helper, told = asking(Question("q", "?", kind=kind, call=call))
        store = InMemorySessionService()
        runner = make_runner(helper, store)
        run, questions = await asked(runner)
        await answer(runner, run, questions["q"], True)
        log = await log_of(store)
        [asked_as] = [c.name for e in log for c in e.get_function_calls()]
        [answered_as] = [r.name for e in log for r in e.get_function_responses()]
        assert asked_as == answered_as == (CONFIRM_CALL if kind == "confirm" else ASK_CALL)
        assert told == [[True]]

    case()


@pytest.mark.parametrize("kind", ["confirm", "result"])
def test_a_call_that_waits_for_a_person_is_shown_as_pending_and_so_is_the_question(kind):
    @for_seeds(5)
    async def case():
        helper, seen = calling(kind)
        store = InMemorySessionService()
        runner = make_runner(helper, store)
        run, questions = await asked(runner)
        await (await runner.start(USER, SESSION, "meanwhile")).result()
        pending = {"status": "pending"}
        assert seen.pop() == [("c1", pending), (questions["ok"].id, pending)]
        assert (await store.history(KEY, 1)).pinned[-1].long_running_tool_ids == (questions["ok"].id,)
        run = await answer(runner, run, questions["ok"], True)
        await (await runner.start(USER, SESSION, "later")).result()
        assert seen.pop() == [("c1", {"given": True}), (questions["ok"].id, {"result": True})]
        assert (await store.history(KEY, 0)).pinned == []

    case()


@for_seeds(5)
async def test_a_call_that_waits_no_more_is_not_shown_as_pending():
    helper, seen = calling("confirm")
    runner = make_runner(helper)
    run, questions = await asked(runner)
    await run.cancel()
    await (await runner.start(USER, SESSION, "later")).result()
    [statuses] = [[r["status"] for _, r in answers] for answers in seen]
    assert len(statuses) == 2
    assert not [s for s in statuses if s == "pending"]


# -- answers as messages ------------------------------------------------------------------------------------------------


def _message(interrupt_id, response, *, name=CONFIRM_CALL):
    return Content("user", (Part.from_function_response(name, response, id=interrupt_id),))


@pytest.mark.parametrize(
    ("response", "value"),
    [({"result": True}, True), ({"confirmed": True}, {"confirmed": True}), ({"result": {"ok": 1}}, {"ok": 1}), ({}, {})],
)
def test_a_message_that_is_only_a_function_response_answers(response, value):
    @for_seeds(3)
    async def case():
        helper, _ = calling("confirm")
        store = InMemorySessionService()
        runner = make_runner(helper, store)
        run, questions = await asked(runner)
        reading = await read_events(runner.run(USER, SESSION, _message(questions["ok"].id, response)))
        assert [r.response for e in reading.events for r in e.get_function_responses()] == [{"given": value}]
        assert reading.screen == "Done."
        assert (await store.get_run("app", run.id)).status is RunStatus.COMPLETED
        assert len((await runner.list_runs()).items) == 1

    case()


@for_seeds(5)
async def test_messages_answer_several_questions_one_by_one():
    helper, told = asking(NAME, Question("ok", "Ok?", kind="confirm", call=BUY))
    runner = make_runner(helper)
    run, questions = await asked(runner)
    first = await read_events(runner.run(USER, SESSION, _message(questions["ok"].id, {"result": True})))
    assert (first.items, first.error) == ([], None)
    assert (await run.refresh()).status is RunStatus.WAITING
    second = await read_events(runner.run(USER, SESSION, _message(questions["name"].id, {"result": "Ann"}, name=ASK_CALL)))
    assert second.screen == "Told ['Ann', True]."
    assert told == [["Ann", True]]


@for_seeds(10)
async def test_one_message_answers_several_questions():
    helper, told = asking(NAME, Question("ok", "Ok?", kind="confirm", call=BUY))
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, questions = await asked(runner)
    message = _message(questions["ok"].id, {"result": True})
    message = message.with_part(Part.from_function_response(ASK_CALL, {"result": "Ann"}, id=questions["name"].id))
    answered = await runner.start(USER, SESSION, message)
    assert answered.id == run.id
    async with asyncio.timeout(600):
        while (await run.refresh()).status is not RunStatus.COMPLETED:
            await asyncio.sleep(1)
    assert told == [["Ann", True]]
    assert len((await runner.list_runs()).items) == 1


@for_seeds(5)
async def test_the_id_of_the_call_itself_gives_its_result_but_no_leave():
    helper, _ = calling("result")
    runner = make_runner(helper)
    run, _ = await asked(runner)
    reading = await read_events(runner.run(USER, SESSION, _message("c1", {"ticket": 7}, name="buy")))
    assert [r.response for e in reading.events for r in e.get_function_responses()] == [{"given": {"ticket": 7}}]
    assert (await run.refresh()).status is RunStatus.COMPLETED

    helper, _ = calling("confirm")
    runner = make_runner(helper)
    run, _ = await asked(runner)
    with raises(NotFound, "interrupt.not_found"):
        await runner.start(USER, SESSION, _message("c1", {"result": True}, name="buy"))
    assert (await run.refresh()).status is RunStatus.WAITING

"""Tools: what they are called with, what their failures tell the model, what they do besides giving a result."""

import asyncio
import functools
import sys
import threading
from contextvars import ContextVar
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import ModelRetry, Tool, ToolReturn
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import BinaryContent
from pydantic_ai.toolsets import FunctionToolset

from sojourn.agents.current import current_run
from sojourn.agents.llm.tool import ToolContext, tool
from sojourn.errors import InvalidInput, ToolError
from sojourn.event import EventActions
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from sojourn.testing.suite import raises
from tests.llm.support import (
    Ledger,
    assert_valid_history,
    calls_in,
    crashed,
    events_of,
    llm,
    responses_in,
    results_in,
    said,
)
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, said_in, state_of


def echo(text: str) -> str:
    """Says it again.

    Args:
        text: What.
    """
    return text


# -- what the model is offered ------------------------------------------------------------------------------------------


@for_seeds(1)
async def test_the_model_is_offered_what_signature_and_docstring_say():
    @tool(name="find")
    def search(query: str, context: ToolContext, limit: int = 5) -> list[str]:
        """Finds things.

        Args:
            query: What to look for.
            context: Not the model's business.
            limit: How many.
        """
        return [query] * limit

    helper = llm([Calls("find", {"query": "x", "limit": 2})], "Done.", tools=[search])
    run = await said(helper)
    assert await run.result() == "Done."
    (definition,) = helper.model.requests[0].info.function_tools
    assert (definition.name, definition.description.strip()) == ("find", "Finds things.")
    schema = definition.parameters_json_schema
    assert set(schema["properties"]) == {"query", "limit"}
    assert schema["required"] == ["query"]
    assert schema["properties"]["query"]["description"] == "What to look for."
    assert results_in(await events_of(run)) == [{"result": ["x", "x"]}]


class Adder:
    """Adds to what it holds."""

    def __init__(self, base):
        self.base = base

    def __call__(self, n: int) -> int:
        """Adds a number."""
        return self.base + n

    async def later(self, n: int, context: ToolContext) -> int:
        """Adds a number and says who asked."""
        return self.base + n + len(context.agent_name)


@for_seeds(2)
async def test_callable_objects_bound_methods_and_partials_are_tools():
    def power(base: int, exponent: int) -> int:
        """Raises to a power."""
        return base**exponent

    square = functools.partial(power, exponent=2)
    helper = llm(
        [Calls("Adder", {"n": 1}), Calls("later", {"n": 1}), Calls("square", {"base": 3})],
        "Done.",
        tools=[Adder(10), Adder(20).later, tool(name="square")(square)],
    )
    run = await said(helper)
    assert await outcome_of(run) == "Done."
    assert results_in(await events_of(run)) == [{"result": 11}, {"result": 27}, {"result": 9}]


class Address(BaseModel):
    street: str
    zip: int


@for_seeds(1)
async def test_arguments_come_as_the_types_that_the_parameters_have():
    got = []

    def send(to: Address, weight: float = 1.0) -> None:
        """Sends."""
        got.append((to, weight))

    run = await said(llm([Calls("send", {"to": {"street": "High St", "zip": "123"}})], "Sent.", tools=[send]))
    assert await outcome_of(run) == "Sent."
    assert got == [(Address(street="High St", zip=123), 1.0)]
    assert results_in(await events_of(run)) == [{"result": None}]


# -- calls --------------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_calls_of_a_turn_run_at_once_and_their_results_stand_in_the_order_of_the_calls():
    busy = [0, 0]

    async def wait(seconds: float) -> float:
        """Waits."""
        busy[0] += 1
        busy[1] = max(busy)
        await asyncio.sleep(seconds)
        busy[0] -= 1
        return seconds

    times = [3, 1, 2, 1]
    helper = llm([Calls("wait", {"seconds": s}) for s in times], "Done.", tools=[wait])
    run = await said(helper)
    _, returned, _ = await events_of(run)
    assert results_in([returned]) == [{"result": float(s)} for s in times]
    assert busy[1] == 4
    assert helper.model.requests[1].lines[-4:] == [f"return wait {float(s)}" for s in times]


@for_seeds(5)
async def test_a_sequential_tool_runs_alone():
    busy = [0, 0]

    @tool(sequential=True)
    async def alone(n: int) -> int:
        """Works."""
        busy[0] += 1
        busy[1] = max(busy)
        await asyncio.sleep(1)
        busy[0] -= 1
        return n

    run = await said(llm([Calls("alone", {"n": n}) for n in range(3)], "Done.", tools=[alone]))
    assert await outcome_of(run) == "Done."
    assert busy[1] == 1


wanted = ContextVar("wanted", default="nothing")


@pytest.mark.anyio
async def test_plain_functions_run_in_threads_with_context_variables_and_a_tool_context():
    threads = []

    def where(context: ToolContext) -> str:
        """Says where it runs."""
        threads.append(threading.current_thread())
        context.state["thread"] = True
        assert current_run().run_id == context.run_id
        return f"{wanted.get()} {context.tool_name} {context.user_id}"

    store = InMemorySessionService()
    runner = make_runner(llm([Calls("where"), Calls("where")], "Done.", tools=[where]), store, propagate=[wanted])
    token = wanted.set("tea")
    run = await runner.start(USER, SESSION, "go")
    wanted.reset(token)
    assert await run.result() == "Done."
    assert results_in(await events_of(run)) == [{"result": "tea where alice"}] * 2
    assert threading.main_thread() not in threads
    assert await state_of(store) == {"thread": True}


@for_seeds(2)
async def test_the_context_of_a_call_names_it_and_its_idempotency_key():
    ledger = Ledger()
    run = await said(llm([Calls("pay", {"amount": 1}), Calls("pay", {"amount": 2})], "Done.", tools=[ledger.tool]))
    calls = calls_in(await events_of(run))
    assert sorted(ledger.keys) == sorted(f"{run.id}:tool:{call.id}" for call in calls)


@for_seeds(5)
async def test_ids_that_a_model_uses_again_are_made_unique_within_and_across_runs_and_agents():
    store = InMemorySessionService()
    other = llm([Calls("echo", {"text": "e"}, id="call_0")], "Other.", name="other", tools=[echo])
    helper = llm(
        [Calls("echo", {"text": "a"}, id="call_0")],
        [Calls("echo", {"text": "b"}, id="call_0"), Calls("echo", {"text": "c"}, id="call_1")],
        "First.",
        [Calls("echo", {"text": "d"}, id="call_0")],
        [Calls("transfer_to_agent", {"agent_name": "other"}, id="call_0")],
        tools=[echo],
        sub_agents=[other],
    )
    runner = make_runner(helper, store)
    assert await outcome_of(await runner.start(USER, SESSION, "one")) == "First."
    stream = runner.run(USER, SESSION, "two")
    items = [item async for item in stream]
    pieces = {item.call.id for item in items if item.partial and item.call is not None}
    assert await stream.run.result() == "Other."
    log = await log_of(store)
    calls = calls_in(log)
    await assert_valid_history(store)
    given = {r.id: r.response.get("result") for r in responses_in(log) if r.name == "echo"}
    assert [given[c.id] for c in calls if c.name == "echo"] == ["a", "b", "c", "d", "e"]
    assert pieces == {c.id for c in calls[3:]}, "readers are sent the ids that the event has"


@for_seeds(2)
async def test_calls_of_one_answer_with_one_id_are_calls_of_their_own():
    store = InMemorySessionService()
    twins = [Calls("echo", {"text": text}, id="call_of_one_id_for_all", pieces=2) for text in "abc"]
    runner = make_runner(llm(twins, "Done.", tools=[echo]), store)
    items = [item async for item in runner.run(USER, SESSION, "go")]
    [event, returned, _] = [item for item in items if not item.partial]
    calls = event.get_function_calls()
    assert results_in([returned]) == [{"result": "a"}, {"result": "b"}, {"result": "c"}]
    pieces = {call.id: "" for call in calls}
    for item in items:
        if item.partial and item.call is not None:
            pieces[item.call.id] += item.call.args
    assert list(pieces.values()) == [f'{{"text": "{text}"}}' for text in "abc"], "readers are sent the ids that the event has"
    await assert_valid_history(store)


# -- failures -----------------------------------------------------------------------------------------------------------


def broken(how: str) -> str:
    """Fails."""
    if how == "retry":
        raise ModelRetry("give a number")
    if how == "failed":
        raise ToolFailed("no such thing")
    if how == "ours":
        raise ToolError("the printer is on fire", code="printer.on_fire")
    raise OSError("disk full")


@pytest.mark.parametrize(
    ("how", "told"),
    [("retry", "give a number"), ("failed", "no such thing"), ("ours", "printer.on_fire: the printer is on fire"), ("bug", "OSError: disk full")],
)  # fmt: skip
def test_a_failure_is_told_to_the_model_and_the_run_goes_on(how, told, caplog):
    @for_seeds(3)
    async def case():
        store = InMemorySessionService()
        helper = llm([Calls("broken", {"how": how}), Calls("echo", {"text": "fine"})], "Sorry.", tools=[broken, echo])
        run = await said(helper, store=store)
        assert await outcome_of(run) == "Sorry."
        failed, fine = results_in(await events_of(run))
        assert told in failed["error"]
        assert "Traceback" not in failed["error"]
        assert fine == {"result": "fine"}
        shown = helper.model.requests[1].lines
        assert told in shown[-2]
        assert shown[-1] == "return echo fine"
        await assert_valid_history(store)

    case()


@for_seeds(2)
async def test_a_tool_that_waits_for_what_is_cancelled_has_failed_alone():
    async def wait_for_another() -> None:
        """Waits for what somebody else cancels."""
        other = asyncio.ensure_future(asyncio.sleep(100))
        asyncio.get_running_loop().call_later(1, other.cancel)
        await other

    store = InMemorySessionService()
    helper = llm([Calls("wait_for_another"), Calls("echo", {"text": "x"})], "Done.", tools=[wait_for_another, echo])
    run = await said(helper, store=store)
    assert await outcome_of(run) == "Done."
    assert results_in(await events_of(run)) == [{"error": "it was cancelled"}, {"result": "x"}]
    await assert_valid_history(store)


@pytest.mark.anyio
async def test_a_tool_that_would_end_the_process_has_failed_alone():
    def leave() -> None:
        """Leaves, in a thread."""
        sys.exit(3)

    async def leave_at_once() -> None:
        """Leaves."""
        sys.exit(4)

    store = InMemorySessionService()
    calls = [Calls("leave"), Calls("leave_at_once"), Calls("echo", {"text": "x"})]
    run = await said(llm(calls, "Done.", tools=[leave, leave_at_once, echo]), store=store)
    assert await outcome_of(run) == "Done."
    assert results_in(await events_of(run)) == [{"error": "SystemExit: 3"}, {"error": "SystemExit: 4"}, {"result": "x"}]
    await assert_valid_history(store)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@for_seeds(2)
async def test_whatever_a_failure_says_is_told_as_far_as_it_is_text():
    def fail(how: str) -> None:
        """Fails."""
        raise Unspeakable if how == "silent" else ValueError("half a character: \ud83d")

    store = InMemorySessionService()
    helper = llm([Calls("fail", {"how": "silent"}), Calls("fail", {"how": "odd"})], "Done.", tools=[fail])
    run = await said(helper, store=store)
    assert await outcome_of(run) == "Done."
    assert results_in(await events_of(run)) == [
        {"error": "Unspeakable: what it says cannot be read"},
        {"error": "ValueError: half a character: \ufffd"},
    ]
    await assert_valid_history(store)


@for_seeds(3)
async def test_a_failed_call_is_shown_as_such_in_the_next_run_too():
    helper = llm([Calls("broken", {"how": "bug"})], "Sorry.", "Hi.", tools=[broken])
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    await (await runner.start(USER, SESSION, "one")).result()
    await (await runner.start(USER, SESSION, "two")).result()
    assert helper.model.requests[-1].lines[1:3] == ['call broken {"how":"bug"}', 'return broken {"error":"OSError: disk full"}']


@for_seeds(3)
async def test_a_call_that_takes_too_long_is_a_failure_told_to_the_model():
    trace = []

    @tool(timeout=5)
    async def slow(context: ToolContext) -> str:
        """Takes long."""
        try:
            await asyncio.sleep(3600)
        finally:
            trace.append("ended")

    async def slower() -> str:
        """Takes longer."""
        await asyncio.sleep(3600)

    helper = llm(
        [Calls("slow"), Calls("slower"), Calls("echo", {"text": "x"})], "Too slow.", tools=[slow, slower, echo], tool_timeout=10
    )
    run = await said(helper)
    assert await outcome_of(run) == "Too slow."
    one, two, three = results_in(await events_of(run))
    assert one["error"] == "it took longer than 5 seconds"
    assert two["error"] == "it took longer than 10 seconds"
    assert three == {"result": "x"}
    assert trace == ["ended"]


@pytest.mark.anyio
async def test_a_thread_that_hangs_is_left_behind_when_its_time_is_over_or_its_run_is_cancelled():
    go_on = threading.Event()
    entered = threading.Semaphore(0)

    def hang() -> str:
        """Hangs."""
        entered.release()
        go_on.wait()
        return "late"

    store = InMemorySessionService()
    bounded = tool(name="bounded", timeout=0.01)(hang)
    helper = llm([Calls("bounded")], "Too slow.", [Calls("hang")], "Hi.", tools=[hang, bounded])
    runner = make_runner(helper, store, run_config=RunConfig(cancel_grace=0.01))
    try:
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "Too slow."
        assert results_in(await events_of(run)) == [{"error": "it took longer than 0.01 seconds"}]
        run = await runner.start(USER, SESSION, "go")
        await asyncio.to_thread(entered.acquire)
        await asyncio.to_thread(entered.acquire)
        await run.cancel()
        assert await outcome_of(run) == "run.cancelled"
        assert await outcome_of(await runner.start(USER, SESSION, "go")) == "Hi."
    finally:
        go_on.set()
    await assert_valid_history(store)


@for_seeds(2)
async def test_timeouts_one_after_the_other_do_not_end_the_run():
    @tool(timeout=5)
    async def slow() -> str:
        """Takes long."""
        await asyncio.sleep(3600)

    run = await said(llm(*[[Calls("slow")]] * 6, "I give up.", tools=[slow]))
    assert await outcome_of(run) == "I give up."


@pytest.mark.parametrize(
    "args", ['{"text": ', "no json at all", "[1]", '{"text": {"a": 1}}', "{}", '{"text": "x", "more": 1}', '{"text": "\\ud800"}', '"x"', "null", "",
            '{"text": NaN}', '{"text": "x", "more": -Infinity}', '{"text": 1e400}', {"text": float("nan")}, {"text": "\ud800"}]
)  # fmt: skip
def test_arguments_that_cannot_be_are_told_to_the_model(args):
    @for_seeds(2)
    async def case():
        store = InMemorySessionService()
        helper = llm([Calls("echo", args)], [Calls("echo", {"text": "fine"})], "Done.", "Hi.", tools=[echo])
        runner = make_runner(helper, store)
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "Done."
        assert results_in(await events_of(run))[-1] == {"result": "fine"}
        await assert_valid_history(store)
        assert await outcome_of(await runner.start(USER, SESSION, "go")) == "Hi.", "and the next run can read it"

    case()


@for_seeds(2)
async def test_a_number_that_json_does_not_have_is_no_argument_whatever_the_parameter():
    given = []

    def set_level(level: float = 0.0, options: dict[str, Any] | None = None) -> str:
        """Sets the level."""
        given.append((level, options))
        return "set"

    calls = [Calls("set_level", args) for args in ('{"level": Infinity}', '{"options": {"a": [NaN]}}', {"level": float("inf")})]
    store = InMemorySessionService()
    helper = llm(calls, "I cannot.", tools=[tool(require_approval=True)(set_level)])
    run = await said(helper, store=store)
    assert await outcome_of(run) == "I cannot."
    assert given == []
    assert [call.args.keys() for call in calls_in(await events_of(run))] == [{"INVALID_JSON"}] * 3
    await assert_valid_history(store)


@for_seeds(2)
async def test_a_model_that_never_gets_the_arguments_right_ends_the_run_with_a_code():
    store = InMemorySessionService()
    runner = make_runner(llm([Calls("echo", {"txt": "x"})], repeat=True, tools=[echo]), store)
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "model.bad_answer"
    assert len(runner.agent.model.requests) <= 5
    await assert_valid_history(store)


@for_seeds(2)
async def test_a_tool_that_asks_for_a_retry_for_ever_ends_the_run_with_a_code():
    store = InMemorySessionService()
    runner = make_runner(llm([Calls("broken", {"how": "retry"})], repeat=True, tools=[broken]), store)
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "model.bad_answer"
    assert len(runner.agent.model.requests) == 4, "once, and `retries` times"
    await assert_valid_history(store)


@for_seeds(2)
async def test_a_call_of_an_unknown_tool_is_told_to_the_model():
    helper = llm([Calls("fly", {"to": "Rome"}), Calls("echo", {"text": "x"})], "I cannot fly.", tools=[echo])
    store = InMemorySessionService()
    run = await said(helper, store=store)
    assert await outcome_of(run) == "I cannot fly."
    unknown, known = results_in(await events_of(run))
    assert "fly" in unknown["error"]
    assert "echo" in unknown["error"]
    assert known == {"result": "x"}
    await assert_valid_history(store)


class Opaque:
    pass


@pytest.mark.parametrize(
    "result", [Opaque(), float("nan"), [float("inf")], "\ud800", b"\xff\xfe", {1: Opaque()}, lambda: 1, 10**5000, {"a": {Opaque()}}],
    ids=["object", "nan", "inf", "surrogate", "bytes", "key", "function", "digits", "set"],
)  # fmt: skip
def test_a_result_that_is_not_json_is_a_failure_told_to_the_model(result):
    @for_seeds(1)
    async def case():
        async def give() -> object:
            """Gives."""
            return result

        store = InMemorySessionService()
        run = await said(llm([Calls("give")], "Odd.", tools=[give]), store=store)
        assert await outcome_of(run) == "Odd."
        (told,) = results_in(await events_of(run))
        assert "not JSON" in told["error"]
        await assert_valid_history(store)

    case()


def test_a_result_that_holds_itself_is_a_failure_told_to_the_model():
    @for_seeds(1)
    async def case():
        async def give() -> object:
            """Gives."""
            loop = []
            loop.append(loop)
            return loop

        run = await said(llm([Calls("give")], "Odd.", tools=[give]))
        assert await outcome_of(run) == "Odd."
        assert "not JSON" in results_in(await events_of(run))[0]["error"]

    case()


@pytest.mark.parametrize(
    ("result", "stored"),
    [({"a": 1}, {"a": 1}), ([1], {"result": [1]}), ("x", {"result": "x"}), ({"result": 5}, {"result": 5}), ({}, {}), (True, {"result": True}),
     (Address(street="s", zip=1), {"street": "s", "zip": 1}), ({"error": "mine"}, {"error": "mine"})],
)  # fmt: skip
def test_results_are_objects_in_the_log_and_what_they_are_for_the_model(result, stored):
    @for_seeds(1)
    async def case():
        async def give() -> object:
            """Gives."""
            return result

        helper = llm([Calls("give")], "Done.", tools=[give])
        run = await said(helper)
        assert await outcome_of(run) == "Done."
        assert results_in(await events_of(run)) == [stored]

    case()


@for_seeds(2)
async def test_a_huge_result_is_a_failure_told_to_the_model():
    async def give(size: int) -> str:
        """Gives."""
        return "x" * size

    store = InMemorySessionService()
    helper = llm([Calls("give", {"size": 10_000}), Calls("give", {"size": 10})], "Too much.", tools=[give])
    run = await said(helper, store=store, run_config=RunConfig(max_event_bytes=4096))
    assert await outcome_of(run) == "Too much."
    large, small = results_in(await events_of(run))
    assert "too large" in large["error"]
    assert "4096" in large["error"]
    assert small == {"result": "x" * 10}
    await assert_valid_history(store)


@for_seeds(2)
async def test_results_that_are_too_large_together_are_moved_to_artifacts_and_still_shown_to_the_model():
    async def give(letter: str) -> str:
        """Gives."""
        return letter * 3000

    store = InMemorySessionService()
    helper = llm([Calls("give", {"letter": x}) for x in "abc"], "Done.", "Again.", tools=[give])
    runner = make_runner(helper, store, run_config=RunConfig(max_event_bytes=4096))
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "Done."
    assert helper.model.requests[1].lines[-3:] == [f"return give {x * 3000}" for x in "abc"]
    await assert_valid_history(store)
    assert await outcome_of(await runner.start(USER, SESSION, "go on")) == "Again."


# -- names --------------------------------------------------------------------------------------------------------------


def test_two_tools_of_one_name_are_refused():
    with raises(InvalidInput, "tool.duplicate_name"):
        llm(tools=[echo, tool(name="echo")(broken)])


def test_reserved_names_are_refused():
    for name, options in (("transfer_to_agent", {}), ("final_result", {"output_schema": Address})):
        with raises(InvalidInput, "tool.invalid"):
            llm(tools=[tool(name=name)(echo)], **options)


def test_what_is_no_tool_is_refused():
    for wrong in (5, "echo", None):
        with raises(InvalidInput, "tool.invalid"):
            llm(tools=[wrong])
    for options in ({"timeout": 0}, {"unknown": 1}):
        with raises(InvalidInput, "tool.invalid"):
            tool(**options)(echo)

    def unreadable(x: Opaque) -> str:
        """Takes what has no schema."""

    with raises(InvalidInput, "tool.invalid"):
        llm(tools=[unreadable])


@for_seeds(1)
async def test_a_name_clash_between_toolsets_fails_with_a_code_that_says_so():
    run = await said(llm("Hi.", tools=[echo, FunctionToolset([echo])]))
    assert await outcome_of(run) == "tool.duplicate_name"
    assert "echo" in run.record.error.message


@for_seeds(1)
async def test_a_name_clash_with_a_tool_of_pydantic_ai_is_refused():
    with raises(InvalidInput, "tool.duplicate_name"):
        llm(tools=[echo, Tool(echo)])
    with raises(InvalidInput, "tool.duplicate_name"):
        llm(tools=[Tool(echo), echo])


# -- what tools do besides ----------------------------------------------------------------------------------------------


def busy_tools():
    """Tools that write state, save, escalate; and how often each was called."""
    calls = []

    async def note(key: str, value: int, context: ToolContext) -> str:
        """Notes."""
        calls.append(key)
        context.state[key] = value
        context.state.increment("user:notes")
        await context.artifacts.save(f"{key}.txt", f"{value}")
        return "noted"

    async def read(key: str, context: ToolContext) -> int:
        """Reads."""
        calls.append(f"read {key}")
        return context.state.get(key, -1)

    return [note, read], calls


@for_seeds(5)
async def test_what_tools_write_is_stored_with_their_results_and_seen_by_the_next_turn():
    tools, calls = busy_tools()
    store = InMemorySessionService()
    helper = llm(
        [Calls("note", {"key": "a", "value": 1}), Calls("note", {"key": "b", "value": 2})],
        [Calls("read", {"key": "b"})],
        "Done.",
        tools=tools,
    )
    run = await said(helper, store=store)
    assert await outcome_of(run) == "Done."
    _, noted, _, read, _ = await events_of(run)
    assert noted.actions.state_delta == {"a": 1, "b": 2}
    assert noted.actions.state_increments == {"user:notes": 2}
    assert noted.actions.artifact_delta == {"a.txt": 0, "b.txt": 0}
    assert results_in([read]) == [{"result": 2}]
    assert await state_of(store) == {"a": 1, "b": 2, "user:notes": 2}


@pytest.mark.parametrize("number", range(1, 12))
def test_what_tools_do_is_done_once_whatever_append_the_process_dies_in(number):
    @for_seeds(3)
    async def case():
        for after in (False, True):
            tools, calls = busy_tools()
            ledger = Ledger()
            store = InMemorySessionService()
            helper = llm(
                [Calls("note", {"key": "a", "value": 1}), Calls("pay", {"amount": 5})],
                lambda shown: [Calls("read", {"key": "a"})] if "read" not in shown.text else "Done.",
                lambda shown: [Calls("read", {"key": "a"})] if "read" not in shown.text else "Done.",
                *["Done."] * 4,
                tools=[*tools, ledger.tool],
            )
            helper.model.script = (_by_progress,) * 20
            async with crashed(helper, store, number, after=after) as run, process(helper, store, enter=True) as second:
                again = await second.runner.follow(run.id)
                assert await outcome_of(again) == "Done."
                events = [e for e in await log_of(store) if e.author == "helper"]
                assert results_in(events) == [{"result": "noted"}, {"result": "paid 5"}, {"result": 1}]
                assert await state_of(store) == {"a": 1, "user:notes": 1}
                delta = {}
                for event in events:
                    delta |= event.actions.artifact_delta
                assert set(delta) == {"a.txt"}
                await assert_valid_history(store)
            for done in (calls.count("a"), len(ledger.paid)):
                assert done in (1, 2)
            assert len(set(ledger.keys)) == 1
            assert len(ledger.paid) + calls.count("a") <= 2 + 2 * (number <= 3), "at most what was under way is done again"

    case()


def _by_progress(shown):
    """What a model says that looks at the conversation alone."""
    if "call note" not in shown.text:
        return [Calls("note", {"key": "a", "value": 1}), Calls("pay", {"amount": 5})]
    if "call read" not in shown.text:
        return [Calls("read", {"key": "a"})]
    return "Done."


@for_seeds(3)
async def test_a_tool_that_fails_changes_nothing():
    async def half(context: ToolContext) -> str:
        """Fails half-way."""
        context.state["half"] = True
        context.set_actions(escalate=True)
        raise OSError("disk full")

    store = InMemorySessionService()
    run = await said(llm([Calls("half")], "Sorry.", tools=[half]), store=store)
    assert await outcome_of(run) == "Sorry."
    assert await state_of(store) == {}
    assert not any(e.actions.escalate for e in await log_of(store))


@for_seeds(3)
async def test_what_a_failing_tool_has_saved_is_told():
    async def half(context: ToolContext) -> str:
        """Fails half-way."""
        await context.artifacts.save("half.txt", "x")
        raise OSError("disk full")

    store = InMemorySessionService()
    run = await said(llm([Calls("half")], "Sorry.", tools=[half]), store=store)
    assert await outcome_of(run) == "Sorry."
    assert {"half.txt": 0} in [e.actions.artifact_delta for e in await log_of(store)]


@for_seeds(3)
async def test_tools_of_one_turn_do_not_undo_each_others_writes():
    async def put(key: str, context: ToolContext) -> str:
        """Puts."""
        before = context.state.get("log", [])
        await asyncio.sleep(1)
        context.state[key] = True
        context.state["log"] = [*before, key]
        return key

    store = InMemorySessionService()
    run = await said(llm([Calls("put", {"key": "a"}), Calls("put", {"key": "b"})], "Done.", tools=[put]), store=store)
    assert await outcome_of(run) == "Done."
    assert await state_of(store) == {"a": True, "b": True, "log": ["b"]}, "the later call's write of a common key counts"


@for_seeds(3)
async def test_skip_summarization_makes_the_result_the_answer():
    def report(context: ToolContext) -> dict:
        """Reports."""
        context.set_actions(skip_summarization=True)
        return {"rows": [1, 2]}

    helper = llm([Calls("report")], tools=[report])
    run = await said(helper)
    assert (await run.wait()).status is RunStatus.COMPLETED, run.record.error
    *_, last = await events_of(run)
    assert last.is_final_response()
    assert results_in([last]) == [{"rows": [1, 2]}]
    assert len(helper.model.requests) == 1


@for_seeds(3)
async def test_a_tool_ends_the_run():
    def stop(context: ToolContext) -> str:
        """Stops."""
        context.end_invocation()
        return "stopped"

    helper = llm([Calls("stop"), Calls("echo", {"text": "x"})], tools=[stop, echo])
    store = InMemorySessionService()
    run = await said(helper, store=store)
    assert (await run.wait()).status is RunStatus.COMPLETED, run.record.error
    assert len(helper.model.requests) == 1
    await assert_valid_history(store)


@for_seeds(3)
async def test_a_tool_hands_over():
    def hand(context: ToolContext) -> str:
        """Hands over."""
        context.transfer_to("other")
        return "handed"

    helper = llm([Calls("hand")], tools=[hand], sub_agents=[llm("I am the other.", name="other")])
    store = InMemorySessionService()
    run = await said(helper, store=store)
    assert await outcome_of(run) == "I am the other."
    _, returned, _ = await events_of(run)
    assert returned.actions.transfer_to_agent == "other"
    await assert_valid_history(store)


@for_seeds(2)
async def test_actions_that_a_tool_sets_are_those_of_the_event_with_its_result():
    def act(context: ToolContext) -> str:
        """Acts."""
        context.set_actions(EventActions(requested_auth_configs={"a": {"b": 1}}))
        return "acted"

    run = await said(llm([Calls("act")], "Done.", tools=[act]))
    assert (await events_of(run))[1].actions.requested_auth_configs == {"a": {"b": 1}}


@for_seeds(2)
async def test_what_a_tool_shows_besides_its_result_reaches_the_model_also_after_a_crash():
    calls = []

    async def look() -> ToolReturn:
        """Looks."""
        calls.append(1)
        return ToolReturn("a picture follows", content=["Here: ", BinaryContent(b"\x89PNG\xff", media_type="image/png")])

    store = InMemorySessionService()
    helper = llm([Calls("look")], "A cat.", "A cat.", tools=[look])
    async with crashed(helper, store, 4, after=True) as run, process(helper, store, enter=True) as second:
        assert await outcome_of(await second.runner.follow(run.id)) == "A cat."
    assert calls == [1]
    for shown in helper.model.requests[1:]:
        assert shown.lines[-3:] == ["return look a picture follows", "user: Here: ", "user: <image/png, 5 bytes>"]


@for_seeds(2)
async def test_a_tool_runs_another_agent_inside_of_itself():
    inner = llm("42.", name="inner")

    async def consult(context: ToolContext) -> str:
        """Consults another agent."""
        return await context.run_agent(inner)

    store = InMemorySessionService()
    helper = llm([Calls("consult")], "It says 42.", tools=[consult])
    run = await said(helper, store=store)
    assert await outcome_of(run) == "It says 42."
    assert ("inner", "42.") in await said_in(store)
    assert {"result": "42."} in results_in(await events_of(run))
    await assert_valid_history(store)

"""R9 and S4: bounds of a run, each with a code of its own; large parts become artifacts. A1: what an agent saves is told."""

import asyncio
import json

import pytest

from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent
from sojourn.artifact.types import parse_artifact_uri
from sojourn.content import Content, Part
from sojourn.errors import AgentError, InvalidInput, LimitExceeded, NotFound, Unsupported
from sojourn.event import INLINE_BYTES, Event, EventActions
from sojourn.run.config import RunConfig
from sojourn.run.types import MAX_ERROR_CHARACTERS
from sojourn.runner.attempt.spill import scope_of
from sojourn.runner.plugins import Plugin
from sojourn.runner.runner import Runner
from sojourn.runner.submitting.answering import give_answer
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    KEY,
    SESSION,
    USER,
    assert_at_rest,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_events,
    said_in,
    state_of,
)

SMALL = RunConfig(max_event_bytes=2048)
LARGE = b"\x00\xff" * INLINE_BYTES


@for_seeds(3)
async def test_model_calls_are_counted_over_all_agents_of_an_attempt():
    @agent
    async def inner(ctx):
        ctx.turn()

    @agent
    async def helper(ctx):
        for _ in range(int(ctx.user_content.text)):
            ctx.turn()
            await ctx.run_agent(inner)
        yield "done"

    runner = make_runner(helper, run_config=RunConfig(max_turns=6))
    assert await outcome_of(await runner.start(USER, SESSION, "3")) == "done"
    run = await runner.start(USER, SESSION, "4")
    assert await outcome_of(run) == "run.max_turns"
    assert not run.record.error.retryable
    assert await outcome_of(await runner.start(USER, SESSION, "4", run_config=RunConfig(max_turns=8))) == "done"


@for_seeds(3)
async def test_a_run_overrides_single_fields_of_its_runners_config_over_restarts_too():
    seen = []

    @agent
    async def helper(ctx):
        seen.append((ctx.run_config.max_turns, ctx.run_config.timeout))
        await ctx.ask("q", "?")

    runner = make_runner(helper, run_config=RunConfig(max_turns=7, timeout=5))
    run = await runner.start(USER, SESSION, "go", run_config=RunConfig(timeout=9))
    await run.wait()
    await (await runner.answer(run.id, (await run.interrupts())[0].id, 1)).wait()
    assert seen == [(7, 9.0)] * 2


# -- large values -------------------------------------------------------------------------------------------------------


async def artifact(runner, uri):
    name, version = parse_artifact_uri(uri)
    session = await runner.get_session(USER, SESSION)
    return await runner.artifacts.load_artifact(scope_of(session), name, version)


@pytest.mark.parametrize("size", [INLINE_BYTES, INLINE_BYTES + 1])
def test_bytes_of_a_message_beyond_the_bound_become_an_artifact(size):
    @for_seeds(2)
    async def case():
        seen = []

        @agent
        async def helper(ctx):
            seen.append(ctx.user_content.parts[1])

        runner = make_runner(helper)
        message = Content("user").with_text("look").with_bytes(LARGE[:size], "image/png")
        await (await runner.start(USER, SESSION, message)).result()
        event = (await log_of(runner.store))[0]
        assert event.content.parts[0].text == "look"
        stored = event.content.parts[1]
        assert seen == [stored]
        if size <= INLINE_BYTES:
            assert stored.inline_data.data == LARGE[:size]
        else:
            assert stored.file_data.mime_type == "image/png"
            assert (await artifact(runner, stored.file_data.file_uri)).inline_data.data == LARGE[:size]
            assert len(event.to_json()) < 2000

    case()


@for_seeds(2)
async def test_bytes_that_an_agent_says_become_an_artifact():
    @agent
    async def helper(ctx):
        yield Content("model").with_bytes(LARGE, "image/png")

    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "go")).result()
    event = (await log_of(runner.store))[1]
    uri = event.content.parts[0].file_data.file_uri
    name, version = parse_artifact_uri(uri)
    assert event.actions.artifact_delta == {name: version}
    assert (await artifact(runner, uri)).inline_data.data == LARGE


@for_seeds(3)
async def test_large_text_and_output_are_moved_and_come_back_as_the_result():
    text = "word " * 2000
    output = {"rows": list(range(2000))}

    @agent
    async def helper(ctx):
        match ctx.user_content.text:
            case "text":
                yield text
            case "pieces":
                for n in range(0, len(text), 50):
                    yield text[n : n + 50]
            case "output":
                yield Event(output=output)
            case "response":
                yield Content("model", (Part.from_function_call("f", {}, id="c"),))
                yield Content("user", (Part.from_function_response("f", output, id="c"),))
                yield "done"

    runner = make_runner(helper, run_config=SMALL)

    async def result(kind):
        run = await runner.start(USER, kind, kind)
        value = await run.result()
        assert await (await runner.follow(run.id)).result() == value
        assert all(len(e.to_json()) <= 2048 for e in await log_of(runner.store, kind))
        return value

    assert await result("text") == text
    assert await result("pieces") == text
    assert await result("output") == output
    assert await result("response") == "done"
    reading = await read_events(runner.run(USER, "streamed", "pieces"))
    assert reading.screen == text


@pytest.mark.parametrize("kind", ["state", "arguments", "left"])
def test_what_cannot_be_moved_is_refused(kind):
    @for_seeds(2)
    async def case():
        big = "x" * 5000

        @agent
        async def helper(ctx):
            yield Content("model").with_text("before")
            if kind == "state":
                yield Event(actions=EventActions(state_delta={"big": big}))
            elif kind == "arguments":
                yield Content("model", (Part.from_function_call("f", {"big": big}, id="c"),))
            else:
                ctx.state["big"] = big
                yield "small"

        runner = make_runner(helper, run_config=SMALL)
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "event.too_large"
        assert (await said_in(runner.store))[:2] == [("user", "go"), ("helper", "before")]
        assert (await runner.get_session(USER, SESSION)).state == {}
        await idle()
        assert_at_rest(runner)

    case()


def many(size, around='{"é":""}'):
    """A text of characters of three bytes that fills this JSON up to that many bytes."""
    room = size - len(around.encode())
    return "€" * (room // 3) + "x" * (room % 3)


@pytest.mark.parametrize("kind", ["awaited", "plain", "with the next event"])
def test_the_result_of_a_step_may_be_as_large_as_an_event(kind):
    @for_seeds(2)
    async def case():
        effects, codes = [], []

        @agent
        async def helper(ctx):
            size = int(ctx.user_content.text)
            result = {"é": many(size)}
            assert len(json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode()) == size

            async def effect():
                effects.append(size)
                return result

            done = effect if kind != "plain" else lambda: effects.append(size) or result
            try:
                return len(await ctx.step("big", done, with_next_event=kind == "with the next event"))
            except LimitExceeded as error:
                codes.append(error.code)
                assert await ctx.step("small", lambda: 1) == 1
                raise

        runner = make_runner(helper, run_config=SMALL)
        assert await outcome_of(await runner.start(USER, SESSION, "2048")) == 1
        run = await runner.start(USER, SESSION, "2049")
        assert await outcome_of(run) == "step.too_large"
        assert codes == ["step.too_large"]
        assert run.record.error.retryable is False
        steps = {s.key: s for s in await runner.store.list_steps(run.record.uid)}
        assert {key: s.status for key, s in steps.items()} == {"big": "failed", "small": "done"}
        assert (steps["big"].result, steps["big"].error.code) == (None, "step.too_large")
        assert effects == [2048, 2049]
        assert await outcome_of(await runner.start(USER, SESSION, "2049", run_config=RunConfig(max_event_bytes=2049))) == 1
        await idle()
        assert_at_rest(runner)

    case()


@for_seeds(2)
async def test_of_an_immense_error_the_beginning_is_stored():
    @agent
    async def helper(ctx):
        if ctx.user_content.text == "step":
            await ctx.step("fails", explode)
        raise AgentError("y" * 1_000_000, code="agent.failed")

    def explode():
        raise ValueError("x" * 1_000_000)

    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "step")
    assert await outcome_of(run) == "agent.failed"
    (step,) = await runner.store.list_steps(run.record.uid)
    assert step.error.code == "step.failed"
    assert step.error.message.startswith("ValueError: xxx")
    run = await runner.start(USER, SESSION, "run")
    assert await outcome_of(run) == "agent.failed"
    for message in (step.error.message, run.record.error.message):
        assert len(message) == MAX_ERROR_CHARACTERS + 1
        assert message.endswith("…")


@pytest.mark.parametrize("size", [2048, 2049])
def test_what_is_left_in_the_state_at_the_end_may_be_as_large_as_an_event(size):
    @for_seeds(2)
    async def case():
        @agent
        async def branch(ctx):
            ctx.state["big"] = many(size, '{"state_delta":{"big":""}}')

        @agent
        async def helper(ctx):
            yield Content("model").with_text("before")
            ctx.state["temp:scratch"] = "x" * 10_000
            await ctx.run_agent(ParallelAgent(name="all", sub_agents=[branch]))

        runner = make_runner(helper, run_config=SMALL)
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == ("before" if size <= 2048 else "state.too_large")
        assert set(await state_of(runner.store)) == ({"big"} if size <= 2048 else set())
        assert await said_in(runner.store) == [("user", "go"), ("helper", "before")]
        await idle()
        assert_at_rest(runner)

    case()


@for_seeds(2)
async def test_custom_metadata_may_be_as_large_as_an_event():
    heard = []

    class Ear(Plugin):
        async def before_run(self, ctx):
            heard.append(ctx.run_id)

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "event":
            yield Event(content=Content("model").with_text("hi"), custom_metadata={"é": many(2048)})
        elif ctx.user_content.text == "error":
            yield Event(error_code="odd", error_message="x" * 3000)
        else:
            yield "x"

    runner = make_runner(helper, run_config=SMALL, plugins=[Ear()])
    run = await runner.start(USER, SESSION, "go", run_config=RunConfig(custom_metadata={"é": many(2048)}))
    await run.result()
    assert run.record.custom_metadata == {"é": many(2048)}
    heard.clear()
    for start in (runner.start, runner.start_attached):
        with raises(InvalidInput, "run.metadata_too_large"):
            await start(USER, "never", "go", run_config=RunConfig(custom_metadata={"é": many(2049)}))
    with raises(InvalidInput, "run.metadata_too_large"):
        async for _ in runner.run(USER, "never", "go", run_config=RunConfig(custom_metadata={"é": many(2049)})):
            pass
    with raises(NotFound, "session.not_found"):
        await runner.get_session(USER, "never")
    assert heard == []
    for kind in ("event", "error"):
        assert await outcome_of(await runner.start(USER, kind, kind)) == "event.too_large"
        assert len(await log_of(runner.store, kind)) == 1
    assert_at_rest(runner)


@for_seeds(2)
async def test_the_answer_of_a_person_may_be_as_large_as_an_event():
    @agent
    async def helper(ctx):
        yield str(len((await ctx.ask("q", "?"))["é"]))

    runner = make_runner(helper, run_config=SMALL)
    run = await runner.start(USER, SESSION, "go")
    await run.wait()
    (question,) = await run.interrupts()
    large = {"é": many(2049)}
    response = Part.from_function_response("q", {"result": large}, id=question.id)
    with raises(InvalidInput, "interrupt.answer_too_large"):
        await runner.answer(run.id, question.id, large)
    with raises(InvalidInput, "interrupt.answer_too_large"):
        await runner.start(USER, SESSION, Content("user", (response,)))
    overridden = (await run.refresh()).evolve(config={"max_event_bytes": 2048})
    with raises(InvalidInput, "interrupt.answer_too_large"):
        await give_answer(runner.store, overridden, question.id, large)
    assert len(await run.interrupts()) == 1, "it can still be answered"
    fits = {"é": many(2048)}
    answered = await runner.answer(run.id, question.id, fits)
    assert await answered.result() == str(len(fits["é"]))
    await idle()
    assert_at_rest(runner)


@for_seeds(2)
async def test_without_an_artifact_service_large_values_are_refused_with_a_code():
    @agent
    async def helper(ctx):
        yield Content("model").with_bytes(LARGE)

    runner = make_runner(helper, artifact_service=None)
    with raises(InvalidInput, "event.too_large"):
        await runner.start(USER, SESSION, Content("user").with_bytes(LARGE))
    with raises(NotFound, "session.not_found"):
        await runner.get_session(USER, SESSION)
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "artifact.not_configured"


@for_seeds(2)
async def test_messages_that_cannot_be():
    @agent
    async def helper(ctx):
        return "x"

    runner = make_runner(helper)
    for message in ("", Content("user"), None, 5, b"x"):
        with raises(InvalidInput, "message.invalid"):
            await runner.start(USER, SESSION, message)
    for user, session in (("", SESSION), (USER, ""), ("a\x00", SESSION), (USER, "x" * 300), (None, SESSION)):
        with raises(InvalidInput, "id.invalid"):
            await runner.start(user, session, "hi")
    with raises(InvalidInput, "id.invalid"):
        await runner.start(USER, SESSION, "hi", run_id="\x00")
    assert_at_rest(runner)


# -- services that are turned off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["artifact", "memory"])
def test_a_service_that_is_turned_off_says_so_when_it_is_used(what):
    @for_seeds(2)
    async def case():
        @agent
        async def helper(ctx):
            if what == "artifact":
                await ctx.artifacts.names()
            else:
                await ctx.memory.search("x")

        runner = make_runner(helper, **{f"{what}_service": None})
        assert await outcome_of(await runner.start(USER, SESSION, "hi")) == f"{what}.not_configured"
        if what == "memory":
            with raises(Unsupported, "memory.not_configured"):
                await runner.add_session_to_memory(USER, SESSION)

    case()


# -- artifacts ----------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_every_save_is_told_by_the_next_event():
    @agent
    async def helper(ctx):
        assert await ctx.artifacts.save("a.txt", "one") == 0
        assert await ctx.artifacts.save("a.txt", "two") == 1
        assert await ctx.artifacts.save("user:b.bin", b"\x00", mime_type="image/png") == 0
        yield Content("model").with_text("saved")
        await ctx.artifacts.save("late.txt", "three")
        assert (await ctx.artifacts.load("a.txt")).text == "two"
        assert (await ctx.artifacts.load("a.txt", 0)).text == "one"
        assert await ctx.artifacts.names() == ["a.txt", "late.txt", "user:b.bin"]
        assert [v.version for v in await ctx.artifacts.versions("a.txt")] == [0, 1]
        await ctx.artifacts.delete("a.txt")

    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "go")).result()
    deltas = [e.actions.artifact_delta for e in await log_of(runner.store) if e.actions.artifact_delta]
    assert deltas == [{"a.txt": 1, "user:b.bin": 0}, {"late.txt": 0}]


@for_seeds(5)
async def test_user_artifacts_are_shared_by_the_users_sessions_and_others_by_nobody():
    names = {}

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "save":
            await ctx.artifacts.save("mine.txt", "x")
            await ctx.artifacts.save("user:ours.txt", "x")
        names[ctx.user_id, ctx.session_id] = await ctx.artifacts.names()

    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "save")).result()
    await (await runner.start(USER, "other", "look")).result()
    await (await runner.start("bob", SESSION, "look")).result()
    assert names == {(USER, SESSION): ["mine.txt", "user:ours.txt"], (USER, "other"): ["user:ours.txt"], ("bob", SESSION): []}


@for_seeds(5)
async def test_versions_of_runs_at_the_same_time_do_not_collide():
    versions = []

    @agent
    async def helper(ctx):
        await asyncio.sleep(0)
        versions.append(await ctx.artifacts.save("user:log.txt", ctx.session_id))

    runner = make_runner(helper)
    runs = await asyncio.gather(*(runner.start(USER, f"s{n}", "go") for n in range(20)))
    await asyncio.gather(*(r.wait() for r in runs))
    assert sorted(versions) == list(range(20))


@for_seeds(3)
async def test_a_session_created_anew_under_its_id_starts_empty():
    @agent
    async def helper(ctx):
        names = await ctx.artifacts.names()
        await ctx.artifacts.save("a.txt", "x")
        ctx.state["x"] = 1
        return names

    runner = make_runner(helper)
    assert await (await runner.start(USER, SESSION, "go")).result() == []
    assert await (await runner.start(USER, SESSION, "go")).result() == ["a.txt"]
    await runner.delete_session(USER, SESSION)
    assert await (await runner.start(USER, SESSION, "go")).result() == []
    assert (await runner.get_session(USER, SESSION)).event_count == 2


# -- history ------------------------------------------------------------------------------------------------------------


@for_seeds(3)
async def test_history_is_a_window():
    seen = []

    @agent
    async def helper(ctx):
        limit = ctx.user_content.text
        wanted = None if limit == "default" else limit if limit == "all" else int(limit)
        seen.append([e.text for e in await ctx.history(wanted)])
        yield Content("model").with_text(f"answer {limit}")

    runner = make_runner(helper, run_config=RunConfig(include_history=3))
    for text in ("default", "default", "2", "all", "0"):
        assert await outcome_of(await runner.start(USER, SESSION, text)) == f"answer {text}"
    assert seen == [
        ["default"], ["default", "answer default", "default"], ["answer default", "2"],
        ["default", "answer default", "default", "answer default", "2", "answer 2", "all"], [],
    ]  # fmt: skip
    zero = await runner.start(USER, SESSION, "default", run_config=RunConfig(include_history=0))
    await zero.result()
    assert seen[-1] == []
    with raises(InvalidInput, "history.invalid_limit"):
        await (await runner.start(USER, SESSION, "-1")).result()


@for_seeds(3)
async def test_calls_and_responses_are_never_split_by_the_window():
    seen = []

    @agent
    async def helper(ctx):
        seen.append(await ctx.history(1))
        yield Content("model", (Part.from_function_call("f", {}, id=ctx.run_id),))
        yield Content("user", (Part.from_function_response("f", {"x": 1}, id=ctx.run_id),))
        seen.append(await ctx.history(1))

    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "go")).result()
    assert [bool(e.get_function_calls()) for e in seen[1]] == [True, False]
    assert (await runner.store.history(KEY, 1)).pinned


@for_seeds(2)
async def test_a_store_must_be_given_or_omitted():
    @agent
    async def helper(ctx):
        return "x"

    for fields, code in (
        ({"session_service": None}, "runner.invalid"),
        ({"unknown": 1}, "runner.invalid"),
        ({"agent": "no agent"}, "agent.invalid"),
        ({"app_name": ""}, "id.invalid"),
    ):
        with raises(InvalidInput, code):
            Runner(**{"app_name": "app", "agent": helper, **fields})
    with raises(InvalidInput, "runner.invalid"):
        Runner(app_name="app")
    assert await (await Runner(app_name="app", agent=helper).start(USER, SESSION, "hi")).result() == "x"
    assert isinstance(Runner(app_name="app", agent=helper).store, InMemorySessionService)

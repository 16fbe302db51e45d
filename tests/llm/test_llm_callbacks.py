"""Callbacks around the calls of the model and of tools."""

import pytest

from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content, Part
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.llm.support import Ledger, assert_valid_history, crashed, events_of, llm, results_in, said, waiting
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, read_events, said_in, state_of


async def look(what: str) -> str:
    """Looks."""
    return what


@for_seeds(2)
async def test_the_first_before_model_that_says_something_answers_in_place_of_the_model():
    seen = []

    def first(ctx, messages):
        seen.append((ctx.agent_name, len(messages)))

    async def second(ctx, messages):
        return "Closed." if "x" in ctx.user_content.text else None

    def third(ctx, messages):
        seen.append("third")

    helper = llm("Open.", before_model=[first, second, third])
    runner = make_runner(helper)
    reading = await read_events(runner.run(USER, SESSION, "x"))
    assert (reading.events[-1].text, reading.screen) == ("Closed.", "Closed.")
    assert helper.model.requests == []
    assert await outcome_of(await runner.start(USER, SESSION, "y")) == "Open."
    assert seen == [("helper", 1), ("helper", 3), "third"]


@for_seeds(2)
async def test_an_after_model_replaces_what_was_said():
    def censor(ctx, content):
        return content.text.replace("damn", "…") if "damn" in content.text else None

    helper = llm("damn it", "fine", after_model=censor)
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    reading = await read_events(runner.run(USER, SESSION, "a"))
    assert reading.events[-1].text == "… it"
    assert await outcome_of(await runner.start(USER, SESSION, "b")) == "fine"
    assert helper.model.requests[1].lines[1] == "model: … it"
    assert await said_in(store) == [("user", "a"), ("helper", "… it"), ("user", "b"), ("helper", "fine")]


@for_seeds(2)
async def test_a_callback_may_call_a_tool_for_the_model():
    def ask(ctx, messages):
        if len(messages) == 1:
            return Content("model", (Part.from_function_call("look", {"what": "x"}),))

    helper = llm("It is x.", before_model=ask, tools=[look])
    store = InMemorySessionService()
    run = await said(helper, store=store)
    assert await outcome_of(run) == "It is x."
    assert results_in(await events_of(run)) == [{"result": "x"}]
    await assert_valid_history(store)


@for_seeds(2)
async def test_a_before_tool_gives_the_result_and_an_after_tool_replaces_it():
    ledger = Ledger()
    seen = []

    async def before(context, args):
        seen.append((context.tool_name, args))
        return "refused" if args.get("amount", 0) > 100 else None

    def after(context, result):
        return f"{result}!" if isinstance(result, str) else None

    helper = llm(
        [Calls("pay", {"amount": 5}), Calls("pay", {"amount": 500})],
        "Done.",
        tools=[ledger.tool],
        before_tool=before,
        after_tool=after,
    )
    run = await said(helper)
    assert await outcome_of(run) == "Done."
    assert results_in(await events_of(run)) == [{"result": "paid 5!"}, {"result": "refused"}]
    assert ledger.paid == [5]
    assert ("pay", {"amount": 500}) in seen


@pytest.mark.parametrize("where", ["before_model", "after_model"])
def test_a_callback_around_the_model_that_fails_fails_the_run_with_a_code(where, caplog):
    @for_seeds(1)
    async def case():
        def broken(*args):
            raise ValueError("broken")

        store = InMemorySessionService()
        run = await said(llm("Hi.", **{where: broken}), store=store)
        assert await outcome_of(run) == "agent.failed"
        await assert_valid_history(store)

    case()


@pytest.mark.parametrize("where", ["before_tool", "after_tool"])
def test_a_callback_around_a_tool_that_fails_is_the_tools_failure(where, caplog):
    @for_seeds(1)
    async def case():
        def broken(*args):
            raise ValueError("broken")

        run = await said(llm([Calls("look", {"what": "x"})], "Sorry.", tools=[look], **{where: broken}))
        assert await outcome_of(run) == "Sorry."
        assert "ValueError: broken" in results_in(await events_of(run))[0]["error"]

    case()


@pytest.mark.parametrize("number", range(2, 6))
def test_callbacks_are_not_called_again_for_what_is_done(number):
    @for_seeds(2)
    async def case():
        seen = []
        note = lambda name: lambda *args: seen.append(name)  # noqa: E731
        helper = llm(
            lambda shown: "Done." if "return" in shown.text else [Calls("look", {"what": "x"})],
            repeat=True,
            tools=[look],
            **{where: note(where) for where in ("before_model", "after_model", "before_tool", "after_tool")},
        )
        store = InMemorySessionService()
        async with crashed(helper, store, number, after=True) as run, process(helper, store, enter=True) as second:
            assert await outcome_of(await second.runner.follow(run.id)) == "Done."
        assert seen.count("before_tool") == seen.count("after_tool") == 1
        assert seen.count("before_model") == seen.count("after_model") == len(helper.model.requests) <= 3

    case()


# -- what callbacks around the model do ---------------------------------------------------------------------------------


def noting():
    """Callbacks that write to the state and save artifacts, each time they are called."""

    async def before(ctx, messages):
        ctx.state.increment("asked")
        ctx.state["seen"] = len(messages)
        await ctx.artifacts.save("prompt.txt", f"{len(messages)} messages")

    async def after(ctx, content):
        assert ctx.state["seen"] % 2, "each sees what the others of its call have written"
        ctx.state["said"] = content.text
        ctx.set_actions(skip_summarization=False)
        await ctx.artifacts.save("answer.txt", content.text or "a call")

    return {"before_model": before, "after_model": after}


async def assert_noted(store):
    assert await state_of(store) == {"asked": 2, "seen": 3, "said": "Paid."}
    events = await log_of(store)
    assert [e.actions.artifact_delta for e in events if e.author == "helper" and e.content.role == "model" and e.text] == [
        {"prompt.txt": 1, "answer.txt": 1}
    ]
    assert next(e.actions.artifact_delta for e in events if e.actions.artifact_delta) == {"prompt.txt": 0, "answer.txt": 0}


@pytest.mark.parametrize("store_type", ["inmemory", "sqlite"])
@pytest.mark.anyio
async def test_what_they_do_stays_when_the_run_waits_for_a_person(store_type, tmp_path):
    url = f"sqlite:///{tmp_path / 'sessions.db'}"
    store = InMemorySessionService() if store_type == "inmemory" else DatabaseSessionService(url)
    artifacts = InMemoryArtifactService()
    ledger = Ledger(require_approval=True)
    helper = llm([Calls("pay", {"amount": 5})], "Paid.", tools=[ledger.tool], **noting())
    async with make_runner(helper, store, artifact_service=artifacts) as runner:
        run, (question,) = await waiting(runner)
        assert (await state_of(store))["asked"] == 1
        assert await outcome_of(await runner.answer(run.id, question.id, True)) == "Paid."
    await assert_noted(store)
    assert await log_of(store, superseded=True) == await log_of(store)
    if store_type == "sqlite":
        await store.close()


@pytest.mark.parametrize("number", range(2, 6))
def test_what_they_do_is_done_once_whatever_append_the_process_dies_in(number):
    @for_seeds(3)
    async def case():
        for after in (False, True):
            store, artifacts = InMemorySessionService(), InMemoryArtifactService()
            helper = llm(
                lambda shown: "Paid." if "return" in shown.text else [Calls("pay", {"amount": 5})],
                repeat=True,
                tools=[Ledger().tool],
                **noting(),
            )
            fields = {"artifact_service": artifacts}
            async with (
                crashed(helper, store, number, after=after, **fields) as run,
                process(helper, store, enter=True, **fields) as second,
            ):
                assert await outcome_of(await second.runner.follow(run.id)) == "Paid."
            state = await state_of(store)
            assert (state["asked"], state["seen"], state["said"]) == (2, 3, "Paid.")

    case()


@for_seeds(3)
async def test_one_that_ends_the_run_lets_the_answer_be_said():
    helper = llm("Bye.", after_model=lambda ctx, content: ctx.end_invocation())
    run = await said(helper)
    assert await outcome_of(run) == "Bye."
    assert (await run.refresh()).usage["total_token_count"] > 0


@for_seeds(3)
async def test_one_hands_over_with_what_it_says():
    def hand_over(ctx, messages):
        ctx.transfer_to("other")
        return "Over to you."

    helper = llm(before_model=hand_over, sub_agents=[llm("Here I am.", name="other")])
    store = InMemorySessionService()
    assert await outcome_of(await said(helper, store=store)) == "Here I am."
    assert await said_in(store) == [("user", "go"), ("helper", "Over to you."), ("other", "Here I am.")]


@for_seeds(3)
async def test_one_asks_a_person_each_time_the_model_is_to_be_asked():
    async def ask(ctx, messages):
        await ctx.step("count", lambda: ctx.state.increment("counted"))
        assert await ctx.ask("sure", "Sure?", bool)

    helper = llm([Calls("look", {"what": "x"})], "Done.", before_model=ask, tools=[look])
    store = InMemorySessionService()
    runner = make_runner(helper, store)
    run, (question,) = await waiting(runner)
    assert helper.model.requests == []
    run = await runner.answer(run.id, question.id, True)
    await run.wait()
    (question,) = await run.interrupts()
    assert len(helper.model.requests) == 1
    assert await outcome_of(await runner.answer(run.id, question.id, True)) == "Done."
    await assert_valid_history(store)

"""Structured output, and state keys that answers are kept under."""

import dataclasses

import pytest
from pydantic import BaseModel

from sojourn.errors import InvalidInput
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls, Thinks
from sojourn.testing.suite import raises
from tests.llm.support import assert_valid_history, crashed, events_of, llm, said
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, read_events, state_of


class City(BaseModel):
    name: str
    people: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


CITY = {"type": "object", "properties": {"name": {"type": "string"}, "people": {"type": "integer"}}, "required": ["name"]}


def gives(**args):
    return Calls("final_result", args, pieces=3)


async def look(what: str) -> str:
    """Looks."""
    return what


@pytest.mark.parametrize("mode", [StreamingMode.NONE, StreamingMode.SSE])
@pytest.mark.parametrize("schema", [City, CITY])
def test_the_output_is_one_event_without_its_call_and_is_kept_in_the_state(schema, mode):
    @for_seeds(2)
    async def case():
        store = InMemorySessionService()
        helper = llm([Thinks("Rome."), gives(name="Rome", people=3)], output_schema=schema, output_key="city")
        runner = make_runner(helper, store, run_config=RunConfig(streaming_mode=mode))
        stream = runner.run(USER, SESSION, "The capital of Italy?")
        reading = await read_events(stream)
        assert reading.error is None
        *_, event = reading.events
        assert event.output == {"name": "Rome", "people": 3}
        assert [c for e in reading.events for c in e.get_function_calls()] == []
        assert [p.call for p in reading.partials if p.call] == []
        assert await stream.run.result() == event.output
        assert await stream.run.result(to_type=City) == City(name="Rome", people=3)
        assert (await state_of(store)) == {"city": event.output}
        assert sum(e.usage_metadata is not None for e in reading.events) == 1
        assert (await stream.run.refresh()).usage["total_token_count"] > 0
        await assert_valid_history(store)

    case()


@pytest.mark.parametrize("schema", [City, CITY])
def test_an_output_that_does_not_fit_is_asked_for_again(schema):
    @for_seeds(2)
    async def case():
        store = InMemorySessionService()
        helper = llm(
            [gives(people=3)], [gives(name="Rome", people="many")], [gives(name="Rome", people=3)], output_schema=schema
        )
        run = await said(helper, store=store)
        assert await outcome_of(run) == {"name": "Rome", "people": 3}
        assert len(helper.model.requests) == 3
        assert "name" in helper.model.requests[1].lines[-1]
        total = sum(e.usage_metadata.total_token_count for e in await events_of(run) if e.usage_metadata)
        assert (await run.refresh()).usage["total_token_count"] == total
        await assert_valid_history(store)

    case()


@for_seeds(2)
async def test_text_in_place_of_an_output_is_asked_for_again():
    helper = llm("It is Rome.", [gives(name="Rome", people=3)], output_schema=City)
    run = await said(helper)
    assert await outcome_of(run) == {"name": "Rome", "people": 3}


@for_seeds(2)
async def test_an_output_that_never_fits_fails_with_a_code_and_leaves_a_valid_history():
    store = InMemorySessionService()
    helper = llm([gives(people=3)], repeat=True, output_schema=City, output_key="city")
    run = await said(helper, store=store)
    assert await outcome_of(run) == "model.bad_answer"
    assert len(helper.model.requests) <= 5
    assert await state_of(store) == {}
    await assert_valid_history(store)


@pytest.mark.parametrize(
    ("schema", "value"),
    [(int, 5), (list[int], [1, 2]), (bool, False), ({"type": "array", "items": {"type": "integer"}}, [1, 2]), ({"type": "integer", "maximum": 9}, 7),
     ({"enum": ["red", "green"]}, "red")],
)  # fmt: skip
def test_outputs_that_are_no_objects(schema, value):
    @for_seeds(1)
    async def case():
        def answer(shown):
            (definition,) = shown.info.output_tools
            (name,) = definition.parameters_json_schema["properties"]
            return [gives(**{name: value})]

        store = InMemorySessionService()
        helper = llm(answer, output_schema=schema, output_key="value")
        run = await said(helper, store=store)
        assert await outcome_of(run) == value, run.record.error
        assert await state_of(store) == {"value": value}

    case()


@for_seeds(1)
async def test_a_dataclass_as_output():
    run = await said(llm([gives(x=1)], output_schema=Point))
    assert await outcome_of(run) == {"x": 1, "y": 0}


@for_seeds(2)
async def test_tools_come_before_the_output():
    store = InMemorySessionService()
    helper = llm([Calls("look", {"what": "x"})], [gives(name="x", people=1)], tools=[look], output_schema=City)
    run = await said(helper, store=store)
    assert await outcome_of(run) == {"name": "x", "people": 1}
    call, returned, output = await events_of(run)
    assert output.output == {"name": "x", "people": 1}
    await assert_valid_history(store)


@for_seeds(2)
async def test_the_next_run_is_shown_the_output_as_the_agents_own_word():
    helper = llm([gives(name="Rome", people=3)], [gives(name="Oslo", people=1)], output_schema=City)
    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "Italy?")).result()
    await (await runner.start(USER, SESSION, "Norway?")).result()
    assert helper.model.requests[1].lines == ["user: Italy?", 'model: {"name":"Rome","people":3}', "user: Norway?"]


@for_seeds(2)
async def test_the_text_of_an_answer_is_kept_and_not_what_is_said_before_a_call():
    store = InMemorySessionService()
    helper = llm(["I look. ", Calls("look", {"what": "x"})], ["It is", " x."], tools=[look], output_key="answer")
    run = await said(helper, store=store)
    assert await outcome_of(run) == "It is x."
    assert await state_of(store) == {"answer": "It is x."}
    assert (await events_of(run))[-1].actions.state_delta == {"answer": "It is x."}


@pytest.mark.parametrize("number", [1, 2])
def test_a_crash_does_not_pay_for_a_stored_output_again(number):
    @for_seeds(3)
    async def case():
        store = InMemorySessionService()
        helper = llm([gives(name="Rome", people=3)], repeat=True, output_schema=City, output_key="city")
        async with crashed(helper, store, number, after=True) as run, process(helper, store, enter=True) as second:
            again = await second.runner.follow(run.id)
            assert (await again.wait()).status is RunStatus.COMPLETED
        assert await state_of(store) == {"city": {"name": "Rome", "people": 3}}
        assert [e.output for e in await log_of(store) if e.author == "helper"] == [{"name": "Rome", "people": 3}]
        assert len(helper.model.requests) == 1

    case()


def test_a_schema_that_is_none_is_refused():
    for wrong in ({"type": 5}, {"type": "object", "properties": 3}):
        with raises(InvalidInput, "agent.invalid"):
            _ = llm(output_schema=wrong).engine


@for_seeds(3)
async def test_output_that_did_not_fit_is_paid_for_all_the_same():
    helper = llm(
        *[Calls("final_result", {"n": "no"})] * 8,
        output_schema={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        retries=2,
    )
    runner = make_runner(helper)
    run = await runner.start(USER, SESSION, "go")
    record = await run.wait()
    assert record.error.code == "model.bad_answer"
    spent = record.usage["total_token_count"]
    assert spent > 0

    bounded = await runner.start(USER, "other", "go", run_config=RunConfig(max_tokens=1))
    assert (await bounded.wait()).error.code == "run.max_tokens"

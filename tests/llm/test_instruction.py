"""What a model is told to do."""

import pytest

from sojourn.content import Part
from sojourn.errors import InvalidInput
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.agents import run_agent
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.llm.support import llm, said
from tests.runner.support import outcome_of


async def told(instruction, state=None, **options):
    helper = llm("Hi.", instruction=instruction, **options)
    result = await run_agent(helper, "go", state=state)
    assert result.error is None, result.error
    return helper.model.requests[0].instructions


@pytest.mark.parametrize(
    ("template", "expected"),
    [("Help {name}.", "Help Ann."), ("Help {user:name}.", "Help U."), ("In {app:name}.", "In A."), ("Help {nobody?}!", "Help !"),
     ("{n} of {list}, {map}", '5 of [1,"é"], {"a":null}'), ("{yes} {none}", "true null"), ("{name}{name}", "AnnAnn"), ("{user:name?}", "U"),
     ('JSON: {"a": 1}, {}, { name }, {{x y}}', 'JSON: {"a": 1}, {}, { name }, {{x y}}'), ("{curly}", "{name}"), ("no fields", "no fields")],
)  # fmt: skip
def test_fields_are_values_of_the_state(template, expected):
    @for_seeds(1)
    async def case():
        state = {
            "name": "Ann",
            "user:name": "U",
            "app:name": "A",
            "n": 5,
            "list": [1, "é"],
            "map": {"a": None},
            "yes": True,
            "none": None,
            "curly": "{name}",
        }
        assert (await told(template, state)).endswith(f"\n\n{expected}")

    case()


@for_seeds(1)
async def test_a_field_that_is_missing_fails_with_a_code_that_names_it_and_the_remedy():
    for template, name in (("Help {nobody}.", "{nobody?}"), ("Read {artifact:gone.txt}", "{artifact:gone.txt?}")):
        helper = llm("Hi.", instruction=template)
        run = await said(helper)
        assert await outcome_of(run) == "instruction.unknown_field"
        assert name in run.record.error.message
        assert helper.model.requests == []


@for_seeds(1)
async def test_artifacts_are_fields():
    store = InMemorySessionService()
    helper = llm("Hi.", instruction="Rules: {artifact:rules.txt} {artifact:user:style.txt} {artifact:none.txt?}")

    async def save(ctx):
        await ctx.artifacts.save("rules.txt", "Be kind.")
        await ctx.artifacts.save("user:style.txt", Part.from_bytes(b"Be brief.", "text/plain"))

    helper.before_agent = (save,)
    await said(helper, store=store)
    assert "Rules: Be kind. Be brief." in helper.model.requests[0].instructions


@for_seeds(1)
async def test_a_function_says_it_and_its_text_has_no_fields():
    assert (await told(lambda ctx: f"You serve {ctx.user_id}, {{name}}.")).endswith("You serve user, {name}.")

    async def later(ctx):
        return ctx.state["mood"]

    assert (await told(later, {"mood": "Be merry."})).endswith("Be merry.")


@for_seeds(1)
async def test_name_and_description_are_told():
    text = await told("Help.", name="desk", description="Answers questions.")
    assert "desk" in text
    assert "Answers questions." in text


@for_seeds(1)
async def test_what_the_user_or_the_state_says_is_no_template():
    helper = llm("Hi.", instruction="Help {name}.")
    result = await run_agent(helper, "My key is {secret} {artifact:x}", state={"name": "{user:secret}", "user:secret": "x1"})
    assert result.error is None
    assert "x1" not in helper.model.requests[0].instructions + helper.model.requests[0].text


@for_seeds(1)
async def test_a_field_of_an_earlier_agent_is_seen_by_the_next_turn_of_the_session():
    helper = llm("One.", "Two.", instruction="Last time: {last?}", output_key="last")
    result = await run_agent(helper, "a")
    await run_agent(result.runner, "b")
    assert helper.model.requests[1].instructions.endswith("Last time: One.")


def test_an_instruction_that_is_none_is_refused():
    with raises(InvalidInput, "agent.invalid"):
        llm(instruction=5)

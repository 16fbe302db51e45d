"""Tokens: told by events, summed on the run, bounded by `max_tokens`."""

import pytest

from sojourn import Content, Event, RunConfig, agent
from sojourn.errors import LimitExceeded
from sojourn.event import Usage
from sojourn.run.status import RunStatus
from sojourn.testing.loop import for_seeds
from tests.runner.support import SESSION, USER, log_of, make_runner


def spends(tokens):
    return Event(content=Content("model").with_text("."), usage_metadata=Usage(total_token_count=tokens))


@agent
async def talker(ctx):
    for _ in range(10):
        ctx.turn()
        yield spends(40)


@for_seeds(3)
async def test_once_the_tokens_are_spent_no_further_call_is_made():
    run = await make_runner(talker).start(USER, SESSION, "hi", run_config=RunConfig(max_tokens=100))
    with pytest.raises(LimitExceeded, match=r"has spent 120 tokens, 100 are allowed") as caught:
        await run.result()
    assert caught.value.code == "run.max_tokens"
    record = await run.refresh()
    assert (record.status, record.usage["total_token_count"]) == (RunStatus.FAILED, 120)


@for_seeds(3)
async def test_without_a_bound_all_calls_are_made():
    run = await make_runner(talker).start(USER, SESSION, "hi")
    assert (await run.wait()).usage["total_token_count"] == 400


@for_seeds(3)
async def test_each_run_has_tokens_of_its_own():
    runner = make_runner(talker, run_config=RunConfig(max_tokens=400))
    for _ in range(2):
        run = await runner.start(USER, SESSION, "hi")
        assert (await run.wait()).status is RunStatus.COMPLETED


@for_seeds(3)
async def test_a_turn_that_the_journal_repeats_spends_nothing():
    @agent
    async def payer(ctx):
        ctx.turn()
        yield spends(120)
        if await ctx.ask("ok", "Pay?"):
            await ctx.step("pay", lambda: "paid")
        yield "paid"

    runner = make_runner(payer)
    run = await runner.start(USER, SESSION, "hi", run_config=RunConfig(max_tokens=100))
    await run.wait()
    (question,) = await run.interrupts()
    run = await runner.answer(run.id, question.id, True)
    assert await run.result() == "paid"


@pytest.mark.parametrize("ending", ["says", "is silent", "yields more", "raises", "is cut off"])
def test_what_is_counted_is_told_by_the_next_event_or_by_one_of_its_own(ending):
    @agent
    async def spender(ctx):
        ctx.spend(Usage(total_token_count=40))
        ctx.spend(Usage(total_token_count=2, prompt_token_count=1))
        if ending == "yields more":
            yield spends(8)
        if ending in ("says", "is cut off"):
            yield "Hello."
        if ending in ("raises", "is cut off"):
            raise ValueError("broken")

    @for_seeds(2)
    async def case():
        runner = make_runner(spender)
        run = await runner.start(USER, SESSION, "hi")
        await run.wait()
        tokens = 50 if ending == "yields more" else 42
        sums = (await run.refresh()).usage
        assert (sums["total_token_count"], sums["prompt_token_count"]) == (tokens, 1)
        (_, event) = await log_of(runner.store)
        assert event.usage_metadata == Usage(total_token_count=tokens, prompt_token_count=1)
        assert event.interrupted == (ending in ("raises", "is cut off"))

    case()

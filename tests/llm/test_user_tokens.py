"""Tokens per user, of agents that a model drives."""

import pytest

from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.llm.support import crashed, llm
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process


def searcher():
    """An agent that searches and then answers; and what it has searched for."""
    searched = []

    def search(word: str) -> str:
        """Finds a word."""
        searched.append(word)
        return f"found {word}"

    def turn(shown):
        return "It is red." if "return search" in shown.text else Calls("search", {"word": "lamp"}, id="c1")

    return llm(turn, tools=[search], repeat=True), searched


async def undisturbed():
    """What a run of the searcher spends, in its first call and in all."""
    helper, _ = searcher()
    runner = make_runner(helper)
    await (await runner.start(USER, SESSION, "go")).wait()
    told = [e.usage_metadata.total_token_count for e in await log_of(runner.store) if e.usage_metadata]
    return told[0], sum(told)


@for_seeds(3)
async def test_a_run_and_its_user_have_spent_the_same():
    _, total = await undisturbed()
    helper, _ = searcher()
    runner = make_runner(helper, max_tokens_per_user=total)
    record = await (await runner.start(USER, SESSION, "go")).wait()
    assert (record.status, record.usage["total_token_count"]) == (RunStatus.COMPLETED, total)
    assert (await runner.usage(USER)).total.model_dump() == record.usage


@for_seeds(3)
async def test_a_model_is_not_asked_again_when_the_tokens_are_spent():
    first, _ = await undisturbed()
    helper, searched = searcher()
    runner = make_runner(helper, max_tokens_per_user=first)
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "user.max_tokens"
    assert len(helper.model.requests) == 1
    assert searched == ["lamp"]
    assert (await runner.usage(USER)).total.total_token_count == first


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 4))
def test_a_stored_answer_is_counted_once_over_the_death_of_a_process(call, after):
    @for_seeds(3)
    async def case():
        _, total = await undisturbed()
        store = InMemorySessionService()
        helper, _ = searcher()
        async with (
            crashed(helper, store, call, after=after, max_tokens_per_user=total) as run,
            process(helper, store, enter=True, max_tokens_per_user=total) as second,
        ):
            record = await (await second.runner.follow(run.id)).wait()
            assert (record.status, record.usage["total_token_count"]) == (RunStatus.COMPLETED, total)
            assert (await second.runner.usage(USER)).total.model_dump() == record.usage

    case()

"""Tokens per user: summed in the store, bounded over a window of time."""

import asyncio

import pytest

from sojourn import Content, Event, RunConfig, agent, platform
from sojourn.errors import InvalidInput, LimitExceeded, Unavailable
from sojourn.event import Usage
from sojourn.manager import SessionManager
from sojourn.run.status import RunStatus
from sojourn.run.types import RunQuery
from sojourn.run.usage import UsageBucket, UserUsage, hour_of
from sojourn.runner.runner import Runner
from sojourn.runner.tokens import TokenLimit
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.clock import NOON, ManualPlatform
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from tests.runner.support import APP, SESSION, USER, assert_at_rest, log_of, make_runner, outcome_of, process

HOUR = 3600


def spends(tokens, text="."):
    usage = Usage(total_token_count=tokens, prompt_token_count=tokens)
    return Event(content=Content("model").with_text(text), usage_metadata=usage)


@agent
async def talker(ctx):
    """Makes calls of 40 tokens, as many as the message says."""
    for _ in range(int(ctx.user_content.text)):
        ctx.turn()
        await asyncio.sleep(0)
        yield spends(40)


async def spent_by(runner, user=USER):
    return (await runner.usage(user)).total.total_token_count


async def refused(call):
    with pytest.raises(LimitExceeded) as caught:
        await call
    assert (caught.value.code, caught.value.retryable) == ("user.max_tokens", True)
    return caught.value


# -- what is summed ----------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_all_runs_of_a_user_are_summed():
    runner = make_runner(talker)
    runs = [await runner.start(user, session, "2") for user in (USER, "ben") for session in ("s1", "s1", "s2")]
    for run in runs:
        await run.wait()
    usage = await runner.usage(USER)
    assert usage.total == Usage(total_token_count=240, prompt_token_count=240)
    assert [b.usage for b in usage.buckets] == [usage.total]
    assert await spent_by(runner, "ben") == 240
    assert await spent_by(runner, "cleo") == 0


@for_seeds(3)
async def test_usage_since_a_time():
    runner = make_runner(talker)
    start = platform.now()
    for _ in range(3):
        await (await runner.start(USER, SESSION, "1")).wait()
        await asyncio.sleep(HOUR)
    assert (await runner.usage(USER, start + HOUR)).total.total_token_count == 80
    assert [b.hour - start for b in (await runner.usage(USER)).buckets] == [0, HOUR, 2 * HOUR]


# -- before a run is recorded ------------------------------------------------------------------------------------------


@for_seeds(3)
async def test_who_has_spent_all_is_refused_before_anything_is_recorded():
    runner = make_runner(talker, max_tokens_per_user=80)
    await (await runner.start(USER, SESSION, "2")).wait()
    error = await refused(runner.start(USER, "new", "1"))
    assert "user 'alice' has spent 80 tokens in the last 86400 seconds, 80 are allowed" in error.message
    assert f"again in {error.retry_after:g} seconds" in error.message
    assert len((await runner.list_runs()).items) == 1
    assert [s.id for s in (await runner.store.list_sessions(app_name=APP)).items] == [SESSION]
    await refused(anext(runner.run(USER, "new", "1")))
    assert_at_rest(runner)


@for_seeds(3)
async def test_one_user_s_tokens_are_not_another_s():
    runner = make_runner(talker, max_tokens_per_user=80)
    for user in (USER, "ben"):
        assert (await (await runner.start(user, SESSION, "2")).wait()).status is RunStatus.COMPLETED
    await refused(runner.start("ben", SESSION, "1"))


@for_seeds(3)
async def test_a_refused_run_replaces_nobody():
    gate = asyncio.Event()

    @agent
    async def patient(ctx):
        yield spends(100)
        await gate.wait()

    runner = make_runner(patient, max_tokens_per_user=100, run_config=RunConfig(when_busy="replace"))
    run = await runner.start(USER, SESSION, "hi")
    await anext(run.events())
    await refused(runner.start(USER, SESSION, "me first"))
    gate.set()
    assert (await run.wait()).status is RunStatus.COMPLETED


@for_seeds(3)
async def test_a_run_that_is_known_is_followed_whatever_was_spent():
    runner = make_runner(talker, max_tokens_per_user=80)
    run = await runner.start(USER, SESSION, "2", run_id="r1")
    await run.wait()
    again = await runner.start(USER, SESSION, "2", run_id="r1")
    assert (again.id, again.status) == ("r1", RunStatus.COMPLETED)
    await refused(runner.start(USER, SESSION, "2", run_id="r2"))


@for_seeds(3)
async def test_a_repeat_is_refused_and_changes_nothing():
    runner = make_runner(talker, max_tokens_per_user=80)
    run = await runner.start(USER, SESSION, "2")
    await run.wait()
    before = await log_of(runner.store)
    await refused(runner.retry(run.id))
    await refused(runner.retry(run.id, "1"))
    assert await log_of(runner.store) == before
    assert (await run.refresh()).superseded_by is None


@for_seeds(3)
async def test_deleting_the_session_gives_no_tokens_back():
    runner = make_runner(talker, max_tokens_per_user=80)
    await (await runner.start(USER, SESSION, "2")).wait()
    await runner.delete_session(USER, SESSION)
    await refused(runner.start(USER, SESSION, "1"))
    assert await spent_by(runner) == 80


@for_seeds(3)
async def test_if_the_ledger_cannot_be_read_nothing_is_recorded():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(talker, store, max_tokens_per_user=80)
    store.plan.append(fail_before("user_usage"))
    with pytest.raises(Unavailable):
        await runner.start(USER, SESSION, "1")
    store.plan.clear()
    assert (await runner.list_runs()).items == []


# -- the window --------------------------------------------------------------------------------------------------------


@for_seeds(3)
async def test_there_is_room_again_when_it_is_said():
    runner = make_runner(talker, max_tokens_per_user=80, token_window=2 * HOUR)
    await asyncio.sleep(600)
    await (await runner.start(USER, SESSION, "2")).wait()
    error = await refused(runner.start(USER, SESSION, "1"))
    # To the end of the hour, and then the window.
    assert error.retry_after == 3000 + 2 * HOUR
    await asyncio.sleep(error.retry_after - 1)
    assert (await refused(runner.start(USER, SESSION, "1"))).retry_after == 1
    await asyncio.sleep(1)
    assert (await (await runner.start(USER, SESSION, "2")).wait()).status is RunStatus.COMPLETED
    await refused(runner.start(USER, SESSION, "1"))
    assert await spent_by(runner) == 160


@for_seeds(3)
async def test_room_comes_back_by_the_hour():
    runner = make_runner(talker, max_tokens_per_user=100, token_window=6 * HOUR)
    for calls in ("1", "2"):
        await (await runner.start(USER, SESSION, calls)).wait()
        await asyncio.sleep(HOUR)
    # 40 of the first hour, 80 of the second: without the first, there is room.
    assert (await refused(runner.start(USER, SESSION, "1"))).retry_after == 5 * HOUR
    await asyncio.sleep(5 * HOUR)
    assert await outcome_of(await runner.start(USER, SESSION, "2")) == "user.max_tokens"
    # 80 of the second hour, 40 of this one: the second has to go.
    assert (await refused(runner.start(USER, SESSION, "1"))).retry_after == HOUR


@for_seeds(3)
async def test_as_many_hours_as_it_takes_have_to_go():
    @agent
    async def spender(ctx):
        ctx.turn()
        yield spends(int(ctx.user_content.text))

    runner = make_runner(spender, max_tokens_per_user=100, token_window=6 * HOUR)
    for tokens in ("10", "20", "200"):
        await (await runner.start(USER, SESSION, tokens)).wait()
        await asyncio.sleep(HOUR)
    assert (await refused(runner.start(USER, SESSION, "1"))).retry_after == 6 * HOUR


@for_seeds(3)
async def test_a_run_that_waited_in_its_own_code_has_room_when_the_window_has_moved_on():
    @agent
    async def patient(ctx):
        for _ in range(2):
            ctx.turn()
            yield spends(100)
            await asyncio.sleep(3 * HOUR)

    runner = make_runner(patient, max_tokens_per_user=100, token_window=2 * HOUR)
    assert (await (await runner.start(USER, SESSION, "hi")).wait()).status is RunStatus.COMPLETED


# -- runs under way ----------------------------------------------------------------------------------------------------


@for_seeds(3)
async def test_a_run_that_reaches_the_limit_makes_no_further_call():
    runner = make_runner(talker, max_tokens_per_user=100)
    run = await runner.start(USER, SESSION, "10")
    with pytest.raises(LimitExceeded, match="has spent 120 tokens") as caught:
        await run.result()
    assert caught.value.code == "user.max_tokens"
    record = await run.refresh()
    assert (record.status, record.error.code, record.error.retryable) == (RunStatus.FAILED, "user.max_tokens", True)
    assert await spent_by(runner) == 120
    assert len(await log_of(runner.store)) == 4


@for_seeds(20)
async def test_runs_at_once_share_what_there_is():
    runner = make_runner(talker, max_tokens_per_user=400)
    runs = [await runner.start(USER, f"s{n}", "50") for n in range(4)]
    for run in runs:
        assert (await run.wait()).error.code == "user.max_tokens"
    # Each may have been in the middle of a call.
    assert 400 <= await spent_by(runner) < 400 + 4 * 40


@for_seeds(5)
@pytest.mark.parametrize("in_last_append", [False, True])
async def test_what_a_run_spends_is_known_to_the_others_at_once(in_last_append):
    gate = asyncio.Event()

    async def wait(ctx):
        ctx.turn()
        await gate.wait()
        ctx.turn()

    @agent
    async def at_its_end(ctx):
        return await wait(ctx) if ctx.user_content.text == "wait" else spends(100)

    @agent
    async def in_between(ctx):
        if ctx.user_content.text == "wait":
            await wait(ctx)
        yield spends(100)
        await asyncio.sleep(HOUR)

    runner = make_runner(at_its_end if in_last_append else in_between, max_tokens_per_user=100)
    waiting = await runner.start(USER, "s1", "wait")
    await asyncio.sleep(1)
    other = await runner.start(USER, "s2", "spend")
    await asyncio.sleep(1)
    gate.set()
    assert (await waiting.wait()).error.code == "user.max_tokens"
    assert (await other.wait()).status is RunStatus.COMPLETED


@for_seeds(5)
async def test_what_other_processes_spend_counts_from_the_next_append_on():
    store = InMemorySessionService()
    gate, begun = asyncio.Event(), asyncio.Event()

    @agent
    async def careful(ctx):
        ctx.turn()
        begun.set()
        await gate.wait()
        yield spends(10)
        ctx.turn()

    async with process(careful, store, max_tokens_per_user=100) as here, process(talker, store) as there:
        run = await here.runner.start(USER, SESSION, "hi")
        await begun.wait()
        await (await there.runner.start(USER, "elsewhere", "5")).wait()
        gate.set()
        assert (await run.wait()).error.code == "user.max_tokens"


@for_seeds(5)
async def test_a_run_that_had_to_wait_its_turn_learns_what_was_spent_meanwhile():
    runner = make_runner(talker, max_tokens_per_user=80)
    first = await runner.start(USER, SESSION, "2")
    second = await runner.start(USER, SESSION, "1")
    assert (await first.wait()).status is RunStatus.COMPLETED
    assert (await second.wait()).error.code == "user.max_tokens"
    assert await spent_by(runner) == 80


@for_seeds(3)
async def test_the_run_s_own_bound_goes_first():
    runner = make_runner(talker, max_tokens_per_user=80, run_config=RunConfig(max_tokens=80))
    assert await outcome_of(await runner.start(USER, SESSION, "9")) == "run.max_tokens"


@for_seeds(3)
async def test_who_makes_no_calls_of_models_is_not_stopped():
    @agent
    async def local(ctx):
        yield spends(100)
        yield "nothing more"

    runner = make_runner(local, max_tokens_per_user=80)
    assert await outcome_of(await runner.start(USER, SESSION, "hi")) == "nothing more"


# -- people ------------------------------------------------------------------------------------------------------------


def asker(calls_after):
    @agent
    async def payer(ctx):
        ctx.turn()
        yield spends(100, "Pay?")
        answer = await ctx.ask("ok", "Pay?")
        ctx.state["answer"] = answer
        yield Content("model").with_text("noted")
        for _ in range(calls_after):
            ctx.turn()
            yield spends(100, "paid")
        yield "done"

    return payer


@for_seeds(3)
@pytest.mark.parametrize(("calls_after", "ends"), [(0, "done"), (1, "user.max_tokens")])
async def test_an_answer_is_taken_whatever_was_spent(calls_after, ends):
    runner = make_runner(asker(calls_after), max_tokens_per_user=100)
    run = await runner.start(USER, SESSION, "hi")
    await run.wait()
    (question,) = await run.interrupts()
    await refused(runner.start(USER, "another", "hi"))
    run = await runner.answer(run.id, question.id, True)
    assert await outcome_of(run) == ends
    assert [i.answer for i in await runner.store.list_interrupts(APP, run_uid=run.record.uid, open_only=False)] == [True]
    assert (await runner.get_session(USER, SESSION)).state == {"answer": True}
    assert await spent_by(runner) == 100


# -- processes that die, replies that are lost -------------------------------------------------------------------------


def buyer():
    """An agent that pays for each answer of its model once; and what it has paid for."""
    paid = []

    @agent
    async def helper(ctx):
        for n in range(3):
            ctx.turn()
            text = await ctx.step(f"model:{n}", lambda n=n: paid.append(n) or f"answer {n}", with_next_event=True)
            yield spends(40, text)

    return helper, paid


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 5))
def test_a_resumed_run_counts_a_stored_answer_once(call, after):
    @for_seeds(3)
    async def case():
        store = InMemorySessionService()
        helper, paid = buyer()
        async with process(helper, store, max_tokens_per_user=1000) as first:
            first.die_at("append", call, after=after)
            run = await first.runner.start(USER, SESSION, "hi")
            await first.store.plan[0].reached.wait()
        async with process(helper, store, enter=True, max_tokens_per_user=1000) as second:
            record = await (await second.runner.follow(run.id)).wait()
            assert (record.status, record.usage["total_token_count"]) == (RunStatus.COMPLETED, 120)
            assert await spent_by(second.runner) == 120
        assert sorted(set(paid)) == [0, 1, 2]

    case()


@for_seeds(3)
async def test_a_resumed_run_repeats_what_it_has_paid_for_and_spends_no_more():
    store = InMemorySessionService()
    helper, paid = buyer()
    async with process(helper, store, max_tokens_per_user=80) as first:
        first.die_at("append", 2, after=True)
        run = await first.runner.start(USER, SESSION, "hi")
        await first.store.plan[0].reached.wait()
    async with process(helper, store, enter=True, max_tokens_per_user=80) as second:
        run = await second.runner.follow(run.id)
        assert await outcome_of(run) == "user.max_tokens"
        assert [e.text for e in await log_of(second.runner.store)] == ["hi", "answer 0", "answer 1"]
        assert await spent_by(second.runner) == 80
    assert paid == [0, 1]


@for_seeds(3)
async def test_an_append_whose_reply_was_lost_counts_once():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(talker, store, max_tokens_per_user=100)
    store.plan.append(fail_after("append", 1, 3))
    assert await outcome_of(await runner.start(USER, SESSION, "9")) == "user.max_tokens"
    assert await spent_by(runner) == 120


# -- what it costs, and how it is set ----------------------------------------------------------------------------------


@for_seeds(3)
async def test_without_a_limit_the_ledger_is_not_read():
    asked = []

    class Watched(InMemorySessionService):
        async def append(self, fence, batch):
            asked.append(batch.usage_since)
            return await super().append(fence, batch)

    store = FaultyStore(Watched())
    await (await make_runner(talker, store).start(USER, SESSION, "3")).wait()
    assert store.calls["user_usage"] == 0
    assert set(asked) == {None}
    assert (await store.user_usage(APP, USER)).total.total_token_count == 120


@for_seeds(3)
async def test_what_is_known_of_a_user_is_dropped_with_their_last_run():
    runner = make_runner(talker, max_tokens_per_user=1000)
    for n in range(3):
        await (await runner.start(f"user{n}", SESSION, "1")).wait()
    run = await runner.start(USER, SESSION, "1")
    known = runner._services.tokens._users
    assert USER in known
    await run.wait()
    await asyncio.sleep(1)
    del run
    assert len(known) <= 1


@pytest.mark.parametrize(
    "fields", [{"max_tokens_per_user": 0}, *({"max_tokens_per_user": 1, "token_window": w} for w in (0, -1.0, float("nan")))]
)
def test_limits_that_cannot_be(fields):
    with pytest.raises(InvalidInput) as caught:
        Runner(app_name=APP, agent=talker, **fields)
    assert caught.value.code == "limit.invalid"


@for_seeds(3)
async def test_a_session_manager_passes_the_limit_on():
    manager = SessionManager(agent=talker, max_tokens_per_user=80, token_window=HOUR)
    async with manager.session(USER) as session:
        async with session.run("2") as run:
            await run.result()
        with pytest.raises(LimitExceeded) as caught:
            async with session.run("1"):
                raise AssertionError("it was to be refused")
        assert (caught.value.code, caught.value.retry_after) == ("user.max_tokens", 2 * HOUR)
    runner = await manager.runner()
    assert len((await runner.store.list_runs(RunQuery("app"))).items) == 1


def test_replies_of_the_store_may_overtake_each_other():
    def told(tokens):
        return UserUsage.of([UsageBucket(hour_of(NOON), Usage(total_token_count=tokens))])

    with platform.use(ManualPlatform()) as clock:
        tokens = TokenLimit(InMemorySessionService(), APP, 100, HOUR).of(USER)
        for late in (120, 80):
            tokens.learn(told(late))
        assert tokens.refusal() is not None
        clock.advance(2 * HOUR)
        assert tokens.refusal() is None

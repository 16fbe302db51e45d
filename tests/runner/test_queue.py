"""R4 and R8: who may run, and when."""

import asyncio
from collections import Counter

import pytest

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import Conflict, InvalidInput, LimitExceeded, NotFound
from sojourn.page import MAX_PAGE
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.attempt.spill import scope_of
from sojourn.runner.plugins import Plugin
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.artifact_conformance import names_of
from sojourn.testing.faults import FaultyStore
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    SESSION,
    USER,
    assert_at_rest,
    collect,
    dropped,
    idle,
    log_of,
    make_runner,
    outcome_of,
    read_events,
    said_in,
)


class Gauge:
    """An agent that notes who runs at the same time as whom."""

    def __init__(self, seconds=1.0):
        self.now = Counter()
        self.peak = Counter()
        self.order = []

        @agent
        async def helper(ctx):
            self.order.append((ctx.user_id, ctx.session_id, ctx.user_content.text))
            keys = ("all", ctx.user_id, (ctx.user_id, ctx.session_id))
            for key in keys:
                self.now[key] += 1
                self.peak[key] = max(self.peak[key], self.now[key])
            try:
                await asyncio.sleep(seconds)
            finally:
                for key in keys:
                    self.now[key] -= 1
            return ctx.user_content.text

        self.agent = helper


# -- one session --------------------------------------------------------------------------------------------------------


@for_seeds(20)
async def test_runs_of_a_session_come_one_at_a_time_first_come_first_served():
    gauge = Gauge()
    runner = make_runner(gauge.agent)
    runs = [await runner.start(USER, SESSION, f"{n}") for n in range(10)]
    assert [r.status for r in runs] == [RunStatus.RUNNING] + [RunStatus.QUEUED] * 9
    assert [await r.result() for r in runs] == [f"{n}" for n in range(10)]
    assert gauge.peak[USER, SESSION] == 1
    assert [text for _, _, text in gauge.order] == [f"{n}" for n in range(10)]
    log = await log_of(runner.store)
    assert [e.text for e in log] == [f"{n}" for n in range(10) for _ in range(2)]
    await idle()
    assert_at_rest(runner)


@for_seeds(20)
async def test_runs_started_at_the_same_moment_run_in_the_order_of_their_numbers():
    class Unsteady(FaultyStore):
        async def submit(self, run, *, begin):
            submitted = await super().submit(run, begin=begin)
            await asyncio.sleep(platform.random() / 10)
            return submitted

    gauge = Gauge()
    runner = make_runner(gauge.agent, Unsteady(InMemorySessionService()))
    runs = await asyncio.gather(*(runner.start(USER, SESSION, f"{n}") for n in range(8)))
    await asyncio.gather(*(r.wait() for r in runs))
    by_number = sorted(runs, key=lambda r: r.record.no)
    assert [text for _, _, text in gauge.order] == [r.record.message.text for r in by_number]
    assert gauge.peak[USER, SESSION] == 1


@for_seeds(10)
async def test_the_next_starts_when_the_one_before_has_really_ended():
    running = []

    @agent
    async def slow_to_end(ctx):
        running.append(ctx.user_content.text)
        try:
            await asyncio.Event().wait() if ctx.user_content.text == "first" else None
        finally:
            await asyncio.sleep(2)
            running.remove(ctx.user_content.text)

    runner = make_runner(slow_to_end)
    first = await runner.start(USER, SESSION, "first")
    second = await runner.start(USER, SESSION, "second")
    await idle()
    await first.cancel()
    await asyncio.sleep(1)
    assert running == ["first"]
    await first.wait()
    await asyncio.sleep(1)
    assert running == ["second"]
    await second.wait()


@for_seeds(10)
async def test_other_sessions_do_not_wait():
    gauge = Gauge()
    runner = make_runner(gauge.agent)
    runs = [await runner.start(user, f"s{n}", "hi") for user in ("alice", "bob") for n in range(5)]
    await asyncio.gather(*(r.wait() for r in runs))
    assert gauge.peak["all"] == 10
    assert asyncio.get_running_loop().time() == pytest.approx(1, abs=0.01)


@for_seeds(10)
async def test_busy_sessions_may_reject():
    gauge = Gauge()
    runner = make_runner(gauge.agent)
    config = RunConfig(when_busy="reject")
    first = await runner.start(USER, SESSION, "first", run_config=config)
    with raises(Conflict, "session.busy"):
        await runner.start(USER, SESSION, "second", run_config=config)
    await first.wait()
    await idle()
    await (await runner.start(USER, SESSION, "third", run_config=config)).wait()
    assert [e.text for e in await log_of(runner.store)] == ["first", "first", "third", "third"]
    await idle()
    assert_at_rest(runner)


@for_seeds(20)
async def test_a_run_may_replace_all_that_came_before_it():
    gauge = Gauge(seconds=5)
    runner = make_runner(gauge.agent)
    earlier = [await runner.start(USER, SESSION, f"{n}") for n in range(3)]
    other = await runner.start(USER, "other", "other")
    await idle()
    last = await runner.start(USER, SESSION, "last", run_config=RunConfig(when_busy="replace"))
    assert await last.result() == "last"
    assert [await outcome_of(r) for r in earlier] == ["run.cancelled"] * 3
    assert [text for _, _, text in gauge.order] in (["0", "other", "last"], ["other", "0", "last"])
    assert await other.result() == "other"
    assert "replaced" in earlier[0].record.error.message


@for_seeds(10)
async def test_a_replacing_run_that_is_sent_again_does_not_replace_itself():
    gauge = Gauge(seconds=5)
    runner = make_runner(gauge.agent)
    config = RunConfig(when_busy="replace")
    one = await runner.start(USER, SESSION, "hi", run_config=config, run_id="r1")
    await asyncio.sleep(1)
    two = await runner.start(USER, SESSION, "hi", run_config=config, run_id="r1")
    assert await asyncio.gather(one.result(), two.result()) == ["hi", "hi"]


@for_seeds(10)
async def test_waiting_runs_do_not_keep_the_session_busy():
    @agent
    async def helper(ctx):
        if ctx.user_content.text == "ask":
            return f"answered {await ctx.ask('q', '?')}"
        await asyncio.sleep(1)
        return ctx.user_content.text

    runner = make_runner(helper)
    asking = await runner.start(USER, SESSION, "ask")
    later = await runner.start(USER, SESSION, "later")
    assert await later.result() == "later"
    assert asking.status is RunStatus.WAITING
    rejecting = await runner.start(USER, SESSION, "again", run_config=RunConfig(when_busy="reject"))
    assert await rejecting.result() == "again"


@for_seeds(10)
async def test_an_answered_run_goes_to_the_head_of_the_queue_but_preempts_nobody():
    order = []

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "ask":
            await ctx.ask("q", "?")
        order.append(f"{ctx.user_content.text} starts")
        await asyncio.sleep(1)
        order.append(f"{ctx.user_content.text} ends")

    runner = make_runner(helper)
    asking = await runner.start(USER, SESSION, "ask")
    await asking.wait()
    runs = [await runner.start(USER, SESSION, text) for text in ("one", "two")]
    await idle()
    answered = await runner.answer(asking.id, (await runner.list_interrupts())[0].id, "yes")
    await asyncio.gather(answered.wait(), *(r.wait() for r in runs))
    assert order == ["one starts", "one ends", "ask starts", "ask ends", "two starts", "two ends"]


@for_seeds(20)
async def test_fifty_runs_of_one_session_lose_no_increment_and_no_message():
    @agent
    async def counter(ctx):
        count = ctx.state.get("count", 0)
        await asyncio.sleep(0)
        ctx.state["count"] = count + 1
        ctx.state.increment("user:total")
        return f"{count + 1}"

    runner = make_runner(counter)
    runs = await asyncio.gather(*(runner.start(USER, SESSION, f"m{n}") for n in range(50)))
    results = [int(await r.result()) for r in runs]
    assert sorted(results) == list(range(1, 51))
    log = await log_of(runner.store)
    assert len(log) == 100
    assert sorted(e.text for e in log if e.author == "user") == sorted(f"m{n}" for n in range(50))
    session = await runner.get_session(USER, SESSION)
    assert (session.state["count"], session.state["user:total"]) == (50, 50)


# -- slots --------------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_no_more_runs_than_allowed_execute_at_once():
    gauge = Gauge()
    runner = make_runner(gauge.agent, max_concurrency=3)
    runs = [await runner.start(f"u{n % 4}", f"s{n}", "hi") for n in range(20)]
    await asyncio.gather(*(r.wait() for r in runs))
    assert gauge.peak["all"] == 3
    assert asyncio.get_running_loop().time() == pytest.approx(7, abs=0.1)
    await idle()
    assert_at_rest(runner)


@pytest.mark.parametrize("bound", [0, -1])
def test_no_bound_at_all(bound):
    @for_seeds(3)
    async def case():
        gauge = Gauge()
        runner = make_runner(gauge.agent, max_concurrency=bound)
        runs = [await runner.start(USER, f"s{n}", "hi") for n in range(300)]
        await asyncio.gather(*(r.wait() for r in runs))
        assert gauge.peak["all"] == 300

    case()


@for_seeds(10)
async def test_a_user_has_a_bound_of_their_own():
    gauge = Gauge()
    runner = make_runner(gauge.agent, max_concurrency=10, max_concurrency_per_user=2)
    runs = [await runner.start(user, f"s{n}", "hi") for n in range(6) for user in ("alice", "bob")]
    await asyncio.gather(*(r.wait() for r in runs))
    assert (gauge.peak["alice"], gauge.peak["bob"], gauge.peak["all"]) == (2, 2, 4)
    assert asyncio.get_running_loop().time() == pytest.approx(3, abs=0.1)
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_user_who_floods_does_not_keep_others_out():
    gauge = Gauge()
    runner = make_runner(gauge.agent, max_concurrency=2)
    flood = [await runner.start("flooder", f"s{n}", "flood") for n in range(1000)]
    await asyncio.sleep(10.5)
    polite = await runner.start("polite", "s", "polite")
    await polite.wait()
    assert asyncio.get_running_loop().time() == pytest.approx(12, abs=0.1), "they get in next"
    for run in flood:
        await run.cancel()
    await asyncio.gather(*(r.wait() for r in flood))
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_users_take_turns_and_each_is_served_in_order():
    gauge = Gauge()
    runner = make_runner(gauge.agent, max_concurrency=1)
    runs = [await runner.start(user, f"s{n}", "hi") for user in "abc" for n in range(4)]
    await asyncio.gather(*(r.wait() for r in runs))
    assert [user for user, _, _ in gauge.order] in (list("aabcabcabcbc"), list("abcabcabcabc"))
    for user in "abc":
        assert [s for u, s, _ in gauge.order if u == user] == [f"s{n}" for n in range(4)]


@for_seeds(5)
async def test_a_long_queue_in_one_session_takes_no_turns_from_the_users_other_sessions():
    gauge = Gauge()
    runner = make_runner(gauge.agent, max_concurrency=2)
    for n in range(50):
        await runner.start(USER, "busy", f"{n}")
    other = await runner.start(USER, "other", "hi")
    await other.wait()
    assert asyncio.get_running_loop().time() == pytest.approx(1, abs=0.1)
    for record in (await runner.list_runs()).items:
        await runner.cancel(record.id)


@for_seeds(1)
async def test_ten_thousand_queued_runs():
    gauge = Gauge(seconds=0)
    runner = make_runner(gauge.agent, max_concurrency=50)
    runs = [await runner.start(f"u{n % 100}", f"s{n % 997}", f"{n}") for n in range(10_000)]
    results = [await r.result() for r in runs]
    assert results == [f"{n}" for n in range(10_000)]
    assert gauge.peak["all"] <= 50
    await idle()
    assert_at_rest(runner)


@for_seeds(1)
async def test_replacing_cancels_more_earlier_runs_than_a_page_holds():
    gauge = Gauge()
    runner = make_runner(gauge.agent)
    earlier = [await runner.start(USER, SESSION, f"{n}") for n in range(MAX_PAGE + 5)]
    last = await runner.start(USER, SESSION, "last", run_config=RunConfig(when_busy="replace"))
    assert await last.result() == "last"
    assert {(await run.refresh()).status for run in earlier} == {RunStatus.CANCELLED}
    await idle()
    assert_at_rest(runner)


# -- a queue that is full -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["hi", "large"])
def test_a_full_queue_refuses_before_anything_is_recorded(message):
    @for_seeds(10)
    async def case():
        gauge = Gauge()
        runner = make_runner(gauge.agent, max_concurrency=1, max_queue=2)
        runs = [await runner.start(USER, SESSION, f"{n}") for n in range(3)]
        content = Content.of("hi") if message == "hi" else Content("user").with_bytes(b"x" * 100_000)
        for session in (SESSION, "fresh"):
            with pytest.raises(LimitExceeded) as caught:
                await runner.start(USER, session, content)
            assert caught.value.code == "limit.queue_full"
            assert caught.value.retry_after >= 1
            assert caught.value.retryable
        assert len((await runner.list_runs()).items) == 3
        with raises(NotFound, "session.not_found"):
            await runner.get_session(USER, "fresh")
        session = await runner.get_session(USER, SESSION)
        assert await names_of(runner.artifacts, scope_of(session)) == []
        assert [await r.result() for r in runs] == ["0", "1", "2"]
        assert await (await runner.start(USER, SESSION, "later")).result() == "later"
        await idle()
        assert_at_rest(runner)

    case()


@for_seeds(10)
async def test_a_run_that_would_replace_is_refused_by_a_full_queue_without_cancelling_anything():
    gauge = Gauge()
    runner = make_runner(gauge.agent, max_concurrency=1, max_queue=1)
    running = await runner.start("bob", SESSION, "running")
    queued = await runner.start("bob", "other", "queued")
    with raises(LimitExceeded, "limit.queue_full"):
        await runner.start("bob", SESSION, "new", run_config=RunConfig(when_busy="replace"))
    assert [await running.result(), await queued.result()] == ["running", "queued"]


@for_seeds(5)
async def test_without_a_queue_a_run_starts_at_once_or_not_at_all():
    gauge = Gauge()
    runner = make_runner(gauge.agent, max_concurrency=1, max_queue=0)
    first = await runner.start(USER, SESSION, "first")
    with raises(LimitExceeded, "limit.queue_full"):
        await runner.start("bob", SESSION, "second")
    assert await first.result() == "first"
    await idle()
    assert await (await runner.start("bob", SESSION, "second")).result() == "second"


@for_seeds(10)
async def test_a_run_that_waits_too_long_fails_with_a_code():
    gauge = Gauge(seconds=10)
    runner = make_runner(gauge.agent, max_concurrency=1, queue_timeout=5)
    first = await runner.start(USER, SESSION, "first")
    same_session = await runner.start(USER, SESSION, "second")
    other_session = await runner.start(USER, "other", "third")
    for run in (same_session, other_session):
        reading = await read_events(run.events())
        assert reading.error.code == "limit.queue_timeout"
        assert run.status is RunStatus.FAILED
        assert run.record.attempt == 0
    assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)
    assert await first.result() == "first"
    assert [text for _, _, text in gauge.order] == ["first"]
    await idle()
    assert_at_rest(runner)
    assert await said_in(runner.store) == [("user", "first"), ("helper", "first")]


@for_seeds(10)
async def test_an_answer_is_not_refused_for_waiting_too_long():
    """Its person has done their part: the run stays queued until its turn comes."""

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "ask":
            return await ctx.ask("q", "?")
        await asyncio.sleep(60)

    runner = make_runner(helper, queue_timeout=5)
    asking = await runner.start(USER, SESSION, "ask")
    await asking.wait()
    await runner.start(USER, SESSION, "long")
    answered = await runner.answer(asking.id, (await runner.list_interrupts())[0].id, "yes")
    assert await answered.result() == "yes"


@for_seeds(3)
async def test_limits_that_cannot_be_are_refused():
    gauge = Gauge()
    for options in ({"max_concurrency_per_user": 0}, {"max_queue": -1}, {"queue_timeout": 0}):
        with raises(InvalidInput, "limit.invalid"):
            make_runner(gauge.agent, **options)


# -- runs inside of runs ------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_a_child_run_shares_its_parents_slot():
    results = []

    @agent
    async def child(ctx):
        await asyncio.sleep(1)
        return f"child of {ctx.user_content.text}"

    children = None

    @agent
    async def parent(ctx):
        async for event in children.run(ctx.user_id, f"{ctx.session_id}/child", ctx.session_id):
            results.append(event.text)
        return "parent"

    runner = make_runner(parent, max_concurrency=1)
    children = make_runner(child, runner.store, max_concurrency=1)
    runs = [await runner.start(USER, f"s{n}", "hi") for n in range(3)]
    assert [await r.result() for r in runs] == ["parent"] * 3
    await idle()
    assert_at_rest(runner)
    assert sorted(set(results)) == [f"child of s{n}" for n in range(3)]


@for_seeds(1)
async def test_however_many_that_a_run_waits_for_are_cancelled_the_others_share_its_slot():
    started = []

    @agent
    async def helper(ctx):
        if ctx.user_content.text != "go":
            await asyncio.sleep(1)
            return ctx.user_content.text
        started.extend([await runner.start(USER, f"s{n}", str(n)) for n in range(500)])
        ends = await asyncio.gather(*(run.result() for run in started), return_exceptions=True)
        return [end for end in ends if isinstance(end, str)]

    runner = make_runner(helper, max_concurrency=1, max_queue=None)
    run = await runner.start(USER, SESSION, "go")
    await asyncio.sleep(0.5)
    for child in started[1:-1]:
        await runner.cancel(child.id)
    assert await run.result() == ["0", "499"]
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_an_attached_run_in_the_session_of_a_run_that_waits_for_it_is_refused():
    codes = []
    runner = None

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "deeper":
            target = SESSION
        else:
            target = {"self": ctx.session_id, "chain": "other"}[ctx.user_content.text]
        try:
            async for _ in runner.run(ctx.user_id, target, "deeper"):
                pass
        except Conflict as error:
            codes.append(error.code)
            raise

    runner = make_runner(helper)
    for text in ("self", "chain"):
        run = await runner.start(USER, SESSION, text)
        assert await outcome_of(run) == "run.nested_session"
    assert codes == ["run.nested_session"] * 3
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_detached_run_in_the_same_session_is_queued_behind_its_starter():
    runner = None

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "first":
            await runner.start(ctx.user_id, ctx.session_id, "second", run_id="second")
        return ctx.user_content.text

    runner = make_runner(helper)
    assert await (await runner.start(USER, SESSION, "first")).result() == "first"
    assert await (await runner.follow("second")).result() == "second"
    assert await said_in(runner.store) == [("user", "first"), ("helper", "first"), ("user", "second"), ("helper", "second")]


@for_seeds(10)
async def test_a_child_run_is_cancelled_with_its_parent():
    @agent
    async def child(ctx):
        await asyncio.Event().wait()

    children = None

    @agent
    async def parent(ctx):
        async for _ in children.run(ctx.user_id, "child", "go"):
            pass

    runner = make_runner(parent)
    children = make_runner(child, runner.store)
    run = await runner.start(USER, SESSION, "hi")
    await idle()
    await run.cancel()
    await run.wait()
    await idle()
    assert {r.status for r in (await runner.list_runs()).items} == {RunStatus.CANCELLED}
    assert_at_rest(runner)


@for_seeds(10)
async def test_two_runners_on_one_store_keep_a_sessions_order_together():
    gauge = Gauge()
    store = InMemorySessionService()
    one, two = make_runner(gauge.agent, store), make_runner(gauge.agent, store)
    runs = [await (one if n % 2 else two).start(USER, SESSION, f"{n}") for n in range(6)]
    assert [await r.result() for r in runs] == [f"{n}" for n in range(6)]
    assert gauge.peak[USER, SESSION] == 1


# -- many at once -------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_starts_cancels_and_departures_in_any_order_leave_nothing_behind():
    @agent
    async def helper(ctx):
        yield "a"
        await asyncio.sleep(ctx.user_content.text.count("x") / 10)
        yield Content("model").with_text("b")

    class Slow(FaultyStore):
        async def submit(self, run, *, begin):
            await asyncio.sleep(0.01)
            submitted = await super().submit(run, begin=begin)
            await asyncio.sleep(0.01)
            return submitted

    runner = make_runner(helper, Slow(InMemorySessionService()), max_concurrency=3, max_concurrency_per_user=2, max_queue=30)

    async def one(n):
        message = "x" * (n % 5 + 1)
        user, session = f"u{n % 3}", f"s{n % 4}"
        try:
            if n % 5 == 0:
                async for _ in runner.run(user, session, message):
                    break
            elif n % 5 == 1:
                await asyncio.wait_for(read_events(runner.run(user, session, message)), 0.015)
            else:
                run = await runner.start(user, session, message)
                if n % 5 == 2:
                    await run.cancel()
                await run.wait()
        except (TimeoutError, LimitExceeded):
            pass

    await asyncio.gather(*(one(n) for n in range(60)))
    collect()
    await asyncio.sleep(60)
    assert_at_rest(runner)
    assert all(r.status.terminal for r in (await runner.list_runs()).items)


@for_seeds(5)
async def test_a_caller_that_is_cancelled_in_the_queue_frees_its_place():
    gauge = Gauge(seconds=10)
    runner = make_runner(gauge.agent, max_concurrency=1, max_queue=1)
    first = await runner.start(USER, SESSION, "first")
    waiting = asyncio.ensure_future(read_events(runner.run(USER, "other", "second")))
    await idle()
    with raises(LimitExceeded, "limit.queue_full"):
        await runner.start(USER, "third", "third")
    await dropped(waiting)
    await asyncio.sleep(1)
    third = await runner.start(USER, "third", "third")
    assert await first.result() == "first"
    assert await third.result() == "third"
    await idle()
    assert_at_rest(runner)


@for_seeds(3)
async def test_a_plugin_that_refuses_a_message_leaves_the_slot_free():
    class Refusing(Plugin):
        async def on_user_message(self, key, message):
            raise Conflict("not now", code="policy.not_now")

    gauge = Gauge()
    runner = make_runner(gauge.agent, plugins=[Refusing()], max_concurrency=1)
    for _ in range(3):
        with raises(Conflict, "policy.not_now"):
            await runner.start(USER, SESSION, "hi")
    assert_at_rest(runner)
    assert (await runner.list_runs()).items == []

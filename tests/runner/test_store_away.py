"""R6: with the store away a stream says so, nothing hangs, nothing is doubled, and all is freed in the end."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.errors import Unavailable
from sojourn.run.config import RunConfig
from sojourn.run.live import KEPT_FRAMES
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import Fault, FaultyStore, fail_after, fail_before, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    APP,
    KEY,
    SESSION,
    TRIES,
    USER,
    assert_at_rest,
    assert_whole,
    dropped,
    idle,
    log_of,
    make_runner,
    outcome_of,
    process,
    read_events,
    read_frames,
    said_in,
    state_of,
)

APPENDS = 4
"""How many appends the agent below makes."""


@agent
async def worker(ctx):
    """Makes four appends: a step, two messages, the end."""
    await ctx.step("pay", lambda: 7)
    ctx.state.increment("count")
    yield Content("model").with_text("one")
    yield "piece "
    yield Content("model").with_text("two")


def away_for(seconds, method="*", *, after=False):
    """A store that does not answer from now on, for a while."""

    class Away(Fault):
        def __init__(self):
            super().__init__("fail", method, frozenset(), after=after)
            self._back = None

        def strikes(self, called, call, *, after):
            loop = asyncio.get_running_loop()
            if self._back is None:
                self._back = loop.time() + seconds
            return loop.time() < self._back and super().strikes(called, call, after=after)

    return Away()


@pytest.mark.parametrize("call", range(1, APPENDS + 1))
@pytest.mark.parametrize("fault", [fail_before, fail_after])
def test_one_failure_of_an_append_is_bridged_and_nothing_is_doubled(call, fault):
    @for_seeds(5)
    async def case():
        store = FaultyStore(InMemorySessionService(), [fault("append", call)])
        runner = make_runner(worker, store)
        run = await runner.start(USER, SESSION, "go")
        reading = await read_frames(run)
        assert_whole(reading)
        assert await run.result() == "two"
        assert [e.text for e in reading.events] == ["one", "piece ", "two"]
        assert reading.screen == "onepiece two"
        log = await log_of(store, superseded=True)
        assert [(e.seq, e.text) for e in log] == [(1, "go"), (2, "one"), (3, "piece "), (4, "two")]
        assert await state_of(store) == {"count": 1}
        assert len(await store.list_steps(run.record.uid)) == 1
        await idle()
        assert_at_rest(runner)

    case()


@pytest.mark.parametrize("call", range(1, APPENDS + 1))
@pytest.mark.parametrize("after", [False, True])
def test_a_store_that_goes_away_in_an_append_ends_the_stream_with_its_code_and_the_run_later(call, after):
    @for_seeds(5)
    async def case():
        store = FaultyStore(InMemorySessionService())
        runner = make_runner(worker, store, max_concurrency=1)

        class FromThisCallOn(Fault):
            def strikes(self, method, number, *, after):
                return store.calls["append"] >= call and super().strikes(method, number, after=after) and not self.go.is_set()

        away = FromThisCallOn("fail", "*", frozenset(), after=after)
        store.plan.append(away)
        run = await runner.start(USER, SESSION, "go")
        reading = await read_events(run.events())
        assert reading.error.code == "store.unavailable"
        assert asyncio.get_running_loop().time() < 5, "readers do not wait for the store to come back"
        with raises(Unavailable, "store.unavailable"):
            await run.result()
        away.go.set()
        await asyncio.sleep(60)
        assert_at_rest(runner)
        record = await store.get_run(APP, run.id)
        completed = call == APPENDS and after
        assert record.status is (RunStatus.COMPLETED if completed else RunStatus.FAILED)
        assert record.error is None if completed else record.error.code == "store.unavailable"
        log = await log_of(store, superseded=True)
        assert [e.seq for e in log] == list(range(1, len(log) + 1))
        assert [e.text for e in log] == ["go", "one", "piece ", "two"][: len(log)]
        later = await runner.start(USER, SESSION, "again")
        assert await later.result() == "two"
        assert_whole(await read_frames(await runner.follow(run.id)))

    case()


@for_seeds(10)
async def test_a_store_that_is_away_for_a_moment_is_not_noticed():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store)
    run = await runner.start(USER, SESSION, "go")
    store.plan.append(away_for(0.3))
    reading = await read_frames(run)
    assert_whole(reading)
    assert reading.screen == "onepiece two"


@for_seeds(10)
async def test_a_store_that_is_restarted_fails_no_run():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store)
    runs = [await runner.start(USER, f"s{n}", "go") for n in range(3)]
    store.plan.append(away_for(4.0))
    assert [await run.result() for run in runs] == ["two"] * 3


@for_seeds(5)
async def test_an_append_is_not_repeated_where_that_cannot_help():
    store = FaultyStore(InMemorySessionService())

    class Removed(Fault):
        async def strike(self, method):
            self.reached.set()
            raise Unavailable("the tables were removed; restore them", code="store.gone", retryable=False)

    store.plan.append(Removed("fail", "append", frozenset(), after=False))
    runner = make_runner(worker, store)
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "store.gone"
    assert store.calls["append"] == 2, "that of the step, and that of the end"
    store.plan.clear()
    await asyncio.sleep(60)
    assert_at_rest(runner)


@for_seeds(10)
async def test_the_session_is_not_given_on_before_the_run_is_closed_in_the_store():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store)
    first = await runner.start(USER, SESSION, "go")
    second = await runner.start(USER, SESSION, "next")
    store.plan.append(away_for(6.0))
    assert await outcome_of(first) == "store.unavailable"
    assert await second.result() == "two"
    records = {r.id: r for r in (await runner.list_runs()).items}
    assert records[first.id].status is RunStatus.FAILED
    assert records[first.id].finished_at <= records[second.id].started_at
    await idle()
    assert_at_rest(runner)


# -- recording a run ----------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_a_run_that_cannot_be_recorded_leaves_nothing_behind():
    store = FaultyStore(InMemorySessionService(), [fail_before("submit", 1, 2, 3)])
    runner = make_runner(worker, store)
    with raises(Unavailable, "store.unavailable"):
        await runner.start(USER, SESSION, "go")
    await idle()
    assert_at_rest(runner)
    assert (await runner.list_runs()).items == []
    assert await (await runner.start(USER, SESSION, "go")).result() == "two"


@pytest.mark.parametrize("busy", [False, True])
def test_a_run_whose_recording_was_not_confirmed_is_not_left_for_ever(busy):
    """Its caller was told `store.unavailable`, so it must not be running with nobody to execute it."""

    @for_seeds(5)
    async def case():
        store = FaultyStore(InMemorySessionService())
        runner = make_runner(worker, store)
        if busy:
            held = hold("append", 1)
            store.plan.append(held)
            blocker = await runner.start(USER, SESSION, "first")
            await held.reached.wait()
        store.plan.append(fail_after("submit", *(store.calls["submit"] + n for n in (1, 2, 3))))
        with raises(Unavailable, "store.unavailable"):
            await runner.start(USER, SESSION, "go", run_id="r1")
        if busy:
            held.go.set()
            await blocker.result()
        await asyncio.sleep(60)
        assert_at_rest(runner)
        record = await store.get_run(APP, "r1")
        assert record.status.terminal
        assert await (await runner.start(USER, SESSION, "later")).result() == "two"

    case()


@for_seeds(5)
async def test_a_client_that_repeats_a_start_whose_reply_was_lost_gets_an_end():
    store = FaultyStore(InMemorySessionService(), [fail_after("submit", 1, 2, 3)])
    runner = make_runner(worker, store)
    with raises(Unavailable, "store.unavailable"):
        await runner.start(USER, SESSION, "go", run_id="r1")
    run = await runner.start(USER, SESSION, "go", run_id="r1")
    async with asyncio.timeout(600):
        assert await outcome_of(run) in ("two", "run.cancelled", "store.unavailable")


# -- beginning a queued run ---------------------------------------------------------------------------------------------


async def _queued(runner, store):
    """A run that is about to begin from the queue, and the one before it."""
    held = hold("append", 1)
    store.plan.append(held)
    first = await runner.start(USER, SESSION, "first")
    second = await runner.start(USER, SESSION, "second")
    await held.reached.wait()
    held.go.set()
    return first, second


@for_seeds(5)
async def test_a_queued_run_begins_when_the_store_is_back():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store)
    first, second = await _queued(runner, store)
    store.plan.append(away_for(10, "begin"))
    assert await first.result() == "two"
    assert await second.result() == "two"
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_queued_run_whose_begin_was_not_confirmed_is_executed_or_closed():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store)
    _, second = await _queued(runner, store)
    store.plan.append(fail_after("begin", 1))
    assert await outcome_of(second) in ("two", "store.unavailable")
    await asyncio.sleep(60)
    assert (await store.get_run(APP, second.id)).status.terminal
    assert_at_rest(runner)
    assert await (await runner.start(USER, SESSION, "later")).result() == "two"


@for_seeds(10)
async def test_readers_of_a_queued_run_whose_begin_was_not_confirmed_see_all_of_it_in_order():
    @agent
    async def helper(ctx):
        yield Content("model").with_text("one ")
        await asyncio.sleep(1)
        yield "two"
        await asyncio.sleep(1)

    store = FaultyStore(InMemorySessionService(), [fail_after("begin", 1)])
    runner = make_runner(helper, store)
    await runner.start(USER, SESSION, "first")
    second = await runner.start(USER, SESSION, "second")
    live = asyncio.ensure_future(read_frames(second))
    await asyncio.sleep(4)
    assert second.status is RunStatus.RUNNING
    late = await read_frames(await runner.follow(second.id))
    for reading in (await live, late):
        assert_whole(reading)
        assert reading.screen == "one two"
        assert reading.kinds == ["run.started", "event", "event", "run.completed"]


@for_seeds(5)
async def test_a_queued_run_that_cannot_begin_for_long_tells_its_readers():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store)
    _, second = await _queued(runner, store)
    store.plan.append(away_for(3600, "begin"))
    assert await outcome_of(second) == "store.unavailable"
    assert asyncio.get_running_loop().time() < 600
    await asyncio.sleep(4000)
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_run_that_waits_too_long_while_the_store_is_away_is_closed_later():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store, queue_timeout=5)
    held = hold("append", 1)
    store.plan.append(held)
    await runner.start(USER, SESSION, "first")
    second = await runner.start(USER, SESSION, "second")
    store.plan.append(away_for(20, "close_run"))
    assert await outcome_of(second) in ("limit.queue_timeout", "store.unavailable")
    held.go.set()
    await asyncio.sleep(60)
    assert_at_rest(runner)
    record = await store.get_run(APP, second.id)
    assert (record.status, record.error.code) == (RunStatus.FAILED, "limit.queue_timeout")


# -- asking and answering -----------------------------------------------------------------------------------------------


@agent
async def asker(ctx):
    yield "before"
    answer = await ctx.ask("ok", "ok?")
    yield f"{answer}!"


@pytest.mark.parametrize(
    ("fault", "call"),
    [(fail_before, 1), (fail_before, 2), (fail_after, 1),
     (fail_after, 2)],
)  # fmt: skip
def test_a_question_is_asked_once_whatever_reply_is_lost(fault, call):
    @for_seeds(5)
    async def case():
        store = FaultyStore(InMemorySessionService(), [fault("append", call)])
        runner = make_runner(asker, store)
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "run.waiting"
        assert (await store.get_run(APP, run.id)).status is RunStatus.WAITING
        assert len(await runner.list_interrupts()) == 1
        answered = await runner.answer(run.id, (await run.interrupts())[0].id, "yes")
        assert await answered.result() == "yes!"
        await idle()
        assert_at_rest(runner)

    case()


@for_seeds(20)
async def test_an_answer_that_overtakes_the_reply_of_the_pause_is_not_lost():
    """The store has the run waiting and then answered, before the run's process has learned that it waits."""
    store = FaultyStore(InMemorySessionService())
    held = hold("append", 2, after=True)
    store.plan.append(held)
    runner = make_runner(asker, store)
    run = await runner.start(USER, SESSION, "go")
    await held.reached.wait()
    assert (await store.get_run(APP, run.id)).status is RunStatus.WAITING
    answered = await runner.answer(run.id, (await run.interrupts())[0].id, "yes")
    held.go.set()
    async with asyncio.timeout(600):
        assert await answered.result() == "yes!"
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_an_answer_that_was_not_confirmed_may_be_given_again():
    store = FaultyStore(InMemorySessionService(), [fail_after("answer", 1)])
    runner = make_runner(asker, store)
    run = await runner.start(USER, SESSION, "go")
    await run.wait()
    interrupt = (await run.interrupts())[0]
    with raises(Unavailable, "store.unavailable"):
        await runner.answer(run.id, interrupt.id, "yes")
    again = await runner.answer(run.id, interrupt.id, "yes")
    async with asyncio.timeout(600):
        assert await again.result() == "yes!"


@for_seeds(10)
async def test_the_late_reply_of_an_answer_that_was_acted_on_is_not_taken_for_another_answer():
    @agent
    async def helper(ctx):
        return [await ctx.ask("q1", "?"), await ctx.ask("q2", "?")]

    store = FaultyStore(InMemorySessionService())
    watching, replying = hold("get_run", 1), hold("answer", 1, after=True)
    asking, beginning = hold("append", 4), hold("begin", 2, after=True)
    store.plan += [watching, replying, asking, beginning]
    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "go")
    await idle()
    first = asyncio.ensure_future(runner.answer(run.id, (await run.interrupts())[0].id, 1))
    await replying.reached.wait()
    # The run finds out by itself that it was answered, before the answer's reply is back.
    watching.go.set()
    await asking.reached.wait()
    replying.go.set()
    await first
    asking.go.set()
    await idle()
    second = await runner.answer(run.id, (await run.interrupts())[0].id, 2)
    beginning.go.set()
    await asyncio.sleep(60)
    assert (await store.get_run(APP, run.id)).status is RunStatus.COMPLETED
    assert await second.result() == [1, 2]
    assert_at_rest(runner)


@pytest.mark.parametrize("fault", ["cancelled", "lost"])
@pytest.mark.parametrize("method", ["answer", "become_executor"])
def test_an_answer_that_is_stored_lets_the_run_go_on_whatever_becomes_of_who_gave_it(method, fault):
    @for_seeds(5)
    async def case():
        store = FaultyStore(InMemorySessionService())
        runner = make_runner(asker, store)
        run = await runner.start(USER, SESSION, "go")
        await run.wait()
        interrupt = (await run.interrupts())[0]
        held = hold(method, store.calls[method] + 1, after=True)
        store.plan.append(held if fault == "cancelled" else fail_after(method, store.calls[method] + 1))
        answering = asyncio.ensure_future(runner.answer(run.id, interrupt.id, "yes"))
        if fault == "cancelled":
            await asyncio.wait([answering, asyncio.ensure_future(held.reached.wait())], return_when=asyncio.FIRST_COMPLETED)
        await (dropped(answering) if fault == "cancelled" else asyncio.gather(answering, return_exceptions=True))
        held.go.set()
        await asyncio.sleep(60)
        assert (await store.get_run(APP, run.id)).status is RunStatus.COMPLETED
        assert await (await runner.follow(run.id)).result() == "yes!"
        assert_at_rest(runner)

    case()


@for_seeds(5)
async def test_a_cancel_that_is_stored_stops_the_run_even_if_its_caller_has_left():
    @agent
    async def hanging(ctx):
        await asyncio.Event().wait()

    store = FaultyStore(InMemorySessionService())
    runner = make_runner(hanging, store)
    run = await runner.start(USER, SESSION, "go")
    await idle()
    held = hold("request_cancel", 1, after=True)
    store.plan.append(held)
    cancelling = asyncio.ensure_future(run.cancel())
    await held.reached.wait()
    await dropped(cancelling)
    async with asyncio.timeout(60):
        assert await outcome_of(run) == "run.cancelled"
    await idle()
    assert_at_rest(runner)


@for_seeds(5)
async def test_a_question_expires_even_if_the_store_was_away_at_that_moment():
    @agent
    async def impatient(ctx):
        await ctx.ask("ok", "ok?", expires=10)

    store = FaultyStore(InMemorySessionService())
    runner = make_runner(impatient, store)
    run = await runner.start(USER, SESSION, "go")
    await run.wait()
    store.plan.append(away_for(20))
    await asyncio.sleep(60)
    record = await store.get_run(APP, run.id)
    assert (record.status, record.error.code) == (RunStatus.FAILED, "interrupt.expired")


# -- handing over -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "call"),
    [(fail_before, 1), (fail_before, 2), (fail_after, 2),
     (fail_after, 1)],
)  # fmt: skip
def test_a_hand_over_happens_once_whatever_reply_is_lost(fault, call):
    @for_seeds(5)
    async def case():
        inner = InMemorySessionService()
        effects = []

        @agent
        async def billing(ctx):
            await ctx.step("pay", lambda: effects.append("paid"))
            if ctx.attempt == 1:
                await asyncio.Event().wait()
            return "done"

        @agent(sub_agents=[billing])
        async def root(ctx):
            yield "over"
            ctx.transfer_to("billing")

        async with process(root, inner) as first:
            first.store.plan.append(fault("append", call))
            run = await first.runner.start(USER, SESSION, "go")
            await asyncio.sleep(1)
            record = await inner.get_run(APP, run.id)
            assert (record.transfers, record.agent) == (1, "billing")
            first.die()
            async with process(root, inner, enter=True) as second:
                assert await (await second.runner.follow(run.id)).result() == "done"
        assert effects == ["paid"]

    case()


# -- cancelling ---------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_a_cancel_works_on_a_run_of_this_process_while_the_store_is_away():
    store = FaultyStore(InMemorySessionService())

    @agent
    async def hanging(ctx):
        yield "so far"
        await asyncio.Event().wait()

    runner = make_runner(hanging, store)
    run = await runner.start(USER, SESSION, "go")
    await idle()
    store.plan.append(fail_before("request_cancel", 1))
    with raises(Unavailable, "store.unavailable"):
        await run.cancel()
    assert await outcome_of(run) == "run.cancelled"
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_leaving_an_attached_run_while_the_store_is_away_frees_all_in_the_end():
    store = FaultyStore(InMemorySessionService())

    @agent
    async def hanging(ctx):
        yield "so far"
        await asyncio.Event().wait()

    runner = make_runner(hanging, store)
    stream = runner.run(USER, SESSION, "go")
    await anext(stream)
    store.plan.append(away_for(10))
    await stream.aclose()
    await asyncio.sleep(60)
    assert_at_rest(runner)
    assert (await runner.list_runs()).items[0].status.terminal


@for_seeds(5)
async def test_a_stream_that_ends_with_an_error_of_the_store_leaves_its_attached_run():
    """Whoever gets an error out of `runner.run()` has left the loop: the run must not go on without a reader."""
    store = FaultyStore(InMemorySessionService())
    ended = []

    @agent
    async def chatty(ctx):
        try:
            yield Content("model").with_text("first")
            await asyncio.sleep(1)
            for n in range(KEPT_FRAMES * 2):
                yield Content("model").with_text(f"{n}")
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    runner = make_runner(chatty, store)
    stream = runner.run(USER, SESSION, "go")
    assert (await anext(stream)).text == "first"
    await asyncio.sleep(2)
    store.plan.append(fail_before("run_events"))
    reading = await read_events(stream)
    assert reading.error.code == "store.unavailable"
    await asyncio.sleep(1)
    assert ended == [True]
    assert_at_rest(runner)


# -- what is lost and what is not ---------------------------------------------------------------------------------------


@for_seeds(5)
async def test_what_was_on_the_screen_is_stored_if_the_store_is_back_for_the_end():
    """The message was sealed by what came after it; that append failed, and the next one must not forget it."""
    store = FaultyStore(InMemorySessionService(), [fail_before("append", *range(1, TRIES + 1))])

    @agent
    async def helper(ctx):
        yield "on the screen"
        yield Content("model").with_text("never seen")

    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "go")
    assert await outcome_of(run) == "store.unavailable"
    assert ("helper", "on the screen") in await said_in(store)


@for_seeds(5)
async def test_a_step_tells_the_agent_that_it_could_not_be_recorded():
    store = FaultyStore(InMemorySessionService(), [fail_before("append", *range(1, TRIES + 1))])
    told = []

    @agent
    async def helper(ctx):
        try:
            await ctx.step("pay", lambda: 1)
        except Unavailable as error:
            told.append(error.code)
            raise

    assert await outcome_of(await make_runner(helper, store).start(USER, SESSION, "go")) == "store.unavailable"
    assert told == ["store.unavailable"]


@for_seeds(5)
async def test_history_tells_the_agent_that_the_store_is_away():
    store = FaultyStore(InMemorySessionService(), [fail_before("history")])

    @agent
    async def helper(ctx):
        try:
            await ctx.history()
        except Unavailable:
            return "without history"

    assert await (await make_runner(helper, store).start(USER, SESSION, "go")).result() == "without history"


@for_seeds(5)
async def test_the_reply_of_the_end_is_lost_and_the_store_is_away_when_asked_for_it():
    store = FaultyStore(InMemorySessionService(), [fail_after("append", 1), fail_before("get_run", 1, 2)])

    @agent
    async def helper(ctx):
        return "done"

    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "go")
    async with asyncio.timeout(600):
        assert await outcome_of(run) in ("done", "store.unavailable")
    await asyncio.sleep(60)
    assert_at_rest(runner)
    assert await (await runner.follow(run.id)).result() == "done"


@for_seeds(5)
async def test_a_store_that_breaks_its_contract_fails_the_run_but_hangs_nobody():
    class Broken(FaultyStore):
        async def append(self, fence, batch):
            raise RuntimeError("a bug in a driver")

    store = Broken(InMemorySessionService())
    runner = make_runner(worker, store)
    run = await runner.start(USER, SESSION, "go")
    async with asyncio.timeout(600):
        assert await outcome_of(run) == "internal"
    await asyncio.sleep(60)
    assert_at_rest(runner)
    assert (await store.get_run(APP, run.id)).status.terminal


@for_seeds(5)
async def test_a_refusal_of_every_append_does_not_spin():
    """The end of a run that the store takes for invalid, again and again, must not be tried for ever."""
    from sojourn.errors import InvalidInput

    class Refusing(FaultyStore):
        async def append(self, fence, batch):
            self.calls["append"] += 1
            assert self.calls["append"] < 100, "spinning"
            raise InvalidInput("no", code="json.invalid")

    store = Refusing(InMemorySessionService())
    runner = make_runner(worker, store)
    run = await runner.start(USER, SESSION, "go")
    async with asyncio.timeout(600):
        assert await outcome_of(run) == "json.invalid"
    await asyncio.sleep(60)
    assert_at_rest(runner)
    assert (await store.get_run(APP, run.id)).status.terminal


@for_seeds(5)
async def test_recovering_while_the_store_is_away_raises_and_may_be_repeated():
    inner = InMemorySessionService()

    @agent
    async def helper(ctx):
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return "done"

    async with process(helper, inner) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        first.die()
        for method in ("become_executor", "unfinished", "requeue_lost"):
            async with process(helper, inner) as second:
                second.store.plan.append(fail_before(method))
                with raises(Unavailable, "store.unavailable"):
                    await second.runner.__aenter__()
        async with process(helper, inner, enter=True) as last:
            assert await (await last.runner.follow(run.id)).result() == "done"


@for_seeds(5)
async def test_open_calls_are_sealed_even_if_the_reply_of_their_event_was_lost():
    store = FaultyStore(InMemorySessionService(), [fail_after("append", 1)])

    @agent
    async def helper(ctx):
        yield Content("model", (Part.from_function_call("look_up", {}, id="c1"),))
        await asyncio.Event().wait()

    runner = make_runner(helper, store, run_config=RunConfig(timeout=5))
    assert await outcome_of(await runner.start(USER, SESSION, "go")) == "run.timeout"
    history = await store.history(KEY, None)
    assert [r.id for e in history.events for r in e.get_function_responses()] == ["c1"]


@for_seeds(5)
async def test_a_caller_that_is_cancelled_while_its_run_is_recorded_leaves_no_run_behind():
    for after in (False, True):
        for busy in (False, True):
            store = FaultyStore(InMemorySessionService())
            runner = make_runner(worker, store)
            if busy:
                blocked = hold("append", 1)
                store.plan.append(blocked)
                await runner.start(USER, SESSION, "first")
            held = hold("submit", store.calls["submit"] + 1, after=after)
            store.plan.append(held)
            starting = asyncio.ensure_future(runner.start(USER, SESSION, "go", run_id="r1"))
            await held.reached.wait()
            await dropped(starting)
            if busy:
                blocked.go.set()
            await asyncio.sleep(60)
            assert_at_rest(runner)
            assert all(r.status.terminal for r in (await runner.list_runs()).items)
            if after:
                assert (await store.get_run(APP, "r1")).status is RunStatus.CANCELLED
            assert await (await runner.start(USER, SESSION, "later")).result() == "two"


@for_seeds(5)
async def test_a_caller_cancelled_while_its_run_is_recorded_and_the_store_is_away_leaves_no_run_behind():
    store = FaultyStore(InMemorySessionService())
    runner = make_runner(worker, store)
    held = hold("submit", 1, after=True)
    store.plan += [held, fail_before("get_run", 1), fail_before("take_over", 1)]
    starting = asyncio.ensure_future(runner.start(USER, SESSION, "go", run_id="r1"))
    await held.reached.wait()
    await dropped(starting)
    await asyncio.sleep(60)
    assert (await store.get_run(APP, "r1")).status is RunStatus.CANCELLED

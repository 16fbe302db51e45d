"""R5: leaving an attached run ends it; nothing else does."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import Conflict, RunWaiting
from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import (
    APP,
    SESSION,
    USER,
    assert_at_rest,
    collect,
    dropped,
    idle,
    make_runner,
    outcome_of,
    read_events,
    said_in,
)


def endless(pause=1.0):
    """An agent that speaks and then hangs, and what became of it; `pause` (seconds) is what it takes its time with."""
    ends = []

    @agent
    async def helper(ctx):
        try:
            yield "one "
            await asyncio.sleep(pause)
            yield Content("model").with_text("two ")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise
        finally:
            await asyncio.sleep(pause)
            ends.append("cleaned")

    return helper, ends


async def assert_cancelled(runner, ends):
    await asyncio.sleep(30)
    assert ends[-1:] == ["cleaned"]
    assert ends.count("cancelled") <= 1
    assert (await runner.list_runs()).items[0].status is RunStatus.CANCELLED
    assert_at_rest(runner)


@for_seeds(20)
async def test_breaking_out_of_the_loop_cancels_through_the_finalizer():
    helper, ends = endless()
    runner = make_runner(helper)
    async for _ in runner.run(USER, SESSION, "hi"):
        break
    collect()
    await assert_cancelled(runner, ends)


@for_seeds(20)
async def test_closing_the_stream_cancels_and_awaits_the_end():
    helper, ends = endless()
    runner = make_runner(helper)
    stream = runner.run(USER, SESSION, "hi")
    await anext(stream)
    await stream.aclose()
    assert ends == ["cancelled", "cleaned"]
    assert (await runner.list_runs()).items[0].status is RunStatus.CANCELLED
    assert [i async for i in stream] == []
    await stream.aclose()
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_a_stream_is_its_own_context_manager():
    helper, ends = endless()
    runner = make_runner(helper)
    async with runner.run(USER, SESSION, "hi") as stream:
        async for _ in stream:
            break
    assert ends == ["cancelled", "cleaned"]


@for_seeds(20)
async def test_an_exception_in_the_loops_body_cancels():
    helper, ends = endless()
    runner = make_runner(helper)
    with pytest.raises(ZeroDivisionError):
        async for _ in runner.run(USER, SESSION, "hi"):
            _ = 1 / 0
    collect()
    await assert_cancelled(runner, ends)


@pytest.mark.parametrize("items", [0, 1, 2])
def test_a_consumer_that_is_cancelled_while_it_waits_for_an_item_cancels(items):
    @for_seeds(20)
    async def case():
        helper, ends = endless()
        runner = make_runner(helper)
        got = []

        async def consume():
            async for item in runner.run(USER, SESSION, "hi"):
                got.append(item)

        task = asyncio.ensure_future(consume())
        await asyncio.sleep([0, 0.5, 1.5][items])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del task
        collect()
        await asyncio.sleep(30)
        assert all(r.status is RunStatus.CANCELLED for r in (await runner.list_runs()).items)
        assert ends in (["cancelled", "cleaned"], [])
        assert_at_rest(runner)

    case()


@for_seeds(10)
async def test_a_cancelled_consumer_that_somebody_remembers_cancels_all_the_same():
    """Its exception keeps its frames alive: the run must not wait for their end."""
    helper, ends = endless()
    runner = make_runner(helper)

    async def consume():
        stream = runner.run(USER, SESSION, "hi")
        async for _ in stream:
            pass

    task = asyncio.ensure_future(consume())
    await asyncio.sleep(0.5)
    task.cancel()
    results = await asyncio.gather(task, return_exceptions=True)
    await assert_cancelled(runner, ends)
    assert isinstance(results[0], asyncio.CancelledError)


@pytest.mark.parametrize("after", [False, True])
def test_a_consumer_that_is_cancelled_while_the_run_is_recorded_cancels(after):
    @for_seeds(10)
    async def case():
        ran = []

        @agent
        async def helper(ctx):
            ran.append(True)
            await asyncio.Event().wait()

        store = FaultyStore(InMemorySessionService())
        held = hold("submit", 1, after=after)
        store.plan.append(held)
        runner = make_runner(helper, store)
        task = asyncio.ensure_future(read_events(runner.run(USER, SESSION, "hi")))
        await held.reached.wait()
        await dropped(task)
        await asyncio.sleep(30)
        assert ran == []
        assert [r.status for r in (await runner.list_runs()).items] == ([RunStatus.CANCELLED] if after else [])
        assert_at_rest(runner)

    case()


@for_seeds(10)
async def test_waiting_for_an_item_with_a_timeout_neither_ends_the_stream_nor_the_run():
    helper, _ = endless()
    runner = make_runner(helper)
    stream = runner.run(USER, SESSION, "hi")
    assert (await anext(stream)).delta == "one "
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.5)
    texts = []
    async with asyncio.timeout(10):
        while len(texts) < 2:
            texts.append((await anext(stream)).text)
    assert texts == ["one ", "two "]
    await stream.aclose()
    assert (await runner.list_runs()).items[0].status is RunStatus.CANCELLED


@for_seeds(5)
async def test_a_stream_that_nobody_reads_starts_no_run():
    helper, _ = endless()
    runner = make_runner(helper)
    runner.run(USER, SESSION, "hi")
    await idle()
    assert (await runner.list_runs()).items == []


@for_seeds(10)
async def test_leaving_a_queued_attached_run_ends_it_before_it_starts():
    ran = []

    @agent
    async def helper(ctx):
        ran.append(ctx.user_content.text)
        await asyncio.Event().wait()

    runner = make_runner(helper)
    first = await runner.start(USER, SESSION, "first")
    stream = runner.run(USER, SESSION, "second")
    waiting = asyncio.ensure_future(anext(stream))
    await idle()
    await dropped(waiting)
    await stream.aclose()
    await first.cancel()
    await first.wait()
    assert ran == ["first"]
    assert {r.status for r in (await runner.list_runs()).items} == {RunStatus.CANCELLED}
    await idle()
    assert_at_rest(runner)


@pytest.mark.anyio
async def test_a_stream_that_another_thread_drops_is_left_all_the_same():
    """The garbage collector runs in whatever thread it likes."""
    helper, ends = endless(pause=0)
    runner = make_runner(helper)
    streams = [runner.run(USER, SESSION, "hi")]
    await anext(streams[0])
    await asyncio.to_thread(streams.clear)
    run = (await runner.list_runs()).items[0]
    async with asyncio.timeout(20):
        assert await outcome_of(await runner.follow(run.id)) == "run.cancelled"
    assert ends == ["cancelled", "cleaned"]


# -- what does not cancel -----------------------------------------------------------------------------------------------


@agent
async def patient(ctx):
    """Takes its time."""
    yield "a"
    await asyncio.sleep(5)
    yield "b"


@for_seeds(10)
async def test_a_detached_run_survives_whoever_started_it():
    runner = make_runner(patient)

    async def start():
        return (await runner.start(USER, SESSION, "hi")).id

    run_id = await asyncio.ensure_future(start())
    collect()
    assert await (await runner.follow(run_id)).result() == "ab"


@for_seeds(10)
async def test_followers_come_and_go():
    runner = make_runner(patient)
    run = await runner.start(USER, SESSION, "hi")
    async for _ in run.events():
        break
    async for _ in (await runner.follow(run.id)).frames():
        break
    async for _ in run.result_stream():
        break
    collect()
    assert await run.result() == "ab"


@for_seeds(10)
async def test_a_cancelled_wait_for_the_result_does_not_cancel():
    runner = make_runner(patient)
    run = await runner.start(USER, SESSION, "hi")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run.result(), 1)
    waits = [asyncio.ensure_future(w) for w in (run.result(), run.wait(), run.settled())]
    await idle()
    for wait in waits:
        await dropped(wait)
    assert await run.result() == "ab"


@for_seeds(10)
async def test_the_end_of_a_stream_is_not_a_departure():
    runner = make_runner(patient)
    assert (await read_events(runner.run(USER, SESSION, "hi"))).screen == "ab"
    collect()
    await idle()
    assert (await runner.list_runs()).items[0].status is RunStatus.COMPLETED


# -- a run that waits is left waiting -----------------------------------------------------------------------------------


@agent
async def asker(ctx):
    """Asks, and says the answer."""
    yield "before "
    yield f"{await ctx.ask('ok', 'ok?')}!"


@for_seeds(10)
async def test_a_waiting_run_is_left_waiting():
    store = InMemorySessionService()
    runner = make_runner(asker, store)
    stream = runner.run(USER, SESSION, "hi")
    reading = await read_events(stream)
    assert reading.error is None
    assert reading.screen == "before "
    await stream.aclose()
    collect()
    await idle()
    run = (await runner.list_runs()).items[0]
    assert run.status is RunStatus.WAITING
    assert_at_rest(runner)
    answered = await runner.answer(run.id, (await runner.list_interrupts())[0].id, "yes")
    assert await answered.result() == "yes!"
    assert not answered.record.attached


@for_seeds(10)
async def test_the_result_of_a_waiting_run_names_its_questions():
    runner = make_runner(asker)
    run = await runner.start(USER, SESSION, "hi")
    with pytest.raises(RunWaiting) as caught:
        await run.result()
    assert [i.prompt for i in caught.value.interrupts] == ["ok?"]
    assert caught.value.code == "run.waiting"


@for_seeds(10)
async def test_the_same_handle_gives_the_result_after_the_answer():
    runner = make_runner(asker)
    run = await runner.start(USER, SESSION, "hi")
    with pytest.raises(RunWaiting) as caught:
        await run.result()
    await runner.answer(run.id, caught.value.interrupts[0].id, "yes")
    assert await run.result() == "yes!"
    assert run.status is RunStatus.COMPLETED
    assert (await run.wait()).status is RunStatus.COMPLETED


# -- the same run id ----------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_the_same_id_and_message_again_follow_the_same_run():
    runner = make_runner(patient)
    one = await runner.start(USER, SESSION, "hi", run_id="r1")
    two = await runner.start(USER, SESSION, "hi", run_id="r1")
    assert await asyncio.gather(one.result(), two.result()) == ["ab", "ab"]
    three = await read_events(runner.run(USER, SESSION, "hi", run_id="r1"))
    assert three.screen == "ab"
    assert len((await runner.list_runs()).items) == 1
    with raises(Conflict, "run.conflict"):
        await runner.start(USER, SESSION, "other", run_id="r1")
    with raises(Conflict, "run.conflict"):
        await runner.start(USER, "other", "hi", run_id="r1")
    assert await (await runner.start("bob", SESSION, "hi", run_id="r1")).result() == "ab"


@for_seeds(10)
async def test_a_message_with_large_bytes_may_be_sent_again_under_its_run_id():
    runner = make_runner(patient)
    message = Content("user").with_text("hi").with_bytes(b"x" * 100_000)
    one = await runner.start(USER, SESSION, message, run_id="r1")
    two = await runner.start(USER, SESSION, message, run_id="r1")
    assert one.id == two.id
    assert await two.result() == "ab"
    with raises(Conflict, "run.conflict"):
        await runner.start(USER, SESSION, Content("user").with_text("hi").with_bytes(b"y" * 100_000), run_id="r1")


@for_seeds(10)
async def test_who_joins_a_detached_run_by_its_id_does_not_end_it_by_leaving():
    runner = make_runner(patient)
    run = await runner.start(USER, SESSION, "hi", run_id="r1")
    stream = runner.run(USER, SESSION, "hi", run_id="r1")
    await anext(stream)
    await stream.aclose()
    assert await run.result() == "ab"


@for_seeds(10)
async def test_a_run_recorded_twice_at_once_is_one_run():
    store = InMemorySessionService()
    runner = make_runner(patient, store)
    runs = await asyncio.gather(*(runner.start(USER, SESSION, "hi", run_id="r1") for _ in range(5)))
    assert {await outcome_of(r) for r in runs} == {"ab"}
    assert await said_in(store) == [("user", "hi"), ("patient", "ab")]
    assert (await store.get_run(APP, "r1")).status is RunStatus.COMPLETED

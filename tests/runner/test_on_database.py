"""The Runner in a real event loop on a real database: what only real threads, commits and other processes show."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent
from sojourn.content import Content
from sojourn.errors import AgentError, Conflict, Unavailable
from sojourn.event import Event, Partial
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.runner.delivery import hub
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.faults import FaultyStore, fail_after
from sojourn.testing.suite import raises
from tests.runner.support import (
    APP,
    SESSION,
    USER,
    assert_whole,
    log_of,
    make_runner,
    outcome_of,
    read_events,
    read_frames,
    said_in,
    state_of,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request, tmp_path):
    """Opens one database again and again, as several processes would: a function."""
    if request.param == "sqlite":
        url, options = f"sqlite:///{tmp_path / 'sessions.db'}", {}
    else:
        url, options = request.getfixturevalue("postgres").url(), {"schema": request.getfixturevalue("schema")}
    opened = []

    def open_database(**more):
        opened.append(DatabaseSessionService(url, **options, **more))
        return opened[-1]

    yield open_database
    for store in opened:
        await store.close()


@pytest.fixture
def store(database):
    return database()


@pytest.fixture
def elsewhere(database):
    """The same database as another process has it open, which executes nothing."""
    return database()


@pytest.fixture(autouse=True)
def attentive(monkeypatch):
    """Executors look at once for what others did."""
    monkeypatch.setattr(hub, "CHANGES_SECONDS", 0.005)


async def at_rest(runner):
    """Waits until nothing is left; the last task of a run ends after its readers have been told."""
    async with asyncio.timeout(20):
        while runner.hub.jobs or runner.limiter.active or runner.hub.engine._lanes:
            await asyncio.sleep(0)


@agent
async def worker(ctx):
    """Does a bit of everything."""
    ctx.state.increment("count")
    ctx.state.increment("user:count")
    receipt = await ctx.step("pay", lambda: {"receipt": ctx.user_content.text})
    for word in ("a ", "b ", "c "):
        yield word
        await asyncio.sleep(0)
    yield Content("model").with_text(receipt["receipt"])
    yield f"history {len(await ctx.history())}"


async def test_a_hundred_sessions_at_once(store):
    runner = make_runner(worker, store)

    async def user(n):
        texts = []
        for turn in range(3):
            reading = await read_events(runner.run(f"u{n % 20}", f"s{n}", f"{n}.{turn}"))
            assert reading.error is None
            texts.append(reading.screen)
        return texts

    results = await asyncio.gather(*(user(n) for n in range(100)))
    for n, texts in enumerate(results):
        assert texts == [f"a b c {n}.{turn}history {3 + 4 * turn}" for turn in range(3)]
        log = await log_of(store, f"s{n}", user_id=f"u{n % 20}")
        assert [e.seq for e in log] == list(range(1, 13))
    assert (await state_of(store, "s0", user_id="u0")) == {"count": 3, "user:count": 15}
    await at_rest(runner)


async def test_live_and_replay_are_the_same(store):
    runner = make_runner(worker, store)
    run = await runner.start(USER, SESSION, "hi")
    readings = await asyncio.gather(
        read_frames(run), read_frames(await runner.follow(run.id)), read_frames(run, partials=False)
    )
    again = await read_frames(await runner.follow(run.id))
    for reading in (*readings, again):
        assert_whole(reading)
        assert reading.frames == again.frames
        assert reading.screen == again.screen == "a b c hihistory 3"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_answers_that_come_the_moment_the_question_is_seen(store):
    @agent
    async def asker(ctx):
        return [await ctx.ask(f"q{n}", f"{n}?") for n in range(3)]

    runner = make_runner(asker, store)

    async def answer_all(n):
        run = await runner.start(USER, f"s{n}", "go")
        after, answered = 0, 0
        while answered < 3:
            async for frame in run.frames(after, partials=False):
                after = frame.pos
                if frame.kind == "interrupt":
                    run = await runner.answer(run.id, frame.event.long_running_tool_ids[0], answered)
                    answered += 1
                    break
        return await run.result()

    async with asyncio.timeout(150):
        assert await asyncio.gather(*(answer_all(n) for n in range(60))) == [[0, 1, 2]] * 60
    await at_rest(runner)


async def test_cancels_at_any_moment(store):
    chance = ManualPlatform(seed=7)

    def branch(name):
        @agent(name=name)
        async def speak(ctx):
            for n in range(3):
                yield f"{name}{n} "
                await ctx.step(f"{n}", lambda: n)  # noqa: B023
                yield Content("model").with_text(f"{name}! ")

        return speak

    runner = make_runner(ParallelAgent(name="all", sub_agents=[branch("x"), branch("y")]), store)

    async def start_and_cancel(n):
        run = await runner.start(USER, f"s{n}", "go")
        items = int(chance.random() * 20)
        async for _ in run.frames():
            items -= 1
            if items < 0:
                break
        await run.cancel()
        record = await run.wait()
        live = await read_frames(run)
        assert_whole(live)
        assert live.frames == (await read_frames(await runner.follow(run.id))).frames
        log = await log_of(store, f"s{n}")
        assert [e.seq for e in log] == list(range(1, len(log) + 1))
        return record.status

    async with asyncio.timeout(30):
        statuses = await asyncio.gather(*(start_and_cancel(n) for n in range(60)))
    assert set(statuses) == {RunStatus.CANCELLED, RunStatus.COMPLETED}
    await at_rest(runner)


async def test_callers_that_are_cancelled_at_any_moment_leave_nothing_behind(store):
    chance = ManualPlatform(seed=8)
    runner = make_runner(worker, store, max_concurrency=5)

    async def start_and_vanish(n):
        starting = asyncio.ensure_future(read_events(runner.run(USER, f"s{n}", "go")))
        for _ in range(int(chance.random() * 30)):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    await asyncio.gather(*(start_and_vanish(n) for n in range(60)))
    async with asyncio.timeout(20):
        while left := await store.unfinished(APP):
            for record in left:
                await (await runner.follow(record.id)).settled()
    await at_rest(runner)
    assert await (await runner.start(USER, "after", "go")).result() == "history 3"


# -- other processes ----------------------------------------------------------------------------------------------------


@agent
async def hanging(ctx):
    """Speaks, then hangs, or asks."""
    yield "so far"
    if ctx.user_content.text == "ask":
        yield f"{await ctx.ask('q', '?')}!"
        return
    await asyncio.Event().wait()


async def test_another_process_cancels(store, elsewhere):
    runner, client = make_runner(hanging, store), make_runner(hanging, elsewhere)
    running = await runner.start(USER, SESSION, "go")
    queued = await runner.start(USER, SESSION, "go")
    waiting = await runner.start(USER, "other", "ask")
    async for _ in running.events():
        break
    await waiting.wait()
    for run in (queued, running, waiting):
        await client.cancel(run.id, reason="from elsewhere")
    async with asyncio.timeout(20):
        assert await outcome_of(running) == "run.cancelled"
        assert await outcome_of(queued) == "run.cancelled"
        assert await outcome_of(await client.follow(waiting.id)) == "run.cancelled"
    assert running.record.error.message == "from elsewhere"
    await at_rest(runner)


async def test_another_process_follows_and_answers(store, elsewhere):
    runner, client = make_runner(hanging, store), make_runner(hanging, elsewhere)
    async with runner:
        run = await runner.start(USER, SESSION, "ask")
        first = await read_frames(await client.follow(run.id))
        assert first.kinds == ["run.started", "event", "interrupt"]
        answered = await client.answer(run.id, (await client.list_interrupts())[0].id, "yes")
        async with asyncio.timeout(20):
            assert await answered.result() == "yes!"
        assert (await read_frames(answered)).kinds[-1] == "run.completed"


async def test_another_process_deletes_the_session(store, elsewhere):
    runner, client = make_runner(hanging, store), make_runner(hanging, elsewhere)
    running = await runner.start(USER, SESSION, "go")
    queued = await runner.start(USER, SESSION, "go")
    async for _ in running.events():
        break
    await client.delete_session(USER, SESSION)
    async with asyncio.timeout(20):
        assert await outcome_of(running) == "session.deleted"
        assert await outcome_of(queued) == "session.deleted"
    await at_rest(runner)


async def test_a_second_executor_is_refused(store, elsewhere):
    runner, client = make_runner(worker, store), make_runner(worker, elsewhere)
    await (await runner.start(USER, SESSION, "go")).result()
    with raises(Conflict, "store.in_use"):
        await client.start(USER, SESSION, "go")
    with raises(Conflict, "store.in_use"):
        async with client:
            pass
    await store.close()
    assert await (await client.start(USER, SESSION, "go")).result() == "history 7"


async def test_a_runner_on_a_client_does_all_but_execute(store, database):
    only_client = database(role="client")
    runner, client = make_runner(hanging, store), make_runner(hanging, only_client)
    asking = await runner.start(USER, SESSION, "ask")
    waiting = await runner.start(USER, "other", "ask")
    await asking.wait()
    await waiting.wait()
    await runner.close()
    await store.close()

    with raises(Conflict, "store.client_only"):
        await client.start(USER, SESSION, "go")
    with raises(Conflict, "store.client_only"):
        async for _ in client.run(USER, SESSION, "go"):
            pass
    with raises(Conflict, "store.client_only"):
        async with make_runner(hanging, only_client):
            pass
    assert [r.id for r in (await client.list_runs()).items] == [waiting.id, asking.id]
    answered = await client.answer(asking.id, (await client.list_interrupts(session_id=SESSION))[0].id, "yes")
    assert answered.record.status is RunStatus.QUEUED
    assert (await client.cancel(waiting.id)).status is RunStatus.CANCELLED
    await client.delete_session(USER, "other")

    # Nobody has executed it, and whoever comes next may.
    executor = database()
    async with make_runner(hanging, executor) as next_runner:
        assert await (await next_runner.follow(asking.id)).result() == "yes!"
    await executor.close()
    await client.close()
    await only_client.close()


@pytest.mark.parametrize("role", ["client", "executor"])
async def test_a_client_whose_answer_got_lost_leaves_the_run_to_the_executor(store, database, role):
    runner = make_runner(hanging, store)
    run = await runner.start(USER, SESSION, "ask")
    await run.wait()
    await runner.close()  # it keeps the executor's role, and looks for nothing any more

    opened = database(role=role)
    client = make_runner(hanging, FaultyStore(opened, [fail_after("answer")]))
    with raises(Unavailable, "store.unavailable"):
        await client.answer(run.id, (await client.list_interrupts())[0].id, "yes")
    await client.hub.settle(20)
    await client.close()
    record = await opened.get_run(APP, run.id)
    assert (record.status, record.error) == (RunStatus.QUEUED, None)
    await opened.close()


# -- over restarts ------------------------------------------------------------------------------------------------------


async def test_a_run_goes_on_after_a_restart(database):
    done = []

    @agent
    async def slow(ctx):
        await ctx.step("pay", lambda: done.append(ctx.attempt))
        yield Content("model").with_text("one")
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        yield "two"

    first = database()
    runner = make_runner(slow, first)
    run = await runner.start(USER, SESSION, "go")
    async for item in run.events():
        if isinstance(item, Event) and not isinstance(item, Partial):
            break
    assert (await runner.close(grace=0)).suspended == 1
    await first.close()
    second = database()
    try:
        async with make_runner(slow, second) as runner:
            assert await (await runner.follow(run.id)).result() == "two"
        assert done == [1]
        assert await said_in(second) == [("user", "go"), ("slow", "one"), ("slow", "two")]
    finally:
        await second.close()


async def test_a_database_that_is_closed_under_its_runs_hangs_nobody(database):
    go_on = asyncio.Event()

    @agent
    async def helper(ctx):
        yield "before"
        await go_on.wait()
        yield Content("model").with_text("after")

    opened = database()
    runner = make_runner(helper, opened)
    run = await runner.start(USER, SESSION, "go")
    async for _ in run.events():
        break
    await opened.close()
    go_on.set()
    async with asyncio.timeout(20):
        assert (await read_events(run.events())).error.code == "store.closed"
        await runner.close(grace=0)


# -- values -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["NUL \x00 inside", "lone \ud800 surrogate", "🎈" * 1000, "\u2028\u2029\x85"])
async def test_strange_text_is_stored_or_refused_but_loses_no_run(store, text):
    @agent
    async def helper(ctx):
        match ctx.user_content.text:
            case "say":
                yield text
            case "whole":
                yield Content("model", ()).with_text(text)
            case "state":
                ctx.state["x"] = text
                yield "done"
            case "output":
                yield Event(output={"x": text})
            case "step":
                yield (await ctx.step("s", lambda: text))
            case "error":
                raise AgentError(text)

    valid = "\ud800" not in text
    runner = make_runner(helper, store, run_config=RunConfig(timeout=10))
    for kind in ("say", "whole", "state", "output", "step", "error"):
        async with asyncio.timeout(20):
            run = await runner.start(USER, kind, kind)
            outcome = await outcome_of(run)
            record = await store.get_run(APP, run.id)
        assert record.status.terminal
        if valid:
            assert outcome == {"state": "done", "output": {"x": text}, "error": "agent.failed"}.get(kind, text)
        else:
            assert record.status is RunStatus.FAILED
            assert isinstance(outcome, str)
    await at_rest(runner)

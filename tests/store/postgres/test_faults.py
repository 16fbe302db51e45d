"""Connections that break, servers that go away, locks, timeouts: nothing is lost, nothing is doubled, and errors have codes."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import SojournError, Unavailable, Unsupported
from sojourn.postgres import pool
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Batch, Fence
from sojourn.runner.attempt import log
from sojourn.runner.runner import Runner
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.testing.builders import event, new_run, session_key, start, step, write
from sojourn.testing.postgresql import Server
from sojourn.testing.suite import raises
from sojourn.testing.world import all_events

pytestmark = pytest.mark.anyio


@pytest.fixture
def through(opened, proxy):
    """A store that reaches the server through the proxy."""
    return opened(f"postgresql://sojourn@127.0.0.1:{proxy.port}/postgres")


async def session_of(store, events=0):
    return await store.get_session(app_name="shop", user_id="alice", session_id="s1", events=events)


async def texts_of(store):
    return [e.text for e in await all_events(store, await session_of(store))]


# -- a reply that is lost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2])
async def test_an_append_whose_reply_is_lost_is_recognised(through, proxy, attempts):
    run = await start(through)
    if attempts == 2:
        await through.requeue_lost(run.uid)
        run = (await through.begin(run.uid)).record
    said = event(run, 1, "said once", state={"k": 1}, increments={"user:n": 5})
    batch = Batch(events=[said], steps=[step("pay", "paid")])
    proxy.lose_reply(b"said once")
    with raises(Unavailable, "store.unavailable"):
        await through.append(Fence(run.uid, run.attempt), batch)
    assert proxy.cuts == 1
    for _ in range(2):
        appended = await through.append(Fence(run.uid, run.attempt), batch)
        assert [(e.seq, e.pos, e.text) for e in appended.events] == [(2, 2, "said once")]
    assert (await session_of(through)).state == {"k": 1, "user:n": 5}
    assert await texts_of(through) == ["Hello", "said once"]
    assert [s.key for s in await through.list_steps(run.uid)] == ["pay"]
    again = await write(through, run, event(run, 2, "goes on"))
    assert again.events[0].pos == 3


async def test_an_append_that_never_arrived_is_stored_when_it_is_repeated(through, proxy):
    run = await start(through)
    proxy.swallow(b"said once")
    batch = Batch(events=[event(run, 1, "said once")])
    with raises(Unavailable, "store.unavailable"):
        await through.append(Fence(run.uid, run.attempt), batch)
    assert await texts_of(through) == ["Hello"]
    assert (await through.append(Fence(run.uid, run.attempt), batch)).events[0].pos == 2


async def test_a_submission_whose_reply_is_lost_is_known(through, proxy):
    await through.become_executor()
    run = new_run("r1", text="only once")
    proxy.lose_reply(b"only once")
    with raises(Unavailable, "store.unavailable"):
        await through.submit(run, begin=True)
    submitted = await through.submit(run, begin=True)
    assert submitted.known
    assert (submitted.record.status, submitted.record.attempt) == (RunStatus.RUNNING, 1)
    assert await texts_of(through) == ["only once"]


@agent
async def worker(ctx):
    yield "one "
    yield Content("model").with_text("middle")
    ctx.state.increment("user:count")
    ctx.state["last"] = await ctx.step("pay", lambda: "paid")
    yield "the end"


async def run_worker(store):
    runner = Runner(app_name="shop", agent=worker, session_service=store)
    run = await runner.start("alice", "s1", "Hello", run_id="r1")
    await run.wait()
    return run


@pytest.mark.parametrize("way", ["lose_reply", "swallow"])
@pytest.mark.parametrize("where", ["middle", "the end"])
async def test_a_run_whose_connection_is_cut_stores_everything_once(through, proxy, monkeypatch, way, where):
    monkeypatch.setattr(log, "APPEND_RETRIES", (0.0, 0.0))
    await through.become_executor()
    getattr(proxy, way)(where.encode())
    run = await run_worker(through)
    assert proxy.cuts == 1
    assert await texts_of(through) == ["Hello", "middle", "one the end"] or await texts_of(through) == [
        "Hello", "one ", "middle", "the end",
    ]  # fmt: skip
    assert (await session_of(through)).state == {"user:count": 1, "last": "paid"}
    record = await through.get_run("shop", "r1")
    assert record.status is RunStatus.COMPLETED
    assert run.status is RunStatus.COMPLETED


@pytest.mark.parametrize("way", ["lose_reply", "swallow"])
async def test_a_run_whose_recording_is_not_acknowledged_is_executed_once(through, proxy, way):
    await through.become_executor()
    runner = Runner(app_name="shop", agent=returns, session_service=through)
    getattr(proxy, way)(b"only once")
    run = await runner.start("alice", "s1", "only once", run_id="r1")
    assert await run.result() == "An answer."
    assert proxy.cuts == 1
    assert await texts_of(through) == ["only once", "An answer."]
    await runner.close()
    assert await through.unfinished("shop") == []


# -- round trips --------------------------------------------------------------------------------------------------------


@agent
async def returns(ctx):
    ctx.state["n"] = 1
    return "An answer."


@agent
async def seals(ctx):
    for word in ("An ", "answer."):
        yield word


@agent
async def yields(ctx):
    yield Content("model").with_text("An answer.")


@pytest.mark.parametrize(("answers", "expected"), [(returns, 2), (seals, 2), (yields, 3)])
async def test_round_trips_of_a_run(through, proxy, answers, expected):
    """One to record and begin it, one for what it yields before its end, one to close it."""
    runner = Runner(app_name="shop", agent=answers, session_service=through)
    for n in range(20):
        before = proxy.round_trips
        assert await (await runner.start("alice", "s1", f"{n}")).result() == "An answer."
    assert proxy.round_trips - before <= expected


# -- servers and connections that go away ----------------------------------------------------------------------------------


async def test_connections_that_were_cut_are_made_again(through, proxy):
    run = await start(through)
    for n in range(3):
        proxy.cut()
        assert (await write_in_the_end(through, run, event(run, n + 1, str(n)))).events[0].pos == n + 2
    assert await texts_of(through) == ["Hello", "0", "1", "2"]


async def write_in_the_end(store, run, *events):
    """Repeats an append until the server is reached; what it stored before is recognised."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await write(store, run, *events)
            except Unavailable:
                await asyncio.sleep(0)


async def test_a_server_that_is_away_is_told_of(through, proxy):
    run = await start(through)
    proxy.refuse()
    for call in (
        lambda: session_of(through),
        lambda: write(through, run, event(run, 1)),
        lambda: through.create_session(app_name="shop", user_id="alice"),
        through.changes,
    ):
        with raises(Unavailable, "store.unavailable"):
            await call()
    proxy.accept()
    assert await texts_of(through) == ["Hello"]
    assert await through.changes() == []
    assert (await through.submit(new_run("r2"), begin=True)).begun is not None


@pytest.fixture
async def own_server():
    """A server that a test may stop."""
    server = Server()
    server.start()
    yield server
    server.delete()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_server_that_is_restarted_in_the_middle_of_runs(own_server, monkeypatch):
    monkeypatch.setattr(log, "APPEND_RETRIES", tuple([0.05] * 400))
    store = PostgresSessionService(own_server.url())
    gates = asyncio.Semaphore(0)

    @agent
    async def waits(ctx):
        for n in range(6):
            await gates.acquire()
            ctx.state.increment("user:count")
            yield Content("model").with_text(f"{ctx.session_id}/{n}")

    runner = Runner(app_name="shop", agent=waits, session_service=store)
    runs = [await runner.start("alice", f"s{n}", "Hello") for n in range(8)]
    for mode in ("fast", "immediate", "fast"):
        for _ in range(8):
            gates.release()
        stopping = asyncio.to_thread(own_server.stop, mode)
        for _ in range(8):
            gates.release()
        await stopping
        await asyncio.to_thread(own_server.start)
    assert await asyncio.gather(*(run.result() for run in runs)) == [f"s{n}/5" for n in range(8)]
    for n in range(8):
        session = await store.get_session(app_name="shop", user_id="alice", session_id=f"s{n}", events=100)
        assert [e.text for e in session.events] == ["Hello", *(f"s{n}/{m}" for m in range(6))]
        assert [e.seq for e in session.events] == list(range(1, 8))
    assert session.state == {"user:count": 48}
    # The executor's role went with the server, and is taken again.
    assert await store.changes() == []
    assert await (await runner.start("bob", "s", "Hello")).cancel() is not None
    await runner.close(grace=0)
    await store.close()


async def test_a_network_that_says_nothing_any_more(opened, proxy, monkeypatch):
    await opened().list_apps()
    store = opened(f"postgresql://sojourn@127.0.0.1:{proxy.port}/postgres", statement_timeout=1)
    run = await start(store)
    # Each finds a connection that was made before.
    await asyncio.gather(*(session_of(store) for _ in range(3)))
    proxy.stall()
    calls = (
        write(store, run, event(run, 1, "late")),
        store.patch_session(app_name="shop", user_id="alice", session_id="s1", state_delta={"k": 1}),
        session_of(store, 1),
    )
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(failure, "code", failure) for failure in failures] == ["store.timeout"] * 3
    proxy.go_on()
    assert (await write_in_the_end(store, run, event(run, 1, "late"))).events[0].pos == 2
    assert await texts_of(store) == ["Hello", "late"]


async def test_a_server_that_takes_connections_and_says_nothing(opened, proxy, monkeypatch):
    proxy.stall()
    store = opened(f"postgresql://sojourn@127.0.0.1:{proxy.port}/postgres")
    with monkeypatch.context() as patch:
        patch.setattr(pool, "CONNECT_TIMEOUT", 0.1)
        for call in (store.list_apps, store.become_executor):
            with raises(Unavailable, "store.unavailable"):
                await call()
    proxy.go_on()
    assert await store.list_apps() == []


# -- limits ----------------------------------------------------------------------------------------------------------------


async def locked(admin, schema, what="sessions"):
    """A transaction of somebody else's that locks a table."""
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute(f'LOCK TABLE "{schema}".{what}')
    return transaction


async def test_a_statement_that_takes_too_long(opened, schema, admin):
    await opened().list_apps()
    store = opened(statement_timeout=1)
    run = await start(store)
    lock = await locked(admin, schema)
    calls = session_of(store), write(store, run, event(run, 1, "late"))
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert [getattr(failure, "code", failure) for failure in failures] == ["store.timeout"] * 2
    await lock.rollback()
    assert await texts_of(store) == ["Hello"]
    assert (await write(store, run, event(run, 1, "late"))).events[0].pos == 2


async def test_a_pool_that_is_exhausted(opened, schema, admin):
    store = opened(pool_size=2, acquire_timeout=0.2, statement_timeout=30)
    run = await start(store)
    lock = await locked(admin, schema)
    waiting = [asyncio.ensure_future(session_of(store)) for _ in range(2)]
    while await admin.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:
        await asyncio.sleep(0)
    with raises(Unavailable, "store.pool_exhausted"):
        await write(store, run, event(run, 1))
    await lock.rollback()
    await asyncio.gather(*waiting)
    assert (await write(store, run, event(run, 1))).events[0].pos == 2


async def test_more_callers_than_connections_wait_for_their_turn(opened):
    store = opened(pool_size=2)

    async def whole(n):
        run = await start(store, f"r{n}", session_key(f"s{n}"))
        await write(store, run, event(run, 1, increments={"app:n": 1}), move=Move.COMPLETE)

    await asyncio.gather(*(whole(n) for n in range(100)))
    session = await store.get_session(app_name="shop", user_id="alice", session_id="s0")
    assert session.state == {"app:n": 100}


# -- what the server refuses --------------------------------------------------------------------------------------------


async def fail_inserts(admin, schema, table, state, times):
    """Lets the next inserts into a table fail with a state of SQL's."""
    await admin.execute(f"""
        CREATE SEQUENCE "{schema}".failures;
        CREATE FUNCTION "{schema}".fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('"{schema}".failures') <= {times} THEN
                RAISE EXCEPTION 'failing for a test' USING ERRCODE = '{state}';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER fail BEFORE INSERT ON "{schema}".{table} FOR EACH ROW EXECUTE FUNCTION "{schema}".fail();
    """)


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_what_others_locks_roll_back_is_done_again(store, schema, admin, state):
    run = await start(store)
    await fail_inserts(admin, schema, "events", state, 4)
    assert (await write(store, run, event(run, 1, "there", increments={"user:n": 1}))).events[0].seq == 2
    assert await texts_of(store) == ["Hello", "there"]
    assert (await session_of(store)).state == {"user:n": 1}


async def test_tables_that_are_altered_meanwhile(opened, schema, admin):
    store = opened(pool_size=1)
    run = await start(store, attached=False)
    await store.requeue_lost(run.uid)
    await admin.execute(f'ALTER TABLE "{schema}".sessions ALTER COLUMN created_at TYPE numeric')
    await admin.execute(f'ALTER TABLE "{schema}".runs ALTER COLUMN deaths TYPE integer')
    assert (await store.begin(run.uid)).record.attempt == 2


async def test_real_deadlocks_are_resolved(store, schema, admin):
    await store.create_session(app_name="shop", user_id="alice", session_id="s1", state={"app:a": 0, "app:b": 0})
    run = await start(store)
    await admin.execute("SET deadlock_timeout = '1h'")
    change = f"UPDATE \"{schema}\".state SET value = '7' WHERE key = $1"
    async with admin.transaction():
        await admin.execute(change, "app:b")
        # The store's locks `a` and waits for `b`; here it is the other way round, so only the store's can give way.
        writing = asyncio.ensure_future(write(store, run, event(run, 1, increments={"app:a": 1, "app:b": 1})))
        while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0)
        await admin.execute(change, "app:a")
    assert (await writing).events[0].seq == 2
    assert (await session_of(store)).state == {"app:a": 8, "app:b": 8}


@pytest.mark.parametrize(
    ("state", "code"), [("53100", "store.unavailable"), ("53200", "store.unavailable"), ("XX001", "store.corrupt")]
)
async def test_what_the_server_cannot_do(store, schema, admin, state, code):
    run = await start(store)
    await fail_inserts(admin, schema, "events", state, 3)
    for _ in range(3):
        with raises(Unavailable, code):
            await write(store, run, event(run, 1, "there", state={"k": 1}))
    assert await texts_of(store) == ["Hello"]
    assert (await session_of(store)).state == {}
    assert (await write(store, run, event(run, 1, "there"))).events[0].seq == 2


@pytest.mark.parametrize("state", ["26000", "42P05"])
async def test_prepared_statements_that_a_pooler_has_mixed_up(store, schema, admin, state):
    run = await start(store)
    await fail_inserts(admin, schema, "events", state, 1)
    with raises(Unsupported, "store.pooled"):
        await write(store, run, event(run, 1, "there"))
    assert await texts_of(store) == ["Hello"]


async def test_a_role_that_may_not(postgres, opened, schema, admin):
    store = opened()
    await store.list_apps()
    await admin.execute(f"DROP ROLE IF EXISTS guest_{schema}; CREATE ROLE guest_{schema} LOGIN")
    guest = opened(f"postgresql://guest_{schema}:secret@127.0.0.1:{postgres.port}/postgres")
    nowhere = opened(f"postgresql://sojourn:secret@127.0.0.1:{postgres.port}/nowhere")
    for refused in (guest, nowhere):
        with pytest.raises(SojournError) as caught:
            await refused.list_apps()
        assert (caught.value.code, caught.value.retryable) == ("store.refused", False)
        assert "secret" not in f"{caught.value} {caught.value.__cause__!r}"


async def test_tables_that_are_gone(store, schema, admin):
    await store.list_apps()
    await admin.execute(f'DROP SCHEMA "{schema}" CASCADE')
    with raises(Unavailable, "store.gone"):
        await store.list_apps()


# -- cancels ---------------------------------------------------------------------------------------------------------------


async def test_a_cancel_waits_for_the_outcome(store, schema, admin):
    run = await start(store)
    lock = await locked(admin, schema, "events")
    writing = asyncio.ensure_future(write(store, run, event(run, 1, "there")))
    while not await admin.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        await asyncio.sleep(0)
    for _ in range(3):
        writing.cancel()
        await asyncio.sleep(0)
    assert not writing.done()
    await lock.rollback()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await texts_of(store) == ["Hello", "there"]
    assert (await write(store, run, event(run, 2, "more"))).events[0].seq == 3


async def test_callers_that_are_cancelled_at_any_moment_lose_no_connection(opened):
    store = opened(pool_size=3)
    run = await start(store)
    for n in range(40):
        calls = [
            asyncio.ensure_future(call)
            for call in (session_of(store, 5), write(store, run, event(run, n + 1)), store.history(session_key(), 10))
        ]
        for _ in range(n):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await write(store, run, event(run, n + 1))
    assert len(await texts_of(store)) == 41


# -- leftovers -------------------------------------------------------------------------------------------------------------


async def test_keys_that_were_only_looked_at_leave_nothing(store, schema, admin):
    run = await start(store)
    said = {"state": {"k": 1}, "increments": {"user:n": 0.5}}
    await write(store, run, event(run, 1, **said))
    await store.patch_session(app_name="shop", user_id="alice", session_id="s1", state_deleted=["k", "user:n", "app:never"])
    await store.requeue_lost(run.uid)
    run = (await store.begin(run.uid)).record
    # Said again, it changes nothing; said differently, it puts back what is not there any more.
    assert (await write(store, run, event(run, 1, **said))).events == [None]
    assert await admin.fetch(f'SELECT * FROM "{schema}".state') == []
    await store.requeue_lost(run.uid)
    run = (await store.begin(run.uid)).record
    await write(store, run, event(run, 1, "differs", deleted=["a"], increments={"user:b": 1.5}))
    rows = await admin.fetch(f'SELECT key, value FROM "{schema}".state')
    assert [tuple(row) for row in rows] == [("user:b", "1.5")]

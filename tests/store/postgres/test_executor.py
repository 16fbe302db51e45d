"""One process executes the runs of a schema; others are clients."""

import asyncio
import sys

import asyncpg
import pytest

from sojourn.agents.function import agent
from sojourn.errors import Conflict, Fenced, InvalidInput, Unavailable, Unsupported
from sojourn.run.status import RunStatus
from sojourn.run.store import Batch, Fence
from sojourn.runner.delivery import hub
from sojourn.runner.runner import Runner
from sojourn.store.postgres import executor
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.testing.builders import answer_event, ask, event, new_run, session_key, start, write
from sojourn.testing.suite import raises

pytestmark = pytest.mark.anyio


async def backend_of(admin, store):
    """The process of the server that holds the executor's role of a store."""
    return await admin.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE $1", f"sojourn executor % {store._role._token}"
    )


async def test_a_second_executor_is_refused_and_told_who_is_the_first(opened, schema):
    first, second = opened(), opened()
    await first.become_executor()
    await first.become_executor()
    with pytest.raises(Conflict, match=f"this process executes the runs of schema '{schema}' of PostgreSQL database") as caught:
        await second.become_executor()
    assert caught.value.code == "store.in_use"
    for call in (second.submit(new_run("r1"), begin=True), second.begin(1), second.append(Fence(1, 1), Batch())):
        with raises(Conflict, "store.in_use"):
            await call
    await first.close()
    await second.become_executor()


async def test_schemas_have_an_executor_each(opened, schema):
    await opened().become_executor()
    await opened(schema=f"{schema} other").become_executor()


async def test_another_process_is_named_by_its_pid(opened, postgres, schema):
    code = f"""
import asyncio, sys
from sojourn.store.database import DatabaseSessionService
async def hold():
    store = DatabaseSessionService({postgres.url()!r}, schema={schema!r})
    await store.become_executor()
    print("held", flush=True)
    await asyncio.Event().wait()
asyncio.run(hold())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    try:
        assert await process.stdout.readline() == b"held\n"
        store = opened()
        with pytest.raises(Conflict, match=f"process {process.pid} executes"):
            await store.become_executor()
        process.kill()
        await process.wait()
        # The server notices at some moment that the process has died.
        await store.become_executor()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_client_only_executes_nothing(opened):
    client = opened(role="client")
    for call in (
        client.become_executor(), client.submit(new_run("r1"), begin=True), client.begin(1), client.append(Fence(1, 1), Batch())
    ):  # fmt: skip
        with raises(Conflict, "store.client_only"):
            await call
    await client.create_session(app_name="shop", user_id="alice", session_id="s1")
    assert await client.changes() == []


async def test_what_clients_do_is_told_once(opened):
    store, client = opened(), opened(role="client")
    await store.become_executor()
    running, waiting, deleted = [await start(store, f"r{n}", session_key(f"s{n}")) for n in range(3)]
    await ask(store, waiting, 1, "q1")
    assert await store.changes() == []
    assert (await client.request_cancel(running.uid, "enough")).status is RunStatus.RUNNING
    assert (await client.answer(waiting.uid, "q1", "yes", answer_event(waiting, "q1", "yes"))).record.status is RunStatus.QUEUED
    await client.delete_session(app_name="shop", user_id="alice", session_id="s2")
    found = {(c.kind, c.run_uid): c.record for c in await store.changes()}
    assert found.keys() == {("cancel", running.uid), ("queued", waiting.uid), ("closed", deleted.uid)}
    assert found["cancel", running.uid].cancel_requested == "enough"
    assert found["queued", waiting.uid].status is RunStatus.QUEUED
    assert found["closed", deleted.uid] is None
    assert await store.changes() == []


async def test_what_the_executor_does_itself_is_not_told(opened):
    store = opened()

    async def work(n):
        run = await start(store, f"r{n}", session_key(f"s{n}"))
        await write(store, run, event(run, 1))
        await ask(store, run, 2, "q")
        await store.answer(run.uid, "q", "yes", answer_event(run, "q", "yes"))
        run = (await store.begin(run.uid)).record
        if n % 3:
            await store.request_cancel(run.uid, "enough")
        else:
            await store.delete_session(app_name="shop", user_id="alice", session_id=f"s{n}")

    await store.become_executor()
    working = asyncio.gather(*(work(n) for n in range(20)))
    looks = 0
    while not working.done():
        assert await store.changes() == []
        looks += 1
    await working
    assert looks > 3
    assert await store.changes() == []


async def test_a_running_run_whose_executor_is_gone_is_cancelled_at_once(opened):
    store, client = opened(), opened(role="client")
    run = await start(store)
    assert (await client.request_cancel(run.uid, "enough")).status is RunStatus.RUNNING
    await store.close()
    cancelled = await client.request_cancel(run.uid, "again")
    assert (cancelled.status, cancelled.error.message) == (RunStatus.CANCELLED, "enough")


async def test_a_role_whose_connection_broke_is_taken_again(opened, admin):
    store, other = opened(), opened()
    run = await start(store)
    for _ in range(3):
        assert await admin.fetchval("SELECT pg_terminate_backend($1, 20000)", await backend_of(admin, store))
        while store._role.held:
            await asyncio.sleep(0)
        assert (await write(store, run, event(run, 1, "goes on"))).record.status is RunStatus.RUNNING
        assert await store.changes() == []
        with raises(Conflict, "store.in_use"):
            await other.become_executor()


async def test_a_role_that_another_took_meanwhile_is_lost(opened, admin):
    store, other = opened(), opened()
    run, finished = await start(store), await start(store, "r2", session_key("s2"))
    await admin.fetchval("SELECT pg_terminate_backend($1, 20000)", await backend_of(admin, store))
    while store._role.held:
        await asyncio.sleep(0)
    await other.become_executor()
    for lost in await other.unfinished("shop"):
        await other.requeue_lost(lost.uid)
    begun = await other.begin(run.uid)
    with raises(Conflict, "store.in_use"):
        await store.submit(new_run("r3", session_key("s3")), begin=True)
    assert begun.record.attempt == 2
    with pytest.raises(Exception, match="may not write"):
        await write(store, run, event(run, 1, "of a zombie"))
    await write(other, begun.record, event(begun.record, 1, "of the newest attempt"))
    # Its own runs are not its own any more, and it is told so.
    assert {(c.kind, c.run_uid) for c in await store.changes()} >= {("queued", finished.uid)}


async def test_a_run_that_another_executor_took_up_again_is_let_go(opened, admin, monkeypatch):
    # The watch looks when the test says so.
    monkeypatch.setattr(hub, "CHANGES_SECONDS", 3600.0)
    began, ended = asyncio.Event(), asyncio.Event()

    @agent
    async def waits(ctx):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    store, other = opened(), opened()
    runner = Runner(app_name="shop", agent=waits, session_service=store)
    run = await runner.start("alice", "s1", "Hello")
    await began.wait()
    await admin.fetchval("SELECT pg_terminate_backend($1, 20000)", await backend_of(admin, store))
    while store._role.held:
        await asyncio.sleep(0)
    await other.become_executor()
    (lost,) = await other.unfinished("shop")
    await other.requeue_lost(lost.uid)
    again = (await other.begin(lost.uid)).record
    (change,) = await store.changes()
    assert (change.kind, change.run_uid, change.record) == ("closed", lost.uid, again)
    await hub.hub_of(store)._act_on(change)
    await ended.wait()
    with pytest.raises(Fenced):
        await run.result()
    await runner.close()
    assert await other.get_run("shop", lost.id) == again


async def test_a_broken_connection_that_the_server_still_has_keeps_nobody_out(opened, proxy):
    store = opened(f"postgresql://sojourn@127.0.0.1:{proxy.port}/postgres")
    await store.become_executor()
    # As after a break that only this end has seen.
    held, store._role._held = store._role._held, None
    await store.become_executor()
    assert store._role.held
    await held.abort()


async def test_a_connection_that_says_nothing_any_more_does_not_keep_the_role(opened, proxy, monkeypatch):
    monkeypatch.setattr(executor, "HEARTBEAT_TIMEOUT", 1.0)
    store = opened(f"postgresql://sojourn@127.0.0.1:{proxy.port}/postgres")
    await store.become_executor()
    proxy.stall()
    with raises(Unavailable, "store.timeout"):
        await store.changes()
    assert not store._role.held
    proxy.go_on()
    assert await store.changes() == []
    assert store._role.held


async def test_behind_a_pooler_of_transactions_the_executor_needs_an_address_of_its_own(opened, postgres):
    pooled = opened(statement_cache_size=0)
    with raises(Unsupported, "store.pooled"):
        await pooled.become_executor()
    await pooled.create_session(app_name="shop", user_id="alice", session_id="s1")
    executing = opened(statement_cache_size=0, direct_url=postgres.url())
    run = await start(executing)
    assert (await write(executing, run, event(run, 1, state={"k": 1}))).events[0].pos == 2
    with raises(Conflict, "store.in_use"):
        await opened().become_executor()


async def test_nothing_is_asked_for_that_a_pooler_of_sessions_refuses(opened, proxy, postgres):
    store = opened(postgres.url(port=proxy.port), statement_timeout=7)
    await start(store)
    assert proxy.settings - {""} == {"user", "database", "client_encoding", "application_name"}
    ours = [store._role._held.conn, await store._database._connect("another one")]
    assert [[await conn.fetchval(f"SHOW {name}") for name in ("jit", "statement_timeout")] for conn in ours] == [
        ["off", "7s"]
    ] * 2
    await ours[1].close()


async def test_a_pool_of_one_connection_is_refused(opened, postgres):
    async with asyncpg.create_pool(postgres.url(), min_size=0, max_size=1) as pool:
        with raises(InvalidInput, "store.invalid_option"):
            opened(pool)
        await opened(pool, role="client").list_apps()


async def test_a_pool_that_was_given_is_used_and_not_closed(opened, postgres):
    async with asyncpg.create_pool(postgres.url(), min_size=0, max_size=3) as pool:
        store = opened(pool)
        run = await start(store)
        await write(store, run, event(run, 1, "there"))
        assert pool.get_size() - pool.get_idle_size() == 1
        with raises(Conflict, "store.in_use"):
            await opened().become_executor()
        await store.close()
        assert pool.get_size() - pool.get_idle_size() == 0
        assert await pool.fetchval("SELECT 1") == 1
        with raises(Unavailable, "store.closed"):
            await store.list_apps()
    await opened().become_executor()


def test_event_loops_have_connections_of_their_own(postgres, schema):
    store = PostgresSessionService(postgres.url(), schema=schema)

    async def use(n):
        run = await start(store, f"r{n}", session_key(f"s{n}"))
        await write(store, run, event(run, 1))
        assert await store.changes() == []
        if n == 2:
            await store.close()
        else:
            # What an event loop leaves open is the operating system's.
            for connections in store._database._connections.values():
                connections.terminate()
            if store._role.is_here:
                await store._role._held.abort()

    for n in range(3):
        asyncio.run(use(n))


def test_event_loops_wait_for_the_role_one_after_the_other(postgres, schema):
    store = PostgresSessionService(postgres.url(), schema=schema)

    async def use():
        await store._database.open()
        await asyncio.gather(*(store.become_executor() for _ in range(3)))
        await store._role.release()
        for connections in store._database._connections.values():
            connections.terminate()

    for _ in range(2):
        asyncio.run(use())


async def test_closing_twice_is_fine(opened):
    store = opened()
    await store.close()
    await store.close()
    with raises(Unavailable, "store.closed"):
        await store.become_executor()

"""A pool that somebody else has made, in his own way."""

import asyncio
import json

import asyncpg
import pytest

from sojourn.errors import Unavailable
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Batch, Fence
from sojourn.testing.builders import event, new_run, session_key, start, write
from sojourn.testing.suite import raises

pytestmark = pytest.mark.anyio


class OwnRecord(asyncpg.Record):
    """A row of somebody's own kind."""


async def with_codecs(conn):
    for name in ("json", "jsonb"):
        await conn.set_type_codec(name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)


@pytest.fixture
async def pool(postgres, admin, schema):
    """A pool whose connections are set up in ways that are not ours."""
    await admin.execute(f"CREATE SCHEMA other_{schema}; CREATE TABLE other_{schema}.sessions (id int)")
    settings = {
        "default_transaction_isolation": "serializable",
        "search_path": f"other_{schema}",
        "standard_conforming_strings": "off",
        "application_name": "somebody's",
    }
    async with asyncpg.create_pool(
        postgres.url(), min_size=0, max_size=6, init=with_codecs, record_class=OwnRecord, server_settings=settings
    ) as pool:
        yield pool
    await admin.execute(f"DROP SCHEMA other_{schema} CASCADE")


async def test_settings_of_somebody_elses_change_nothing(pool, opened):
    store = opened(pool)

    async def converse(n):
        for turn in range(5):
            run = await start(store, f"r{n}.{turn}", session_key(f"s{n % 2}"))
            done = event(run, 1, "ß \0 \\", increments={"user:n": 1}, state={"user:last": n})
            await store.append(Fence(run.uid, 1), Batch([done], move=Move.COMPLETE))
            await store.history(run.key, 10)

    await asyncio.gather(*(converse(n) for n in range(8)))
    session = await store.get_session(app_name="shop", user_id="alice", session_id="s0", events=100)
    assert session.state["user:n"] == 40
    assert [e.seq for e in session.events] == list(range(1, 41))


async def test_the_role_is_taken_again_when_its_connection_breaks(pool, opened, admin):
    store = opened(pool)
    run = await start(store)
    await admin.fetch(
        "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity WHERE application_name LIKE $1",
        f"sojourn executor % {store._role._token}",
    )
    while store._role.held:
        await asyncio.sleep(0)
    assert await store.changes() == []
    assert store._role.held
    assert (await write(store, run, event(run, 1, "goes on"))).record.status is RunStatus.RUNNING
    assert (await store.submit(new_run("r2", session_key("s2")), begin=True)).record.status is RunStatus.RUNNING


async def test_a_pool_that_its_owner_has_ended_is_told_of(pool, opened):
    store = opened(pool)
    run = await start(store)
    pool.terminate()
    for call in (
        store.list_apps, store.changes, lambda: store.submit(new_run("r2"), begin=True),
        lambda: write(store, run, event(run, 1, "too late")),
    ):  # fmt: skip
        with raises(Unavailable, "store.unavailable"):
            await call()


async def test_what_the_role_leaves_to_the_pool_is_as_it_was(postgres, opened):
    async def nothing(conn):
        pass

    async with asyncpg.create_pool(postgres.url(), min_size=0, max_size=2, reset=nothing) as pool:
        store = opened(pool)
        await store.become_executor()
        await store.close()
        names = [await pool.fetchval("SELECT current_setting('application_name')") for _ in range(4)]
        assert not any("executor" in name for name in names)

"""A server whose disk is full: what was answered stays, what was not is not half there, and it goes on once there is room."""

import asyncio
import hashlib
import os
import subprocess

import asyncpg
import pytest

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import Unavailable
from sojourn.runner.attempt import log
from sojourn.runner.runner import Runner
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.testing.builders import event, start, write
from sojourn.testing.postgresql import Server
from sojourn.testing.suite import raises

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(180)]

SEGMENT = 16 * 2**20
"""Bytes of a file of the server's log."""


class Disk:
    """The disk of a running server, as far as the server can tell: its files grow up to a bound, and not a byte beyond."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def fill(self, size: int) -> None:
        """Lets no file grow beyond a size, for those processes of the server that start from now on."""
        self._bound(str(size))

    def make_room(self) -> None:
        self._bound("unlimited")

    def _bound(self, size: str) -> None:
        pid = (self._server.directory / "data" / "postmaster.pid").read_text().split()[0]
        # Who sets it has to be who runs the server.
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(["prlimit", f"--pid={pid}", f"--fsize={size}:"], check=True, cwd="/", **user)


@pytest.fixture
async def server():
    server = Server()
    server.start()
    yield server
    server.delete()


@pytest.fixture
async def store(server):
    store = PostgresSessionService(server.url())
    yield store
    await store.close()


async def texts_of(store, session_id="s1"):
    session = await store.get_session(app_name="shop", user_id="alice", session_id=session_id, events=100)
    return [e.text for e in session.events], session.state


async def test_tables_that_cannot_grow(server, store):
    run = await start(store)
    await write(store, run, event(run, 1, "before", state={"k": 1}))
    admin = await asyncpg.connect(server.url())
    await admin.execute(
        "INSERT INTO sojourn.events (sid, seq, run_uid, path, attempt, body) "
        "SELECT 0, n, 0, '', 1, repeat('x', 1000) FROM generate_series(1, 16000) n"
    )
    await store.close()
    # Half a page more than what is there: the next page is begun, and cannot be finished.
    used = await admin.fetchval("SELECT pg_relation_size('sojourn.events')")
    assert used >= SEGMENT
    Disk(server).fill(used + 4096)
    full = PostgresSessionService(server.url())
    # Stored as it is, in the row: short enough not to be moved out of it, and with nothing to compress.
    refused = hashlib.shake_256(b"a text").hexdigest(750)
    stored = 1
    with raises(Unavailable, "store.unavailable"):
        # What is free within the table's pages is used first.
        for n in range(2, 100):
            await write(full, run, event(run, n, refused, state={"k": n}))
            stored = n
    for _ in range(3):
        with raises(Unavailable, "store.unavailable"):
            await write(full, run, event(run, stored + 1, refused, state={"k": stored + 1}))
    expected = ["Hello", "before", *[refused] * (stored - 1)]
    assert await texts_of(full) == (expected, {"k": stored})

    Disk(server).make_room()
    await full.close()
    roomy = PostgresSessionService(server.url())
    appended = await write(roomy, run, event(run, stored + 1, refused, state={"k": stored + 1}))
    assert appended.events[0].seq == stored + 2
    assert await texts_of(roomy) == ([*expected, refused], {"k": stored + 1})
    await roomy.close()
    await admin.close()


async def test_a_log_that_cannot_grow_takes_the_server_down_until_there_is_room(server, store, monkeypatch):
    monkeypatch.setattr(log, "APPEND_RETRIES", tuple([0.05] * 400))
    turns = asyncio.Semaphore(0)

    @agent
    async def waits(ctx):
        for n in range(4):
            await turns.acquire()
            ctx.state.increment("user:count")
            yield Content("model").with_text(f"{ctx.session_id}/{n}")

    runner = Runner(app_name="shop", agent=waits, session_service=store)
    runs = [await runner.start("alice", f"s{n}", "Hello") for n in range(8)]
    for _ in range(12):
        turns.release()
    Disk(server).fill(2**20)
    admin = await asyncpg.connect(server.url())
    # The whole server goes down with the process that cannot write, and again and again as it recovers.
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await admin.execute("CREATE TABLE filler (a text)")
    admin.terminate()
    for _ in range(12):
        turns.release()
    with raises(Unavailable, "store.unavailable"):
        await store.create_session(app_name="shop", user_id="bob")
    Disk(server).make_room()
    for _ in range(8):
        turns.release()
    assert await asyncio.gather(*(run.result() for run in runs)) == [f"s{n}/3" for n in range(8)]
    for n in range(8):
        texts, state = await texts_of(store, f"s{n}")
        assert texts == ["Hello", *(f"s{n}/{m}" for m in range(4))]
        assert state == {"user:count": 32}
    await runner.close(grace=0)

"""Behind a real PgBouncer, which gives each session or each transaction a connection of the server."""

import asyncio
import os
import shutil
import socket
import subprocess

import pytest

from sojourn.agents.function import agent
from sojourn.errors import Unsupported
from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.memory.types import Memory
from sojourn.runner.runner import Runner
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.testing.store_conformance import StoreConformance
from sojourn.testing.suite import raises
from tests.memory.embedders import WordEmbedder

pytestmark = [pytest.mark.anyio, pytest.mark.pooler, pytest.mark.timeout(180)]

# Fewer than a store's own: those of transactions are shared out all the time.
CONNECTIONS = {"session": 60, "transaction": 3}

CONFIG = """
[databases]
postgres = host={host} port={port} user=sojourn
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {connections}
max_client_conn = 500
"""


class Pooler:
    """A running PgBouncer before a server."""

    def __init__(self, server, directory, mode):
        self.mode = mode
        self.direct_url = server.url()
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        self.url = f"postgresql://sojourn@127.0.0.1:{port}/postgres"
        config = directory / f"{mode}.ini"
        config.write_text(
            CONFIG.format(host=server.directory, port=server.port, listen=port, mode=mode, connections=CONNECTIONS[mode])
        )
        # It refuses to run as root.
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        if user:
            for path in (config, *config.parents[:3]):
                path.chmod(0o755)
        program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "install PgBouncer, such as with: apt-get install pgbouncer"
        self._process = subprocess.Popen([program, "-q", str(config)], cwd="/", stderr=subprocess.DEVNULL, **user)

    @property
    def options(self):
        """What a store needs behind it."""
        return {"statement_cache_size": 0, "direct_url": self.direct_url} if self.mode == "transaction" else {}

    def stop(self):
        self._process.terminate()
        self._process.wait(30)


async def listening(url):
    """Returns when somebody takes connections there."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0)
        else:
            writer.close()
            return


@pytest.fixture(scope="module", params=["session", "transaction"])
def pooler(request, postgres, tmp_path_factory):
    pooler = Pooler(postgres, tmp_path_factory.mktemp("pgbouncer"), request.param)
    try:
        asyncio.run(listening(pooler.url))
        yield pooler
    finally:
        pooler.stop()


class TestBehindAPooler(StoreConformance):
    durable = True

    @pytest.fixture
    async def store(self, pooler, wiped):
        self.pooler, self.schema = pooler, wiped
        self.opened = [self.open()]
        yield self.opened[0]
        for store in self.opened:
            await store.close()

    def open(self):
        return PostgresSessionService(self.pooler.url, schema=self.schema, **self.pooler.options)

    async def reopen(self, store):
        await store.close()
        self.opened.append(self.open())
        return self.opened[-1]


@agent
async def counter(ctx):
    for _ in range(3):
        ctx.state.increment("user:count")
        yield "."


async def test_many_runs_at_once_lose_nothing_and_double_nothing(pooler, schema):
    store = PostgresSessionService(pooler.url, schema=schema, **pooler.options)

    async def converse(n):
        for _ in range(5):
            await (await runner.start(f"u{n % 5}", f"s{n}", "Hello")).result()

    async with Runner(app_name="shop", agent=counter, session_service=store) as runner:
        await asyncio.gather(*(converse(n) for n in range(40)))
        for n in range(40):
            session = await store.get_session(app_name="shop", user_id=f"u{n % 5}", session_id=f"s{n}", events=100)
            assert session.state["user:count"] == 40 // 5 * 5 * 3
            assert [e.seq for e in session.events] == list(range(1, 11))
        assert (await runner.data.erase("u1")).sessions == 8
    await store.close()


async def test_memory(pooler, schema):
    cached = {"statement_cache_size": 0} if pooler.mode == "transaction" else {}
    memory = PostgresMemoryService(pooler.url, schema=schema, embedder=WordEmbedder(), **cached)
    await memory.add("shop", "alice", [Memory("a red lamp"), Memory("a green door")])
    found = await asyncio.gather(*(memory.search("shop", "alice", "lamp", limit=1) for _ in range(30)))
    assert {entry.text for entries in found for entry in entries} == {"a red lamp"}
    await memory.close()


async def test_what_cannot_work_is_refused_with_the_remedy(pooler, schema):
    if pooler.mode == "session":
        return
    store = PostgresSessionService(pooler.url, schema=schema, statement_cache_size=0)
    with raises(Unsupported, "store.pooled"):
        await store.become_executor()
    await store.close()
    store = PostgresSessionService(pooler.url, schema=schema)
    with raises(Unsupported, "store.pooled"):
        # Sooner or later one of them is not on the connection that its statement was prepared on.
        for _ in range(50):
            await asyncio.gather(*(store.create_session(app_name="shop", user_id="alice") for _ in range(20)))
    await store.close()

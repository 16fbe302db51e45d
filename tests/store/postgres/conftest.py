import asyncpg
import pytest

from sojourn.store.postgres.service import PostgresSessionService
from tests.store.postgres.proxy import Proxy


@pytest.fixture
async def proxy(postgres):
    """A proxy before the server, which cuts connections on demand."""
    proxy = Proxy(postgres.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


TABLES = ("sessions", "runs", "events", "calls", "state", "undo", "steps", "interrupts", "user_usage", "dropped_sessions")


@pytest.fixture
async def wiped(postgres):
    """The name of a schema whose tables, if they are there, are empty: for the many tests that need no tables of their own."""
    conn = await asyncpg.connect(postgres.url())
    if await conn.fetchval("SELECT to_regclass('wiped.user_usage')") is not None:
        await conn.execute(";".join(f"DELETE FROM wiped.{table}" for table in TABLES))
    await conn.close()
    return "wiped"


@pytest.fixture
async def opened(postgres, schema):
    """Opens the schema again and again: a function; each call gives another object, as another process would have one."""
    stores = []

    def open_store(url=None, **options):
        stores.append(PostgresSessionService(url or postgres.url(), **{"schema": schema, **options}))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


@pytest.fixture
def store(opened):
    return opened()


@pytest.fixture
async def admin(postgres):
    """A connection of somebody else's."""
    conn = await asyncpg.connect(postgres.url())
    yield conn
    await conn.close()

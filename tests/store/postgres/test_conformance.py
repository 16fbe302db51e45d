"""The shared suite on PostgreSQL, and the stateful comparison with the store in RAM."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from sojourn.run.store import Store
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.testing.postgresql import Server
from sojourn.testing.stateful import make_store_machine
from sojourn.testing.store_conformance import StoreConformance
from tests.store.postgres.proxy import Proxy


class TestPostgres(StoreConformance):
    durable = True
    can_fail = True

    @pytest.fixture
    async def store(self, wiped: str, proxy: Proxy) -> AsyncIterator[Store]:
        self.proxy, self.schema = proxy, wiped
        self.opened = [self.open()]
        yield self.opened[0]
        for store in self.opened:
            await store.close()

    def open(self) -> Store:
        return PostgresSessionService(f"postgresql://sojourn@127.0.0.1:{self.proxy.port}/postgres", schema=self.schema)

    async def reopen(self, store: Store) -> Store:
        await store.close()
        self.opened.append(self.open())
        return self.opened[-1]

    @asynccontextmanager
    async def failing(self, store: Store) -> AsyncIterator[None]:
        self.proxy.refuse()
        try:
            yield
        finally:
            self.proxy.accept()


_schemas = count(1)


url = ""


async def open_postgres(directory: Path) -> Store:
    name = directory / "schema"
    if not name.exists():
        name.write_text(f"model_{next(_schemas)}")
    store = PostgresSessionService(url, schema=name.read_text())
    # Without an executor, a cancel would close a running run at once.
    await store.become_executor()
    return store


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_against_ram(postgres: Server) -> None:
    global url
    url = postgres.url()
    few = settings(max_examples=12, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(make_store_machine(open_postgres), settings=few)

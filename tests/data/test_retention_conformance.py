"""The suite of retention on the stores in RAM and in SQLite."""

import pytest

from sojourn.run.store import Store
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.retention_conformance import RetentionConformance
from tests.store.postgres.conftest import proxy, wiped  # noqa: F401
from tests.store.postgres.test_conformance import TestPostgres as OnPostgres
from tests.store.test_sqlite_conformance import TestSQLite as OnSQLite


class TestInMemory(RetentionConformance):
    @pytest.fixture
    def store(self) -> Store:
        return InMemorySessionService()


class TestSQLite(RetentionConformance):
    durable = True
    can_fail = True
    store = OnSQLite.store
    reopen = OnSQLite.reopen
    failing = OnSQLite.failing


class TestPostgres(RetentionConformance):
    durable = True
    can_fail = True
    store = OnPostgres.store
    open = OnPostgres.open
    reopen = OnPostgres.reopen
    failing = OnPostgres.failing

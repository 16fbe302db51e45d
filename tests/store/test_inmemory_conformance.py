import pytest

from sojourn.run.store import Store
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.store_conformance import StoreConformance


class TestInMemory(StoreConformance):
    @pytest.fixture
    def store(self) -> Store:
        return InMemorySessionService()

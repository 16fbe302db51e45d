import pytest

from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.history_conformance import HistoryConformance
from sojourn.testing.run_conformance import RunConformance
from sojourn.testing.session_conformance import SessionServiceConformance

class TestInMemory(SessionServiceConformance, HistoryConformance, RunConformance):
    @pytest.fixture
    def store(self):
        return InMemorySessionService()

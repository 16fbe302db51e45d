import pytest

from sojourn.store.sqlite.service import SQLiteSessionService
from sojourn.testing.history_conformance import HistoryConformance
from sojourn.testing.session_conformance import SessionServiceConformance


class TestSQLite(SessionServiceConformance, HistoryConformance):
    durable = True

    @pytest.fixture
    async def store(self, tmp_path):
        self.opened = [SQLiteSessionService(tmp_path / "store.db", synchronous="normal")]
        yield self.opened[0]
        for store in self.opened:
            await store.close()

    async def reopen(self, store):
        await store.close()
        self.opened.append(SQLiteSessionService(store.path, synchronous="normal"))
        return self.opened[-1]

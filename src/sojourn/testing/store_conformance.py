"""The conformance suite of stores: what every backend of `sojourn.run.store.Store` does, as tests.

A backend subclasses it and says how to open one:

    import pytest
    from sojourn.testing.store_conformance import StoreConformance

    class TestMyStore(StoreConformance):
        durable = True

        @pytest.fixture
        async def store(self, tmp_path):
            self.path = tmp_path / "my.db"
            self.opened = [MyStore(self.path)]
            yield self.opened[0]
            for store in self.opened:
                await store.close()

        async def reopen(self, store):
            await store.close()
            self.opened.append(MyStore(self.path))
            return self.opened[-1]

The cases are async and run by anyio's pytest plugin, on asyncio: give a fixture `anyio_backend` that returns `"asyncio"`.
`pytest.register_assert_rewrite("sojourn.testing")` in the topmost `conftest.py`, ahead of whatever imports it, makes failures
show values.
"""

from __future__ import annotations

from sojourn.testing.append_conformance import AppendConformance
from sojourn.testing.concurrency_conformance import ConcurrencyConformance
from sojourn.testing.history_conformance import HistoryConformance
from sojourn.testing.interrupt_conformance import InterruptConformance
from sojourn.testing.repeat_conformance import RepeatConformance
from sojourn.testing.run_conformance import RunConformance
from sojourn.testing.session_conformance import SessionServiceConformance
from sojourn.testing.state_conformance import StateConformance
from sojourn.testing.usage_conformance import UsageConformance


class RunStoreConformance(
    RunConformance,
    AppendConformance,
    StateConformance,
    InterruptConformance,
    HistoryConformance,
    RepeatConformance,
    UsageConformance,
    ConcurrencyConformance,
):
    """The cases of `RunStore`, and of the parts of `SessionService` that read what runs write."""


class StoreConformance(SessionServiceConformance, RunStoreConformance):
    """All cases of a store."""

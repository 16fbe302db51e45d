import pytest

from sojourn.run.store import Store
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import new_run, session_key
from sojourn.testing.store_conformance import StoreConformance


class TestInMemory(StoreConformance):
    @pytest.fixture
    def store(self) -> Store:
        return InMemorySessionService()

    async def test_apps_are_listed_without_looking_at_their_sessions(self) -> None:
        class Unseen(dict):
            def __iter__(self):
                raise AssertionError("all sessions were gone through")

            values = items = keys = __iter__

        store = InMemorySessionService()
        store._sessions = Unseen()
        for app_name, session_id in (("shop", "s1"), ("shop", "s2"), ("bank", "s1")):
            await store.create_session(app_name=app_name, user_id="alice", session_id=session_id)
        await store.submit(new_run(key=session_key(app_name="app")), begin=True)
        assert await store.list_apps() == ["app", "bank", "shop"]
        for session_id, left in (("s1", ["app", "bank", "shop"]), ("s2", ["app", "bank"])):
            await store.delete_session(app_name="shop", user_id="alice", session_id=session_id)
            assert await store.list_apps() == left

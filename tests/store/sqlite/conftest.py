import pytest

from sojourn.store.sqlite.service import SqliteSessionService


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
async def opened(path):
    """Opens the file again and again: a function; each call gives another object, as another process would have one."""
    stores = []

    def open_store(**options):
        stores.append(SqliteSessionService(path, **{"synchronous": "normal", **options}))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


@pytest.fixture
def store(opened):
    return opened()

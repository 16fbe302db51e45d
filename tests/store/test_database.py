import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sojourn.errors import Conflict, InvalidInput, SojournError, Unsupported
from sojourn.run.store import Store
from sojourn.store.database import DatabaseSessionService
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.store.sqlite.service import SqliteSessionService


def test_a_relative_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = DatabaseSessionService("sqlite:///some/relative.db")
    assert isinstance(store, SqliteSessionService)
    assert isinstance(store, Store)
    assert store.path == os.path.realpath(tmp_path / "some" / "relative.db")


def test_an_absolute_file(tmp_path: Path) -> None:
    store = DatabaseSessionService(f"sqlite:///{tmp_path}/a b%20ü#.db")
    assert isinstance(store, SqliteSessionService)
    assert store.path == os.path.realpath(tmp_path / "a b%20ü#.db")
    asyncio.run(store.close())


def test_it_is_the_file_that_is_used(tmp_path: Path) -> None:
    async def use() -> None:
        store = DatabaseSessionService(f"SQLite:///{tmp_path}/x.db", synchronous="normal")
        await store.create_session(app_name="shop", user_id="alice", session_id="s1")
        await store.close()

    asyncio.run(use())
    assert (tmp_path / "x.db").stat().st_size > 0


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_memory_has_a_service_of_its_own(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"InMemorySessionService\(\)") as caught:
        DatabaseSessionService(url)
    assert caught.value.code == "store.invalid_url"


@pytest.mark.parametrize(
    "url",
    [
        "", "store.db", "/abs/store.db", "sqlite:store.db", "sqlite:/store.db", "sqlite://store.db", "sqlite://user:secret@host/db",
        "://x", "a b://x", "user:secret@host://db", "sqlite:///x.db?password=secret", None, 5,
    ],
)  # fmt: skip
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"sqlite:///relative\.db") as caught:
        DatabaseSessionService(url)
    assert caught.value.code == "store.invalid_url"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "mysql+pymysql", "sqlite+aiosqlite", "redis"])
def test_a_database_there_is_no_backend_for(scheme: str) -> None:
    with pytest.raises(Unsupported, match=r"sqlite:///relative\.db") as caught:
        DatabaseSessionService(f"{scheme}://user:secret@host/db")
    assert caught.value.code == "store.unsupported_url"
    assert f"{scheme}://" in caught.value.message
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b", b"store.db"])
def test_a_path_that_is_none(path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        SqliteSessionService(path)
    assert caught.value.code == "store.invalid_url"


@pytest.mark.parametrize("option", [{"synchronous": "off"}, {"role": "reader"}, {"schema": "s"}, {"pool_size": 3}])
def test_an_option_that_is_none(option: dict[str, Any]) -> None:
    with pytest.raises(SojournError) as caught:
        DatabaseSessionService("sqlite:///x.db", **option)
    assert caught.value.code == "store.invalid_option"


def test_a_client_executes_nothing(tmp_path: Path) -> None:
    async def use() -> None:
        store = DatabaseSessionService(f"sqlite:///{tmp_path}/x.db", role="client")
        await store.create_session(app_name="shop", user_id="alice", session_id="s1")
        with pytest.raises(Conflict) as caught:
            await store.become_executor()
        assert caught.value.code == "store.client_only"
        await store.close()

    asyncio.run(use())


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "PostgreSQL"])
def test_a_postgresql_server(scheme: str) -> None:
    store = DatabaseSessionService(f"{scheme}://ann:secret@db.example:6543/shop?sslmode=require", role="client", schema="mine")
    assert isinstance(store, PostgresSessionService)
    assert isinstance(store, Store)
    assert store.name == "schema 'mine' of PostgreSQL database shop at db.example:6543"
    assert store.schema == "mine"
    asyncio.run(store.close())


@pytest.mark.parametrize(
    "url", ["postgresql://ann:secret@db:port/x", "postgresql://ann:secret@[db/x", "postgresql://ann:secret@db:65536/x"]
)
def test_a_postgresql_url_that_is_none(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        DatabaseSessionService(url)
    assert caught.value.code == "store.invalid_url"
    assert "secret" not in repr(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize(
    "option",
    [
        {"synchronous": "normal"}, {"role": "reader"}, {"schema": ""}, {"schema": "x" * 64}, {"schema": "a\0b"}, {"schema": "a$b"}, {"schema": 5},
        {"pool_size": 0}, {"pool_size": "3"}, {"acquire_timeout": 0}, {"statement_timeout": -1}, {"statement_timeout": None},
        {"statement_cache_size": -1},
    ],
)  # fmt: skip
def test_an_option_that_postgresql_has_not(option: dict[str, Any]) -> None:
    with pytest.raises(SojournError) as caught:
        DatabaseSessionService("postgresql://host/x", **option)
    assert caught.value.code == "store.invalid_option"


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("sojourn.store.postgres", "sojourn.postgres."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(Unsupported, match=re.escape('pip install "sojourn[postgres]"')) as caught:
        DatabaseSessionService("postgresql://ann:secret@host/x")
    assert caught.value.code == "postgres.not_installed"


def test_the_driver_is_not_loaded_for_others() -> None:
    code = "import sys, sojourn; sojourn.DatabaseSessionService('sqlite:///x.db'); print('asyncpg' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"

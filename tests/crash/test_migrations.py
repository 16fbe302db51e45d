"""`kill -9` at each statement that makes tables or brings them up to date: they are what they were, or all that they are to be."""

import asyncio
import signal
import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from tests.crash.test_writes import nursery

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]

VERSION_1 = (Path(__file__).parents[1] / "store/sqlite/version1.sql").read_text()


def tables_of(path):
    """What a file has tables for, in which version, and how many rows are in those of version 1."""
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        version, marked = conn.execute("SELECT * FROM pragma_user_version, pragma_application_id").fetchone()
        tables = conn.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
        names = {name for name, _ in tables}
        rows = [conn.execute(f"SELECT count(*) FROM {name}").fetchone() for name in ("runs", "events") if name in names]
        return version, marked, tables, rows


@pytest.mark.parametrize(
    ("what", "script"), [("sessions", VERSION_1), ("sessions", ""), ("memory", "")], ids=["version 1", "sessions", "memory"]
)
async def test_a_file(tmp_path, what, script):
    seen = []
    with nursery() as live_and_die:
        for number in count():
            path = tmp_path / f"{number}.db"
            with closing(sqlite3.connect(path)) as conn:
                conn.executescript(script)
            before = tables_of(path)
            ended = await live_and_die("migrate", f"sqlite:///{path}", what, number, False)
            seen.append(tables_of(path))
            if ended == 0:
                break
            assert ended == -signal.SIGKILL
            # Whoever comes next does it.
            assert await live_and_die("migrate", f"sqlite:///{path}", what, 10_000, False) == 0
            assert tables_of(path)[2] != before[2]
    done = seen[-1]
    assert done[2] != before[2]
    assert done[3] == before[3] or not script
    assert [found for found in seen if found not in (before, done)] == []
    assert number > 10


async def test_a_schema_of_a_server(postgres):
    postgres.psql("CREATE DATABASE migrations")
    admin = await asyncpg.connect(postgres.url("migrations"))

    async def tables():
        while await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = 'migrations' AND pid <> pg_backend_pid()"
        ):
            await asyncio.sleep(0)
        rows = await admin.fetch("SELECT c.relname FROM pg_class c WHERE relnamespace = to_regnamespace('sojourn') ORDER BY 1")
        there = [row[0] for row in rows]
        versions = await admin.fetch("SELECT * FROM sojourn.sojourn_versions") if there else []
        return there, sorted(map(tuple, versions))

    stages = {"sessions": [("sessions", 1)], "memory": [("memory", 1), ("memory vectors", 1)]}
    killed = 0
    with nursery() as live_and_die:
        for what, steps in stages.items():
            seen = []
            for number in count():
                await admin.execute("DROP SCHEMA IF EXISTS sojourn CASCADE; DROP EXTENSION IF EXISTS vector")
                ended = await live_and_die("migrate", postgres.url("migrations"), what, number, True)
                seen.append(await tables())
                if ended == 0:
                    break
                assert ended == -signal.SIGKILL
                assert await live_and_die("migrate", postgres.url("migrations"), what, 10_000, True) == 0
                assert (await tables())[1] == steps
                killed += 1
            # Each service's tables are made as a whole: there are as many states as steps, and that without any.
            assert {str(versions): there for there, versions in seen}.keys() == {str(steps[:n]) for n in range(len(steps) + 1)}
            assert len({tuple(there) for there, _ in seen}) == len(steps) + 1
    assert killed > 15
    await admin.close()

"""`kill -9` while memory is written, many times over, and other processes that write to the same file."""

import asyncio
import os
import re
import select
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.memory_conformance import everything
from tests.memory import crash_worker
from tests.memory.crash_worker import APP, SIZE, USER
from tests.memory.embedders import WordEmbedder

ROUNDS = 60
ROOT = Path(__file__).parents[2]


@contextmanager
def nursery():
    """Forks processes that write versions, until they are killed at a statement of which the number is given."""
    command = [sys.executable, "-m", "tests.memory.crash_worker"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def start(path, versions, notes, statement=None):
            print(path, versions.start, versions.stop, statement, notes, sep="\t", file=process.stdin, flush=True)
            return os.pidfd_open(int(process.stdout.readline()))

        yield start
        process.stdin.close()


def wait_for(process):
    try:
        ended, _, _ = select.select([process], [], [], 60)
        assert ended, "it has hung"
    finally:
        os.close(process)


def acknowledged(notes):
    lines = notes.read_text().splitlines() if notes.exists() else []
    assert not [line for line in lines if line.startswith("broken")], lines
    return [int(line) for line in lines]


def check_whole(found, done):
    """Each group of entries is of one version, whole, and not older than what was acknowledged."""
    groups = {}
    for entry in found:
        group, version, part = re.fullmatch(r"(session \d|facts) version (\d+) part (\d+)", entry.text).groups()
        groups.setdefault(group, {}).setdefault(int(version), set()).add(int(part))
    for group, versions in groups.items():
        ((version, parts),) = versions.items()
        assert version >= done, group
        assert parts == set(range(SIZE + (version % 2 if group != "facts" else 0))), group
    assert groups.keys() >= {"session 1", "session 2", "facts"} or done < 0


async def check(path, done):
    service = SqliteMemoryService(path)
    found = await everything(service, APP, USER, limit=100)
    check_whole(found, done)
    by_words = await service.search(APP, USER, "version part session facts", limit=1000)
    assert sorted(entry.id for entry in by_words) == sorted(entry.id for entry in found)
    await service.close()
    return len(found)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_process_that_is_killed_at_any_statement_leaves_whole_entries_only(tmp_path):
    path, notes = tmp_path / "memory.db", tmp_path / "notes"
    chance = ManualPlatform(seed=20260101)
    versions = set()
    with nursery() as start:
        for _ in range(ROUNDS):
            done = max(acknowledged(notes), default=-1)
            wait_for(start(path, range(done + 1, done + 100), notes, int(700 * chance.random())))
            done = max(acknowledged(notes), default=-1)
            versions.add(done)
            if path.exists():
                asyncio.run(check(path, done))
    assert len(versions) > ROUNDS // 3, "most processes must get something done"
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (without,) = conn.execute(
            "SELECT count(*) FROM memory_entries e LEFT JOIN memory_vectors v ON v.key = e.key WHERE v.key IS NULL"
        ).fetchone()
        (left,) = conn.execute(
            "SELECT count(*) FROM memory_vectors v LEFT JOIN memory_entries e ON v.key = e.key WHERE e.key IS NULL"
        ).fetchone()
        scope = conn.execute("SELECT entries, length FROM memory_scopes").fetchone()
        assert (without, left) == (0, 0)
        assert scope == conn.execute("SELECT count(*), sum(length) FROM memory_entries").fetchone()

    async def again():
        service = SqliteMemoryService(path, embedder=WordEmbedder())
        version = max(versions) + 1
        for _ in range(2):
            for session in range(crash_worker.SESSIONS):
                await service.add_session(APP, USER, f"s{session}", crash_worker.events(session, version))
            await service.add(APP, USER, crash_worker.entries(version))
        await service.close()
        return await check(path, version)

    total = asyncio.run(again())
    assert total == SIZE + crash_worker.SESSIONS * (SIZE + (max(versions) + 1) % 2)


@pytest.mark.slow
def test_processes_that_write_at_once_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "memory.db"
    notes = [tmp_path / f"notes {n}" for n in range(3)]
    with nursery() as start:
        writers = [start(path, range(6), one) for one in notes]

        async def watch():
            service = SqliteMemoryService(path)
            writing = set(writers)
            for writer in writers:
                asyncio.get_running_loop().add_reader(writer, writing.discard, writer)
            while writing:
                for entry in await service.search(APP, USER, "facts version", limit=5):
                    assert re.search("version", entry.text)
            await service.close()

        asyncio.run(watch())
        for writer in writers:
            wait_for(writer)
    assert [acknowledged(one) for one in notes] == [list(range(6))] * 3
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert (
            conn.execute("SELECT entries, length FROM memory_scopes").fetchall()
            == conn.execute("SELECT count(*), sum(length) FROM memory_entries").fetchall()
        )

"""`kill -9` at any point of pruning, dropping, erasing and backing up, many times over."""

import asyncio
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sojourn.artifact.file import FileArtifactService
from sojourn.data import DataCare, Retention
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.session.types import SessionKey
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.clock import ManualPlatform
from tests.data.support import APP, converse, files_with, fill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.anyio]

ROUNDS = 50
ROOT = Path(__file__).parents[2]
SEED = 20260102


class Processes:
    """Starts worker processes, one after the other, and kills them."""

    def __init__(self, directory):
        self._directory = str(directory)
        self._chance = ManualPlatform(seed=SEED)
        self._longest = 0.05
        self._nursery = subprocess.Popen(
            [sys.executable, "-m", "tests.data.worker"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._nursery.stdin.close()
        self._nursery.wait(20)
        self._nursery.stdout.close()

    async def live_and_die(self, what):
        """Lets a process work for a while and kills it; whether it was still at work."""
        print(json.dumps([self._directory, what]), file=self._nursery.stdin, flush=True)
        pid = int(await asyncio.to_thread(self._nursery.stdout.readline))
        death = os.pidfd_open(pid)
        try:
            seconds = 0.002 + self._chance.random() * self._longest
            done = (await asyncio.to_thread(select.select, [death], [], [], seconds))[0]
            if not done:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(death, signal.SIGKILL)
                await asyncio.to_thread(select.select, [death], [], [], 20)
        finally:
            os.close(death)
        # As long as they are killed, they may live a little longer.
        self._longest = max(0.02, self._longest * (0.8 if done else 1.1))
        return not done


@pytest.fixture
async def store(tmp_path):
    opened = SqliteSessionService(tmp_path / "store.db", synchronous="normal")
    await opened.become_executor()
    yield opened
    await opened.close()


def check_whole(path):
    """What is in a database file fits together: each run is whole, or nothing but its record is left of it."""
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        runs = db.execute("SELECT uid, sid, trimmed, last_pos, first_seq, finished_at FROM runs").fetchall()
        for uid, sid, trimmed, last_pos, first_seq, finished in runs:
            events = db.execute("SELECT seq, pos FROM events WHERE run_uid = ? ORDER BY seq", (uid,)).fetchall()
            steps = db.execute("SELECT count(*) FROM steps WHERE run_uid = ?", (uid,)).fetchone()[0]
            asked = db.execute("SELECT count(*) FROM interrupts WHERE run_uid = ?", (uid,)).fetchone()[0]
            (until,) = db.execute("SELECT trimmed_seq FROM sessions WHERE sid = ?", (sid,)).fetchone()
            if trimmed:
                assert (events, steps, asked) == ([], 0, 0)
                assert until >= first_seq
            elif finished:
                assert [pos for _, pos in events if pos] == list(range(2, last_pos))
                assert events[0][0] == first_seq
                assert (steps, asked) == (1, 1)
        strays = (
            "SELECT count(*) FROM events WHERE run_uid NOT IN (SELECT uid FROM runs)",
            "SELECT count(*) FROM runs WHERE sid NOT IN (SELECT sid FROM sessions)",
            "SELECT count(*) FROM calls c WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.sid = c.sid AND e.seq = c.seq)",
            "SELECT count(*) FROM calls c JOIN events e ON e.sid = c.sid AND e.seq = c.seq JOIN runs r ON r.uid = e.run_uid "
            "WHERE c.open = 1 AND r.finished_at IS NOT NULL",
            "SELECT count(*) FROM steps WHERE run_uid NOT IN (SELECT uid FROM runs)",
        )
        assert [db.execute(query).fetchone()[0] for query in strays] == [0] * len(strays)
        return len(runs)


async def test_pruning(store, tmp_path):
    killed = 0
    with Processes(tmp_path) as processes:
        for n in range(ROUNDS):
            keys = [SessionKey(APP, f"u{m}", "s1") for m in range(3)]
            await asyncio.gather(*(converse(store, key, word=f"w{n}", first=n * 10, runs=6) for key in keys))
            going_on = asyncio.create_task(converse(store, keys[0], word=f"late{n}", first=n * 10, runs=2))
            killed += await processes.live_and_die("prune")
            await going_on
            check_whole(tmp_path / "store.db")
    assert killed > ROUNDS / 3
    await DataCare(store).prune(APP, Retention(max_events=15))
    check_whole(tmp_path / "store.db")
    for key in keys:
        events = await store.list_events(app_name=APP, user_id=key.user_id, session_id="s1", limit=1000)
        session = await store.get_session(app_name=APP, user_id=key.user_id, session_id="s1")
        assert [e.seq for e in events] == list(range(session.event_count - 14, session.event_count + 1))


async def test_dropping(store, tmp_path):
    artifacts, memory = FileArtifactService(tmp_path / "artifacts"), InMemoryMemoryService()
    killed = 0
    with Processes(tmp_path) as processes:
        for n in range(ROUNDS):
            await fill(store, artifacts, memory, "alice", word=f"w{n}", sessions=1)
            killed += await processes.live_and_die("drop")
            check_whole(tmp_path / "store.db")
    assert killed > ROUNDS / 3
    await DataCare(store, artifacts=artifacts).prune(APP, Retention(ttl=0.0))
    assert check_whole(tmp_path / "store.db") == 0
    assert list((tmp_path / "artifacts").rglob("session/*/*/*/data")) == []
    assert await store.dropped_sessions(APP) == []


async def test_erasing(store, tmp_path):
    artifacts, memory = FileArtifactService(tmp_path / "artifacts"), InMemoryMemoryService()
    await fill(store, artifacts, memory, "bob", word="bobs-words")
    killed = 0
    with Processes(tmp_path) as processes:
        for n in range(ROUNDS):
            await fill(store, artifacts, memory, "alice", word=f"secret{n}", sessions=1)
            killed += await processes.live_and_die("erase")
            check_whole(tmp_path / "store.db")
            await DataCare(store, artifacts=artifacts).erase("alice")
            assert files_with(tmp_path, "secret") == [], n
    assert killed > ROUNDS / 3
    assert files_with(tmp_path, "alice") == []
    assert check_whole(tmp_path / "store.db") == 6
    assert len(list((tmp_path / "artifacts").rglob("data"))) == 8


async def test_backing_up(store, tmp_path):
    killed, seen = 0, 0
    with Processes(tmp_path) as processes:
        for n in range(ROUNDS):
            await converse(store, SessionKey(APP, "alice", "s1"), word=f"w{n}", first=n * 10, runs=3)
            going_on = asyncio.create_task(converse(store, SessionKey(APP, "alice", "s2"), word=f"w{n}", first=n * 10, runs=3))
            killed += await processes.live_and_die("backup")
            await going_on
            if (tmp_path / "backup.db").exists():
                runs = check_whole(tmp_path / "backup.db")
                assert runs >= seen
                seen = runs
    assert killed > ROUNDS / 3
    await DataCare(store).backup(tmp_path / "backup.db", overwrite=True)
    assert check_whole(tmp_path / "backup.db") == ROUNDS * 6
    assert not list(tmp_path.glob("*.partial*"))

"""`kill -9` at any point of pruning, dropping, erasing, backing up and restoring, many times over, while runs go on."""

import asyncio
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import asyncpg
import pytest

from sojourn.artifact.file import FileArtifactService
from sojourn.data import DataCare, Retention, restore_backup
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.run.types import RunQuery
from sojourn.session.types import SessionKey
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import ask, start
from sojourn.testing.clock import ManualPlatform
from tests.data.support import APP, converse, files_with, fill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.anyio]

ROUNDS = 50
ROOT = Path(__file__).parents[2]
SEED = 20260102


class Processes:
    """Starts worker processes, one after the other, and kills them."""

    def __init__(self, directory, place=None):
        self._directory = str(directory)
        self._place = place
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
        print(json.dumps([self._directory, self._place, what]), file=self._nursery.stdin, flush=True)
        pid = int(await asyncio.to_thread(self._nursery.stdout.readline))
        try:
            death = os.pidfd_open(pid)
        except ProcessLookupError:
            return False  # It was done before anybody looked.
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


class OnSqlite:
    """A SQLite file, and a look into it."""

    def __init__(self, path):
        self.place = str(path)

    def open(self):
        return SqliteSessionService(self.place, synchronous="normal")

    async def rows(self, *queries):
        """What there is at one moment."""
        with closing(sqlite3.connect(self.place, isolation_level=None)) as db:
            db.execute("BEGIN")
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            return [db.execute(query).fetchall() for query in queries]


class OnPostgres:
    """A database of a server, and a look into it."""

    def __init__(self, url):
        self.place = url

    def open(self):
        return PostgresSessionService(self.place)

    async def rows(self, *queries):
        """What there is at one moment."""
        conn = await asyncpg.connect(self.place)
        try:
            async with conn.transaction(isolation="repeatable_read", readonly=True):
                await conn.execute("SET LOCAL search_path TO sojourn")
                return [[tuple(row) for row in await conn.fetch(query)] for query in queries]
        finally:
            await conn.close()

    async def tables_with(self, text):
        """The tables that have a text in any of their columns."""
        ((*names,),) = await self.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'sojourn'")
        counts = await self.rows(*(f"SELECT count(*) FROM {name} t WHERE t::text LIKE '%{text}%'" for (name,) in names))
        return [name for (name,), ((count,),) in zip(names, counts, strict=True) if count]


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    if request.param == "sqlite":
        return OnSqlite(tmp_path / "store.db")
    postgres, schema = request.getfixturevalue("postgres"), request.getfixturevalue("schema")
    postgres.psql(f"CREATE DATABASE care_{schema}")
    return OnPostgres(postgres.url(f"care_{schema}"))


@pytest.fixture
async def store(database):
    opened = database.open()
    await opened.become_executor()
    yield opened
    await opened.close()


WHOLE = (
    "SELECT uid, sid, trimmed, last_pos, first_seq, finished_at FROM runs",
    "SELECT run_uid, seq, pos FROM events ORDER BY sid, seq",
    "SELECT run_uid FROM steps",
    "SELECT run_uid FROM interrupts",
    "SELECT sid, trimmed_seq FROM sessions",
)
STRAYS = (
    "SELECT count(*) FROM events WHERE run_uid NOT IN (SELECT uid FROM runs)",
    "SELECT count(*) FROM runs WHERE sid NOT IN (SELECT sid FROM sessions)",
    "SELECT count(*) FROM calls c WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.sid = c.sid AND e.seq = c.seq)",
    "SELECT count(*) FROM calls c JOIN events e ON e.sid = c.sid AND e.seq = c.seq JOIN runs r ON r.uid = e.run_uid "
    "WHERE CAST(c.open AS INTEGER) = 1 AND r.finished_at IS NOT NULL",
    *(f"SELECT count(*) FROM {table} WHERE run_uid NOT IN (SELECT uid FROM runs)" for table in ("steps", "interrupts", "undo")),
    "SELECT count(*) FROM state WHERE owner LIKE 's%' AND CAST(substr(owner, 2) AS INTEGER) NOT IN (SELECT sid FROM sessions)",
    "SELECT count(*) FROM dropped_sessions WHERE uid IN (SELECT uid FROM sessions)",
)


async def check_whole(database):
    """What is in a database fits together: each run is whole, or nothing but its record is left of it."""
    runs, events, steps, asked, sessions, *strays = await database.rows(*WHOLE, *STRAYS)
    trimmed_until, counted_steps, counted_questions = dict(sessions), Counter(steps), Counter(asked)
    events_of = {}
    for run_uid, seq, pos in events:
        events_of.setdefault(run_uid, []).append((seq, pos))
    for uid, sid, trimmed, last_pos, first_seq, finished in runs:
        found, beside = events_of.get(uid, []), (counted_steps[uid,], counted_questions[uid,])
        if trimmed:
            assert (found, beside) == ([], (0, 0))
            assert trimmed_until[sid] >= first_seq
        elif finished:
            assert [pos for _, pos in found if pos] == list(range(2, last_pos))
            assert found[0][0] == first_seq
            assert beside == (1, 1)
    assert strays == [[(0,)]] * len(STRAYS)
    return len(runs)


async def test_pruning(database, store, tmp_path):
    killed = 0
    with Processes(tmp_path, database.place) as processes:
        for n in range(ROUNDS):
            keys = [SessionKey(APP, f"u{m}", "s1") for m in range(3)]
            await asyncio.gather(*(converse(store, key, word=f"w{n}", first=n * 10, runs=6) for key in keys))
            going_on = asyncio.create_task(converse(store, keys[0], word=f"late{n}", first=n * 10, runs=2))
            killed += await processes.live_and_die("prune")
            await going_on
            await check_whole(database)
    assert killed > ROUNDS / 3
    waiting = await start(store, "waits", keys[0])
    await ask(store, waiting, 1)
    await converse(store, keys[0], word="after", runs=6)
    await DataCare(store).prune(APP, Retention(max_events=15))
    await check_whole(database)
    for key in keys:
        events = await store.list_events(app_name=APP, user_id=key.user_id, session_id="s1", limit=1000)
        session = await store.get_session(app_name=APP, user_id=key.user_id, session_id="s1")
        newest = list(range(session.event_count - 14, session.event_count + 1))
        asked = [e.seq for e in events if e.run_id == "waits"]
        assert [e.seq for e in events] == [*asked, *newest]
        assert len(asked) == 2 * (key == keys[0])
    assert [i.run_id for i in await store.list_interrupts(APP)] == ["waits"]


async def test_dropping(database, store, tmp_path):
    artifacts, memory = FileArtifactService(tmp_path / "artifacts"), InMemoryMemoryService()
    killed = 0
    with Processes(tmp_path, database.place) as processes:
        for n in range(ROUNDS):
            await fill(store, artifacts, memory, "alice", word=f"w{n}", sessions=1)
            killed += await processes.live_and_die("drop")
            await check_whole(database)
    assert killed > ROUNDS / 3
    await DataCare(store, artifacts=artifacts).prune(APP, Retention(ttl=0.0))
    assert await check_whole(database) == 0
    assert list((tmp_path / "artifacts").rglob("session/*/*/*/data")) == []
    assert await store.dropped_sessions(APP) == []


async def test_erasing(database, store, tmp_path):
    artifacts, memory = FileArtifactService(tmp_path / "artifacts"), InMemoryMemoryService()
    await fill(store, artifacts, memory, "bob", word="bobs-words")
    killed = 0
    with Processes(tmp_path, database.place) as processes:
        for n in range(ROUNDS):
            await fill(store, artifacts, memory, "alice", word=f"secret{n}", sessions=1)
            going_on = asyncio.create_task(converse(store, SessionKey(APP, "bob", "s1"), word=f"later{n}", runs=1))
            killed += await processes.live_and_die("erase")
            await going_on
            await check_whole(database)
            await DataCare(store, artifacts=artifacts).erase("alice", scrub=n % 10 == 9)
            assert await store.apps_of_user("alice") == []
    assert killed > ROUNDS / 3
    for word in ("secret", "alice"):
        assert files_with(tmp_path, word) == []
        if isinstance(database, OnPostgres):
            assert await database.tables_with(word) == []
    assert await check_whole(database) == 6 + ROUNDS
    assert len(list((tmp_path / "artifacts").rglob("data"))) == 8


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_backing_up(database, store, tmp_path):
    killed, seen = 0, 0
    copy = OnSqlite(tmp_path / "backup.db")
    with Processes(tmp_path, database.place) as processes:
        for n in range(ROUNDS):
            await converse(store, SessionKey(APP, "alice", "s1"), word=f"w{n}", first=n * 10, runs=3)
            going_on = asyncio.create_task(converse(store, SessionKey(APP, "alice", "s2"), word=f"w{n}", first=n * 10, runs=3))
            killed += await processes.live_and_die("backup")
            await going_on
            if (tmp_path / "backup.db").exists():
                runs = await check_whole(copy)
                assert runs >= seen
                seen = runs
    assert killed > ROUNDS / 3
    await DataCare(store).backup(tmp_path / "backup.db", overwrite=True)
    assert await check_whole(copy) == ROUNDS * 6
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("new", [False, True], ids=["over a database", "to a new one"])
async def test_restoring(tmp_path, new):
    """The database is what it was, or what the backup is; and it is not there, or whole, where there was none."""
    made = OnSqlite(tmp_path / "made.db")
    store = made.open()
    sizes = []
    for n in range(2):
        for m in range(40):
            await converse(store, SessionKey(APP, f"u{n}", f"s{m}"), word=f"w{n}-" + "x" * 150, runs=2 + n)
        await DataCare(store).backup(tmp_path / f"backup{n}.db")
        sizes.append(await check_whole(made))
    await store.close()
    restored = OnSqlite(tmp_path / "restored.db")
    client = SqliteSessionService(restored.place, synchronous="normal", role="client")
    seen = Counter()
    killed = 0
    with Processes(tmp_path, restored.place) as processes:
        for n in range(ROUNDS):
            before = 0
            if new:
                for path in tmp_path.glob("restored.db*"):
                    path.unlink()
            elif n:
                before = len((await client.list_runs(RunQuery(APP), limit=1000)).items)
            killed += await processes.live_and_die(f"restore{n % 2}")
            if (tmp_path / "restored.db").exists():
                found = await check_whole(restored)
                assert found in (before, sizes[n % 2])
                seen[found] += 1
            else:
                assert not before
    await client.close()
    assert killed > ROUNDS / 3
    assert seen.keys() >= set(sizes)
    await restore_backup(tmp_path / "backup0.db", restored.place)
    assert await check_whole(restored) == sizes[0]
    assert not list(tmp_path.glob("*.partial*"))

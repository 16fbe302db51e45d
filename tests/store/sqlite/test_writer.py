"""The thread that writes: group commit, who fails when something fails, and what a caller can rely on."""

import asyncio
import gc
import sqlite3
import threading
from functools import partial
from pathlib import Path

import pytest

from sojourn.errors import Conflict, Fenced, InvalidInput, SojournError, Unavailable
from sojourn.run.status import Move, RunStatus
from sojourn.sqlite.worker import MAX_BATCH, Worker
from sojourn.sqlite.writer import Writer
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import attempt, event, new_run, session_key, start, write

pytestmark = pytest.mark.anyio


class Transactions(sqlite3.Connection):
    """Counts commits, and fails them on demand."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.commits = 0
        self.fails = []

    def execute(self, sql, *args):
        if sql == "COMMIT":
            if self.fails:
                raise self.fails.pop()
            self.commits += 1
        return super().execute(sql, *args)


class Bench:
    """A writer on a table of numbers."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.connections: list[Transactions] = []
        self.writer = Writer("test-writer", self.path, self._connect)

    def _connect(self) -> Transactions:
        conn = sqlite3.connect(self.path, isolation_level=None, factory=Transactions)
        conn.execute("CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY)")
        conn.commits = 0
        self.connections.append(conn)
        return conn

    @property
    def conn(self) -> Transactions:
        return self.connections[-1]

    async def insert(self, n, *more, then=None, **options):
        """Inserts numbers; then raises, if that is asked for."""

        def op(conn):
            for each in (n, *more):
                conn.execute("INSERT INTO numbers VALUES (?)", (each,))
            if then is not None:
                raise then
            return n

        return await self.writer.call(op, writes=True, **options)

    async def refuse(self, error):
        def op(conn):
            raise error

        return await self.writer.call(op, writes=True)

    async def numbers(self):
        return await self.writer.call(lambda conn: [n for (n,) in conn.execute("SELECT n FROM numbers ORDER BY n")])

    async def together(self, *calls):
        """All calls in one group."""
        return await asyncio.gather(*calls, return_exceptions=True)


@pytest.fixture
async def bench(path):
    bench = Bench(path)
    await bench.numbers()
    yield bench
    await bench.writer.join()


# -- groups -------------------------------------------------------------------------------------------------------------


async def test_what_waits_is_committed_together(bench: Bench) -> None:
    before = bench.conn.commits
    assert await bench.together(*(bench.insert(n) for n in range(100))) == list(range(100))
    assert bench.conn.commits == before + 1


async def test_a_group_is_bounded(bench: Bench) -> None:
    before = bench.conn.commits
    await bench.together(*(bench.insert(n) for n in range(2 * MAX_BATCH + 1)))
    assert bench.conn.commits == before + 3


async def test_who_is_refused_is_refused_alone(bench: Bench) -> None:
    before = bench.conn.commits
    refusal = Conflict("no")
    outcome = await bench.together(bench.insert(1), bench.refuse(refusal), bench.insert(2))
    assert outcome == [1, refusal, 2]
    assert bench.conn.commits == before + 1
    assert await bench.numbers() == [1, 2]


@pytest.mark.parametrize("error", [Conflict("after a write"), KeyError("a mistake"), KeyboardInterrupt()], ids=repr)
async def test_who_fails_after_writing_is_undone_alone(bench: Bench, error: BaseException) -> None:
    async def culprit():
        try:
            return await bench.insert(2, 3, then=error)
        except BaseException as raised:
            return type(raised)

    outcome = await bench.together(bench.insert(1), culprit(), bench.insert(4))
    assert outcome == [1, type(error), 4]
    assert await bench.numbers() == [1, 4]


async def test_a_driver_s_error_hits_its_culprit_alone(bench: Bench) -> None:
    await bench.insert(1)
    first, second, third = await bench.together(bench.insert(2), bench.insert(3, 1), bench.insert(4))
    assert (first, third) == (2, 4)
    assert isinstance(second, Unavailable)
    assert isinstance(second.__cause__, sqlite3.IntegrityError)
    assert bench.path in second.message
    assert await bench.numbers() == [1, 2, 4]


async def test_a_failed_commit_fails_all_and_changes_nothing(bench: Bench) -> None:
    bench.conn.fails.append(sqlite3.OperationalError("disk I/O error"))
    outcome = await bench.together(bench.insert(1), bench.refuse(Conflict("no")), bench.insert(2))
    assert [e.code for e in outcome] == ["store.unavailable"] * 3
    assert all(isinstance(e, Unavailable) and isinstance(e.__cause__, sqlite3.OperationalError) for e in outcome)
    assert len({id(e) for e in outcome}) == 3
    assert await bench.numbers() == []
    assert await bench.insert(3) == 3


async def test_results_are_announced_only_once_they_are_committed(bench: Bench) -> None:
    announced = []
    bench.conn.fails.append(sqlite3.OperationalError("disk I/O error"))
    await bench.together(bench.insert(1, committed=announced.append))
    assert announced == []
    await bench.together(
        bench.insert(2, committed=announced.append), bench.insert(3, then=Conflict("no"), committed=announced.append)
    )
    assert announced == [2]


async def test_reads_alone_take_no_write_lock(bench: Bench) -> None:
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("BEGIN IMMEDIATE")
    assert await bench.numbers() == []
    other.close()


# -- one append among others ------------------------------------------------------------------------------------------


async def test_a_run_that_was_not_recorded_leaves_nothing_to_the_next_one(path: Path, monkeypatch) -> None:
    """The next one has the key in the store that it would have had."""
    made: list[Transactions] = []

    def connect(*args, **kwargs):
        made.append(sqlite3_connect(*args, factory=Transactions, **kwargs))
        return made[-1]

    sqlite3_connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    store = SqliteSessionService(path, synchronous="normal")
    await start(store, key=session_key("s1"))
    for conn in made:
        conn.fails = [sqlite3.OperationalError("disk I/O error")]
    with pytest.raises(Unavailable):
        await store.submit(new_run("lost", session_key("s2"), "a secret"), begin=True)
    # Of a length that is not kept in memory.
    said = "mine " * 10_000
    run = await start(store, "r2", session_key("s3"), said)
    assert (await write(store, run, event(run, 1, "x"))).record.message.text == said
    await store.close()


async def test_a_fenced_append_undoes_only_its_own_part(store: SqliteSessionService) -> None:
    runs = [await start(store, f"r{n}", session_key(f"s{n}")) for n in range(6)]
    runs[3] = attempt(runs[3], 7)
    outcome = await asyncio.gather(
        *(write(store, run, event(run, 1, "x", increments={"user:n": 1}), move=Move.COMPLETE) for run in runs),
        return_exceptions=True,
    )
    assert [n for n, o in enumerate(outcome) if isinstance(o, Fenced)] == [3]
    assert all(o.record.status is RunStatus.COMPLETED for n, o in enumerate(outcome) if n != 3)
    session = await store.get_session(app_name="shop", user_id="alice", session_id="s3")
    assert (session.event_count, session.state) == (1, {"user:n": 5})


# -- callers ------------------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_waits_for_the_outcome(bench: Bench) -> None:
    entered, go = threading.Event(), threading.Event()
    ended = []

    def slow(conn):
        entered.set()
        assert go.wait(10)
        conn.execute("INSERT INTO numbers VALUES (1)")

    async def caller():
        try:
            await bench.writer.call(slow, writes=True)
        finally:
            ended.append(await bench.numbers())

    task = asyncio.create_task(caller())
    await asyncio.to_thread(entered.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [[1]]


async def test_a_cancelled_caller_of_a_failure_is_cancelled(bench: Bench) -> None:
    """And nothing complains of an error that nobody fetched."""
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    task = asyncio.create_task(bench.refuse(Conflict("no")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    gc.collect()
    assert complaints == []


async def test_a_timeout_comes_when_the_outcome_is_known(bench: Bench) -> None:
    go = threading.Event()

    def slow(conn):
        assert go.wait(10)
        conn.execute("INSERT INTO numbers VALUES (1)")

    async def impatient():
        async with asyncio.timeout(0):
            await bench.writer.call(slow, writes=True)

    task = asyncio.create_task(impatient())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(TimeoutError):
        await task
    assert await bench.numbers() == [1]


def test_a_loop_that_is_gone_does_not_stop_the_thread(path: Path) -> None:
    bench = Bench(path)
    entered, go = threading.Event(), threading.Event()

    def slow(conn):
        entered.set()
        assert go.wait(10)
        conn.execute("INSERT INTO numbers VALUES (1)")

    async def leave():
        asyncio.get_running_loop().create_task(bench.writer.call(slow, writes=True))
        await asyncio.to_thread(entered.wait, 10)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    pending = asyncio.all_tasks(loop)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    go.set()

    async def go_on():
        found = await bench.insert(2), await bench.numbers()
        await bench.writer.join()
        return found

    assert asyncio.run(go_on()) == (2, [1, 2])
    for task in pending:
        # Its loop is closed, so it can never end; it is not to say so when it is collected.
        task._log_destroy_pending = False


def test_one_loop_after_the_other(path: Path) -> None:
    store = SqliteSessionService(path)

    async def run(n):
        return (await write(store, await start(store, f"r{n}"), move=Move.COMPLETE)).record.no

    assert [asyncio.run(run(n)) for n in range(3)] == [1, 2, 3]
    asyncio.run(store.close())


def test_many_loops_at_once(path: Path) -> None:
    store = SqliteSessionService(path, synchronous="normal")
    failures = []

    async def work(name):
        for n in range(20):
            run = await start(store, f"{name}/{n}", session_key(name))
            await write(store, run, event(run, 1, "x", increments={"user:n": 1}), move=Move.COMPLETE)

    def thread(name):
        try:
            asyncio.run(work(name))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=thread, args=(f"s{n}",)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []

    async def total():
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s0")
        await store.close()
        return session.state["user:n"]

    assert asyncio.run(total()) == 80


# -- the end ------------------------------------------------------------------------------------------------------------


async def test_close_does_what_waits(path: Path, opened) -> None:
    store = opened()
    await store.create_session(app_name="shop", user_id="alice", session_id="s0")
    creating = [
        asyncio.create_task(store.create_session(app_name="shop", user_id="alice", session_id=f"s{n}")) for n in range(1, 6)
    ]
    await asyncio.sleep(0)
    await store.close()
    assert [s.id for s in await asyncio.gather(*creating)] == [f"s{n}" for n in range(1, 6)]
    assert len((await opened().list_sessions(app_name="shop")).items) == 6


async def test_nothing_is_done_after_close(store: SqliteSessionService) -> None:
    run = await start(store)
    await store.close()
    await store.close()
    for call in (
        store.create_session(app_name="shop", user_id="alice"),
        store.get_run("shop", "r1"),
        store.submit(new_run("r2"), begin=True),
        write(store, run),
        store.become_executor(),
    ):
        with pytest.raises(Unavailable) as caught:
            await call
        assert (caught.value.code, caught.value.retryable) == ("store.closed", False)
    assert await store.changes() == []


def test_close_without_a_call_makes_no_file(path: Path) -> None:
    store = SqliteSessionService(path)
    asyncio.run(store.close())
    assert list(path.parent.iterdir()) == []


async def test_everybody_who_closes_waits_for_the_end(store: SqliteSessionService) -> None:
    await store.create_session(app_name="shop", user_id="alice", session_id="s1")
    threads = store_threads()
    assert len(threads) == 1
    await asyncio.gather(*(store.close() for _ in range(5)))
    await ended(threads)


async def test_a_store_that_is_forgotten_ends_its_threads(path: Path) -> None:
    store = SqliteSessionService(path)
    run = await start(store)
    await store.get_run("shop", "r1")
    threads = store_threads()
    assert len(threads) == 2
    del store
    gc.collect()
    await ended(threads)
    again = SqliteSessionService(path)
    await again.requeue_lost(run.uid)
    assert (await again.begin(run.uid)).record.attempt == 2
    await again.close()


def store_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("sojourn-sqlite")]


async def ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()


# -- the reader ---------------------------------------------------------------------------------------------------------


async def test_a_failing_read_fails_alone(path: Path) -> None:
    reader = Worker("test-reader", str(path), partial(sqlite3.connect, path, isolation_level=None))

    def refuse(conn):
        raise InvalidInput("no")

    calls = [
        reader.call(lambda conn: 1),
        reader.call(refuse),
        reader.call(lambda conn: conn.execute("SELECT * FROM nothing")),
        reader.call(lambda conn: 2),
    ]
    outcome = await asyncio.gather(*calls, return_exceptions=True)
    assert (outcome[0], outcome[3]) == (1, 2)
    assert [type(e) for e in outcome[1:3]] == [InvalidInput, Unavailable]
    await reader.join()


async def test_opening_is_tried_again(path: Path) -> None:
    directory = path.parent / "later"
    store = SqliteSessionService(directory / "store.db")
    for _ in range(2):
        with pytest.raises(SojournError) as caught:
            await store.list_sessions(app_name="shop")
        assert caught.value.code == "store.unavailable"
        assert str(directory) in caught.value.message
    directory.mkdir()
    assert (await store.list_sessions(app_name="shop")).items == []
    await store.close()

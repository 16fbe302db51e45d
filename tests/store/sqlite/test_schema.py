"""Database files: made, brought forward, or refused."""

# Nothing else runs on the loop while a test looks at a file.
# ruff: noqa: ASYNC240

import asyncio
import sqlite3
from pathlib import Path

import pytest

from sojourn.agents.function import agent
from sojourn.errors import Unavailable, Unsupported
from sojourn.event import Usage
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.sqlite import schema
from sojourn.sqlite.schema import APPLICATION_ID, Migration
from sojourn.store.sqlite.connection import connect
from sojourn.store.sqlite.schema import MIGRATIONS
from sojourn.testing.builders import finished
from tests.store.sqlite.processes import other

pytestmark = pytest.mark.anyio

NEXT = Migration(
    MIGRATIONS[-1].version + 1,
    "sessions get a title",
    ("ALTER TABLE sessions ADD COLUMN title TEXT", "UPDATE sessions SET title = 'session ' || id"),
)


def test_a_file_is_made(path: Path) -> None:
    conn = connect(str(path))
    assert conn.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert conn.execute("PRAGMA user_version").fetchone() == (MIGRATIONS[-1].version,)
    assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert conn.execute("PRAGMA synchronous").fetchone() == (2,)
    tables = conn.execute("SELECT name, strict FROM pragma_table_list WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    assert dict(tables.fetchall()) == dict.fromkeys(
        ("sessions", "runs", "events", "calls", "state", "undo", "steps", "interrupts", "user_usage", "dropped_sessions"), 1
    )
    conn.close()


def test_opening_again_changes_nothing(path: Path) -> None:
    connect(str(path)).close()
    before = path.read_bytes()
    connect(str(path)).close()
    assert path.read_bytes() == before


async def test_normal_is_a_switch(path: Path) -> None:
    conn = connect(str(path), synchronous="normal")
    assert conn.execute("PRAGMA synchronous").fetchone() == (1,)
    conn.close()


async def test_an_older_file_is_brought_forward(path: Path, opened) -> None:
    store = opened()
    await finished(store, "r1", None, "Hi.")
    await store.close()
    conn = connect(str(path), migrations=(*MIGRATIONS, NEXT))
    assert conn.execute("PRAGMA user_version").fetchone() == (NEXT.version,)
    assert conn.execute("SELECT id, title, event_count FROM sessions").fetchall() == [("s1", "session s1", 2)]
    assert conn.execute("SELECT count(*) FROM events").fetchone() == (2,)
    conn.close()


@pytest.fixture
def version_1(path: Path) -> Path:
    """A file as schema version 1 left it; see `booking`."""
    conn = sqlite3.connect(path)
    conn.executescript((Path(__file__).parent / "version1.sql").read_text())
    conn.execute("PRAGMA journal_mode = WAL")
    assert conn.execute("PRAGMA user_version").fetchone() == (1,)
    conn.close()
    return path


@agent
async def booking(ctx):
    """The agent that wrote the file: one of its runs has finished, the other one waits for an answer."""
    ctx.state.increment("tries")
    yield "The flight is 300. "
    # In the file, it gave seat 12A.
    seat = await ctx.step("hold", lambda: {"seat": "1F"})
    if await ctx.ask("confirm", {"text": "Book it?", "price": 300}, schema=bool):
        yield f"Booked {seat['seat']}."
    else:
        yield "Never mind."


async def test_what_version_1_asked_is_asked_still(version_1: Path, opened) -> None:
    store = opened()
    [question] = await store.list_interrupts("trains")
    assert (question.key, question.prompt, question.schema) == (
        "confirm", {"text": "Book it?", "price": 300}, {"type": "boolean"},
    )  # fmt: skip
    assert (question.kind, question.call_id, question.status, question.run_id) == ("input", None, "open", "waiting")
    before = [i for i in await store.list_interrupts("trains", open_only=False) if i.status == "answered"]
    assert [(i.run_id, i.answer, i.kind, i.call_id) for i in before] == [("finished", True, "input", None)]
    await store.close()
    conn = connect(str(version_1))
    assert conn.execute("PRAGMA user_version").fetchone() == (MIGRATIONS[-1].version,)
    conn.close()


async def test_a_run_that_waits_since_version_1_goes_on_when_it_is_answered(version_1: Path, opened) -> None:
    store = opened()
    runner = Runner(app_name="trains", agent=booking, session_service=store)
    async with runner, asyncio.timeout(20):
        run = await runner.follow("waiting")
        assert run.status is RunStatus.WAITING
        [question] = await run.interrupts()
        run = await runner.answer(run.id, question.id, True)
        assert await run.result() == "Booked 12A."
        log = await store.list_events(app_name="trains", user_id="ann", session_id="trip", superseded=True)
        assert [(e.seq, e.text, e.superseded) for e in log] == [
            (1, "To Paris", False), (2, "The flight is 300. ", False), (3, "", False), (4, "", False), (5, "Booked 12A.", False),
        ]  # fmt: skip
        assert (await runner.get_session("ann", "trip")).state == {"tries": 1}
        assert await (await runner.follow("finished")).result() == "Booked 12A."
        later = await runner.start("ann", "trip", "And back")
        await later.wait()
        later = await runner.answer(later.id, (await later.interrupts())[0].id, True)
        assert await later.result() == "Booked 1F."


async def test_a_run_of_version_1_knows_who_started_it_and_what_took_its_place(version_1: Path, opened) -> None:
    conn = sqlite3.connect(version_1)
    conn.execute("UPDATE runs SET agent = 'sales' WHERE id = 'finished'")
    conn.execute("UPDATE runs SET agent = 'billing', transfers = 1, retry_of = 'finished' WHERE id = 'waiting'")
    conn.commit()
    conn.close()
    store = opened()
    finished, waiting = [await store.get_run("trains", run_id) for run_id in ("finished", "waiting")]
    assert (finished.start_agent, finished.superseded_by) == ("sales", "waiting")
    assert (waiting.start_agent, waiting.superseded_by) == (None, None)
    assert waiting.message_seq is not None


async def test_what_runs_of_version_1_have_spent_is_counted(version_1: Path, opened) -> None:
    conn = sqlite3.connect(version_1)
    half, many, none = '{"total_token_count":8,"prompt_token_count":5}', '{"total_token_count":100}', '{"total_token_count":0}'
    conn.execute("UPDATE runs SET usage = ?, finished_at = 1700007200.5 WHERE id = 'finished'", (half,))
    conn.execute("UPDATE runs SET usage = ?, started_at = 1700000000.5 WHERE id = 'waiting'", (many,))
    columns = [name for _, name, *_ in conn.execute("PRAGMA table_info(runs)") if name not in ("uid", "id", "user_id", "usage")]
    same = ", ".join(columns)
    for run_id, user, usage in (("more", "ann", half), ("bens", "ben", many), ("free", "cleo", none), ("unknown", "dan", None)):
        conn.execute(
            f"INSERT INTO runs (id, user_id, usage, {same}) SELECT ?, ?, ?, {same} FROM runs WHERE id = 'finished'",
            (run_id, user, usage),
        )
    conn.commit()
    conn.close()
    store = opened()
    usage = await store.user_usage("trains", "ann")
    assert [(b.hour, b.usage) for b in usage.buckets] == [
        (1_699_999_200, Usage(total_token_count=100)), (1_700_006_400, Usage(total_token_count=16, prompt_token_count=10)),
    ]  # fmt: skip
    assert usage.total.total_token_count == 116
    assert (await store.user_usage("trains", "ben")).total == Usage(total_token_count=100)
    for user in ("cleo", "dan"):
        assert await store.user_usage("trains", user) == (Usage(), [])


async def test_a_version_1_file_has_the_tables_of_a_new_one(version_1: Path, tmp_path: Path) -> None:
    def tables(file: Path) -> dict[str, list[tuple[object, ...]]]:
        conn = connect(str(file))
        names = [name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type IN ('table', 'index')")]
        shape = {name: conn.execute(f"PRAGMA table_xinfo({name})").fetchall() for name in names}
        conn.close()
        return shape

    assert tables(version_1) == tables(tmp_path / "new.db")


async def test_every_step_from_the_file_s_version_on_is_taken_once(path: Path) -> None:
    steps = [Migration(n, f"step {n}", (f"CREATE TABLE t{n} (x)",)) for n in range(1, 5)]
    for newest in (1, 2, 4):
        connect(str(path), migrations=steps[:newest]).close()
        conn = sqlite3.connect(path)
        tables = [name for (name,) in conn.execute("SELECT name FROM sqlite_schema ORDER BY name")]
        assert tables == [f"t{n}" for n in range(1, newest + 1)]
        conn.close()


async def test_a_step_that_fails_leaves_the_file_as_it_was(path: Path, opened) -> None:
    store = opened()
    await finished(store, "r1", None, "Hi.")
    await store.close()
    broken = Migration(NEXT.version, "breaks", (*NEXT.statements, "ALTER TABLE nothing ADD COLUMN x"))
    with pytest.raises(sqlite3.OperationalError, match="nothing"):
        connect(str(path), migrations=(*MIGRATIONS, broken))
    again = opened()
    assert (await again.get_session(app_name="shop", user_id="alice", session_id="s1")).event_count == 2


async def test_a_newer_file_is_refused(path: Path, opened) -> None:
    connect(str(path), migrations=(*MIGRATIONS, NEXT)).close()
    with pytest.raises(Unsupported) as caught:
        await opened().get_session(app_name="shop", user_id="alice", session_id="s1")
    assert caught.value.code == "store.schema_newer"
    assert f"version {NEXT.version}" in caught.value.message
    assert f"knows {MIGRATIONS[-1].version}" in caught.value.message
    assert "upgrade" in caught.value.message
    assert str(path) in caught.value.message


async def test_a_foreign_database_is_refused_and_left_alone(path: Path, opened) -> None:
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE theirs (x)")
    conn.close()
    before = path.read_bytes()
    with pytest.raises(Unsupported) as caught:
        await opened().create_session(app_name="shop", user_id="alice", session_id="s1")
    assert caught.value.code == "store.foreign"
    assert path.read_bytes() == before


@pytest.mark.parametrize("pragma", ["application_id", "user_version"])
async def test_a_file_that_others_marked_is_foreign(path: Path, opened, pragma: str) -> None:
    conn = sqlite3.connect(path)
    conn.execute(f"PRAGMA {pragma} = 7")
    conn.close()
    with pytest.raises(Unsupported) as caught:
        await opened().list_sessions(app_name="shop")
    assert caught.value.code == "store.foreign"


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, opened) -> None:
    path.write_text("Dear diary, " * 1000)
    before = path.read_bytes()
    store = opened()
    for call in (store.list_sessions(app_name="shop"), store.create_session(app_name="shop", user_id="alice")):
        with pytest.raises(Unsupported) as caught:
            await call
        assert caught.value.code == "store.foreign"
        assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert path.read_bytes() == before


async def test_a_damaged_file_says_so(path: Path, opened) -> None:
    store = opened()
    for n in range(20):
        await finished(store, f"r{n}", None, "x" * 3000)
    await store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(Unavailable) as caught:
        await opened().list_events(app_name="shop", user_id="alice", session_id="s1")
    assert (caught.value.code, caught.value.retryable) == ("store.corrupt", False)


async def test_many_processes_may_make_the_file_at_once(path: Path, opened) -> None:
    with other("open_at_once", path) as a, other("open_at_once", path) as b, other("open_at_once", path) as c:
        processes = (a, b, c)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [p.stdout.readline() for p in processes] == ["created\n"] * 3
    assert len((await opened().list_sessions(app_name="shop")).items) == 3


def test_a_lock_on_the_new_file_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself gives up at once when the journal mode is to be changed."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    waits = []

    class Event:
        def wait(self, seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                holder.execute("ROLLBACK")

    monkeypatch.setattr(schema.threading, "Event", Event)
    connect(str(path)).close()
    assert len(waits) == 3
    holder.close()

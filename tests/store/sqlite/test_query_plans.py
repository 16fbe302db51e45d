"""How SQLite finds the rows: by index, and no more of them than the answer needs."""

# Nothing else runs on the loop while a test looks at a file.
# ruff: noqa: ASYNC240

import sqlite3
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from sojourn.content import Content
from sojourn.event import Usage
from sojourn.run.status import Move, RunStatus
from sojourn.run.types import RunQuery
from sojourn.session.state import StateDelta
from sojourn.session.types import SessionKey
from sojourn.store.prepared import submission_of
from sojourn.store.sqlite import history, records, runs, sessions, submits
from sojourn.store.sqlite.connection import connect
from sojourn.store.sqlite.messages import Messages
from sojourn.store.sqlite.schema import MIGRATIONS
from sojourn.testing.builders import (
    ask,
    event,
    failure,
    finished,
    new_run,
    next_attempt,
    reply,
    session_key,
    start,
    step,
    write,
)

pytestmark = pytest.mark.anyio

SMALL = ("runs_unfinished", "SCAN i", "SCAN apps")
"""What may be read from end to end where all of it is asked for: the runs under way, the questions, the names of the apps."""


class Recording(sqlite3.Connection):
    """Keeps the statements it is given."""

    statements: ClassVar[set[str]] = set()

    def execute(self, sql, *args):
        self.statements.add(sql)
        return super().execute(sql, *args)

    def executemany(self, sql, *args):
        self.statements.add(sql)
        return super().executemany(sql, *args)


async def everything(store, other):
    """Every kind of call, in every way that takes statements of its own."""
    await store.create_session(app_name="shop", user_id="alice", session_id="s0", state={"a": 1, "user:b": 1})
    await store.patch_session(app_name="shop", user_id="alice", session_id="s0", state_delta={"a": 2}, state_deleted=["b"])
    run = await start(store)
    first = event(run, 1, "x", calls=["c1"], state={"a": 1}, deleted=["b"], increments={"n": 1})
    await write(store, run, first, steps=[step("k")])
    await write(store, run, event(run, 3, "z", usage_metadata=Usage(total_token_count=1)), usage_since=0.0)
    await store.user_usage("shop", "alice")
    await write(store, run, event(run, 2, "y", responses=["c1"], summary_until=1), state=StateDelta(values={"z": 1}))
    run = (await next_attempt(store, run)).record
    await write(store, run, event(run, 1, "other", calls=["c1"], state={"a": 3}), live={None: 2}, agent="billing")
    await ask(store, run, 2)
    await reply(store, run)
    run = (await store.begin(run.uid)).record
    await write(store, run, move=Move.COMPLETE, live={None: 3})
    await store.submit(new_run("r2", retry_of="r1", reject_if_busy=True), begin=False)
    queued = (await store.submit(new_run("r3"), begin=False)).record
    await store.request_cancel(queued.uid, "enough")
    waiting = await start(store, "r4")
    await ask(store, waiting, 1)
    await store.close_run(waiting.uid, failure(), move=Move.EXPIRE)
    taken = await start(store, "r5")
    await store.take_over(taken.uid, failure(), move=Move.FAIL)
    await store.get_session(app_name="shop", user_id="alice", session_id="s1", events=2)
    await store.list_events(app_name="shop", user_id="alice", session_id="s1")
    for limit in (0, 2, None):
        await store.history(session_key(), limit)
    await store.list_apps()
    for user in (None, "alice"):
        await store.list_sessions(app_name="shop", user_id=user)
        await store.get_run("shop", "r1", user)
        for session in (None, "s1"):
            for status in ((), (RunStatus.FAILED,), (RunStatus.QUEUED, RunStatus.WAITING)):
                await store.list_runs(RunQuery("shop", user, session, status))
            for open_only in (True, False):
                await store.list_interrupts("shop", user_id=user, session_id=session, open_only=open_only)
                await store.list_interrupts("shop", user_id=user, session_id=session, run_uid=run.uid, open_only=open_only)
    await store.list_steps(run.uid)
    await store.run_events(run.uid)
    await store.unfinished("shop")
    held = await start(store, "r6")
    await other.request_cancel(held.uid, "enough")
    await store.changes()
    await store.delete_session(app_name="shop", user_id="alice", session_id="s1")


async def test_no_statement_walks_through_a_table(path: Path, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    Recording.statements = given = set()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Recording))
        await everything(opened(), opened())
    conn = connect(str(path))
    given -= {statement for migration in MIGRATIONS for statement in migration.statements}
    statements = [s for s in given if s.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT") and "sqlite_schema" not in s]
    assert len(statements) > 60
    bad = []
    for sql in statements:
        for *_, detail in conn.execute(f"EXPLAIN QUERY PLAN {sql}", (None,) * sql.count("?")).fetchall():
            one_row = ("SCAN CONSTANT ROW", "SCAN (subquery")
            if detail.startswith("SCAN") and not detail.startswith(one_row) and not any(name in detail for name in SMALL):
                bad.append((detail, " ".join(sql.split())))
    assert bad == []
    conn.close()


# -- what a call costs, in steps of SQLite's machine ------------------------------------------------------------------


def steps_of(conn, call):
    """How many instructions SQLite executes for a call."""
    count = 0

    def tick():
        nonlocal count
        count += 1

    conn.set_progress_handler(tick, 1)
    try:
        call(conn)
    finally:
        conn.set_progress_handler(None, 1)
    return count


WINDOW = 20
CALLS = {
    "history": lambda conn: history.window(conn, session_key("long"), WINDOW),
    "get_session": lambda conn: sessions.get(conn, session_key("long"), WINDOW),
    "list_events": lambda conn: history.page(conn, session_key("long"), 5, WINDOW, False),
    "run_events": lambda conn: history.of_run(conn, 1, 0, WINDOW),
    "list_runs of a session": lambda conn: records.list_page(conn, RunQuery("shop", "alice", "few"), WINDOW, None),
    "list_runs of an app": lambda conn: records.list_page(conn, RunQuery("shop"), 3, None),
    "list_sessions": lambda conn: sessions.list_page(conn, "shop", None, 3, None),
    "get_run": lambda conn: records.get_by_id(conn, "shop", "few0", None),
    "unfinished": lambda conn: records.unfinished(conn, "shop"),
    "list_interrupts": lambda conn: records.list_interrupts(conn, "shop", None, None, None, False),
    "list_interrupts, open ones": lambda conn: records.list_interrupts(conn, "shop", None, None, None, True),
    "list_interrupts of a run": lambda conn: records.list_interrupts(conn, "shop", None, None, 1, False),
}


async def test_reads_cost_what_they_give(path: Path, opened) -> None:
    store = opened()
    conn = connect(str(path))
    for n in range(5):
        await finished(store, f"few{n}", session_key("few"), "x")
    await ask(store, await start(store, "asks", session_key("asks")), 1)
    await write_turns(store, "long0", 30)
    before = {name: steps_of(conn, call) for name, call in CALLS.items()}
    for n in range(1, 15):
        await write_turns(store, f"long{n}", 100)
        await finished(store, f"r{n}", SessionKey("other", f"user{n}", f"s{n}"), "x")
    after = {name: steps_of(conn, call) for name, call in CALLS.items()}
    conn.close()
    grown = {name: (before[name], after[name]) for name in CALLS if after[name] > 1.2 * before[name]}
    assert grown == {}


@pytest.mark.parametrize("begin", [True, False])
async def test_a_repeat_costs_what_ceases_to_count(path: Path, opened, begin: bool) -> None:
    store = opened()
    conn = connect(str(path))
    costs = []
    for turns in (2, 100):
        key = session_key(f"of {turns}")
        for n in range(turns):
            await finished(store, f"{turns}/{n}", key, "a", "b")
            await finished(store, f"other {turns}/{n}", SessionKey("shop", "alice", f"{turns}/{n}"), "x")
        new = submission_of(new_run(f"again {turns}", key, retry_of=f"{turns}/{turns - 2}"))
        queued = None if begin else (await store.submit(new.run, begin=False)).record

        def repeat(conn, new=new, queued=queued):
            conn.execute("BEGIN IMMEDIATE")
            if queued is None:
                submits.submit(conn, new, True, Messages())
            else:
                runs.begin(conn, queued.uid)
            assert taken_out(conn) == 6
            conn.execute("ROLLBACK")

        costs.append(steps_of(conn, repeat) - steps_of(conn, taken_out))
    conn.close()
    assert costs[1] <= 1.2 * costs[0]


def taken_out(conn):
    """How many events another run has taken the place of; not part of what a repeat costs."""
    return conn.execute("SELECT count(*) FROM events WHERE superseded = 2").fetchone()[0]


async def write_turns(store, run_id, count):
    """A run of calls and responses in the long session."""
    run = await start(store, run_id, session_key("long"))
    events = []
    for n in range(count):
        call = f"{run_id}/{n}"
        events += [event(run, 2 * n + 1, calls=[call]), event(run, 2 * n + 2, responses=[call])]
    await write(store, run, *events, move=Move.COMPLETE)


async def test_storage_grows_with_the_events(store, path: Path) -> None:
    """No state, history or message is written again with each event."""
    run = await start(store, text="x" * 10_000)
    wide = {f"k{n}": "v" * 100 for n in range(100)}
    await store.patch_session(app_name="shop", user_id="alice", session_id="s1", state_delta=wide)
    for ordinal in range(1, 501):
        await write(store, run, event(run, ordinal, content=Content.of("y" * 100, "model"), increments={"n": 1}))
    await store.close()
    assert path.stat().st_size < 500 * 1500 + 200_000

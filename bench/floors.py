"""The least that the things measured could cost: the same work without a runtime around it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Iterator

from bench.measure import Cost, Stopwatch
from bench.stores import directory, rows_in
from sojourn import platform
from sojourn.content import Content
from sojourn.event import Event
from sojourn.sqlite.connection import Synchronous
from sojourn.store.rows import event_body
from sojourn.store.sqlite.connection import connect

PIECES_PER_TURN = 64
"""Pieces that a producer hands over before the reader gets a turn; as many as the runner lets an agent write."""


def said(author: str, text: str) -> Event:
    """An event as a run makes two of."""
    return Event(id=platform.new_id(), run_id="r", author=author, timestamp=platform.now(), content=Content.of(text))


async def two_events(runs: int) -> Cost:
    """Per run: two events, one task, one wake-up of who waits for it."""
    loop = asyncio.get_running_loop()

    async def work(log: list[Event], done: asyncio.Future[None]) -> None:
        log.append(said("user", "hi"))
        log.append(said("agent", "ok"))
        done.set_result(None)

    with Stopwatch() as watch:
        for _ in range(runs):
            done: asyncio.Future[None] = loop.create_future()
            task = loop.create_task(work([], done))
            await done
        del task
    return watch.per(runs)


async def hand_over(pieces: int, *, at_once: int) -> Cost:
    """Per piece: a task hands it to another one that waits for it, so many before the other gets a turn."""
    loop = asyncio.get_running_loop()
    ready: deque[str] = deque()
    waiter: asyncio.Future[None] | None = None
    over = False

    async def produce() -> None:
        nonlocal over
        for n in range(1, pieces + 1):
            ready.append("tok ")
            wake()
            if not n % at_once:
                await asyncio.sleep(0)
        over = True
        wake()

    def wake() -> None:
        nonlocal waiter
        if waiter is not None:
            waiter.set_result(None)
            waiter = None

    with Stopwatch() as watch:
        producer = loop.create_task(produce())
        taken = 0
        while True:
            while ready:
                ready.popleft()
                taken += 1
            if over:
                break
            waiter = loop.create_future()
            await waiter
        await producer
    assert taken == pieces
    return watch.per(pieces)


_TOUCH = "UPDATE sessions SET run_no = ?, event_count = ?, updated_at = ? WHERE sid = ?"
_RUN = """
    INSERT INTO runs (sid, id, app_name, user_id, no, status, attempt, first_seq, config, attached, last_pos, created_at,
        started_at) VALUES (?, ?, 'bench', 'user', ?, 'running', 1, ?, '{}', 1, 1, ?, ?)
"""
_EVENT = "INSERT INTO events (sid, seq, run_uid, pos, ordinal, path, attempt, body) VALUES (?, ?, ?, ?, ?, '', 1, ?)"
_ANSWERED = "UPDATE sessions SET event_count = ?, updated_at = ? WHERE sid = ?"
_FINISHED = """
    UPDATE runs SET status = 'completed', deaths = 0, last_pos = 3, top = 1, has_undo = 0, has_asked = 0, finished_at = ?
    WHERE uid = ?
"""


def sqlite_rows(synchronous: Synchronous, runs: int, group: int) -> Cost:
    """Per run: the rows of its beginning and those of its end, of so many runs in each transaction.

    One connection with the tables and the settings of the store; texts and numbers are ready before the time starts.
    """
    with directory() as path:
        conn = connect(str(path / "floor.db"), synchronous=synchronous)
        try:
            return _write_rows(conn, runs, group)
        finally:
            conn.close()


def _write_rows(conn: sqlite3.Connection, runs: int, group: int) -> Cost:
    question, answer = event_body(said("user", "hi")), event_body(said("agent", "ok"))
    now = platform.now()
    for sid in range(1, group + 1):
        conn.execute(
            "INSERT INTO sessions (uid, app_name, user_id, id, event_count, run_no, created_at, updated_at) "
            "VALUES (?, 'bench', 'user', ?, 0, 0, ?, ?)",
            (platform.new_id(), f"s{sid}", now, now),
        )

    def begin(uid: int, sid: int, no: int) -> None:
        conn.execute(_TOUCH, (no, no * 2 - 1, now, sid))
        conn.execute(_RUN, (sid, run_ids[uid - 1], no, no * 2 - 1, now, now))
        conn.execute(_EVENT, (sid, no * 2 - 1, uid, None, 0, question))

    def finish(uid: int, sid: int, no: int) -> None:
        conn.execute(_EVENT, (sid, no * 2, uid, 2, 1, answer))
        conn.execute(_FINISHED, (now, uid))
        conn.execute(_ANSWERED, (no * 2, now, sid))

    run_ids = [platform.new_id() for _ in range(runs)]
    with Stopwatch() as watch:
        for batch in _batches(runs, group):
            for write in (begin, finish):
                conn.execute("BEGIN IMMEDIATE")
                for uid, sid, no in batch:
                    write(uid, sid, no)
                conn.execute("COMMIT")
    written = rows_in(conn)
    assert written == (group, runs, runs * 2), written
    return watch.per(runs)


def _batches(runs: int, group: int) -> Iterator[list[tuple[int, int, int]]]:
    """Key, session and number of the runs of each transaction."""
    for first in range(1, runs + 1, group):
        uids = range(first, min(first + group, runs + 1))
        yield [(uid, uid - first + 1, first // group + 1) for uid in uids]

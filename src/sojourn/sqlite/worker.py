"""A thread that owns a connection, and the calls that coroutines of any event loop make into it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from sojourn.errors import SojournError, Unavailable
from sojourn.outcome import Outcome
from sojourn.sqlite.faults import Driven, fault

T = TypeVar("T")

Op = Callable[[sqlite3.Connection], T]
"""Work on a connection, inside of a transaction that somebody else begins and ends."""

MAX_BATCH = 512
"""How many waiting calls are taken up at once."""


class Call:
    """One piece of work and who waits for it.

    Attributes:
        op: The work.
        writes: Whether it may write.
        committed: Called in the thread with the result, before anything else runs there, once that is durable.
    """

    __slots__ = ("committed", "error", "op", "outcome", "result", "writes")

    def __init__(
        self, op: Op[Any], outcome: Outcome, writes: bool = False, committed: Callable[[Any], object] | None = None
    ) -> None:
        self.op = op
        self.outcome = outcome
        self.writes = writes
        self.committed = committed
        self.result: Any = None
        self.error: BaseException | None = None

    def done(self) -> None:
        """Says that the result is durable."""
        if self.committed is not None and self.error is None:
            self.committed(self.result)


class Worker:
    """Runs calls in a thread of its own, which starts with the first call.

    Args:
        name: Name of the thread.
        path: The database file, for messages.
        connect: Opens the connection; called in the thread, and again after it failed.
    """

    def __init__(self, name: str, path: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._name = name
        self._path = path
        self._connect = connect
        # None tells the thread to end; it is the last thing that is put in.
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        # Guards what follows.
        self._lock = threading.Lock()
        # What the tasks of a loop ask for in one round of it goes into the queue together: then the thread and the loop
        # take turns instead of competing for the interpreter, and more calls share a commit.
        self._collected: dict[asyncio.AbstractEventLoop, list[Call]] = {}
        self._thread: threading.Thread | None = None
        self._pid: int | None = None
        self._stopping = False
        self._ended = False
        self._joining: list[Call] = []
        # For the thread alone.
        self._conn: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    async def call(self, op: Op[T], *, writes: bool = False, committed: Callable[[T], object] | None = None) -> T:
        """Runs `op` in the thread and returns what it returns. A cancelled caller waits for the outcome first.

        Args:
            op: The work.
            writes: Whether it may write.
            committed: Called in the thread with the result once that is durable.

        Raises:
            Unavailable: `store.closed` after `stop`; `store.unavailable` if the database fails.
        """
        outcome = Outcome()
        loop = outcome.get_loop()
        with self._lock:
            if self._stopping:
                raise Unavailable(f"database {self._path} has been closed; open it again", code="store.closed", retryable=False)
            if self._pid not in (None, os.getpid()):
                raise Unavailable(
                    f"database {self._path} was opened before this process was forked; open it again after forking",
                    code="store.forked",
                    retryable=False,
                )
            if self._thread is None:
                self._pid = os.getpid()
                # A daemon: a process that exits does not wait for it, and what was acknowledged is durable.
                self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
                self._thread.start()
            collected = self._collected.get(loop)
            if collected is None:
                collected = self._collected[loop] = []
                loop.call_soon(self._hand_over, loop)
            collected.append(Call(op, outcome, writes, committed))
        result: T = await outcome
        return result

    def stop(self) -> None:
        """Takes no more calls; the thread does those that wait, closes the connection, and ends."""
        with self._lock:
            if not self._stopping:
                self._stopping = True
                self._ended = self._thread is None
                for loop in list(self._collected):
                    self._put(loop)
                self._queue.put(None)

    async def join(self) -> None:
        """Stops, and waits for the end of the thread."""
        self.stop()
        outcome = Outcome()
        with self._lock:
            if self._ended:
                return
            self._joining.append(Call(_nothing, outcome))
        await outcome

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._put(loop)

    def _put(self, loop: asyncio.AbstractEventLoop) -> None:
        for call in self._collected.pop(loop, ()):
            self._queue.put(call)

    def _main(self) -> None:
        while self._work():
            pass
        if self._conn is not None:
            with suppress(sqlite3.Error):
                self._conn.close()
        with self._lock:
            self._ended = True
        deliver(self._joining)

    def _work(self) -> bool:
        """Does what waits, or waits for something to do; whether there can be more."""
        taken = [self._queue.get()]
        taken.extend(self._queue.get_nowait() for _ in range(min(self._queue.qsize(), MAX_BATCH - 1)))
        calls = [c for c in taken if c is not None]
        if calls:
            try:
                if self._conn is None:
                    self._conn = self._connect()
                    self._file = self._file_there()
                self._run(self._conn, calls)
            except BaseException as error:
                fail(calls, error, self._path)
            deliver(calls)
        return len(calls) == len(taken)

    def _file_there(self) -> tuple[int, int] | None:
        """What tells the file at the path from any other; None if there is none."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _run(self, conn: sqlite3.Connection, calls: Sequence[Call]) -> None:
        """Does the calls and leaves result or error in each. This one is for calls that only read."""
        for call in calls:
            try:
                conn.execute("BEGIN")
                call.result = call.op(conn)
                call.done()
            except BaseException as error:
                fail([call], error, self._path)
            finally:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")


def fail(calls: Sequence[Call], error: BaseException, path: str) -> None:
    """Leaves an error in each of the calls: one of its own, for it will carry the traceback of who waits."""
    for call in calls:
        call.result = None
        if isinstance(error, Driven):
            call.error = fault(error, path)
        elif isinstance(error, SojournError) and len(calls) > 1:
            call.error = copy_of(error)
        else:
            call.error = error


def copy_of(error: SojournError) -> SojournError:
    """Another error that says the same."""
    twin = type(error)(error.message, code=error.code, retryable=error.retryable, retry_after=error.retry_after)
    twin.__cause__ = error.__cause__
    return twin


def deliver(calls: Sequence[Call]) -> None:
    """Wakes those who wait, with one message to each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Call]] = {}
    for call in calls:
        by_loop.setdefault(call.outcome.get_loop(), []).append(call)
    for loop, of_loop in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, of_loop)
        except RuntimeError:
            # The loop is closed: nobody waits there any more.
            continue


def _resolve(calls: Sequence[Call]) -> None:
    for call in calls:
        if call.outcome.done():
            continue
        if call.error is None:
            call.outcome.set_result(call.result)
        else:
            call.outcome.set_exception(call.error)


def _nothing(conn: sqlite3.Connection) -> None:
    """What is called for when only the end is waited for."""

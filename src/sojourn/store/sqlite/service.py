"""The store in a SQLite file: one database behind both seams, for one machine."""

from __future__ import annotations

import os
import sqlite3
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sojourn import jsonvalue, platform
from sojourn.errors import Conflict, InvalidInput, Unavailable
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.page import Page, check_page
from sojourn.run.retention import BATCH, Dropped, DroppedSession, SessionSize, Trimmed
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Answered, Appended, Batch, Begun, Change, Fence, NewRun, Submitted
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.run.usage import UserUsage
from sojourn.session.state import StateDelta
from sojourn.session.types import History, Session, SessionKey
from sojourn.sqlite.connection import Synchronous
from sojourn.sqlite.scrubbing import scrub
from sojourn.sqlite.worker import Op, Worker
from sojourn.sqlite.writer import Writer
from sojourn.store.prepared import entry_of, prepare, submission_of
from sojourn.store.role import Role
from sojourn.store.rules import cancelled, check_bounds, check_ids, check_window, key_after
from sojourn.store.sqlite import appends, care, history, ledger, records, runs, sessions, submits, trimming
from sojourn.store.sqlite.connection import connect
from sojourn.store.sqlite.executor import ExecutorRole
from sojourn.store.sqlite.messages import Messages
from sojourn.store.sqlite.watch import Seen, Watch

T = TypeVar("T")


class SqliteSessionService:
    """Sessions and runs in a SQLite file.

    It keeps every rule of `SessionService` and `RunStore`, for any number of tasks and event loops. The file is opened, and
    created if missing, by the first call. One thread writes, and commits what waits in one go; another one reads.

    **What survives.** A call that writes returns once its transaction is committed. With `synchronous="full"` that is on
    the disk: it survives `kill -9`, a crash of the operating system and a loss of power, provided the disk keeps what it
    says it has. With `"normal"` it survives the death of the process; a crash of the operating system or a loss of power
    may take the newest transactions, always the last ones and each as a whole. Neither can damage the file.

    **Other processes.** Any number may open the same file and read, create, change and delete sessions, ask for cancels,
    answer and close runs. Executing runs (`submit`, `begin`, `append`, `take_over`) is for one process at a time: the
    first such call claims that role, and the role ends with `close` or with the process. An object made with
    `role="client"` never claims it, whoever uses it: such calls raise `Conflict`, `store.client_only`. The file must be on a
    local disk.

    Args:
        path: The database file. Its directory must exist.
        synchronous: `full` or `normal`, as above.
        role: `executor` or `client`, as above.

    Raises:
        InvalidInput: `store.invalid_url` if that cannot be a file; `store.invalid_option`.
    """

    shared = True

    def __init__(self, path: str | os.PathLike[str], *, synchronous: Synchronous = "full", role: Role = "executor") -> None:
        name = os.fspath(path)
        if not isinstance(name, str) or not name or name == ":memory:" or "\0" in name:
            raise InvalidInput(
                "SqliteSessionService needs the path of a file; for sessions in memory use InMemorySessionService()",
                code="store.invalid_url",
            )
        if synchronous not in ("full", "normal"):
            raise InvalidInput(f"synchronous is {synchronous!r}; use 'full' or 'normal'", code="store.invalid_option")
        if role not in ("executor", "client"):
            raise InvalidInput(f"role is {role!r}; use 'executor' or 'client'", code="store.invalid_option")
        # Links are followed so that all names of a file share one lock.
        self.path = os.path.realpath(name)
        self._is_client = role == "client"
        self._role = ExecutorRole(self.path)
        self._watch = Watch()
        self._messages = Messages()
        self._writer = Writer("sojourn-sqlite-writer", self.path, partial(connect, self.path, synchronous=synchronous))
        self._reader = Worker("sojourn-sqlite-reader", self.path, partial(connect, self.path, read_only=True))
        # For those who never close: the threads would keep the file open for as long as the process lives.
        self._finalizer = weakref.finalize(self, _stop, self._writer, self._reader, self._role)

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        key = SessionKey(app_name, user_id, session_id if session_id is not None else platform.new_id()).check()
        delta = StateDelta.of_values(state).durable()
        return await self._write(lambda conn: sessions.create(conn, key, delta))

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        key = SessionKey(app_name, user_id, session_id).check()
        check_window(events)
        return await self._read(lambda conn: sessions.get(conn, key, events))

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Session]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        key_after(after)
        return await self._read(lambda conn: sessions.list_page(conn, app_name, user_id, limit, after))

    async def list_apps(self) -> list[str]:
        return await self._read(sessions.list_apps)

    async def patch_session(
        self, *, app_name: str, user_id: str, session_id: str, state_delta: dict[str, Any] | None = None,
        state_deleted: list[str] | None = None,
    ) -> Session:  # fmt: skip
        key = SessionKey(app_name, user_id, session_id).check()
        delta = StateDelta.of_values(state_delta)
        for name in state_deleted or ():
            delta.delete(name)
        durable = delta.durable()
        return await self._write(lambda conn: sessions.patch(conn, key, durable))

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        key = SessionKey(app_name, user_id, session_id).check()
        deleted, _ = await self._write(lambda conn: sessions.delete(conn, key), self._saw_deleted)
        return deleted

    async def list_events(
        self, *, app_name: str, user_id: str, session_id: str, after: int = 0, limit: int = 100, superseded: bool = False
    ) -> list[Event]:
        check_page(limit)
        key = SessionKey(app_name, user_id, session_id).check()
        return await self._read(lambda conn: history.page(conn, key, after, limit, superseded))

    async def history(self, key: SessionKey, limit: int | None) -> History:
        key.check()
        check_window(limit)
        return await self._read(lambda conn: history.window(conn, key, limit))

    # -- runs: what an executor does --------------------------------------------------------------------------------

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        new = submission_of(run)
        messages = self._messages
        await self.become_executor()
        return await self._write(lambda conn: submits.submit(conn, new, begin, messages), self._saw_submitted)

    async def begin(self, run_uid: int) -> Begun:
        await self.become_executor()
        return await self._write(lambda conn: runs.begin(conn, run_uid), self._saw_outcome)

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        new = prepare(batch)
        messages = self._messages
        await self.become_executor()
        return await self._write(lambda conn: appends.append(conn, fence, new, messages), self._saw_outcome)

    async def take_over(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        await self.become_executor()
        return await self._write(lambda conn: runs.take_over(conn, run_uid, error, move), self._watch.saw)

    async def requeue_lost(self, run_uid: int, *, ends: Callable[[RunRecord], bool] | None = None) -> RunRecord:
        return await self._write(lambda conn: runs.requeue_lost(conn, run_uid, ends), self._watch.saw)

    async def unfinished(self, app_name: str) -> list[RunRecord]:
        # In the thread that keeps the watch, so that no run is told twice.
        check_ids(app_name=app_name)
        return await self._writer.call(lambda conn: records.unfinished(conn, app_name), committed=self._watch.listed)

    async def become_executor(self) -> None:
        if self._is_client:
            raise Conflict(
                f"{self.path} was opened with role='client' and executes no runs here; start and retry them where it is opened "
                "as executor",
                code="store.client_only",
            )

        def op(conn: sqlite3.Connection) -> Seen:
            self._role.claim()
            return self._watch.first(conn)

        if not (self._role.held and self._watch.started):
            await self._writer.call(op, committed=self._watch.start)

    async def changes(self) -> list[Change]:
        if not self._role.held:
            return []
        return (await self._writer.call(self._watch.look, committed=self._watch.note)).changes

    # -- runs: what anybody does ------------------------------------------------------------------------------------

    async def request_cancel(self, run_uid: int, reason: str) -> RunRecord:
        record = await self._write(lambda conn: runs.request_cancel(conn, run_uid, reason), self._watch.asked)
        if record.status is RunStatus.RUNNING and not self._role.held:
            with self._role.vacant() as abandoned:
                if abandoned:
                    # Its process is dead, so nobody would act on the wish.
                    error = cancelled(record)
                    return await self._write(lambda conn: runs.take_over(conn, run_uid, error, Move.CANCEL))
        return record

    async def close_run(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        return await self._write(lambda conn: runs.close_run(conn, run_uid, error, move), self._watch.saw)

    async def answer(self, run_uid: int, interrupt_id: str, answer: Any, event: Event) -> Answered:
        value = jsonvalue.copy(answer, where="answer")
        entry = entry_of(event)
        return await self._write(lambda conn: runs.answer(conn, run_uid, interrupt_id, value, entry), self._saw_outcome)

    async def get_run(self, app_name: str, run_id: str, user_id: str | None = None) -> RunRecord:
        check_ids(app_name=app_name, user_id=user_id)
        check_id(run_id, "run_id")
        return await self._read(lambda conn: records.get_by_id(conn, app_name, run_id, user_id))

    async def list_runs(self, query: RunQuery, *, limit: int = 100, after: str | None = None) -> Page[RunRecord]:
        check_page(limit)
        key_after(after)
        check_ids(app_name=query.app_name, user_id=query.user_id, session_id=query.session_id)
        return await self._read(lambda conn: records.list_page(conn, query, limit, after))

    async def list_interrupts(
        self, app_name: str, *, user_id: str | None = None, session_id: str | None = None, run_uid: int | None = None,
        open_only: bool = True,
    ) -> list[Interrupt]:  # fmt: skip
        check_ids(app_name=app_name, user_id=user_id, session_id=session_id)
        return await self._read(lambda conn: records.list_interrupts(conn, app_name, user_id, session_id, run_uid, open_only))

    async def list_steps(self, run_uid: int) -> list[Step]:
        return await self._read(lambda conn: records.list_steps(conn, run_uid))

    async def run_events(self, run_uid: int, *, after: int = 0, limit: int = 256) -> list[Event]:
        check_page(limit)
        return await self._read(lambda conn: history.of_run(conn, run_uid, after, limit))

    async def user_usage(self, app_name: str, user_id: str, since: float | None = None) -> UserUsage:
        check_ids(app_name=app_name, user_id=user_id)
        return await self._read(lambda conn: ledger.read(conn, app_name, user_id, since))

    # -- the care of data -------------------------------------------------------------------------------------------

    async def trim_session(
        self, key: SessionKey, *, keep_events: int | None = None, ended_before: float | None = None, limit: int = BATCH
    ) -> Trimmed:
        key.check()
        check_bounds(keep_events, ended_before, limit)
        # Most sessions have nothing to remove, and those who write need not wait for that to be found out.
        if not await self._read(lambda conn: trimming.may_trim(conn, key, keep_events, ended_before)):
            return Trimmed(0, 0, False)
        return await self._write(lambda conn: trimming.trim(conn, key, keep_events, ended_before, limit))

    async def drop_session(self, key: SessionKey, *, idle_since: float | None = None, limit: int = BATCH) -> Dropped:
        key.check()
        check_bounds(None, idle_since, limit)
        dropped, _ = await self._write(lambda conn: trimming.drop(conn, key, idle_since, limit), self._saw_deleted)
        return dropped

    async def dropped_sessions(self, app_name: str, *, user_id: str | None = None, limit: int = 100) -> list[DroppedSession]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        return await self._read(lambda conn: care.dropped(conn, app_name, user_id, limit))

    async def settle_dropped(self, uid: str) -> None:
        check_id(uid, "uid")
        await self._write(lambda conn: care.settle(conn, uid))

    async def session_sizes(
        self, app_name: str, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[SessionSize]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        key_after(after)
        return await self._read(lambda conn: care.sizes(conn, app_name, user_id, limit, after))

    async def apps_of_user(self, user_id: str) -> list[str]:
        check_id(user_id, "user_id")
        return await self._read(lambda conn: care.apps_of_user(conn, user_id))

    async def user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        check_ids(app_name=app_name, user_id=user_id)
        return await self._read(lambda conn: care.user_state(conn, app_name, user_id))

    async def erase_user(self, app_name: str, user_id: str) -> None:
        check_ids(app_name=app_name, user_id=user_id)
        await self._write(lambda conn: care.erase_user(conn, app_name, user_id))

    async def scrub(self) -> None:
        if not await self._writer.call(scrub):
            raise Unavailable(
                f"copies of what was removed are left in {self.path}-wal as long as another process reads from before; "
                "try again when it has ended"
            )

    async def close(self) -> None:
        """Does what waits, closes the file and gives up the executor's role. Afterwards all calls raise `store.closed`."""
        await self._reader.join()
        await self._writer.join()
        self._role.release()
        self._finalizer.detach()

    # -- parts ------------------------------------------------------------------------------------------------------

    async def _write(self, op: Op[T], committed: Callable[[T], object] | None = None) -> T:
        return await self._writer.call(op, writes=True, committed=committed)

    async def _read(self, op: Op[T]) -> T:
        return await self._reader.call(op)

    def _saw_submitted(self, submitted: Submitted) -> None:
        if not submitted.known:
            self._watch.saw(submitted.record)

    def _saw_deleted(self, deleted: tuple[Session | Dropped, list[int]]) -> None:
        self._watch.forget(deleted[1])

    def _saw_outcome(self, outcome: Begun | Appended | Answered) -> None:
        self._watch.saw(outcome.record)


def _stop(writer: Writer, reader: Worker, role: ExecutorRole) -> None:
    reader.stop()
    writer.stop()
    role.release()

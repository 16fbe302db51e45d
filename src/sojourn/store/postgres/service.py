"""The store in a PostgreSQL database: one database behind both seams, for many machines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from sojourn import jsonvalue, platform
from sojourn.errors import Conflict, InvalidInput, SojournError, Unavailable
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.page import Page, check_page
from sojourn.postgres.migrations import Place, check_schema, migrate
from sojourn.postgres.pool import Database
from sojourn.postgres.tables import Tables
from sojourn.run.retention import BATCH, Dropped, DroppedSession, SessionSize, Trimmed
from sojourn.run.status import Move
from sojourn.run.store import Answered, Appended, Batch, Begun, Change, Fence, NewRun, Submitted
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.run.usage import UserUsage
from sojourn.session.state import StateDelta
from sojourn.session.types import History, Session, SessionKey
from sojourn.store.heads import Head
from sojourn.store.postgres import appends, care, fast, heads, history, ledger, records, runs, sessions, submits, trimming
from sojourn.store.postgres.connection import Base, Op
from sojourn.store.postgres.executor import ExecutorRole
from sojourn.store.postgres.heads import Heads
from sojourn.store.postgres.schema import MIGRATIONS, SERVICE
from sojourn.store.postgres.watch import Watch
from sojourn.store.prepared import Prepared, entry_of, prepare, submission_of
from sojourn.store.role import Role
from sojourn.store.rules import check_bounds, check_ids, check_window, key_after

if TYPE_CHECKING:
    from asyncpg import Pool

T = TypeVar("T")


class PostgresSessionService:
    """Sessions and runs in a PostgreSQL database.

    It keeps every rule of `SessionService` and `RunStore`. The first call connects, and creates the tables if they are
    missing.

    **What survives.** A call that writes returns once its transaction is committed, as durable as the server makes it
    (`synchronous_commit`, replication). If a connection breaks between a statement and its reply, the call raises
    `Unavailable` and its outcome is not known; an append that is repeated is recognised and not stored twice.

    **Other processes.** Any number may open the same schema and read, create, change and delete sessions, ask for cancels,
    answer and close runs. Executing runs (`submit`, `begin`, `append`, `take_over`) is for one process at a time: the
    first such call claims that role, and the role ends with `close` or with the process, on whatever machine. An object made
    with `role="client"` never claims it, whoever uses it: such calls raise `Conflict`, `store.client_only`.

    Args:
        source: A URL, `postgresql://user:password@host:port/database`, with what libpq takes behind a `?`; or an
            `asyncpg.Pool`, which is never closed and has at least two connections.
        schema: Where the tables are; it is created if missing.
        role: `executor` or `client`, as above.
        pool_size: How many connections at most, besides the one that holds the executor's role; of a given pool, it has
            its own.
        acquire_timeout: Seconds to wait for a free connection.
        statement_timeout: Seconds that a statement may take.
        statement_cache_size: How many prepared statements a connection keeps. Behind a pooler that gives each transaction
            another connection, 0.
        direct_url: The server's own address, behind such a pooler: the executor holds its role through it.
        create: Whether to create the tables if there are none; if not, calls raise `NotFound`, `store.not_found`.

    Raises:
        InvalidInput: `store.invalid_url`, `store.invalid_option`.
    """

    shared = True

    def __init__(
        self,
        source: str | Pool,
        *,
        schema: str = "sojourn",
        role: Role = "executor",
        pool_size: int = 10,
        acquire_timeout: float = 30.0,
        statement_timeout: float = 30.0,
        statement_cache_size: int = 256,
        direct_url: str | None = None,
        create: bool = True,
    ) -> None:
        if role not in ("executor", "client"):
            raise InvalidInput(f"role is {role!r}; use 'executor' or 'client'", code="store.invalid_option")
        self.schema = check_schema(schema)
        self._database = Database(
            source,
            prepare=self._prepare,
            pool_size=pool_size,
            acquire_timeout=acquire_timeout,
            statement_timeout=statement_timeout,
            statement_cache_size=statement_cache_size,
        )
        if not isinstance(source, str) and self._database.max_size == 1 and role == "executor":
            raise InvalidInput(
                "the given pool has one connection, which the executor would hold; give it two or more",
                code="store.invalid_option",
            )
        self.name = f"schema {schema!r} of {self._database.name}"
        self._is_client = role == "client"
        self._create = create
        self._base = Base(self._database, schema)
        self._role = ExecutorRole(self._base, schema, direct_url)
        self._watch = Watch()
        self._heads = Heads()

    async def _prepare(self, conn: Any) -> None:
        await migrate(conn, Place(self.schema, SERVICE, self._database.name), MIGRATIONS, create=self._create)

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        key = SessionKey(app_name, user_id, session_id if session_id is not None else platform.new_id()).check()
        delta = StateDelta.of_values(state).durable()
        return await self._base.transact(lambda db: sessions.create(db, key, delta))

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        key = SessionKey(app_name, user_id, session_id).check()
        check_window(events)
        return await (self._base.snapshot if events else self._base.read)(lambda db: sessions.get(db, key, events))

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Session]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        key_after(after)
        return await self._base.read(lambda db: sessions.list_page(db, app_name, user_id, limit, after))

    async def list_apps(self) -> list[str]:
        return await self._base.read(sessions.list_apps)

    async def patch_session(
        self, *, app_name: str, user_id: str, session_id: str, state_delta: dict[str, Any] | None = None,
        state_deleted: list[str] | None = None,
    ) -> Session:  # fmt: skip
        key = SessionKey(app_name, user_id, session_id).check()
        delta = StateDelta.of_values(state_delta)
        for name in state_deleted or ():
            delta.delete(name)
        durable = delta.durable()
        return await self._base.transact(lambda db: sessions.patch(db, key, durable))

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        key = SessionKey(app_name, user_id, session_id).check()
        deleted, uids = await self._base.transact(lambda db: sessions.delete(db, key))
        self._watch.forget(uids)
        for uid in uids:
            self._heads.forget(uid)
        return deleted

    async def list_events(
        self, *, app_name: str, user_id: str, session_id: str, after: int = 0, limit: int = 100, superseded: bool = False
    ) -> list[Event]:
        check_page(limit)
        key = SessionKey(app_name, user_id, session_id).check()
        return await self._base.read(lambda db: history.page(db, key, after, limit, superseded))

    async def history(self, key: SessionKey, limit: int | None) -> History:
        key.check()
        check_window(limit)
        window = await self._base.read(lambda db: history.window(db, key, limit))
        if window.is_whole:
            return History(window.events, [])

        async def whole(db: Tables) -> History:
            return await history.pinned(db, await history.window(db, key, limit))

        return await self._base.snapshot(whole)

    # -- runs: what an executor does --------------------------------------------------------------------------------

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        new = submission_of(run)
        if not self._is_executor:
            await self.become_executor()
        with self._watch.submitting(run.id):
            if submits.is_plain(new):
                submitted, sid = await self._recorded(self._base.write, lambda db: submits.submit_plain(db, new, begin))
            else:
                submitted, sid = await self._recorded(self._base.transact, lambda db: submits.submit(db, new, begin))
            if not submitted.known:
                self._watch.saw(submitted.record)
        if submitted.begun is not None and sid is not None:
            event_count = submitted.begun.session.event_count
            self._heads.put(submitted.record.uid, heads.of_new(sid, new, submitted.record, event_count))
        return submitted

    async def _recorded(
        self, way: Callable[[Op[submits.Outcome]], Awaitable[submits.Outcome]], op: Op[submits.Outcome]
    ) -> submits.Outcome:
        for left in (2, 1, 0):
            try:
                return await way(op)
            except Unavailable as error:
                if not (left and isinstance(error.__cause__, submits.AGAIN)):
                    raise
        raise AssertionError

    async def begin(self, run_uid: int) -> Begun:
        await self.become_executor()
        with self._watch.writing(run_uid):
            begun = await self._base.transact(lambda db: runs.begin(db, run_uid))
            self._watch.saw(begun.record)
        # The first append reads what it has to know.
        self._heads.forget(run_uid)
        return begun

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        new = prepare(batch)
        if self._is_client or not self._role.claimed:
            await self.become_executor()
        uid = fence.run_uid
        known = self._heads.get(uid)
        with self._watch.writing(uid):
            if known is None:
                appended = await self._append(fence, new, None)
            else:
                async with known.turn:
                    appended = await self._append(fence, new, self._heads.get(uid))
            self._watch.saw(appended.record)
        return appended

    async def _append(self, fence: Fence, new: Prepared, known: heads.Known | None) -> Appended:
        uid = fence.run_uid
        try:
            outcome = await self._append_at_once(fence, new, known.head) if known is not None else None
            if outcome is None:
                outcome = await self._base.transact(lambda db: appends.append(db, fence, new))
        except BaseException:
            # It may have been stored.
            self._heads.forget(uid)
            raise
        if outcome.head.status == "running":
            self._heads.put(uid, outcome.head)
        else:
            self._heads.forget(uid)
        return outcome.appended

    async def _append_at_once(self, fence: Fence, new: Prepared, head: Head) -> appends.Outcome | None:
        """Appends with one statement; None if there is more to it, and nothing was done."""
        statement = fast.statement_of(head, fence, new)
        if statement is None:
            return None
        try:
            return await self._base.write(lambda db: fast.append(db, head, fence, new, statement))
        except SojournError as error:
            if isinstance(error.__cause__, fast.OTHERWISE):
                return None
            raise

    async def take_over(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        await self.become_executor()
        with self._watch.writing(run_uid):
            record = await self._base.transact(lambda db: runs.take_over(db, run_uid, error, move))
            self._watch.saw(record)
        self._heads.forget(run_uid)
        return record

    async def requeue_lost(self, run_uid: int, *, ends: Callable[[RunRecord], bool] | None = None) -> RunRecord:
        with self._watch.writing(run_uid):
            record = await self._base.transact(lambda db: runs.requeue_lost(db, run_uid, ends))
            self._watch.saw(record)
        self._heads.forget(run_uid)
        return record

    async def unfinished(self, app_name: str) -> list[RunRecord]:
        check_ids(app_name=app_name)
        found = await self._base.read(lambda db: records.unfinished(db, app_name))
        self._watch.listed(found)
        return found

    @property
    def _is_executor(self) -> bool:
        return self._role.held and self._watch.started

    async def become_executor(self) -> None:
        if self._is_client:
            raise Conflict(
                f"{self.name} was opened with role='client' and executes no runs here; start and retry them where it is opened "
                "as executor",
                code="store.client_only",
            )
        if not self._is_executor:
            # What the role is about has to be there first.
            await self._database.open()
            await self._role.claim()
            await self._base.read(self._watch.start)

    async def changes(self) -> list[Change]:
        if not self._role.claimed:
            return []
        if not self._role.held:
            # If another process has taken the role, what it does to our runs is to be noticed all the same.
            with suppress(Conflict):
                await self._role.claim()
        return await (self._role.run if self._role.is_here else self._base.read)(self._watch.look)

    # -- runs: what anybody does ------------------------------------------------------------------------------------

    async def request_cancel(self, run_uid: int, reason: str) -> RunRecord:
        vacant = None if self._role.held else self._role.vacant
        with self._watch.writing(run_uid):
            record = await self._base.transact(lambda db: runs.request_cancel(db, run_uid, reason, vacant))
            self._watch.asked(record)
        return record

    async def close_run(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        with self._watch.writing(run_uid):
            record = await self._base.transact(lambda db: runs.close_run(db, run_uid, error, move))
            self._watch.saw(record)
        return record

    async def answer(self, run_uid: int, interrupt_id: str, answer: Any, event: Event) -> Answered:
        value = jsonvalue.copy(answer, where="answer")
        entry = entry_of(event)
        with self._watch.writing(run_uid):
            answered = await self._base.transact(lambda db: runs.answer(db, run_uid, interrupt_id, value, entry))
            self._watch.saw(answered.record)
        return answered

    async def get_run(self, app_name: str, run_id: str, user_id: str | None = None) -> RunRecord:
        check_ids(app_name=app_name, user_id=user_id)
        check_id(run_id, "run_id")
        return await self._base.read(lambda db: records.get_by_id(db, app_name, run_id, user_id))

    async def list_runs(self, query: RunQuery, *, limit: int = 100, after: str | None = None) -> Page[RunRecord]:
        check_page(limit)
        key_after(after)
        check_ids(app_name=query.app_name, user_id=query.user_id, session_id=query.session_id)
        return await self._base.read(lambda db: records.list_page(db, query, limit, after))

    async def list_interrupts(
        self, app_name: str, *, user_id: str | None = None, session_id: str | None = None, run_uid: int | None = None,
        open_only: bool = True,
    ) -> list[Interrupt]:  # fmt: skip
        check_ids(app_name=app_name, user_id=user_id, session_id=session_id)
        return await self._base.read(lambda db: records.list_interrupts(db, app_name, user_id, session_id, run_uid, open_only))

    async def list_steps(self, run_uid: int) -> list[Step]:
        return await self._base.read(lambda db: records.list_steps(db, run_uid))

    async def run_events(self, run_uid: int, *, after: int = 0, limit: int = 256) -> list[Event]:
        check_page(limit)
        return await self._base.read(lambda db: history.of_run(db, run_uid, after, limit))

    async def user_usage(self, app_name: str, user_id: str, since: float | None = None) -> UserUsage:
        check_ids(app_name=app_name, user_id=user_id)
        return await self._base.read(lambda db: ledger.read(db, app_name, user_id, since))

    # -- the care of data -------------------------------------------------------------------------------------------

    async def trim_session(
        self, key: SessionKey, *, keep_events: int | None = None, ended_before: float | None = None, limit: int = BATCH
    ) -> Trimmed:
        key.check()
        check_bounds(keep_events, ended_before, limit)
        # Most sessions have nothing to remove, and need not be locked for that to be found out.
        if not await self._base.snapshot(lambda db: trimming.may_trim(db, key, keep_events, ended_before)):
            return Trimmed(0, 0, False)
        return await self._base.transact(lambda db: trimming.trim(db, key, keep_events, ended_before, limit))

    async def drop_session(self, key: SessionKey, *, idle_since: float | None = None, limit: int = BATCH) -> Dropped:
        key.check()
        check_bounds(None, idle_since, limit)
        dropped, uids = await self._base.transact(lambda db: trimming.drop(db, key, idle_since, limit))
        self._watch.forget(uids)
        for uid in uids:
            self._heads.forget(uid)
        return dropped

    async def dropped_sessions(self, app_name: str, *, user_id: str | None = None, limit: int = 100) -> list[DroppedSession]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        return await self._base.read(lambda db: care.dropped(db, app_name, user_id, limit))

    async def settle_dropped(self, uid: str) -> None:
        check_id(uid, "uid")
        await self._base.write(lambda db: care.settle(db, uid))

    async def session_sizes(
        self, app_name: str, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[SessionSize]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        key_after(after)
        return await self._base.read(lambda db: care.sizes(db, app_name, user_id, limit, after))

    async def apps_of_user(self, user_id: str) -> list[str]:
        check_id(user_id, "user_id")
        return await self._base.read(lambda db: care.apps_of_user(db, user_id))

    async def user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        check_ids(app_name=app_name, user_id=user_id)
        return await self._base.read(lambda db: care.user_state(db, app_name, user_id))

    async def erase_user(self, app_name: str, user_id: str) -> None:
        check_ids(app_name=app_name, user_id=user_id)
        await self._base.transact(lambda db: care.erase_user(db, app_name, user_id))

    async def scrub(self) -> None:
        """Does nothing: the server's own VACUUM sees to what was removed, in its time."""

    async def close(self) -> None:
        """Gives up the executor's role and closes the connections made here. Afterwards all calls raise `store.closed`."""
        await self._role.release()
        await self._database.close()

"""The store in RAM: sessions and runs of one process, and the reference for what every other backend does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from sojourn import jsonvalue, platform
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.jsonvalue import clone
from sojourn.page import Page, check_page, page_token
from sojourn.run.retention import BATCH, Dropped, DroppedSession, SessionSize, Trimmed
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Answered, Appended, Batch, Begun, Change, Fence, NewRun, Submitted
from sojourn.run.types import NO_ENTRIES, Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.run.usage import UserUsage
from sojourn.session.state import StateDelta
from sojourn.session.types import History, Session, SessionKey
from sojourn.store import ramappend
from sojourn.store.ramcare import TrimmableSession, size_of
from sojourn.store.ramlog import GONE
from sojourn.store.ramrecords import StoredRun, StoredSession, copy_interrupt, copy_step
from sojourn.store.ramstate import RamState
from sojourn.store.ramusage import RamLedger
from sojourn.store.rules import (
    cancelled,
    check_bounds,
    check_ids,
    check_window,
    closed_by,
    events_trimmed,
    fenced,
    found_state,
    interrupt_not_found,
    key_after,
    open_for,
    run_ambiguous,
    run_not_finished,
    run_not_found,
    run_superseded,
    run_trimmed,
    same_input,
    session_busy,
    session_exists,
    session_not_found,
    user_active,
)
from sojourn.store.staging import StagedState
from sojourn.store.trimming import choose


class InMemorySessionService:
    """Sessions and runs in RAM; gone with the process.

    It keeps every rule of `SessionService` and `RunStore`. Nothing in it awaits, so each call is one step of the event
    loop and needs no lock; use it from one event loop.
    """

    shared = False

    def __init__(self) -> None:
        self._sessions: dict[SessionKey, StoredSession] = {}
        # How many sessions each app has.
        self._apps: dict[str, int] = {}
        self._state = RamState()
        self._ledger = RamLedger()
        self._last_session_no = 0
        self._runs: dict[int, StoredRun] = {}
        self._run_ids: dict[tuple[str, str], dict[str, StoredRun]] = {}
        self._next_run_uid = 0
        self._dropped: dict[str, DroppedSession] = {}

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        key = SessionKey(app_name, user_id, session_id if session_id is not None else platform.new_id()).check()
        delta = StateDelta.of_values(state).durable()
        if key in self._sessions:
            raise session_exists(key)
        session = self._new_session(key)
        staged = self._stage(session, delta)
        self._add(session)
        self._store(session, staged)
        return self._snapshot(session)

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        check_window(events)
        session = self._find(SessionKey(app_name, user_id, session_id))
        newest = tuple(e.snapshot() for e in session.newest(events)) if events else ()
        return session.view(self._merged(session), newest)

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Session]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        bound = key_after(after)
        # They are kept in the order of creation.
        found = (
            s
            for s in reversed(self._sessions.values())
            if s.no < bound and s.key.app_name == app_name and (user_id is None or s.key.user_id == user_id)
        )
        page = list(islice(found, limit))
        more = next(found, None) is not None
        return Page([s.view({}) for s in page], page_token(page[-1].created_at, str(page[-1].no)) if more else None)

    async def list_apps(self) -> list[str]:
        return sorted(self._apps)

    async def patch_session(
        self, *, app_name: str, user_id: str, session_id: str, state_delta: dict[str, Any] | None = None,
        state_deleted: list[str] | None = None,
    ) -> Session:  # fmt: skip
        session = self._find(SessionKey(app_name, user_id, session_id))
        delta = StateDelta.of_values(state_delta)
        for name in state_deleted or ():
            delta.delete(name)
        self._store(session, self._stage(session, delta.durable()))
        session.updated_at = platform.now()
        return self._snapshot(session)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        session = self._find(SessionKey(app_name, user_id, session_id))
        before = self._snapshot(session)
        self._remove(session)
        return before

    async def list_events(
        self, *, app_name: str, user_id: str, session_id: str, after: int = 0, limit: int = 100, superseded: bool = False
    ) -> list[Event]:
        check_page(limit)
        session = self._find(SessionKey(app_name, user_id, session_id))
        if 0 < after < session.trimmed_seq and session.events[after - 1] is GONE:
            raise events_trimmed(session.key, after, session.trimmed_seq + 1)
        result: list[Event] = []
        for event in session.events[max(after, 0) :]:
            if event is not GONE and (superseded or not event.superseded):
                result.append(event.snapshot())
                if len(result) == limit:
                    break
        return result

    async def history(self, key: SessionKey, limit: int | None) -> History:
        check_window(limit)
        window, pinned = self._find(key).window(limit)
        return History([e.snapshot() for e in window], [e.snapshot() for e in pinned])

    # -- runs -------------------------------------------------------------------------------------------------------

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        key = run.key.check()
        check_id(run.id, "run_id")
        config = jsonvalue.copy(run.config, where="config") if run.config else NO_ENTRIES
        metadata = run.custom_metadata
        if metadata is not None:
            metadata = jsonvalue.copy(metadata, where="custom_metadata")
        message = run.message.snapshot()
        delta = StateDelta.of(message.actions) if message.actions.changes_state else None
        known = self._run_ids.get((key.app_name, run.id), {}).get(key.user_id)
        if known is not None:
            same_input(known.record, run)
            return Submitted(known.record.snapshot(), None, True)
        session = self._sessions.get(key)
        if session is None and not run.create_session:
            raise session_not_found(key)
        if run.retry_of is not None:
            self._check_repeatable(run.retry_of, key, session)
        if session is None:
            session = self._new_session(key)
        elif run.reject_if_busy:
            for other in session.runs.values():
                if other.record.status in _BUSY:
                    raise session_busy(key, other.record.id)
        staged = self._stage(session, delta) if begin else None

        # All checks are done: from here on, things are written.
        self._add(session)
        self._next_run_uid += 1
        session.run_no += 1
        record = _BLANK.evolve(
            uid=self._next_run_uid,
            id=run.id,
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            session_uid=session.uid,
            no=session.run_no,
            message=message,
            config=config,
            attached=run.attached,
            retry_of=run.retry_of,
            custom_metadata=metadata,
            created_at=platform.now(),
        )
        stored = StoredRun(record, session)
        session.runs[record.uid] = self._runs[record.uid] = stored
        self._run_ids.setdefault((key.app_name, run.id), {})[key.user_id] = stored
        begun = self._begin(stored, staged) if begin else None
        return Submitted(record.snapshot() if begun is None else begun.record, begun, False)

    async def begin(self, run_uid: int) -> Begun:
        run = self._run(run_uid)
        record = run.record
        if record.status is RunStatus.QUEUED and record.cancel_requested is not None:
            self._close(run, Move.CANCEL, cancelled(record))
        elif record.status in _BUSY:
            move(record.status, Move.BEGIN, run_id=record.id)
            delta = StateDelta.of(record.message.actions) if record.attempt == 0 else None
            return self._begin(run, self._stage(run.session, delta))
        return Begun(run.record.snapshot(), self._snapshot(run.session), [], [])

    def _begin(self, run: StoredRun, staged: StagedState | None) -> Begun:
        session = run.session
        record = run.record
        first = record.attempt == 0
        now = platform.now()
        run.answered = False
        if first and record.retry_of is not None:
            self._take_place(run, record.retry_of)
        seq = len(session.events) + 1
        run.record = record = record.evolve(
            status=move(record.status, Move.BEGIN, run_id=record.id),
            attempt=record.attempt + 1,
            started_at=now if first else record.started_at,
            last_pos=1 if first else record.last_pos,
            agent=session.active_agent if first else record.agent,
            start_agent=session.active_agent if first else record.start_agent,
            message_seq=seq if first else record.message_seq,
        )
        self._store(session, staged)
        if first:
            run.log(record.message.evolve(seq=seq, pos=None, ordinal=0, attempt=1))
            session.updated_at = now
        state = self._merged(session)
        found = session.view(found_state(state, run.undo) if run.undo else state)
        steps = [copy_step(s) for s in run.steps.values()]
        return Begun(record.snapshot(), found, steps, [copy_interrupt(i) for i in run.interrupts.values()])

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        if run is None or run.record.status is not RunStatus.RUNNING or run.record.attempt != fence.attempt:
            raise fenced(None if run is None else run.record, fence)
        return ramappend.append(self._state, self._ledger, run, batch)

    async def take_over(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        run = self._run(run_uid)
        if run.record.status is RunStatus.RUNNING:
            self._close(run, move, error, attempt=run.record.attempt + 1)
        return run.record.snapshot()

    async def request_cancel(self, run_uid: int, reason: str) -> RunRecord:
        run = self._run(run_uid)
        if not run.record.status.terminal and run.record.cancel_requested is None:
            run.record = run.record.evolve(cancel_requested=reason)
        if run.record.status in _PENDING:
            self._close(run, Move.CANCEL, cancelled(run.record))
        return run.record.snapshot()

    async def close_run(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        run = self._run(run_uid)
        if run.record.status in _PENDING:
            self._close(run, move, error)
        return run.record.snapshot()

    async def answer(self, run_uid: int, interrupt_id: str, answer: Any, event: Event) -> Answered:
        value = jsonvalue.copy(answer, where="answer")
        run = self._run(run_uid)
        interrupt = run.interrupts.get(interrupt_id)
        if interrupt is None:
            raise interrupt_not_found(run.record.id, interrupt_id)
        if not open_for(interrupt, value):
            return Answered(run.record.snapshot(), False)
        now = platform.now()
        session = run.session
        logged = event.evolve(seq=len(session.events) + 1, pos=None, ordinal=None, attempt=run.record.attempt)
        run.log(logged.snapshot())
        run.put_interrupt(replace(interrupt, status="answered", answer=value, answered_at=now))
        run.answered = True
        record = run.record.evolve(deaths=0, attached=False)
        if record.status is RunStatus.WAITING:
            record = record.evolve(status=move(record.status, Move.ANSWER, run_id=record.id))
        run.record = record
        session.updated_at = now
        return Answered(record.snapshot(), True)

    async def get_run(self, app_name: str, run_id: str, user_id: str | None = None) -> RunRecord:
        check_ids(app_name=app_name, user_id=user_id)
        by_user = self._run_ids.get((app_name, check_id(run_id, "run_id")), {})
        if user_id is not None:
            by_user = {user_id: by_user[user_id]} if user_id in by_user else {}
        if not by_user:
            raise run_not_found(run_id)
        if len(by_user) > 1:
            raise run_ambiguous(run_id)
        return next(iter(by_user.values())).record.snapshot()

    async def list_runs(self, query: RunQuery, *, limit: int = 100, after: str | None = None) -> Page[RunRecord]:
        check_page(limit)
        bound = key_after(after)
        found = [
            r.record
            for r in self._matching(query.app_name, query.user_id, query.session_id)
            if r.record.uid < bound and (not query.status or r.record.status in query.status)
        ]
        found.reverse()
        token = page_token(found[limit - 1].created_at, str(found[limit - 1].uid)) if len(found) > limit else None
        return Page([r.snapshot() for r in found[:limit]], token)

    async def list_interrupts(
        self, app_name: str, *, user_id: str | None = None, session_id: str | None = None, run_uid: int | None = None,
        open_only: bool = True,
    ) -> list[Interrupt]:  # fmt: skip
        found = [
            i
            for r in self._matching(app_name, user_id, session_id)
            if run_uid is None or r.record.uid == run_uid
            for i in r.interrupts.values()
            if not open_only or i.status == "open"
        ]
        found.sort(key=lambda i: i.created_at)
        return [copy_interrupt(i) for i in found]

    async def list_steps(self, run_uid: int) -> list[Step]:
        return [copy_step(s) for s in self._run(run_uid).steps.values()]

    async def run_events(self, run_uid: int, *, after: int = 0, limit: int = 256) -> list[Event]:
        check_page(limit)
        run = self._run(run_uid)
        if run.record.trimmed and after < run.record.last_pos - 1:
            raise run_trimmed(run.record)
        events = (run.session.events[s - 1] for s in run.seqs)
        found = [e for e in events if e.pos is not None and e.pos > after][:limit]
        if run.record.superseded_by is not None:
            counted = set(run.identity.values())
            found = [e.evolve(superseded=e.seq not in counted) for e in found]
        return [e.snapshot() for e in found]

    async def user_usage(self, app_name: str, user_id: str, since: float | None = None) -> UserUsage:
        check_ids(app_name=app_name, user_id=user_id)
        return self._ledger.read(app_name, user_id, since)

    async def unfinished(self, app_name: str) -> list[RunRecord]:
        found = [r.record for r in self._matching(app_name, None, None) if not r.record.status.terminal]
        return [r.snapshot() for r in sorted(found, key=lambda r: (r.key, r.no))]

    async def requeue_lost(self, run_uid: int, *, ends: Callable[[RunRecord], bool] | None = None) -> RunRecord:
        run = self._run(run_uid)
        if run.record.status is RunStatus.RUNNING:
            status = move(run.record.status, Move.REQUEUE, run_id=run.record.id)
            run.record = run.record.evolve(status=status, deaths=run.record.deaths + 1)
            if ends is not None and ends(run.record.snapshot()):
                run.drop_interrupts(Move.FAIL)
        return run.record.snapshot()

    # -- the care of data -------------------------------------------------------------------------------------------

    async def trim_session(
        self, key: SessionKey, *, keep_events: int | None = None, ended_before: float | None = None, limit: int = BATCH
    ) -> Trimmed:
        key.check()
        check_bounds(keep_events, ended_before, limit)
        session = self._sessions.get(key)
        if session is None:
            return Trimmed(0, 0, False)
        chosen, more = choose(TrimmableSession(session, keep_events, ended_before), limit)
        return Trimmed(len(chosen), sum(self._runs[one.uid].trim() for one in chosen), more)

    async def drop_session(self, key: SessionKey, *, idle_since: float | None = None, limit: int = BATCH) -> Dropped:
        key.check()
        check_bounds(None, idle_since, limit)
        session = self._sessions.get(key)
        if session is None:
            return Dropped("gone")
        unfinished = sum(not run.record.status.terminal for run in session.runs.values())
        if idle_since is not None and (unfinished or session.updated_at >= idle_since):
            return Dropped("kept")
        self._remove(session)
        self._dropped[session.uid] = DroppedSession(key, session.uid)
        return Dropped("gone", len(session.runs), sum(len(run.seqs) for run in session.runs.values()), unfinished)

    async def dropped_sessions(self, app_name: str, *, user_id: str | None = None, limit: int = 100) -> list[DroppedSession]:
        check_ids(app_name=app_name, user_id=user_id)
        check_page(limit)
        wanted = (d for d in self._dropped.values() if d.key.app_name == app_name and user_id in (None, d.key.user_id))
        return list(islice(wanted, limit))

    async def settle_dropped(self, uid: str) -> None:
        self._dropped.pop(check_id(uid, "uid"), None)

    async def session_sizes(
        self, app_name: str, *, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[SessionSize]:
        page = await self.list_sessions(app_name=app_name, user_id=user_id, limit=limit, after=after)
        return Page([size_of(self._sessions[session.key]) for session in page.items], page.next)

    async def apps_of_user(self, user_id: str) -> list[str]:
        check_id(user_id, "user_id")
        found = {key.app_name for key in self._sessions if key.user_id == user_id}
        found.update(d.key.app_name for d in self._dropped.values() if d.key.user_id == user_id)
        found.update(app for app, user in (*self._state.users(), *self._ledger.users()) if user == user_id)
        return sorted(found)

    async def user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        check_ids(app_name=app_name, user_id=user_id)
        state: dict[str, Any] = clone(self._state.of_user(app_name, user_id))
        return state

    async def erase_user(self, app_name: str, user_id: str) -> None:
        check_ids(app_name=app_name, user_id=user_id)
        if any(key[:2] == (app_name, user_id) for key in self._sessions):
            raise user_active(app_name, user_id)
        self._state.erase_user(app_name, user_id)
        self._ledger.erase_user(app_name, user_id)
        for dropped in [d for d in self._dropped.values() if d.key[:2] == (app_name, user_id)]:
            del self._dropped[dropped.uid]

    async def scrub(self) -> None:
        """Does nothing: there are no files."""

    async def become_executor(self) -> None:
        """Does nothing: nobody else can reach this memory."""

    async def changes(self) -> list[Change]:
        return []

    async def close(self) -> None:
        """Does nothing: the store lives as long as its object."""

    # -- parts ------------------------------------------------------------------------------------------------------

    def _find(self, key: SessionKey) -> StoredSession:
        session = self._sessions.get(key.check())
        if session is None:
            raise session_not_found(key)
        return session

    def _remove(self, session: StoredSession) -> None:
        app_name, user_id, _ = session.key
        del self._sessions[session.key]
        self._apps[app_name] -= 1
        if not self._apps[app_name]:
            del self._apps[app_name]
        for run in session.runs.values():
            del self._runs[run.record.uid]
            by_user = self._run_ids[app_name, run.record.id]
            del by_user[user_id]
            if not by_user:
                del self._run_ids[app_name, run.record.id]

    def _run(self, run_uid: int) -> StoredRun:
        run = self._runs.get(run_uid)
        if run is None:
            raise run_not_found(str(run_uid))
        return run

    def _check_repeatable(self, run_id: str, key: SessionKey, session: StoredSession | None) -> None:
        """Refuses to repeat a run that is none of the session's, or has others after it that go on, or does not count."""
        run = self._run_ids.get((key.app_name, run_id), {}).get(key.user_id)
        if run is None or run.session is not session:
            raise run_not_found(run_id)
        for one in run.session.runs_from(run.record.uid):
            if not one.record.status.terminal:
                raise run_not_finished(run_id, one.record)
        if run.record.superseded_by is not None:
            raise run_superseded(run.record)

    def _take_place(self, run: StoredRun, repeated: str) -> None:
        """Lets a run that is about to begin take the place of the one it repeats, and of all between the two."""
        record, session = run.record, run.session
        by_id = self._run_ids
        first = by_id[record.app_name, repeated][record.user_id].record
        while first.attempt == 0 and first.retry_of is not None:
            first = by_id[record.app_name, first.retry_of][record.user_id].record
        replaced = [one for one in session.runs_from(first.uid) if one.record.uid < record.uid]
        counting = [one for one in replaced if one.record.superseded_by is None]
        session.supersede({e.seq or 0 for one in counting for e in one.events()})
        for one in counting:
            one.record = one.record.evolve(superseded_by=record.id)
        began = next((one for one in replaced if one.record.attempt), None)
        if began is not None:
            session.active_agent = began.record.start_agent

    def _matching(self, app_name: str, user_id: str | None, session_id: str | None) -> Iterator[StoredRun]:
        check_ids(app_name=app_name, user_id=user_id, session_id=session_id)
        for run in self._runs.values():
            record = run.record
            if (
                record.app_name == app_name
                and (user_id is None or record.user_id == user_id)
                and (session_id is None or record.session_id == session_id)
            ):
                yield run

    def _new_session(self, key: SessionKey) -> StoredSession:
        """A session that is still to be added."""
        return StoredSession(key, self._last_session_no + 1)

    def _add(self, session: StoredSession) -> None:
        """Adds a session if it is not there yet."""
        if session.no > self._last_session_no:
            self._last_session_no = session.no
            self._sessions[session.key] = session
            self._apps[session.key.app_name] = self._apps.get(session.key.app_name, 0) + 1

    def _merged(self, session: StoredSession) -> dict[str, Any]:
        return self._state.read(session)

    def _snapshot(self, session: StoredSession) -> Session:
        return session.view(self._merged(session))

    def _stage(self, session: StoredSession, delta: StateDelta | None) -> StagedState | None:
        """Changes that are nobody's to take back."""
        if not delta:
            return None
        staged = self._state.stage(session)
        staged.apply(delta, 0)
        return staged

    def _store(self, session: StoredSession, staged: StagedState | None) -> None:
        if staged is not None:
            self._state.store(session, staged)

    def _close(self, run: StoredRun, by: Move, error: RunError, *, attempt: int | None = None) -> None:
        record = run.record
        run.record = record.evolve(
            status=closed_by(record, by),
            attempt=record.attempt if attempt is None else attempt,
            error=error,
            last_pos=record.last_pos + 1,
            finished_at=platform.now(),
        )
        run.finish(by)


# Filling in a blank takes half the time of making a frozen dataclass, which every run would pay.
_BLANK = RunRecord(0, "", "", "", "", "", 0, RunStatus.QUEUED, Event(), config=NO_ENTRIES, usage=NO_ENTRIES)

_BUSY = (RunStatus.QUEUED, RunStatus.RUNNING)
_PENDING = (RunStatus.QUEUED, RunStatus.WAITING)

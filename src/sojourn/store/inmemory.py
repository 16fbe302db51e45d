"""The store in RAM: sessions and runs of one process, and the reference for what every other backend does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sojourn import jsonvalue, platform
from sojourn.errors import Conflict
from sojourn.event import Event
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Answered, Appended, Batch, Begun, Change, Fence, NewRun, Submitted
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.session.state import APP, USER, StateDelta, check_number
from sojourn.session.types import History, Page, Session, SessionKey
from sojourn.store.rules import (
    cancelled,
    check_page,
    fenced,
    interrupt_not_found,
    open_for,
    page_after,
    page_token,
    run_ambiguous,
    run_not_found,
    run_not_finished,
    same_input,
    session_busy,
    session_exists,
    session_not_found,
)

_Owner = tuple[str, ...]
_MISSING: Any = object()


class _Session:
    __slots__ = (
        "active_agent", "calls", "created_at", "events", "key", "open_calls", "run_no", "runs", "state", "summary_seq", "uid",
        "updated_at",
    )  # fmt: skip

    def __init__(self, key: SessionKey, now: float) -> None:
        self.key = key
        self.uid = platform.new_id()
        self.created_at = self.updated_at = now
        self.events: list[Event] = []
        self.run_no = 0
        self.runs: dict[int, _Run] = {}
        self.state: dict[str, Any] = {}
        self.active_agent: str | None = None
        self.summary_seq = 0
        # call id -> seqs of the events that call it; and those of them that have no response yet.
        self.calls: dict[str, list[int]] = {}
        self.open_calls: dict[str, int] = {}


class _Undo:
    """What one delta replaced: `by` is None for a set or delete."""

    __slots__ = ("by", "key", "new", "old", "owner", "seq")

    def __init__(self, seq: int, owner: _Owner, key: str, old: Any, new: Any, by: int | float | None) -> None:
        self.seq = seq
        self.owner = owner
        self.key = key
        self.old = old
        self.new = new
        self.by = by


class _Run:
    __slots__ = ("answered", "base_seq", "identity", "interrupts", "record", "seqs", "session", "steps", "undo")

    def __init__(self, record: RunRecord, session: _Session) -> None:
        self.record = record
        self.session = session
        self.identity: dict[tuple[str | None, int], int] = {}
        self.seqs: list[int] = []
        self.base_seq = 0
        # Whether a question was answered since the attempt began: it has not seen that answer.
        self.answered = False
        self.undo: list[_Undo] = []
        self.steps: dict[str, Step] = {}
        self.interrupts: dict[str, Interrupt] = {}


class _Staged:
    """State as it will be when the append commits: reads through to what is stored, keeps writes to itself."""

    def __init__(self, store: InMemorySessionService, session: _Session) -> None:
        self._store = store
        self._session = session
        self.values: dict[tuple[_Owner, str], Any] = {}
        self.undo: list[_Undo] = []

    def read(self, owner: _Owner, key: str) -> Any:
        staged = self.values.get((owner, key), self)
        return self._store._scope(owner, self._session).get(key, _MISSING) if staged is self else staged

    def apply(self, delta: StateDelta, seq: int) -> None:
        key_of = self._session.key
        for key, value in delta.values.items():
            self._write(_owner(key_of, key), key, value, seq, None)
        for key in delta.deleted:
            self._write(_owner(key_of, key), key, _MISSING, seq, None)
        for key, by in delta.increments.items():
            owner = _owner(key_of, key)
            old = self.read(owner, key)
            self._write(owner, key, check_number(0 if old is _MISSING else old) + check_number(by), seq, by)

    def _write(self, owner: _Owner, key: str, value: Any, seq: int, by: int | float | None) -> None:
        self.undo.append(_Undo(seq, owner, key, self.read(owner, key), value, by))
        self.values[owner, key] = value

    def revert(self, undo: list[_Undo]) -> None:
        for entry in reversed(undo):
            current = self.read(entry.owner, entry.key)
            if entry.by is not None:
                if current is not _MISSING and isinstance(current, int | float):
                    self.values[entry.owner, entry.key] = current - entry.by
            elif current is entry.new or current == entry.new:
                self.values[entry.owner, entry.key] = entry.old

    def commit(self) -> None:
        for (owner, key), value in self.values.items():
            scope = self._store._scope(owner, self._session)
            if value is _MISSING:
                scope.pop(key, None)
            else:
                scope[key] = value


def _owner(key: SessionKey, name: str) -> _Owner:
    if name.startswith(APP):
        return (key.app_name,)
    if name.startswith(USER):
        return (key.app_name, key.user_id)
    return ()


class InMemorySessionService:
    """Sessions and runs in RAM; gone with the process.

    It keeps every rule of `SessionService` and `RunStore`. Nothing in it awaits, so each call is one step of the event
    loop and needs no lock; use it from one event loop.
    """

    def __init__(self) -> None:
        self._sessions: dict[SessionKey, _Session] = {}
        self._shared_state: dict[_Owner, dict[str, Any]] = {}
        self._runs: dict[int, _Run] = {}
        self._run_ids: dict[tuple[str, str], dict[str, _Run]] = {}
        self._next_run_uid = 0

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        key = SessionKey(app_name, user_id, session_id if session_id is not None else platform.new_id()).check()
        delta = StateDelta.of_values(state).durable()
        if key in self._sessions:
            raise session_exists(key)
        session = self._create(key)
        self._write_state(session, delta)
        return self._snapshot(session)

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        session = self._find(SessionKey(app_name, user_id, session_id))
        newest = [e.snapshot() for e in _newest(session, events)] if events else []
        return self._snapshot(session, tuple(newest))

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Session]:
        check_page(limit)
        bound = page_after(after)
        found = [
            s for s in self._sessions.values() if s.key.app_name == app_name and (user_id is None or s.key.user_id == user_id)
        ]
        found.sort(key=lambda s: (s.created_at, s.uid), reverse=True)
        if bound is not None:
            found = [s for s in found if (s.created_at, s.uid) < bound]
        items = [self._snapshot(s, state=False) for s in found[:limit]]
        more = len(found) > limit
        return Page(items, page_token(found[limit - 1].created_at, found[limit - 1].uid) if more else None)

    async def patch_session(
        self, *, app_name: str, user_id: str, session_id: str, state_delta: dict[str, Any] | None = None,
        state_deleted: list[str] | None = None,
    ) -> Session:  # fmt: skip
        delta = StateDelta.of_values(state_delta)
        for name in state_deleted or ():
            delta.delete(name)
        session = self._find(SessionKey(app_name, user_id, session_id))
        self._write_state(session, delta.durable())
        session.updated_at = platform.now()
        return self._snapshot(session)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        session = self._find(SessionKey(app_name, user_id, session_id))
        before = self._snapshot(session)
        del self._sessions[session.key]
        for run in session.runs.values():
            del self._runs[run.record.uid]
            del self._run_ids[app_name, run.record.id][user_id]
        return before

    async def list_events(
        self, *, app_name: str, user_id: str, session_id: str, after: int = 0, limit: int = 100, superseded: bool = False
    ) -> list[Event]:
        check_page(limit)
        session = self._find(SessionKey(app_name, user_id, session_id))
        result: list[Event] = []
        for event in session.events[max(after, 0) :]:
            if superseded or not event.superseded:
                result.append(event.snapshot())
                if len(result) == limit:
                    break
        return result

    async def history(self, key: SessionKey, limit: int | None) -> History:
        session = self._find(key)
        window = _newest(session, limit)
        start = window[0].seq or 0 if window else len(session.events) + 1
        pinned = set(session.open_calls.values())
        for event in window:
            for response in event.get_function_responses():
                seqs = [s for s in session.calls.get(response.id or "", ()) if s < (event.seq or 0)]
                pinned.update(seqs[-1:])
        if session.summary_seq:
            pinned.add(session.summary_seq)
        before = [session.events[s - 1] for s in sorted(pinned) if s < start]
        return History([e.snapshot() for e in window], [e.snapshot() for e in before if not e.superseded])

    # -- runs -------------------------------------------------------------------------------------------------------

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        key = run.key
        known = self._run_ids.get((key.app_name, run.id), {}).get(key.user_id)
        if known is not None:
            same_input(known.record, run)
            return Submitted(known.record, None, True)
        session = self._sessions.get(key)
        if session is None and not run.create_session:
            raise session_not_found(key)
        repeated = None
        if run.retry_of is not None:
            repeated = self._run_ids.get((key.app_name, run.retry_of), {}).get(key.user_id)
            if repeated is None or repeated.session is not session:
                raise run_not_found(run.retry_of)
            if not repeated.record.status.terminal:
                raise run_not_finished(repeated.record)
        if session is None:
            session = self._create(key)
        elif run.reject_if_busy:
            for other in session.runs.values():
                if other.record.status in _BUSY:
                    raise session_busy(key, other.record.id)
        if repeated is not None:
            for seq in repeated.seqs:
                self._supersede(session, repeated, seq)
        self._next_run_uid += 1
        session.run_no += 1
        record = RunRecord(
            uid=self._next_run_uid,
            id=run.id,
            app_name=key.app_name,
            user_id=key.user_id,
            session_id=key.session_id,
            session_uid=session.uid,
            no=session.run_no,
            status=RunStatus.QUEUED,
            message=run.message.snapshot(),
            config=run.config,
            attached=run.attached,
            retry_of=run.retry_of,
            custom_metadata=run.custom_metadata,
            created_at=platform.now(),
        )
        stored = _Run(record, session)
        session.runs[record.uid] = self._runs[record.uid] = stored
        self._run_ids.setdefault((key.app_name, run.id), {})[key.user_id] = stored
        begun = self._begin(stored) if begin else None
        return Submitted(stored.record, begun, False)

    async def begin(self, run_uid: int) -> Begun:
        run = self._run(run_uid)
        if run.record.status is RunStatus.QUEUED and run.record.cancel_requested is not None:
            self._close(run, Move.CANCEL, cancelled(run.record))
        if run.record.status is not RunStatus.QUEUED:
            return Begun(run.record, self._snapshot(run.session), [], [])
        return self._begin(run)

    def _begin(self, run: _Run) -> Begun:
        session = run.session
        record = run.record
        first = record.attempt == 0
        run.answered = False
        run.record = record = replace(
            record,
            status=move(record.status, Move.BEGIN, run_id=record.id),
            attempt=record.attempt + 1,
            started_at=platform.now() if first else record.started_at,
            last_pos=1 if first else record.last_pos,
        )
        if first:
            self._log(session, run, record.message.evolve(ordinal=0, attempt=1))
            run.identity[None, 0] = len(session.events)
        state = self._merged(session)
        for entry in reversed(run.undo):
            if entry.by is not None:
                if isinstance(state.get(entry.key), int | float):
                    state[entry.key] -= entry.by
            elif entry.old is _MISSING:
                state.pop(entry.key, None)
            else:
                state[entry.key] = entry.old
        return Begun(record, self._view(session, state), list(run.steps.values()), list(run.interrupts.values()))

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        if run is None or run.record.status is not RunStatus.RUNNING or run.record.attempt != fence.attempt:
            raise fenced(None if run is None else run.record, fence)
        session, record = run.session, run.record
        target = move(record.status, batch.move, run_id=record.id) if batch.move is not None else record.status
        # Everything that can fail comes before the first write.
        staged: _Staged | None = None
        plan: list[tuple[Event, Event | None]] = []
        seq = len(session.events)
        for event in batch.events:
            old = self._stored(run, event)
            if old is not None and old.same_as(event):
                plan.append((event, old))
                continue
            if old is not None:
                if old.attempt >= fence.attempt:
                    raise Conflict(
                        f"run {record.id!r} wrote two different events as ordinal {event.ordinal} of branch {event.branch!r}",
                        code="event.conflict",
                    )
                staged = staged or _Staged(self, session)
                staged.revert([u for u in run.undo if u.seq >= (old.seq or 0)])
            plan.append((event, None))
            seq += 1
            if event.actions.changes_state:
                staged = staged or _Staged(self, session)
                staged.apply(StateDelta.of(event.actions), seq)
        if batch.state:
            staged = staged or _Staged(self, session)
            staged.apply(batch.state.durable(), seq)
        closing = batch.move in _CLOSING and batch.live is not None and record.attempt > 1
        leftover: list[int] = []
        if closing and batch.live is not None:
            new = {(e.branch, e.ordinal) for e in batch.events}
            leftover = [
                s
                for (branch, ordinal), s in run.identity.items()
                if s > run.base_seq and ordinal >= batch.live.get(branch, 0) and ordinal > 0 and (branch, ordinal) not in new
            ]
            if leftover:
                staged = staged or _Staged(self, session)
                staged.revert([u for u in run.undo if u.seq in leftover])

        record = replace(record, status=target)
        usage = record.usage
        last_pos = record.last_pos
        events: list[Event | None] = []
        for event, old in plan:
            if old is not None:
                events.append(None)
                continue
            stale = run.identity.get((event.branch, event.ordinal or 0))
            supersedes = None
            if stale is not None:
                supersedes = session.events[stale - 1].pos
                self._supersede_from(session, run, stale, event.branch)
            last_pos += 1
            numbered = event.evolve(seq=len(session.events) + 1, pos=last_pos, supersedes=supersedes)
            self._log(session, run, numbered)
            run.identity[event.branch, event.ordinal or 0] = len(session.events)
            if event.usage_metadata is not None:
                usage = _add_usage(usage, event)
            events.append(numbered)
        for s in leftover:
            self._supersede(session, run, s)
        if staged is not None:
            staged.commit()
            run.undo = [u for u in run.undo if not session.events[u.seq - 1].superseded]
            run.undo.extend(staged.undo)
        for step in batch.steps:
            run.steps[step.key] = replace(step, result=jsonvalue.copy(step.result))
        for interrupt in batch.interrupts:
            for id_, known in run.interrupts.items():
                if known.key == interrupt.key and known.digest != interrupt.digest and known.status == "open":
                    run.interrupts[id_] = replace(known, status="dropped")
            run.interrupts[interrupt.id] = replace(
                interrupt, run_id=record.id, app_name=record.app_name, user_id=record.user_id, session_id=record.session_id
            )
        if batch.agent is not None:
            session.active_agent = batch.agent
            run.base_seq = len(session.events)
            run.undo = []
            base = max((e.ordinal or 0 for e in batch.events), default=record.base_ordinal)
            record = replace(record, agent=batch.agent, base_ordinal=base + 1, transfers=record.transfers + 1)
        now = platform.now()
        if batch.move is Move.WAIT and run.answered:
            record = replace(record, status=RunStatus.QUEUED)
        elif batch.move is Move.REQUEUE:
            record = replace(record, deaths=record.deaths + 1) if batch.died else record
        if target.terminal:
            last_pos += 1
            record = replace(record, last_pos=last_pos, usage=usage, error=batch.error, finished_at=now)
            self._finish(run)
        else:
            record = replace(record, last_pos=last_pos, usage=usage)
        session.updated_at = now
        run.record = record
        return Appended(events, record)

    async def take_over(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        run = self._run(run_uid)
        if run.record.status is RunStatus.RUNNING:
            run.record = replace(run.record, attempt=run.record.attempt + 1)
            self._close(run, move, error)
        return run.record

    async def request_cancel(self, run_uid: int, reason: str) -> RunRecord:
        run = self._run(run_uid)
        if not run.record.status.terminal and run.record.cancel_requested is None:
            run.record = replace(run.record, cancel_requested=reason)
        if run.record.status in (RunStatus.QUEUED, RunStatus.WAITING):
            self._close(run, Move.CANCEL, cancelled(run.record))
        return run.record

    async def close_run(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        run = self._run(run_uid)
        if run.record.status in (RunStatus.QUEUED, RunStatus.WAITING):
            self._close(run, move, error)
        return run.record

    async def answer(self, run_uid: int, interrupt_id: str, answer: Any, event: Event) -> Answered:
        value = jsonvalue.copy(answer, where="answer")
        run = self._run(run_uid)
        interrupt = run.interrupts.get(interrupt_id)
        if interrupt is None:
            raise interrupt_not_found(run.record.id, interrupt_id)
        if not open_for(interrupt, value):
            return Answered(run.record, False)
        now = platform.now()
        self._log(run.session, run, event.evolve(attempt=run.record.attempt))
        run.interrupts[interrupt_id] = replace(interrupt, status="answered", answer=value, answered_at=now)
        run.answered = True
        record = replace(run.record, deaths=0)
        if record.status is RunStatus.WAITING:
            record = replace(record, status=move(record.status, Move.ANSWER, run_id=record.id))
        run.record = record
        run.session.updated_at = now
        return Answered(record, True)

    async def get_run(self, app_name: str, run_id: str, user_id: str | None = None) -> RunRecord:
        by_user = self._run_ids.get((app_name, run_id), {})
        if user_id is not None:
            by_user = {user_id: by_user[user_id]} if user_id in by_user else {}
        if not by_user:
            raise run_not_found(run_id)
        if len(by_user) > 1:
            raise run_ambiguous(run_id)
        return next(iter(by_user.values())).record

    async def list_runs(self, query: RunQuery, *, limit: int = 100, after: str | None = None) -> Page[RunRecord]:
        check_page(limit)
        bound = page_after(after)
        found = [r.record for r in self._matching(query.app_name, query.user_id, query.session_id)]
        if query.status:
            found = [r for r in found if r.status in query.status]
        found.sort(key=lambda r: (r.created_at, r.uid), reverse=True)
        if bound is not None:
            found = [r for r in found if (r.created_at, _run_position(r)) < bound]
        more = len(found) > limit
        return Page(found[:limit], page_token(found[limit - 1].created_at, _run_position(found[limit - 1])) if more else None)

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
        return [replace(i, prompt=jsonvalue.copy(i.prompt), answer=jsonvalue.copy(i.answer)) for i in found]

    async def list_steps(self, run_uid: int) -> list[Step]:
        return [replace(s, result=jsonvalue.copy(s.result)) for s in self._run(run_uid).steps.values()]

    async def run_events(self, run_uid: int, *, after: int = 0, limit: int = 256) -> list[Event]:
        run = self._run(run_uid)
        events = (run.session.events[s - 1] for s in run.seqs)
        found = [e for e in events if e.pos is not None and e.pos > after]
        return [e.snapshot() for e in found[:limit]]

    async def unfinished(self, app_name: str) -> list[RunRecord]:
        found = [r.record for r in self._matching(app_name, None, None) if not r.record.status.terminal]
        return sorted(found, key=lambda r: (r.key, r.no))

    async def requeue_lost(self, run_uid: int) -> RunRecord:
        run = self._run(run_uid)
        if run.record.status is RunStatus.RUNNING:
            status = move(run.record.status, Move.REQUEUE, run_id=run.record.id)
            run.record = replace(run.record, status=status, deaths=run.record.deaths + 1)
        return run.record

    async def become_executor(self) -> None:
        """Does nothing: nobody else can reach this memory."""

    async def changes(self) -> list[Change]:
        return []

    async def close(self) -> None:
        """Does nothing: the store lives as long as its object."""

    # -- parts ------------------------------------------------------------------------------------------------------

    def _find(self, key: SessionKey) -> _Session:
        session = self._sessions.get(key)
        if session is None:
            raise session_not_found(key.check())
        return session

    def _run(self, run_uid: int) -> _Run:
        run = self._runs.get(run_uid)
        if run is None:
            raise run_not_found(str(run_uid))
        return run

    def _matching(self, app_name: str, user_id: str | None, session_id: str | None) -> Iterator[_Run]:
        for run in self._runs.values():
            record = run.record
            if (
                record.app_name == app_name
                and (user_id is None or record.user_id == user_id)
                and (session_id is None or record.session_id == session_id)
            ):
                yield run

    def _create(self, key: SessionKey) -> _Session:
        session = self._sessions[key] = _Session(key.check(), platform.now())
        return session

    def _scope(self, owner: _Owner, session: _Session) -> dict[str, Any]:
        return self._shared_state.setdefault(owner, {}) if owner else session.state

    def _merged(self, session: _Session) -> dict[str, Any]:
        app, user, _ = session.key
        shared = self._shared_state
        return {**session.state, **shared.get((app,), {}), **shared.get((app, user), {})}

    def _snapshot(self, session: _Session, events: tuple[Event, ...] = (), *, state: bool = True) -> Session:
        return self._view(session, self._merged(session) if state else {}, events)

    def _view(self, session: _Session, state: dict[str, Any], events: tuple[Event, ...] = ()) -> Session:
        app, user, id_ = session.key
        return Session(
            app_name=app,
            user_id=user,
            id=id_,
            uid=session.uid,
            state=state,
            events=events,
            event_count=len(session.events),
            active_agent=session.active_agent,
            created_at=session.created_at,
            updated_at=session.updated_at,
        )

    def _write_state(self, session: _Session, delta: StateDelta) -> None:
        if delta:
            staged = _Staged(self, session)
            staged.apply(delta, 0)
            staged.commit()

    def _stored(self, run: _Run, event: Event) -> Event | None:
        """The event that counts under the same identity."""
        seq = run.identity.get((event.branch, event.ordinal or 0))
        return None if seq is None else run.session.events[seq - 1]

    def _log(self, session: _Session, run: _Run, event: Event) -> None:
        """Appends an event that has everything but its `seq`, and keeps the call index."""
        seq = len(session.events) + 1
        stored = event.evolve(seq=seq).snapshot()
        session.events.append(stored)
        run.seqs.append(seq)
        if stored.content is not None:
            for part in stored.content.parts:
                if part.function_call is not None and part.function_call.id:
                    session.calls.setdefault(part.function_call.id, []).append(seq)
                    session.open_calls[part.function_call.id] = seq
                elif part.function_response is not None and part.function_response.id:
                    session.open_calls.pop(part.function_response.id, None)
        if stored.actions.summary_until is not None:
            session.summary_seq = seq

    def _supersede_from(self, session: _Session, run: _Run, seq: int, branch: str | None) -> None:
        for s in [s for s in run.seqs if s >= seq and _below(session.events[s - 1].branch, branch)]:
            self._supersede(session, run, s)

    def _supersede(self, session: _Session, run: _Run, seq: int) -> None:
        event = session.events[seq - 1]
        if event.superseded:
            return
        session.events[seq - 1] = event.evolve(superseded=True)
        if event.ordinal is not None:
            run.identity.pop((event.branch, event.ordinal), None)
        for call in event.get_function_calls():
            if session.open_calls.get(call.id or "") == seq:
                del session.open_calls[call.id or ""]

    def _close(self, run: _Run, by: Move, error: RunError) -> None:
        record = run.record
        run.record = replace(
            record,
            status=move(record.status, by, run_id=record.id),
            error=error,
            last_pos=record.last_pos + 1,
            finished_at=platform.now(),
        )
        self._finish(run)

    def _finish(self, run: _Run) -> None:
        run.undo = []
        for id_, interrupt in run.interrupts.items():
            if interrupt.status == "open":
                run.interrupts[id_] = replace(interrupt, status="dropped")


_BUSY = (RunStatus.QUEUED, RunStatus.RUNNING)
_CLOSING = (Move.WAIT, Move.COMPLETE, Move.FAIL, Move.CANCEL)


def _below(branch: str | None, above: str | None) -> bool:
    return above is None or branch == above or (branch or "").startswith(above + ".")


def _newest(session: _Session, limit: int | None) -> list[Event]:
    """The newest events that count, oldest first, not reaching back into what the newest summary sums up."""
    floor = 0
    if session.summary_seq:
        floor = session.events[session.summary_seq - 1].actions.summary_until or 0
    found: list[Event] = []
    for index in range(len(session.events) - 1, floor - 1, -1):
        if limit is not None and len(found) >= limit:
            break
        event = session.events[index]
        if not event.superseded:
            found.append(event)
    found.reverse()
    return found


def _add_usage(usage: dict[str, int], event: Event) -> dict[str, int]:
    total = dict(usage)
    for name, count in (event.usage_metadata.model_dump() if event.usage_metadata else {}).items():
        total[name] = total.get(name, 0) + count
    return total


def _run_position(record: RunRecord) -> str:
    return str(record.uid).zfill(20)

"""The store in RAM: sessions and runs of one process, and the reference for what every other backend does."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sojourn import jsonvalue, platform
from sojourn.errors import Conflict
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.page import Page, check_page, page_after, page_token
from sojourn.run.status import Move, RunStatus, move
from sojourn.run.store import Answered, Appended, Batch, Begun, Change, Fence, NewRun, Submitted
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.session.state import StateDelta
from sojourn.session.types import History, Session, SessionKey
from sojourn.store.rules import (
    MISSING,
    Owner,
    Undo,
    cancelled,
    check_delta,
    check_ids,
    check_window,
    closed_by,
    dropped,
    fenced,
    found_state,
    incremented,
    interrupt_not_found,
    open_for,
    owner_of,
    put_back,
    run_ambiguous,
    run_not_finished,
    run_not_found,
    same_input,
    session_busy,
    session_exists,
    session_not_found,
)

_Identity = tuple[str | None, int]


class _Session:
    """A session and its log."""

    __slots__ = (
        "active_agent", "calls", "created_at", "events", "key", "open_calls", "responses", "run_no", "runs", "state",
        "summaries", "uid", "updated_at",
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
        # Indexes of the log, by `seq`; they hold superseded events too, but for `open_calls`.
        self.summaries: list[int] = []
        self.calls: dict[str, list[int]] = {}
        self.responses: dict[str, list[int]] = {}
        self.open_calls: dict[str, list[int]] = {}

    def log(self, event: Event) -> None:
        """Appends an event that has its numbers."""
        seq = len(self.events) + 1
        self.events.append(event.snapshot())
        if event.content is not None:
            for part in event.content.parts:
                if part.function_call is not None and part.function_call.id:
                    self.calls.setdefault(part.function_call.id, []).append(seq)
                    self.open_calls.setdefault(part.function_call.id, []).append(seq)
                elif part.function_response is not None and part.function_response.id:
                    self.responses.setdefault(part.function_response.id, []).append(seq)
                    self.open_calls.pop(part.function_response.id, None)
        if event.actions.summary_until is not None:
            self.summaries.append(seq)

    def supersede(self, seqs: set[int]) -> None:
        """Takes events out of what counts."""
        touched: set[str] = set()
        for seq in seqs:
            event = self.events[seq - 1]
            self.events[seq - 1] = event.evolve(superseded=True)
            touched.update(c.id for c in event.get_function_calls() if c.id)
            touched.update(r.id for r in event.get_function_responses() if r.id)
        for id_ in touched:
            answered = max(self._counting(self.responses.get(id_, ())), default=0)
            calls = [s for s in self._counting(self.calls.get(id_, ())) if s > answered]
            if calls:
                self.open_calls[id_] = calls
            else:
                self.open_calls.pop(id_, None)

    def newest(self, limit: int | None, floor: int = 0) -> list[Event]:
        """The newest events that count, oldest first, of those with a `seq` beyond `floor`."""
        found: list[Event] = []
        for index in range(len(self.events) - 1, floor - 1, -1):
            if limit is not None and len(found) >= limit:
                break
            event = self.events[index]
            if not event.superseded:
                found.append(event)
        found.reverse()
        return found

    def summary(self) -> Event | None:
        """The newest summary that counts."""
        for seq in reversed(self.summaries):
            if not self.events[seq - 1].superseded:
                return self.events[seq - 1]
        return None

    def pinned(self, window: list[Event], summary: Event | None) -> list[Event]:
        """What must not be missing from a window and lies before it, oldest first."""
        start = window[0].seq or 0 if window else len(self.events) + 1
        todo = [s for seqs in self.open_calls.values() for s in seqs]
        if summary is not None:
            todo.append(summary.seq or 0)
        for event in window:
            todo.extend(self._called_by(event))
        found: set[int] = set()
        while todo:
            seq = todo.pop()
            if seq < start and seq not in found:
                found.add(seq)
                event = self.events[seq - 1]
                todo.extend(self._called_by(event))
                todo.extend(self._answers_to(event))
        return [self.events[s - 1] for s in sorted(found)]

    def _called_by(self, event: Event) -> Iterator[int]:
        """The calls that an event's responses answer: of each id the last before it."""
        for response in event.get_function_responses():
            before = [s for s in self._counting(self.calls.get(response.id or "", ())) if s < (event.seq or 0)]
            yield from before[-1:]

    def _answers_to(self, event: Event) -> Iterator[int]:
        """The responses to an event's calls."""
        for call in event.get_function_calls():
            after = [s for s in self._counting(self.calls.get(call.id or "", ())) if s > (event.seq or 0)]
            until = after[0] if after else len(self.events) + 1
            for seq in self._counting(self.responses.get(call.id or "", ())):
                if (event.seq or 0) < seq <= until:
                    yield seq

    def _counting(self, seqs: list[int] | tuple[()]) -> list[int]:
        return [s for s in seqs if not self.events[s - 1].superseded]


class _Run:
    __slots__ = ("answered", "base_seq", "identity", "interrupts", "record", "seqs", "session", "steps", "undo")

    def __init__(self, record: RunRecord, session: _Session) -> None:
        self.record = record
        self.session = session
        # The events that count, by identity.
        self.identity: dict[_Identity, int] = {}
        self.seqs: list[int] = []
        self.base_seq = 0
        # Whether a question was answered since the attempt began: it has not seen that answer.
        self.answered = False
        self.undo: list[Undo] = []
        self.steps: dict[str, Step] = {}
        self.interrupts: dict[str, Interrupt] = {}

    def log(self, event: Event) -> None:
        """Appends an event of the run to the session's log; it has its numbers."""
        self.session.log(event)
        seq = len(self.session.events)
        self.seqs.append(seq)
        if event.ordinal is not None:
            self.identity[event.branch, event.ordinal] = seq

    def counting(self, identity: _Identity) -> Event | None:
        """The event that counts under an identity."""
        seq = self.identity.get(identity)
        return None if seq is None else self.session.events[seq - 1]

    def supersede(self, seqs: set[int]) -> None:
        """Takes events of the run out of what counts."""
        for seq in seqs:
            event = self.session.events[seq - 1]
            if event.ordinal is not None:
                self.identity.pop((event.branch, event.ordinal), None)
        self.session.supersede(seqs)


class _Staged:
    """State as it will be when a write commits: reads through to what is stored, keeps writes to itself."""

    def __init__(self, store: InMemorySessionService, session: _Session, undo: list[Undo]) -> None:
        self._store = store
        self._session = session
        self._values: dict[tuple[Owner, str], Any] = {}
        self.undo = undo

    def apply(self, delta: StateDelta, seq: int) -> None:
        key_of = self._session.key
        for key, value in delta.values.items():
            self._change(Undo(seq, owner_of(key_of, key), key, MISSING, value, None))
        for key in delta.deleted:
            self._change(Undo(seq, owner_of(key_of, key), key, MISSING, MISSING, None))
        for key, by in delta.increments.items():
            owner = owner_of(key_of, key)
            self._change(Undo(seq, owner, key, MISSING, incremented(self._read(owner, key), by), by))

    def put_back(self, gone: set[int]) -> None:
        """Takes back what superseded events changed."""
        self.undo = put_back(self.undo, gone, self._read, self._write)

    def commit(self) -> None:
        for (owner, key), value in self._values.items():
            scope = self._store._scope(owner, self._session)
            if value is MISSING:
                scope.pop(key, None)
            else:
                scope[key] = value

    def _change(self, entry: Undo) -> None:
        self.undo.append(entry._replace(old=self._read(entry.owner, entry.key)))
        self._write(entry.owner, entry.key, entry.new)

    def _read(self, owner: Owner, key: str) -> Any:
        staged = self._values.get((owner, key), self)
        return self._store._scope(owner, self._session).get(key, MISSING) if staged is self else staged

    def _write(self, owner: Owner, key: str, value: Any) -> None:
        self._values[owner, key] = value


class _Plan:
    """What the events and the state of a batch will do to the log, worked out before the first write.

    Attributes:
        entries: Each event with its identity; with whether it is to be stored; with the `pos` it supersedes from.
        gone: The events that will be superseded.
        state: The state afterwards; None if it does not change.
    """

    def __init__(self, store: InMemorySessionService, run: _Run, batch: Batch) -> None:
        self._store = store
        self._run = run
        self._attempt = run.record.attempt
        self._written: dict[_Identity, Event] = {}
        self.entries: list[tuple[Event, _Identity, bool, int | None]] = []
        self.gone: set[int] = set()
        self.state: _Staged | None = None
        self._new = 0
        for event in batch.events:
            self._plan(event)
        if batch.live is not None and batch.move in _ENDING and self._attempt > 1:
            self._drop(self._leftover(batch.live))
        if batch.state:
            self._staged().apply(check_delta(batch.state), self._newest())

    def _plan(self, event: Event) -> None:
        identity = event.branch, event.ordinal or 0
        old = self._written.get(identity) or self._run.counting(identity)
        if old is not None and old.seq in self.gone:
            old = None
        if old is not None and old.same_as(event):
            self._written.setdefault(identity, old)
            self.entries.append((event, identity, False, None))
            return
        supersedes = None
        if old is not None:
            if old.attempt >= self._attempt or old.pos is None:
                raise Conflict(
                    f"run {self._run.record.id!r} wrote two different events as ordinal {event.ordinal} "
                    f"of branch {event.branch!r}",
                    code="event.conflict",
                )
            supersedes = old.pos
            self._drop(self._after(old))
        self._written[identity] = event
        self.entries.append((event, identity, True, supersedes))
        self._new += 1
        if event.actions.changes_state:
            self._staged().apply(StateDelta.of(event.actions), len(self._run.session.events) + self._new)

    def _newest(self) -> int:
        """The run's newest event that will count."""
        if self._new:
            return len(self._run.session.events) + self._new
        events = self._run.session.events
        return next(s for s in reversed(self._run.seqs) if s not in self.gone and not events[s - 1].superseded)

    def _after(self, old: Event) -> set[int]:
        """An event and what earlier attempts wrote after it, in the same branch and below."""
        run, events = self._run, self._run.session.events
        later = (events[s - 1] for s in run.seqs[bisect_left(run.seqs, old.seq or 0) :])
        return {
            e.seq or 0
            for e in later
            if not e.superseded and e.ordinal is not None and e.attempt < self._attempt and _below(e.branch, old.branch)
        }

    def _leftover(self, live: dict[str | None, int]) -> set[int]:
        """What earlier attempts wrote since the last hand-over beyond where this one ends."""
        events = self._run.session.events
        return {
            seq
            for (branch, ordinal), seq in self._run.identity.items()
            if seq > self._run.base_seq
            and ordinal >= live.get(branch, 0)
            and events[seq - 1].pos is not None
            and events[seq - 1].attempt < self._attempt
            and (branch, ordinal) not in self._written
        }

    def _drop(self, seqs: set[int]) -> None:
        seqs |= self._answers_to(seqs)
        seqs -= self.gone
        self.gone |= seqs
        if self.state is not None or any(u.seq in seqs for u in self._run.undo):
            self._staged().put_back(seqs)

    def _answers_to(self, seqs: set[int]) -> set[int]:
        """What people answered to calls; an answer counts as long as its call does."""
        run, events = self._run, self._run.session.events
        calls = {c.id for s in seqs for c in events[s - 1].get_function_calls()}
        if not calls:
            return set()
        answers = (events[s - 1] for s in run.seqs if events[s - 1].ordinal is None)
        return {e.seq or 0 for e in answers if not e.superseded and any(r.id in calls for r in e.get_function_responses())}

    def _staged(self) -> _Staged:
        if self.state is None:
            self.state = _Staged(self._store, self._run.session, list(self._run.undo))
        return self.state


class InMemorySessionService:
    """Sessions and runs in RAM; gone with the process.

    It keeps every rule of `SessionService` and `RunStore`. Nothing in it awaits, so each call is one step of the event
    loop and needs no lock; use it from one event loop.
    """

    shared = False

    def __init__(self) -> None:
        self._sessions: dict[SessionKey, _Session] = {}
        self._shared_state: dict[Owner, dict[str, Any]] = {}
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
        session = self._sessions[key] = _Session(key, platform.now())
        self._write_state(session, delta)
        return self._snapshot(session)

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        check_window(events)
        session = self._find(SessionKey(app_name, user_id, session_id))
        newest = [e.snapshot() for e in session.newest(events)] if events else []
        return self._snapshot(session, tuple(newest))

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Session]:
        check_ids(app_name=app_name, user_id=user_id)
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

    async def list_apps(self) -> list[str]:
        return sorted({s.key.app_name for s in self._sessions.values()})

    async def patch_session(
        self, *, app_name: str, user_id: str, session_id: str, state_delta: dict[str, Any] | None = None,
        state_deleted: list[str] | None = None,
    ) -> Session:  # fmt: skip
        session = self._find(SessionKey(app_name, user_id, session_id))
        delta = StateDelta.of_values(state_delta)
        for name in state_deleted or ():
            delta.delete(name)
        self._write_state(session, delta.durable())
        session.updated_at = platform.now()
        return self._snapshot(session)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        session = self._find(SessionKey(app_name, user_id, session_id))
        before = self._snapshot(session)
        del self._sessions[session.key]
        for run in session.runs.values():
            del self._runs[run.record.uid]
            by_user = self._run_ids[app_name, run.record.id]
            del by_user[user_id]
            if not by_user:
                del self._run_ids[app_name, run.record.id]
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
        check_window(limit)
        session = self._find(key)
        summary = session.summary()
        floor = 0 if summary is None else summary.actions.summary_until or 0
        window = session.newest(limit, floor)
        pinned = session.pinned(window, summary)
        return History([e.snapshot() for e in window], [e.snapshot() for e in pinned])

    # -- runs -------------------------------------------------------------------------------------------------------

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        key = run.key.check()
        check_id(run.id, "run_id")
        config = jsonvalue.copy(run.config, where="config")
        metadata = jsonvalue.copy(run.custom_metadata, where="custom_metadata")
        delta = StateDelta.of(run.message.actions)
        known = self._run_ids.get((key.app_name, run.id), {}).get(key.user_id)
        if known is not None:
            same_input(known.record, run)
            return Submitted(known.record.snapshot(), None, True)
        session = self._sessions.get(key)
        if session is None and not run.create_session:
            raise session_not_found(key)
        repeated = None if run.retry_of is None else self._finished(run.retry_of, key, session)
        if session is None:
            session = _Session(key, platform.now())
        elif run.reject_if_busy:
            for other in session.runs.values():
                if other.record.status in _BUSY:
                    raise session_busy(key, other.record.id)
        staged = self._stage(session, delta) if begin else None

        self._sessions[key] = session
        if repeated is not None:
            repeated.supersede({s for s in repeated.seqs if not session.events[s - 1].superseded})
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
            config=config,
            attached=run.attached,
            retry_of=run.retry_of,
            custom_metadata=metadata,
            created_at=platform.now(),
        )
        stored = _Run(record, session)
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
            delta = StateDelta.of(record.message.actions) if record.attempt == 0 else StateDelta()
            return self._begin(run, self._stage(run.session, delta))
        return Begun(run.record.snapshot(), self._snapshot(run.session), [], [])

    def _begin(self, run: _Run, staged: _Staged | None) -> Begun:
        session = run.session
        record = run.record
        first = record.attempt == 0
        now = platform.now()
        run.answered = False
        run.record = record = record.evolve(
            status=move(record.status, Move.BEGIN, run_id=record.id),
            attempt=record.attempt + 1,
            started_at=now if first else record.started_at,
            last_pos=1 if first else record.last_pos,
            agent=session.active_agent if first else record.agent,
        )
        if staged is not None:
            staged.commit()
        if first:
            run.log(record.message.evolve(seq=len(session.events) + 1, pos=None, ordinal=0, attempt=1))
            session.updated_at = now
        state = self._merged(session)
        found = self._view(session, found_state(state, run.undo) if run.undo else state)
        steps = [_copy_step(s) for s in run.steps.values()]
        return Begun(record.snapshot(), found, steps, [_copy_interrupt(i) for i in run.interrupts.values()])

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        if run is None or run.record.status is not RunStatus.RUNNING or run.record.attempt != fence.attempt:
            raise fenced(None if run is None else run.record, fence)
        session, record = run.session, run.record
        status = move(record.status, batch.move, run_id=record.id) if batch.move is not None else record.status
        steps = [_copy_step(s) for s in batch.steps]
        interrupts = [_copy_interrupt(i) for i in batch.interrupts]
        plan = _Plan(self, run, batch)

        if plan.gone:
            run.supersede(plan.gone)
        usage = record.usage
        last_pos = record.last_pos
        events: list[Event | None] = []
        for event, identity, fresh, supersedes in plan.entries:
            if fresh:
                last_pos += 1
                numbered = event.evolve(seq=len(session.events) + 1, pos=last_pos, ordinal=identity[1], supersedes=supersedes)
                run.log(numbered)
                if event.usage_metadata is not None:
                    usage = _add_usage(usage, event)
                events.append(numbered)
            else:
                stored = run.counting(identity)
                events.append(stored.snapshot() if stored is not None and stored.attempt == fence.attempt else None)
        if plan.state is not None:
            plan.state.commit()
            run.undo = plan.state.undo
        for step in steps:
            run.steps.pop(step.key, None)
            run.steps[step.key] = step
        for interrupt in interrupts:
            self._ask(run, interrupt)
        agent, base, transfers = record.agent, record.base_ordinal, record.transfers
        if batch.agent is not None:
            base = (batch.events[-1].ordinal or 0) + 1 if batch.events else base
            # An append that is repeated because its reply was lost hands over once.
            if (batch.agent, base) != (agent, record.base_ordinal):
                agent = session.active_agent = batch.agent
                transfers += 1
                run.base_seq = len(session.events)
                run.undo = []
        now = platform.now()
        if batch.move is Move.WAIT and run.answered:
            status = RunStatus.QUEUED
        run.record = record.evolve(
            status=status,
            deaths=record.deaths + (1 if batch.move is Move.REQUEUE and batch.died else 0),
            agent=agent,
            base_ordinal=base,
            transfers=transfers,
            usage=usage,
            last_pos=last_pos + (1 if status.terminal else 0),
            error=batch.error if status.terminal else None,
            finished_at=now if status.terminal else None,
        )
        if status.terminal and batch.move is not None:
            self._finish(run, batch.move)
        session.updated_at = now
        return Appended(events, run.record.snapshot())

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
        run.log(event.evolve(seq=len(session.events) + 1, pos=None, ordinal=None, attempt=run.record.attempt))
        run.interrupts[interrupt_id] = replace(interrupt, status="answered", answer=value, answered_at=now)
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
        bound = page_after(after)
        found = [r.record for r in self._matching(query.app_name, query.user_id, query.session_id)]
        if query.status:
            found = [r for r in found if r.status in query.status]
        found.sort(key=lambda r: (r.created_at, r.uid), reverse=True)
        if bound is not None:
            found = [r for r in found if (r.created_at, _run_position(r)) < bound]
        more = len(found) > limit
        token = page_token(found[limit - 1].created_at, _run_position(found[limit - 1])) if more else None
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
        return [_copy_interrupt(i) for i in found]

    async def list_steps(self, run_uid: int) -> list[Step]:
        return [_copy_step(s) for s in self._run(run_uid).steps.values()]

    async def run_events(self, run_uid: int, *, after: int = 0, limit: int = 256) -> list[Event]:
        check_page(limit)
        run = self._run(run_uid)
        events = (run.session.events[s - 1] for s in run.seqs)
        found = [e for e in events if e.pos is not None and e.pos > after]
        return [e.snapshot() for e in found[:limit]]

    async def unfinished(self, app_name: str) -> list[RunRecord]:
        found = [r.record for r in self._matching(app_name, None, None) if not r.record.status.terminal]
        return [r.snapshot() for r in sorted(found, key=lambda r: (r.key, r.no))]

    async def requeue_lost(self, run_uid: int) -> RunRecord:
        run = self._run(run_uid)
        if run.record.status is RunStatus.RUNNING:
            status = move(run.record.status, Move.REQUEUE, run_id=run.record.id)
            run.record = run.record.evolve(status=status, deaths=run.record.deaths + 1)
        return run.record.snapshot()

    async def become_executor(self) -> None:
        """Does nothing: nobody else can reach this memory."""

    async def changes(self) -> list[Change]:
        return []

    async def close(self) -> None:
        """Does nothing: the store lives as long as its object."""

    # -- parts ------------------------------------------------------------------------------------------------------

    def _find(self, key: SessionKey) -> _Session:
        session = self._sessions.get(key.check())
        if session is None:
            raise session_not_found(key)
        return session

    def _run(self, run_uid: int) -> _Run:
        run = self._runs.get(run_uid)
        if run is None:
            raise run_not_found(str(run_uid))
        return run

    def _finished(self, run_id: str, key: SessionKey, session: _Session | None) -> _Run:
        """The finished run of a session that is to be repeated."""
        run = self._run_ids.get((key.app_name, run_id), {}).get(key.user_id)
        if run is None or run.session is not session:
            raise run_not_found(run_id)
        if not run.record.status.terminal:
            raise run_not_finished(run.record)
        return run

    def _matching(self, app_name: str, user_id: str | None, session_id: str | None) -> Iterator[_Run]:
        check_ids(app_name=app_name, user_id=user_id, session_id=session_id)
        for run in self._runs.values():
            record = run.record
            if (
                record.app_name == app_name
                and (user_id is None or record.user_id == user_id)
                and (session_id is None or record.session_id == session_id)
            ):
                yield run

    def _scope(self, owner: Owner, session: _Session) -> dict[str, Any]:
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

    def _stage(self, session: _Session, delta: StateDelta) -> _Staged | None:
        """Changes that are nobody's to take back."""
        if not delta:
            return None
        staged = _Staged(self, session, [])
        staged.apply(delta, 0)
        return staged

    def _write_state(self, session: _Session, delta: StateDelta) -> None:
        staged = self._stage(session, delta)
        if staged is not None:
            staged.commit()

    def _ask(self, run: _Run, interrupt: Interrupt) -> None:
        if interrupt.id in run.interrupts:
            return
        for id_, known in run.interrupts.items():
            if known.key == interrupt.key and known.digest != interrupt.digest and known.status == "open":
                run.interrupts[id_] = replace(known, status="dropped")
        record = run.record
        run.interrupts[interrupt.id] = replace(
            interrupt, run_id=record.id, app_name=record.app_name, user_id=record.user_id, session_id=record.session_id
        )

    def _close(self, run: _Run, by: Move, error: RunError, *, attempt: int | None = None) -> None:
        record = run.record
        run.record = record.evolve(
            status=closed_by(record, by),
            attempt=record.attempt if attempt is None else attempt,
            error=error,
            last_pos=record.last_pos + 1,
            finished_at=platform.now(),
        )
        self._finish(run, by)

    def _finish(self, run: _Run, by: Move) -> None:
        run.undo = []
        for id_, interrupt in run.interrupts.items():
            run.interrupts[id_] = dropped(interrupt, by)


_BUSY = (RunStatus.QUEUED, RunStatus.RUNNING)
_PENDING = (RunStatus.QUEUED, RunStatus.WAITING)
_ENDING = (Move.WAIT, Move.COMPLETE, Move.FAIL, Move.CANCEL)


def _below(branch: str | None, above: str | None) -> bool:
    return above is None or branch == above or (branch or "").startswith(above + ".")


def _add_usage(usage: dict[str, int], event: Event) -> dict[str, int]:
    total = dict(usage)
    for name, count in (event.usage_metadata.model_dump() if event.usage_metadata else {}).items():
        total[name] = total.get(name, 0) + count
    return total


def _run_position(record: RunRecord) -> str:
    return str(record.uid).zfill(20)


def _copy_step(step: Step) -> Step:
    return replace(step, result=jsonvalue.copy(step.result, where=f"the result of step {step.key!r}"))


def _copy_interrupt(interrupt: Interrupt) -> Interrupt:
    return replace(
        interrupt,
        prompt=jsonvalue.copy(interrupt.prompt, where="prompt"),
        schema=jsonvalue.copy(interrupt.schema, where="schema"),
        answer=jsonvalue.copy(interrupt.answer, where="answer"),
    )

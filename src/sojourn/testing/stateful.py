"""A store against its model: hypothesis drives both with the same calls and compares everything after each of them.

    machine = make_store_machine(lambda directory: MyStore.open(directory / "my.db"))
    TestMyStore = machine.TestCase
    TestMyStore.settings = settings(max_examples=60, stateful_step_count=25)

The model is `InMemorySessionService`. Calls are drawn from few ids, keys, texts and ordinals, so that they meet: sessions are
deleted under their runs, attempts replay and diverge, zombies write, people answer late. Both stores get the same clock
and the same chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sojourn import platform
from sojourn.content import Content, Part
from sojourn.errors import NotFound, SojournError
from sojourn.event import Event, EventActions, Usage
from sojourn.run.retention import SupportsRetention
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Batch, Begun, Fence, NewRun, Store
from sojourn.run.types import Interrupt, RunError, RunRecord, Step
from sojourn.session.state import StateDelta
from sojourn.session.types import Session, SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import (
    APP_NAME,
    USER_ID,
    answer_event,
    event,
    message,
    new_run,
    question,
    question_event,
    session_key,
    step,
)
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.world import assert_same_world, read_usage, read_world

T = TypeVar("T")

OpenStore = Callable[[Path], Awaitable[Store]]
"""Opens the store that keeps its data in a directory; called again with the same directory to open it again."""


# -- what is drawn ------------------------------------------------------------------------------------------------------

_keys = st.builds(session_key, st.sampled_from(["s1", "s2"]), user_id=st.sampled_from(["alice", "alice", "bob"]))
_run_ids = st.sampled_from(["r1", "r2", "r3", "r4"])
_texts = st.sampled_from(["x", "y"])
_state_keys = st.sampled_from(["a", "b", "user:c", "app:d", "temp:e"])
_values = st.sampled_from([0, 1, 1.0, True, 2, None, "text", [1], {"k": [None]}])
_deltas = st.dictionaries(_state_keys, _values, max_size=2)
_increments = st.dictionaries(_state_keys, st.sampled_from([1, 2, -1, 0.5]), max_size=2)
_branches = st.sampled_from([None, None, None, "a", "a.x", "b"])
_ids = st.sampled_from(["q1", "q2", "q3"])
_answers = st.sampled_from([1, True, "yes"])


@dataclass(frozen=True)
class EventSpec:
    """An event to be; what it becomes depends on the attempt that writes it.

    Attributes:
        ordinal: Its number in its branch; None for the next one.
    """

    ordinal: int | None
    text: str
    branch: str | None
    state: dict[str, Any]
    deleted: list[str]
    increments: dict[str, int | float]
    calls: list[str]
    responses: list[str]
    summary_until: int | None
    tokens: int

    def of(self, run: RunRecord, ordinals: Counter[str | None]) -> Event:
        """The event as an attempt writes it, after the ordinals given; counts itself."""
        ordinal = self.ordinal or ordinals[self.branch] + 1
        ordinals[self.branch] = max(ordinal, ordinals[self.branch])
        return event(
            run,
            ordinal,
            self.text,
            branch=self.branch,
            state=self.state,
            deleted=[k for k in self.deleted if k not in self.state],
            increments={k: by for k, by in self.increments.items() if k not in self.state and k not in self.deleted},
            calls=self.calls,
            responses=self.responses,
            summary_until=self.summary_until,
            usage_metadata=Usage(total_token_count=self.tokens) if self.tokens else None,
        )


_event_specs = st.builds(
    EventSpec,
    ordinal=st.one_of(st.none(), st.none(), st.none(), st.integers(1, 4)),
    text=_texts,
    branch=_branches,
    state=_deltas,
    deleted=st.one_of(st.just([]), st.lists(_state_keys, max_size=1)),
    increments=st.one_of(st.just({}), _increments),
    calls=st.lists(st.sampled_from(["c1", "c2"]), max_size=2, unique=True),
    responses=st.lists(st.sampled_from(["c1", "c2", "q1"]), max_size=1),
    summary_until=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12)),
    tokens=st.sampled_from([0, 0, 3, -1]),
)
_lives = st.one_of(st.none(), st.dictionaries(st.sampled_from([None, "a", "b"]), st.integers(0, 5)))
_moves = st.sampled_from([*[None] * 16, *Move])
_batches = st.fixed_dictionaries(
    {
        "events": st.lists(_event_specs, max_size=4),
        "asks": st.lists(_ids, max_size=1),
        "steps": st.lists(st.sampled_from(["k1", "k2"]), max_size=2),
        "state": st.one_of(st.none(), st.builds(StateDelta, values=_deltas)),
        "increments": st.one_of(st.just({}), st.just({}), _increments),
        "move": _moves,
        "live": _lives,
        "said": _lives,
        "died": st.booleans(),
        "agent": st.sampled_from([None, None, None, "billing"]),
        "digest": st.sampled_from(["d1", "d2"]),
        "expires": st.sampled_from([None, 3.0]),
    }
)


# -- the machine --------------------------------------------------------------------------------------------------------


_RunKey = tuple[str, str]
"""What names a run in the machine's one app: its user and its id."""


@dataclass
class _Side:
    """One of the two stores, and what it calls the runs."""

    store: Store
    uids: dict[_RunKey, int]


def make_store_machine(open_store: OpenStore, *, durable: bool = True) -> type[RuleBasedStateMachine]:
    """Makes a state machine that compares a store with the one in RAM.

    Args:
        open_store: Opens the store under test in a directory, which is empty at first and the machine's own.
        durable: Whether the store, opened again in its directory, is to have what it had.
    """

    class StoreMachine(StoreComparison):
        pass

    StoreMachine.open_store = staticmethod(open_store)
    StoreMachine.durable = durable
    return StoreMachine


class StoreComparison(RuleBasedStateMachine):
    """The machine behind `make_store_machine`, which sets its two attributes.

    Attributes:
        open_store: As the function's argument.
        durable: As the function's argument.
    """

    open_store: OpenStore
    durable: bool

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._directory = tempfile.TemporaryDirectory()
        self._clock = ManualPlatform()
        self._step = 0
        self._ending = contextlib.ExitStack()
        self._ending.enter_context(platform.use(self._clock))

    def teardown(self) -> None:
        """Closes both stores."""
        try:
            if hasattr(self, "tested"):
                self._runner.run(self.tested.store.close())
        finally:
            self._ending.close()
            self._runner.close()
            self._directory.cleanup()

    @initialize(state=_deltas)
    def open(self, state: dict[str, Any]) -> None:
        """Opens both stores, with a session and a run under way."""
        self.model = _Side(InMemorySessionService(), {})
        self.tested = _Side(self._open(), {})
        self._both(lambda side: side.store.create_session(**_named(session_key()), state=state))
        self._submit(session_key(), new_run("r1"), begin=True)

    # -- sessions ---------------------------------------------------------------------------------------------------

    @rule(key=_keys, delta=_deltas, deleted=st.lists(_state_keys, max_size=2), create=st.sampled_from([True, False, False]))
    def create_or_patch(self, key: SessionKey, delta: dict[str, Any], deleted: list[str], create: bool) -> None:
        """Writes state from outside of any run."""
        if create:
            self._both(lambda side: side.store.create_session(**_named(key), state=delta))
        else:
            self._both(lambda side: side.store.patch_session(**_named(key), state_delta=delta, state_deleted=deleted))

    # -- runs -------------------------------------------------------------------------------------------------------

    @rule(
        run_id=_run_ids,
        key=_keys,
        text=_texts,
        begin=st.sampled_from([True, True, False]),
        busy=st.booleans(),
        create=st.sampled_from([True, True, True, False]),
        retry_of=st.one_of(st.none(), st.none(), st.none(), _run_ids),
        state=st.one_of(st.none(), _deltas),
    )
    def submit(
        self,
        run_id: str,
        key: SessionKey,
        text: str,
        begin: bool,
        busy: bool,
        create: bool,
        retry_of: str | None,
        state: dict[str, Any] | None,
    ) -> None:
        """Submits a run, which may be known already."""
        run = new_run(
            run_id,
            key,
            message=message(run_id, text, state=state),
            create_session=create,
            reject_if_busy=busy and not begin,
            retry_of=retry_of,
            config={"max_turns": 3},
        )
        self._submit(key, run, begin=begin)

    @rule(
        data=st.data(),
        text=_texts,
        later=st.sampled_from(["begins", "begins", "waits", "is cancelled"]),
        more=st.booleans(),
        ends=st.sampled_from([True, True, True, False]),
        agent=st.sampled_from([None, "billing"]),
    )
    def repeat(self, data: st.DataObject, text: str, later: str, more: bool, ends: bool, agent: str | None) -> None:
        """Lets a new run take the place of any run, now and then after having waited for its turn; others may come after it."""
        user_id, repeated = data.draw(st.sampled_from(sorted(self.model.uids)))
        record = self._runner.run(self._known((user_id, repeated)))
        key = record.key if record is not None else session_key(user_id=user_id)
        for unfinished in self._runner.run(self.model.store.unfinished(APP_NAME)) if ends else ():
            if unfinished.key == key:
                by = (unfinished.user_id, unfinished.id)
                self._both(lambda side, by=by: side.store.request_cancel(side.uids[by], "enough"))  # type: ignore[misc]
                if unfinished.status is RunStatus.RUNNING:
                    last = event(unfinished, _ordinals(self._stored(by))[None] + 1, "over")
                    self._append(by, unfinished, Batch(events=[last], agent=agent, move=Move.COMPLETE))
        run = user_id, f"again{self._step}"
        new = new_run(run[1], key, message=message(run[1], text), retry_of=repeated)
        self._submit(key, new, begin=later == "begins")
        if run in self.model.uids:
            if more:
                self._submit(key, new_run(f"more{self._step}", key), begin=False)
            if later == "is cancelled":
                self._both(lambda side: side.store.request_cancel(side.uids[run], "enough"))
            elif later == "waits":
                self._both(lambda side: side.store.begin(side.uids[run]))

    @rule(data=st.data(), batch=_batches, stale=st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1]))
    def append(self, data: st.DataObject, batch: dict[str, Any], stale: int) -> None:
        """Appends anything, now and then as an attempt that was replaced or has not begun."""
        run = self._some_running(data)
        record = self._record(run)
        record = record.evolve(attempt=max(record.attempt + stale, 0))
        self._append(run, record, _batch(record, batch, _ordinals(self._stored(run))))

    @rule(
        data=st.data(),
        events=st.lists(_event_specs, min_size=1, max_size=4),
        times=st.sampled_from([1, 1, 2]),
        agent=st.sampled_from([None, None, None, None, "billing"]),
    )
    def write(self, data: st.DataObject, events: list[EventSpec], times: int, agent: str | None) -> None:
        """Writes events, now and then to hand over; now and then once more, as after a lost reply."""
        run = self._some_running(data)
        record = self._record(run)
        batch = _batch(record, {"events": events, "agent": agent}, _ordinals(self._stored(run)))
        for _ in range(times):
            self._append(run, record, batch)

    @rule(
        data=st.data(),
        first=st.lists(_event_specs, min_size=2, max_size=4),
        lost=st.sampled_from([True, True, True, False]),
        keep=st.integers(0, 6),
        change=st.sampled_from(["text", "state", "nothing"]),
        more=st.lists(_event_specs, max_size=2),
        move=st.sampled_from([None, None, None, None, Move.COMPLETE, Move.WAIT, Move.REQUEUE]),
        told=st.booleans(),
    )
    def replay(
        self,
        data: st.DataObject,
        first: list[EventSpec],
        lost: bool,
        keep: int,
        change: str,
        more: list[EventSpec],
        move: Move | None,
        told: bool,
    ) -> None:
        """Lets the next attempt write what is stored, up to where it takes another way."""
        run = self._some_running(data)
        if not self._stored(run):
            record = self._record(run)
            self._append(run, record, _batch(record, {"events": first}, Counter()))
        if lost:
            self._both(lambda side: side.store.requeue_lost(side.uids[run]))
            self._both(lambda side: side.store.begin(side.uids[run]))
        record = self._record(run)
        events = [e.evolve(attempt=record.attempt, seq=None, pos=None, supersedes=None) for e in self._stored(run)]
        if events:
            keep %= len(events)
            events[keep:] = [_changed(events[keep], change)]
        ordinals = _ordinals(events)
        events += [spec.of(record, ordinals) for spec in more]
        live = {branch: last + 1 for branch, last in ordinals.items()} if told else None
        self._append(run, record, Batch(events=events, move=move, live=live))

    @rule(data=st.data(), ids=st.lists(_ids, min_size=1, max_size=2, unique=True), expires=st.sampled_from([None, 3.0]))
    def ask(self, data: st.DataObject, ids: list[str], expires: float | None) -> None:
        """Asks a person and waits."""
        run = self._some_running(data)
        record = self._record(run)
        self._append(run, record, _batch(record, {"asks": ids, "move": Move.WAIT, "expires": expires}, Counter()))

    @precondition(lambda self: self._asked())
    @rule(data=st.data(), value=_answers, begin=st.booleans())
    def answer(self, data: st.DataObject, value: Any, begin: bool) -> None:
        """Answers an open question; then, maybe, begins the next attempt."""
        run, interrupt_id = data.draw(st.sampled_from(self._asked()))
        self._answer(run, interrupt_id, value)
        if begin:
            self._both(lambda side: side.store.begin(side.uids[run]))

    @rule(
        data=st.data(),
        what=st.sampled_from(["begin", "requeue", "cancel", "close", "take over", "answer", "delete", "delete and create"]),
        by=st.sampled_from(list(Move)),
        interrupt_id=_ids,
        value=_answers,
        seconds=st.sampled_from([0.0, 5.0, 3600.0]),
    )
    def meddle(self, data: st.DataObject, what: str, by: Move, interrupt_id: str, value: Any, seconds: float) -> None:
        """Does to any run what comes from outside of it, whether it is the time for it or not."""
        self._clock.advance(seconds)
        run = data.draw(st.sampled_from(sorted(self.model.uids)))
        error = RunError("agent.failed", "it broke")
        match what:
            case "begin":
                self._both(lambda side: side.store.begin(side.uids[run]))
            case "requeue":
                self._both(lambda side: side.store.requeue_lost(side.uids[run]))
            case "cancel":
                self._both(lambda side: side.store.request_cancel(side.uids[run], f"because {value}"))
            case "close":
                self._both(lambda side: side.store.close_run(side.uids[run], error, move=by))
            case "take over":
                self._both(lambda side: side.store.take_over(side.uids[run], error, move=by))
            case "answer":
                self._answer(run, interrupt_id, value)
            case _:
                key = data.draw(_keys)
                self._both(lambda side: side.store.delete_session(**_named(key)))
                if what != "delete":
                    self._both(lambda side: side.store.create_session(**_named(key)))

    @precondition(lambda self: isinstance(self.tested.store, SupportsRetention))
    @rule(
        key=_keys,
        keep=st.one_of(st.none(), st.integers(0, 8)),
        age=st.one_of(st.none(), st.sampled_from([0.0, 5.0, 20.0])),
        limit=st.sampled_from([1, 3, 1000]),
    )
    def trim(self, key: SessionKey, keep: int | None, age: float | None, limit: int) -> None:
        """Removes old runs of a session."""
        before = None if age is None else self._clock.now() - age
        self._both(lambda side: _retaining(side).trim_session(key, keep_events=keep, ended_before=before, limit=limit))

    @precondition(lambda self: isinstance(self.tested.store, SupportsRetention))
    @rule(key=_keys, idle=st.sampled_from([5.0, 5.0, None]), again=st.booleans())
    def drop(self, key: SessionKey, idle: float | None, again: bool) -> None:
        """Removes a session, maybe only if it is idle, and maybe what else is kept of its user."""
        since = None if idle is None else self._clock.now() - idle
        self._both(lambda side: _retaining(side).drop_session(key, idle_since=since, limit=1000))
        self._both(lambda side: _dropped_keys(_retaining(side)))
        self._both(lambda side: _retaining(side).user_state(key.app_name, key.user_id))
        if again:
            self._both(lambda side: _retaining(side).erase_user(key.app_name, key.user_id))

    @precondition(lambda self: self.durable)
    @rule()
    def reopen(self) -> None:
        """Closes the store under test and opens it again, to execute runs."""
        self._runner.run(self.tested.store.close())
        self.tested.store = self._open()
        self._runner.run(self.tested.store.become_executor())

    # -- the comparison ---------------------------------------------------------------------------------------------

    @invariant()
    def same_world(self) -> None:
        """Both stores hold the same."""
        if hasattr(self, "tested"):
            model = self._runner.run(read_world(self.model.store, [APP_NAME]))
            tested = self._runner.run(read_world(self.tested.store, [APP_NAME]))
            assert_same_world(tested, model)

    @invariant()
    def same_usage(self) -> None:
        """Both stores know what was spent, also in sessions that are deleted."""
        if hasattr(self, "tested"):
            for user_id in ("alice", "bob"):
                model = self._runner.run(read_usage(self.model.store, APP_NAME, user_id))
                tested = self._runner.run(read_usage(self.tested.store, APP_NAME, user_id))
                assert_same_world(tested, model)

    def _open(self) -> Store:
        return self._runner.run(_opened(type(self).open_store(Path(self._directory.name))))

    def _both(self, call: Callable[[_Side], Awaitable[Any]]) -> None:
        """Makes the same call on both stores, at the same time and with the same chance, and compares what comes back."""
        self._step += 1
        self._clock.advance(1.0)
        expected, found = (self._outcome(side, call) for side in (self.model, self.tested))
        assert_same_world({"result": found}, {"result": expected})

    def _outcome(self, side: _Side, call: Callable[[_Side], Awaitable[Any]]) -> Any:
        with platform.use(ManualPlatform(self._clock.now(), seed=self._step)):
            try:
                return _plain(self._runner.run(_opened(call(side))))
            except SojournError as error:
                return type(error).__name__, error.code

    def _append(self, run: _RunKey, record: RunRecord, batch: Batch) -> None:
        self._both(lambda side: side.store.append(Fence(side.uids[run], record.attempt), batch))

    def _submit(self, key: SessionKey, run: NewRun, *, begin: bool) -> None:
        async def call(side: _Side) -> Any:
            submitted = await side.store.submit(run, begin=begin)
            side.uids[key.user_id, run.id] = submitted.record.uid
            return submitted

        self._both(call)

    def _answer(self, run: _RunKey, interrupt_id: str, value: Any) -> None:
        user_id, run_id = run
        asked = RunRecord(0, run_id, APP_NAME, user_id, "", "", 0, RunStatus.WAITING, message(run_id))
        event = answer_event(asked, interrupt_id, value)
        self._both(lambda side: side.store.answer(side.uids[run], interrupt_id, value, event))

    def _record(self, run: _RunKey) -> RunRecord:
        return self._runner.run(self.model.store.get_run(APP_NAME, run[1], run[0]))

    async def _known(self, run: _RunKey) -> RunRecord | None:
        try:
            return await self.model.store.get_run(APP_NAME, run[1], run[0])
        except NotFound:
            return None

    def _stored(self, run: _RunKey) -> list[Event]:
        """The agent's events of a run that count."""
        record = self._record(run)
        after = record.last_pos if record.trimmed else 0
        events = self._runner.run(self.model.store.run_events(record.uid, after=after))
        return [e for e in events if not e.superseded]

    def _some_running(self, data: st.DataObject) -> _RunKey:
        """A running run; a new one if there is none."""
        unfinished = self._runner.run(self.model.store.unfinished(APP_NAME))
        running = [(r.user_id, r.id) for r in unfinished if r.status is RunStatus.RUNNING]
        if running:
            return data.draw(st.sampled_from(running))
        run_id = f"new{self._step}"
        self._submit(session_key(), new_run(run_id), begin=True)
        return USER_ID, run_id

    def _asked(self) -> list[tuple[_RunKey, str]]:
        found = self._runner.run(self.model.store.list_interrupts(APP_NAME))
        return [((i.user_id, i.run_id), i.id) for i in found]


def _retaining(side: _Side) -> SupportsRetention:
    assert isinstance(side.store, SupportsRetention)
    return side.store


async def _dropped_keys(store: SupportsRetention) -> list[SessionKey]:
    return [dropped.key for dropped in await store.dropped_sessions(APP_NAME)]


def _ordinals(events: list[Event]) -> Counter[str | None]:
    """The last ordinal of each branch."""
    last: Counter[str | None] = Counter()
    for one in events:
        last[one.branch] = max(last[one.branch], one.ordinal or 0)
    return last


def _changed(stored: Event, change: str) -> Event:
    if change == "text":
        return stored.evolve(content=Content("model", (Part(text="z"),)))
    if change == "state":
        return stored.evolve(actions=EventActions(state_delta={"a": "z"}))
    return stored


async def _opened(call: Awaitable[T]) -> T:
    return await call


def _named(key: SessionKey) -> dict[str, Any]:
    return {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}


def _batch(run: RunRecord, drawn: dict[str, Any], ordinals: Counter[str | None]) -> Batch:
    """The batch that an attempt appends after the ordinals given."""
    events = [spec.of(run, ordinals) for spec in drawn.get("events", ())]
    expires = None if drawn.get("expires") is None else platform.now() + drawn["expires"]
    asks = drawn.get("asks", ())
    # A question stands at an ordinal of its own, so that it does not contradict the events drawn.
    events += [question_event(run, 10 + int(id_[1:]), id_) for id_ in asks]
    state = drawn.get("state")
    for key, by in drawn.get("increments", {}).items():
        state = state or StateDelta()
        if key not in state.values:
            state.increments[key] = by
    move = drawn.get("move")
    return Batch(
        events=events,
        steps=[step(key, {"by": run.attempt}, attempt=run.attempt) for key in drawn.get("steps", ())],
        interrupts=[question(id_, key="key", digest=drawn.get("digest", "d1"), expires_at=expires) for id_ in asks],
        state=state,
        move=move,
        error=RunError("agent.failed", "it broke") if move in (Move.FAIL, Move.CANCEL) else None,
        died=drawn.get("died", False),
        agent=drawn.get("agent") if events else None,
        live=drawn.get("live"),
        said=drawn.get("said"),
    )


def _plain(value: Any) -> Any:
    """What a store gave, without the keys that it made for itself."""
    if isinstance(value, Begun) and value.record.status is not RunStatus.RUNNING:
        return _plain(value.record)
    if isinstance(value, RunRecord):
        plain = {**asdict(value), "message": _plain(value.message), "usage": {k: n for k, n in value.usage.items() if n}}
        del plain["uid"], plain["session_uid"]
        return plain
    if isinstance(value, Session):
        return value.model_dump(exclude={"uid"})
    if isinstance(value, Event):
        return value.model_dump(mode="json")
    if isinstance(value, Step | Interrupt):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value

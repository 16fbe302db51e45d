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
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sojourn import platform
from sojourn.content import Content, Part
from sojourn.errors import SojournError
from sojourn.event import Event, EventActions, Usage
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Batch, Begun, Fence, Store
from sojourn.run.types import Interrupt, RunError, RunRecord, Step
from sojourn.session.state import StateDelta
from sojourn.session.types import Session, SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import answer_event, event, message, new_run, question, question_event, session_key, step
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.world import assert_same_world, read_world

T = TypeVar("T")

OpenStore = Callable[[Path], Awaitable[Store]]
"""Opens the store that keeps its data in a directory; called again with the same directory to open it again."""

_APPS = ("shop",)

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
_errors = st.just(RunError("agent.failed", "it broke"))


@dataclass(frozen=True)
class EventSpec:
    """An event to be; what it becomes depends on the attempt that writes it."""

    ordinal: int
    text: str
    branch: str | None
    state: dict[str, Any]
    deleted: list[str]
    increments: dict[str, int | float]
    calls: list[str]
    responses: list[str]
    summary_until: int | None
    tokens: int

    def of(self, run: RunRecord) -> Event:
        """The event as an attempt writes it."""
        return event(
            run,
            self.ordinal,
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
    ordinal=st.integers(1, 5),
    text=_texts,
    branch=_branches,
    state=st.one_of(st.just({}), _deltas),
    deleted=st.one_of(st.just([]), st.lists(_state_keys, max_size=1)),
    increments=st.one_of(st.just({}), _increments),
    calls=st.lists(st.sampled_from(["c1", "c2"]), max_size=2, unique=True),
    responses=st.lists(st.sampled_from(["c1", "c2", "q1"]), max_size=1),
    summary_until=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12)),
    tokens=st.sampled_from([0, 0, 3]),
)
_lives = st.one_of(st.none(), st.dictionaries(st.sampled_from([None, "a", "b"]), st.integers(0, 5)))
_moves = st.sampled_from([None, None, None, *Move])
_batches = st.fixed_dictionaries(
    {
        "events": st.lists(_event_specs, max_size=4),
        "asks": st.lists(_ids, max_size=1),
        "steps": st.lists(st.sampled_from(["k1", "k2"]), max_size=2),
        "state": st.one_of(st.none(), st.builds(StateDelta, values=_deltas)),
        "increments": st.one_of(st.just({}), st.just({}), _increments),
        "move": _moves,
        "live": _lives,
        "died": st.booleans(),
        "agent": st.sampled_from([None, None, None, "billing"]),
        "digest": st.sampled_from(["d1", "d2"]),
        "expires": st.sampled_from([None, 3.0]),
    }
)


# -- the machine --------------------------------------------------------------------------------------------------------


@dataclass
class _Side:
    """One of the two stores, and what it calls the runs."""

    store: Store
    uids: dict[tuple[str, str], int]


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

    @initialize()
    def open(self) -> None:
        """Opens both stores."""
        self.model = _Side(InMemorySessionService(), {})
        self.tested = _Side(self._open(), {})

    # -- sessions ---------------------------------------------------------------------------------------------------

    @rule(key=_keys, state=_deltas)
    def create(self, key: SessionKey, state: dict[str, Any]) -> None:
        """Creates a session, or tries to."""
        self._both(lambda side: side.store.create_session(**_named(key), state=state))

    @rule(key=_keys, delta=_deltas, deleted=st.lists(_state_keys, max_size=2))
    def patch(self, key: SessionKey, delta: dict[str, Any], deleted: list[str]) -> None:
        """Writes state from outside of any run."""
        self._both(lambda side: side.store.patch_session(**_named(key), state_delta=delta, state_deleted=deleted))

    @rule(key=_keys, again=st.booleans())
    def delete(self, key: SessionKey, again: bool) -> None:
        """Deletes a session; then, maybe, creates it again."""
        self._both(lambda side: side.store.delete_session(**_named(key)))
        if again:
            self._both(lambda side: side.store.create_session(**_named(key)))

    # -- runs -------------------------------------------------------------------------------------------------------

    @rule(
        run_id=_run_ids,
        key=_keys,
        text=_texts,
        begin=st.sampled_from([True, True, False]),
        busy=st.booleans(),
        create=st.booleans(),
        retry_of=st.one_of(st.none(), st.none(), _run_ids),
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

        async def call(side: _Side) -> Any:
            run = new_run(
                run_id,
                key,
                message=message(run_id, text, state=state),
                create_session=create,
                reject_if_busy=busy and not begin,
                retry_of=retry_of,
                config={"max_turns": 3},
            )
            submitted = await side.store.submit(run, begin=begin)
            side.uids[key.user_id, run_id] = submitted.record.uid
            return submitted

        self._both(call)

    @precondition(lambda self: self.model.uids)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """Begins an attempt, if the run is queued."""
        run = data.draw(self._known())
        self._both(lambda side: side.store.begin(side.uids[run]))

    @precondition(lambda self: self._running())
    @rule(data=st.data(), batch=_batches, stale=st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1]))
    def append(self, data: st.DataObject, batch: dict[str, Any], stale: int) -> None:
        """Appends anything to a running run, now and then as another attempt."""
        run = data.draw(st.sampled_from(self._running()))
        self._append(run, batch, stale)

    @precondition(lambda self: self._running())
    @rule(data=st.data(), events=st.lists(_event_specs, min_size=1, max_size=3), again=st.booleans())
    def write(self, data: st.DataObject, events: list[EventSpec], again: bool) -> None:
        """Writes events and nothing else; then, maybe, the same once more."""
        run = data.draw(st.sampled_from(self._running()))
        for _ in range(1 + again):
            self._append(run, {"events": events}, 0)

    @precondition(lambda self: self._running())
    @rule(data=st.data(), ids=st.lists(_ids, min_size=1, max_size=2, unique=True), expires=st.sampled_from([None, 3.0]))
    def ask(self, data: st.DataObject, ids: list[str], expires: float | None) -> None:
        """Asks a person and waits."""
        run = data.draw(st.sampled_from(self._running()))
        self._append(run, {"asks": ids, "move": Move.WAIT, "digest": "d1", "expires": expires}, 0)

    @precondition(lambda self: self._running())
    @rule(
        data=st.data(),
        lost=st.booleans(),
        keep=st.integers(0, 6),
        change=st.sampled_from(["text", "state", "nothing"]),
        more=st.lists(_event_specs, max_size=2),
        move=st.sampled_from([None, None, Move.COMPLETE, Move.WAIT, Move.REQUEUE]),
        told=st.booleans(),
    )
    def replay(
        self, data: st.DataObject, lost: bool, keep: int, change: str, more: list[EventSpec], move: Move | None, told: bool
    ) -> None:
        """Lets the next attempt write what is stored, up to where it takes another way."""
        run = data.draw(st.sampled_from(self._running()))
        if lost:
            self._both(lambda side: side.store.requeue_lost(side.uids[run]))
            self._both(lambda side: side.store.begin(side.uids[run]))

        record = self._record(run)
        stored = [e for e in self._runner.run(self.model.store.run_events(self.model.uids[run])) if not e.superseded]
        events = [e.evolve(attempt=record.attempt, seq=None, pos=None, supersedes=None) for e in stored[: keep + 1]]
        if len(events) > keep:
            events[keep:] = [_changed(events[keep], change)]
        events += [spec.of(record) for spec in more]
        live = {e.branch: (e.ordinal or 0) + 1 for e in sorted(events, key=lambda e: e.ordinal or 0)} if told else None
        batch = Batch(events=events, move=move, live=live)
        self._both(lambda side: side.store.append(Fence(side.uids[run], record.attempt), batch))

    @precondition(lambda self: self.model.uids)
    @rule(data=st.data(), interrupt_id=_ids, value=_answers)
    def answer(self, data: st.DataObject, interrupt_id: str, value: Any) -> None:
        """Answers a question, open or not."""
        run = data.draw(self._known())

        self._answer(run, interrupt_id, value)

    @precondition(lambda self: self._asked())
    @rule(data=st.data(), value=_answers)
    def answer_open(self, data: st.DataObject, value: Any) -> None:
        """Answers an open question."""
        run, interrupt_id = data.draw(st.sampled_from(self._asked()))

        self._answer(run, interrupt_id, value)

    @precondition(lambda self: self.model.uids)
    @rule(data=st.data(), reason=st.sampled_from(["first", "second"]))
    def cancel(self, data: st.DataObject, reason: str) -> None:
        """Asks for a cancel."""
        run = data.draw(self._known())
        self._both(lambda side: side.store.request_cancel(side.uids[run], reason))

    @precondition(lambda self: self.model.uids)
    @rule(data=st.data(), error=_errors, by=st.sampled_from([Move.CANCEL, Move.FAIL, Move.EXPIRE, Move.COMPLETE]))
    def close_run(self, data: st.DataObject, error: RunError, by: Move) -> None:
        """Closes a run that is queued or waiting."""
        run = data.draw(self._known())
        self._both(lambda side: side.store.close_run(side.uids[run], error, move=by))

    @precondition(lambda self: self.model.uids)
    @rule(data=st.data(), error=_errors, by=st.sampled_from([Move.CANCEL, Move.FAIL, Move.WAIT, Move.ANSWER]))
    def take_over(self, data: st.DataObject, error: RunError, by: Move) -> None:
        """Closes a run that is running."""
        run = data.draw(self._known())
        self._both(lambda side: side.store.take_over(side.uids[run], error, move=by))

    @precondition(lambda self: self.model.uids)
    @rule(data=st.data())
    def requeue(self, data: st.DataObject) -> None:
        """Finds a run lost."""
        run = data.draw(self._known())
        self._both(lambda side: side.store.requeue_lost(side.uids[run]))

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        """Lets time pass."""
        self._clock.advance(seconds)

    @precondition(lambda self: self.durable)
    @rule()
    def reopen(self) -> None:
        """Closes the store under test and opens it again."""
        self._runner.run(self.tested.store.close())
        self.tested.store = self._open()

    # -- the comparison ---------------------------------------------------------------------------------------------

    @invariant()
    def same_world(self) -> None:
        """Both stores hold the same."""
        if hasattr(self, "tested"):
            model = self._runner.run(read_world(self.model.store, _APPS))
            tested = self._runner.run(read_world(self.tested.store, _APPS))
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

    def _append(self, run: tuple[str, str], drawn: dict[str, Any], stale: int) -> None:
        record = self._record(run)
        record = record.evolve(attempt=max(record.attempt + stale, 0))
        batch = _batch(record, drawn)
        self._both(lambda side: side.store.append(Fence(side.uids[run], record.attempt), batch))

    def _answer(self, run: tuple[str, str], interrupt_id: str, value: Any) -> None:
        event = answer_event(self._record(run), interrupt_id, value)
        self._both(lambda side: side.store.answer(side.uids[run], interrupt_id, value, event))

    def _record(self, run: tuple[str, str]) -> RunRecord:
        return self._runner.run(self.model.store.get_run("shop", run[1], run[0]))

    def _known(self) -> st.SearchStrategy[tuple[str, str]]:
        return st.sampled_from(sorted(self.model.uids))

    def _records(self) -> list[tuple[tuple[str, str], RunRecord]]:
        unfinished = self._runner.run(self.model.store.unfinished("shop"))
        return [((r.user_id, r.id), r) for r in unfinished]

    def _running(self) -> list[tuple[str, str]]:
        return [run for run, record in self._records() if record.status is RunStatus.RUNNING]

    def _asked(self) -> list[tuple[tuple[str, str], str]]:
        found = self._runner.run(self.model.store.list_interrupts("shop"))
        return [((i.user_id, i.run_id), i.id) for i in found]


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


def _batch(run: RunRecord, drawn: dict[str, Any]) -> Batch:
    """The batch that an attempt appends."""
    events = [spec.of(run) for spec in drawn.get("events", ())]
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
        interrupts=[question(id_, key="key", digest=drawn["digest"], expires_at=expires) for id_ in asks],
        state=state,
        move=move,
        error=RunError("agent.failed", "it broke") if move in (Move.FAIL, Move.CANCEL) else None,
        died=drawn.get("died", False),
        agent=drawn.get("agent") if events else None,
        live=drawn.get("live"),
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

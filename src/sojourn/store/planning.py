"""What an append does to the log of its run and to the state, worked out before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from sojourn.errors import Conflict
from sojourn.event import Event
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Batch
from sojourn.run.usage import COUNTS, MAX_COUNT
from sojourn.session.state import StateDelta
from sojourn.store.staging import StagedState

# The moves after which nothing counts that an earlier attempt wrote and this one did not come by.
_ENDING = frozenset({Move.WAIT, Move.COMPLETE, Move.FAIL, Move.CANCEL})


class RunLog(Protocol):
    """What a run has stored, as far as it counts."""

    def find(self, branch: str | None, ordinal: int) -> Event | None:
        """The event of an identity."""
        ...

    def events(self) -> Sequence[Event]:
        """All events, answers included, in the order of `seq`."""
        ...

    def answers(self) -> Sequence[Event]:
        """What people answered, in the order of `seq`, also what does not count any more."""
        ...


class Planned(NamedTuple):
    """What becomes of one event of a batch.

    Attributes:
        event: The event.
        stored: The equal one that is stored already, or comes earlier in the batch; None if this one is to be stored.
        supersedes: `Event.supersedes` of the one to be stored.
        drops: `seq` of the stored events that stop to count because of it.
        answers: What to store right after it: people's answers to its calls, which stopped to count in their old place.
    """

    event: Event
    stored: Event | None
    supersedes: int | None
    drops: frozenset[int]
    answers: Sequence[Event] = ()


_NONE: frozenset[int] = frozenset()
_NOTHING_SAID: Mapping[str | None, int] = {}


class Planner:
    """Compares what an attempt writes, event by event, with what is stored.

    Args:
        run_id: For messages.
        attempt: The attempt that writes.
        log: What is stored.
    """

    def __init__(self, run_id: str, attempt: int, log: RunLog) -> None:
        self._run_id = run_id
        self._attempt = attempt
        self._log = log
        self._written: dict[tuple[str | None, int], Event] = {}
        self._gone: set[int] = set()

    def plan(self, event: Event, said: Mapping[str | None, int]) -> Planned:
        """Says what becomes of the next event.

        Args:
            event: The event.
            said: `Batch.said`.

        Raises:
            Conflict: `event.conflict` if the attempt contradicts itself or the user's message.
        """
        identity = event.branch, event.ordinal or 0
        old = self._written.get(identity) or self._log.find(*identity)
        if old is not None and old.seq in self._gone:
            old = None
        if old is not None and old.same_as(event):
            self._written.setdefault(identity, old)
            return Planned(event, old, None, _NONE)
        self._written[identity] = event
        if old is None:
            return Planned(event, None, None, _NONE, self._answers_again(event))
        if old.attempt >= self._attempt or old.pos is None:
            raise Conflict(
                f"run {self._run_id!r} wrote two different events as ordinal {event.ordinal} of branch {event.branch!r}",
                code="event.conflict",
            )
        drops = self._drop(self._after(old, said))
        return Planned(event, None, old.pos, drops, self._answers_again(event))

    def leftover(self, live: Mapping[str | None, int], base_seq: int) -> frozenset[int]:
        """Drops what earlier attempts wrote since the last hand-over and this one, which ends, did not come by.

        Args:
            live: `Batch.live`.
            base_seq: `seq` of the newest event at the last hand-over.
        """
        if self._attempt == 1:
            return _NONE
        return self._drop(
            {
                e.seq or 0
                for e in self._log.events()
                if (e.seq or 0) > base_seq
                and e.ordinal is not None
                and e.ordinal >= live.get(e.branch, 0)
                and e.pos is not None
                and e.attempt < self._attempt
                and (e.branch, e.ordinal) not in self._written
            }
        )

    def newest(self) -> int:
        """`seq` of the run's newest stored event that goes on to count."""
        return next(e.seq or 0 for e in reversed(self._log.events()) if e.seq not in self._gone)

    def _after(self, old: Event, said: Mapping[str | None, int]) -> set[int]:
        """An event and what earlier attempts wrote after it, in the same branch and below, unless this one has said it again.

        Where an event stands in the log does not tell whether it comes after another one in this attempt: what an attempt
        says anew in a branch below stands behind what comes later and was said the same again.
        """
        return {
            e.seq or 0
            for e in self._log.events()
            if (e.seq or 0) >= (old.seq or 0)
            and e.ordinal is not None
            and e.attempt < self._attempt
            and below(e.branch, old.branch)
            and (e.branch == old.branch or not self._is_said(e, said))
        }

    def _is_said(self, event: Event, said: Mapping[str | None, int]) -> bool:
        ordinal = event.ordinal or 0
        return ordinal < said.get(event.branch, 0) or (event.branch, ordinal) in self._written

    def _drop(self, seqs: set[int]) -> frozenset[int]:
        dropped = frozenset((seqs | self._answers_to(seqs)) - self._gone)
        self._gone |= dropped
        return dropped

    def _answers_to(self, seqs: set[int]) -> set[int]:
        """What people answered to calls; an answer counts as long as its call does."""
        events = self._log.events() if seqs else ()
        calls = {c.id for e in events if e.seq in seqs for c in e.get_function_calls()}
        return {
            e.seq or 0 for e in events if calls and e.ordinal is None and any(r.id in calls for r in e.get_function_responses())
        }

    def _answers_again(self, event: Event) -> Sequence[Event]:
        """Answers to calls that stand in this event now, and in one that does not count any more."""
        if self._attempt == 1 or not (calls := {c.id for c in event.get_function_calls() if c.id}):
            return ()
        newest: dict[str, Event] = {}
        for answer in self._log.answers():
            newest.update((r.id, answer) for r in answer.get_function_responses() if r.id in calls)
        return [
            a.evolve(id=f"{a.id}:{self._attempt}", seq=None, superseded=False)
            for a in newest.values()
            if a.superseded or a.seq in self._gone
        ]


class AppendPlan(NamedTuple):
    """What an append does to log and state.

    Attributes:
        events: What becomes of each event.
        gone: `seq` of what stops to count.
        staged: The state afterwards; None if it stays as it is.
    """

    events: Sequence[Planned]
    gone: frozenset[int]
    staged: StagedState | None


def plan_append(
    planner: Planner,
    batch: Batch,
    deltas: Sequence[StateDelta | None],
    state: StateDelta | None,
    *,
    event_count: int,
    base_seq: int,
    stage: Callable[[], StagedState],
) -> AppendPlan:
    """Works out what a batch does; everything that can be wrong with it against what is stored shows here.

    Args:
        planner: Of the run and the attempt.
        batch: The batch.
        deltas: What each of its events changes, checked; None for nothing.
        state: What `batch.state` changes, checked.
        event_count: `seq` of the session's newest event.
        base_seq: `seq` of the newest event at the run's last hand-over.
        stage: Makes the staged state, once, if anything changes.

    Raises:
        Conflict: `event.conflict`.
        InvalidInput: `state.not_a_number`.
    """
    staged: StagedState | None = None
    events: list[Planned] = []
    gone = _NONE
    seq = event_count
    for event, delta in zip(batch.events, deltas, strict=True):
        planned = planner.plan(event, batch.said or _NOTHING_SAID)
        events.append(planned)
        if planned.drops:
            gone |= planned.drops
            staged = staged or stage()
            staged.put_back(planned.drops)
        if planned.stored is None:
            seq += 1
            if delta:
                staged = staged or stage()
                staged.apply(delta, seq)
            seq += len(planned.answers)
    if batch.live is not None and batch.move in _ENDING:
        left = planner.leftover(batch.live, base_seq)
        if left:
            gone |= left
            staged = staged or stage()
            staged.put_back(left)
    if state:
        staged = staged or stage()
        staged.apply(state, seq if seq > event_count else planner.newest())
    return AppendPlan(events, gone, staged)


def undoable(attempt: int, status: RunStatus) -> bool:
    """Whether anything of an append's changes may be put back: by it, which an attempt before makes possible, or after it."""
    return attempt > 1 or not status.terminal


def below(branch: str | None, above: str | None) -> bool:
    """Whether `branch` is `above` or inside of it."""
    return above is None or branch == above or (branch or "").startswith(above + ".")


def tokens_of(events: Iterable[Planned]) -> dict[str, int]:
    """The token counts that the events to be stored tell of; empty if none tells of any."""
    return counts_of(planned.event for planned in events if planned.stored is None)


def counts_of(events: Iterable[Event]) -> dict[str, int]:
    """The token counts that events tell of; empty if none tells of any."""
    counts: dict[str, int] = {}
    for event in events:
        if event.usage_metadata is not None:
            counts = add_counts(counts, event.usage_metadata.model_dump())
    return counts


def add_counts(total: Mapping[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    """The sums of token counts."""
    added = dict(total)
    for name, count in counts.items():
        added[name] = added.get(name, 0) + count
    return added


def countable(counts: Mapping[str, int]) -> dict[str, int]:
    """What a ledger adds of token counts: nothing gives tokens back, and what is zero is left out."""
    return {name: min(counts[name], MAX_COUNT) for name in COUNTS if counts.get(name, 0) > 0}

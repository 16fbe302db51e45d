"""What an append has to do with the events it brings, given what the run has stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from sojourn.errors import Conflict
from sojourn.event import Event, Usage
from sojourn.run.status import Move

CLOSING = frozenset({Move.WAIT, Move.COMPLETE, Move.FAIL, Move.CANCEL})
"""The moves after which nothing of an earlier attempt counts that this attempt did not come by."""


class Stored(NamedTuple):
    """An event that counts, without its body. `ordinal` is None for an event without identity (an answer)."""

    seq: int
    pos: int | None
    attempt: int
    branch: str | None
    ordinal: int | None


class RunLog(Protocol):
    """What a run has stored, as far as it counts."""

    def find(self, branch: str | None, ordinal: int) -> tuple[Stored, Event] | None:
        """The event of this identity."""
        ...

    def counted(self) -> Sequence[Stored]:
        """All events, in the order of `seq`."""
        ...


class Planned(NamedTuple):
    """What becomes of one new event.

    Attributes:
        stored: Whether an equal one is stored already, so that nothing is to be done.
        supersedes: `Event.supersedes` for the one to be stored.
    """

    event: Event
    stored: bool
    supersedes: int | None


class Plan(NamedTuple):
    """What becomes of the new events, in order, and which stored ones stop to count: `seq` → index of the cause."""

    events: list[Planned]
    superseded: dict[int, int]


def plan_events(events: Sequence[Event], attempt: int, log: RunLog, *, run_id: str) -> Plan:
    """Compares what an attempt writes with what is stored.

    Raises:
        Conflict: `event.conflict` if the attempt contradicts itself.
    """
    planned: list[Planned] = []
    superseded: dict[int, int] = {}
    own: dict[tuple[str | None, int], Event] = {}
    for index, event in enumerate(events):
        identity = (event.branch, event.ordinal or 0)
        supersedes = None
        twin = own.get(identity)
        if twin is None:
            found = log.find(*identity)
            if found is not None and found[0].seq not in superseded:
                old, twin = found
                if old.attempt < attempt and not twin.same_as(event):
                    twin, supersedes = None, old.pos
                    for row in log.counted():
                        if row.seq >= old.seq and below(row.branch, event.branch):
                            superseded.setdefault(row.seq, index)
        if twin is not None and not twin.same_as(event):
            raise Conflict(
                f"run {run_id!r} wrote two different events as ordinal {event.ordinal} of branch {event.branch!r}",
                code="event.conflict",
            )
        own[identity] = event
        planned.append(Planned(event, twin is not None, supersedes))
    return Plan(planned, superseded)


def leftover(
    events: Iterable[Event], live: Mapping[str | None, int], attempt: int, base_seq: int, counted: Iterable[Stored]
) -> list[int]:
    """The stored events of earlier attempts that the closing attempt did not come by, as `seq`s.

    Args:
        events: What the closing append brings.
        live: `Batch.live`.
        attempt: The closing attempt.
        base_seq: `seq` of the last event before the agent took over.
        counted: What is stored and counts.
    """
    own = {(e.branch, e.ordinal or 0) for e in events}
    return [
        row.seq
        for row in counted
        if row.seq > base_seq
        and row.ordinal
        and row.ordinal >= live.get(row.branch, 0)
        and row.attempt < attempt
        and (row.branch, row.ordinal) not in own
    ]


def below(branch: str | None, above: str | None) -> bool:
    """Whether `branch` is `above` or inside of it."""
    return above is None or branch == above or (branch or "").startswith(above + ".")


def add_usage(total: Mapping[str, int], usage: Usage) -> dict[str, int]:
    """Token counts of a run and one more event."""
    added = dict(total)
    for name, count in usage.model_dump().items():
        added[name] = added.get(name, 0) + count
    return added

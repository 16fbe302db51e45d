"""The numbers that events get when they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sojourn.event import Event
from sojourn.store.heads import Head
from sojourn.store.planning import AppendPlan
from sojourn.store.prepared import Entry, entry_of


class Numbered(NamedTuple):
    """An event to be stored, with its numbers; `ordinal` is None for one without identity, `pos` for one without frame."""

    entry: Entry
    seq: int
    attempt: int
    pos: int | None = None
    ordinal: int | None = None
    supersedes: int | None = None


def number(head: Head, entries: Sequence[Entry], change: AppendPlan) -> tuple[list[Numbered], list[Event | None]]:
    """Numbers what a batch stores.

    Returns:
        The events to be stored, in order; and what `Appended.events` tells of those of the batch.
    """
    seq, pos = head.event_count, head.last_pos
    writes: list[Numbered] = []
    told: list[Event | None] = []
    numbered: dict[int, Event] = {}
    for entry, (event, stored, supersedes, _, answers) in zip(entries, change.events, strict=True):
        if stored is not None:
            # Of what is stored, the attempt's own comes with its numbers: its caller has not seen them.
            told.append(numbered.get(id(stored)) or (stored if stored.attempt == head.attempt else None))
            continue
        seq += 1
        pos += 1
        ordinal = event.ordinal or 0
        writes.append(Numbered(entry, seq, event.attempt, pos, ordinal, supersedes))
        numbered[id(event)] = event.evolve(seq=seq, pos=pos, ordinal=ordinal, supersedes=supersedes)
        told.append(numbered[id(event)])
        for answer in answers:
            seq += 1
            writes.append(Numbered(entry_of(answer), seq, answer.attempt))
    return writes, told

"""What a process knows of the runs it executes, to be compared with what others made of them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from sojourn.run.status import RunStatus
from sojourn.run.types import RunRecord

Kind = Literal["cancel", "queued", "closed"]
"""Of a `Change`."""


class Active(NamedTuple):
    """The runs that are queued or running, as they are stored.

    Attributes:
        queued: Those that are queued.
        running: Those that are running, with their attempts.
        cancelled: Those of them that are to be cancelled.
    """

    queued: set[int]
    running: dict[int, int]
    cancelled: set[int]

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]]) -> Active:
        """From rows of key, status, attempt, and whether a cancel is requested."""
        active = cls(set(), {}, set())
        for uid, status, attempt, cancel in rows:
            if status == "queued":
                active.queued.add(uid)
                continue
            active.running[uid] = attempt
            if cancel:
                active.cancelled.add(uid)
        return active


class Watching:
    """What the executor has been told of queued and running runs, or has done to them itself.

    Attributes:
        started: Whether there is something to compare with.
    """

    def __init__(self) -> None:
        self.started = False
        self._queued: set[int] = set()
        # By the attempts that are this process's.
        self._running: dict[int, int] = {}
        self._cancelled: set[int] = set()

    def start_with(self, stored: Active) -> None:
        """Takes what is queued as known: the executor asks for the runs that are unfinished when it starts. Twice is fine."""
        if not self.started:
            self._queued |= stored.queued
            self.started = True

    def news(self, stored: Active, ours: Container[int] = ()) -> list[tuple[Kind, list[int]]]:
        """What others did, as far as it is not known yet.

        Args:
            stored: What is stored.
            ours: Runs to leave out: what is stored of them may be older or newer than what is known.
        """
        found: list[tuple[Kind, Iterable[int]]] = [
            ("queued", stored.queued - self._queued),
            ("cancel", stored.cancelled - self._cancelled),
            ("closed", (uid for uid, attempt in self._running.items() if stored.running.get(uid) != attempt)),
        ]
        return [(kind, sorted(uid for uid in uids if uid not in ours)) for kind, uids in found]

    def told(self, stored: Active, ours: Container[int] = ()) -> None:
        """Notes that the executor is told of what is stored; of the runs left out, it knows what it knew."""
        self._queued = {u for u in stored.queued if u not in ours} | {u for u in self._queued if u in ours}
        self._cancelled = {u for u in stored.cancelled if u not in ours} | {u for u in self._cancelled if u in ours}
        self._running = {u: n for u, n in self._running.items() if u in ours or stored.running.get(u) == n}

    def saw(self, record: RunRecord) -> None:
        """Notes a run as a call of this process left it."""
        if not self.started:
            return
        uid = record.uid
        if record.status is RunStatus.RUNNING:
            self._queued.discard(uid)
            self._running[uid] = record.attempt
            return
        self.forget((uid,))
        if record.status is RunStatus.QUEUED:
            self._queued.add(uid)

    def asked(self, record: RunRecord) -> None:
        """Notes a run that this process asked to cancel."""
        if record.status is not RunStatus.RUNNING:
            self.saw(record)
        elif self.started:
            self._cancelled.add(record.uid)

    def listed(self, found: Iterable[RunRecord]) -> None:
        """Notes runs that the executor was given as unfinished."""
        if self.started:
            self._queued.update(r.uid for r in found if r.status is RunStatus.QUEUED)

    def forget(self, uids: Iterable[int]) -> None:
        """Notes runs that this process deleted."""
        for uid in uids:
            self._queued.discard(uid)
            self._running.pop(uid, None)
            self._cancelled.discard(uid)

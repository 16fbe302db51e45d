"""Which runs retention removes in one go: the same in every store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol


class Candidate(NamedTuple):
    """A run that has ended and is whole, and that a bound says may go.

    Attributes:
        uid: The store's own key of the run.
        events: How many events it has.
    """

    uid: int
    events: int


class Trimmable(Protocol):
    """A session, for who chooses what of it is removed."""

    def candidates(self) -> Iterable[Candidate]:
        """The runs that may go, oldest first; found as they are asked for."""
        ...

    def candidate(self, run_uid: int) -> Candidate | None:
        """A run if it may go."""
        ...

    def partners(self, run_uid: int) -> Iterable[int]:
        """The runs that hold the other halves of the calls and responses of a run; itself may be among them."""
        ...


def choose(session: Trimmable, limit: int) -> tuple[list[Candidate], bool]:
    """Chooses what to remove: runs with about so many events, at least one, each with those that hold other halves.

    Returns:
        The runs, and whether others may go besides.
    """
    chosen: dict[int, Candidate] = {}
    stay: set[int] = set()
    events = 0
    for candidate in session.candidates():
        if candidate.uid in chosen or candidate.uid in stay:
            continue
        group = _group(session, candidate)
        if group is None:
            stay.add(candidate.uid)
            continue
        if events >= limit:
            return list(chosen.values()), True
        chosen.update((one.uid, one) for one in group)
        # A run without events costs something, too.
        events += sum(max(one.events, 1) for one in group)
    return list(chosen.values()), False


def _group(session: Trimmable, first: Candidate) -> list[Candidate] | None:
    """A run with all that must go along with it; None if one of them has to stay."""
    group = {first.uid: first}
    todo = [first.uid]
    while todo:
        for uid in session.partners(todo.pop()):
            if uid in group:
                continue
            partner = session.candidate(uid)
            if partner is None:
                return None
            group[uid] = partner
            todo.append(uid)
    return list(group.values())

"""Entries as points."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from sojourn.memory.lexical import weights_of
from sojourn.memory.qdrant.engine import TIME, Payload, Point, Vector, Where
from sojourn.memory.rules import marks_of
from sojourn.memory.types import Memory, MemoryFilter

_MAX_TIME = 2.0**53


@dataclass(slots=True, frozen=True)
class Owner:
    """Whose entries they are.

    Attributes:
        app_name: The app.
        user_id: The user.
    """

    app_name: str
    user_id: str

    @property
    def key(self) -> str:
        """What all points of the owner have, and no others."""
        return _digest(self.app_name, self.user_id)

    def point_id(self, entry_id: str) -> str:
        """The id of the point of an entry."""
        digest = _digest(self.app_name, self.user_id, entry_id)
        return "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:]))


def _digest(*ids: str) -> str:
    # No id holds a NUL: what it divides is unambiguous.
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:32]


def term_of(word: str) -> int:
    """The number of a word in sparse vectors."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")


def microseconds(timestamp: float) -> int:
    """A time in whole microseconds. What is before or after all that the engine compares exactly counts as its bounds."""
    return math.floor(min(max(timestamp * 1e6, -_MAX_TIME), _MAX_TIME))


def point_of(owner: Owner, entry: Memory, *, origin: str, model: str | None, meaning: Vector | None) -> Point:
    """The point of an entry.

    Args:
        owner: Whose it is.
        entry: What it is.
        origin: `BY_HAND` or `BY_EVENT`.
        model: The name of the embedder, if the entry has a vector.
        meaning: The vector.
    """
    payload: Payload = {
        "owner": owner.key,
        "app_name": owner.app_name,
        "user_id": owner.user_id,
        "id": entry.id,
        TIME: microseconds(entry.timestamp),
        "timestamp": repr(entry.timestamp),
        "origin": origin,
        # As text: numbers of any size and NUL come back as they were.
        "entry": entry.to_json(),
        "marks": sorted(marks_of(entry.metadata)),
    }
    for field, value in (("session_id", entry.session_id), ("author", entry.author), ("model", model)):
        if value is not None:
            payload[field] = value
    words: dict[int, float] = {}
    for word, weight in weights_of(entry.text).items():
        # Two words of a text with one number, which is next to impossible, count as one.
        words[term_of(word)] = max(weight, words.get(term_of(word), 0.0))
    return Point(owner.point_id(entry.id), payload, words, meaning)


def entry_of(payload: Payload) -> Memory:
    """The entry of a point."""
    return Memory.model_validate_json(payload["entry"])


def meeting(owner: Owner, filter: MemoryFilter | None) -> Where:
    """The points of the entries that meet a filter, and maybe some that miss its times by less than a microsecond."""
    if filter is None:
        return Where(owner.key)
    wanted = (("author", filter.author), ("session_id", filter.session_id))
    equal = [(field, value) for field, value in wanted if value is not None]
    marks = [("marks", mark) for mark in sorted(marks_of(filter.metadata))]
    since = None if filter.since is None else microseconds(filter.since)
    # The last time before it; of others in its microsecond the entry tells.
    until = None if filter.until is None else microseconds(math.nextafter(filter.until, -math.inf))
    return Where(owner.key, equal=(*equal, *marks), since=since, until=until)

"""The entries of an artifact: what was saved, and where it was deleted, in one order for everybody.

An entry is an object whose key ends in its position: 0, 1, 2 … It is created on the condition that there is none, so that
of all who want a position one gets it, and the others see what is there and take the next. An entry is either a *version* or
a *mark*, which says that everything before it is deleted. The version at the first position after the newest mark is 0. So a
deletion hides all versions in one step, and whoever saves at the same time gets the next number, or 0 after the mark.

What a mark hides is removed afterwards. Whoever saw the log before must not get a position that was taken since: so the mark
stays, and versions that are hidden while they are young become marks, too, until nobody can be left who saw the log then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import Enum, auto
from typing import NamedTuple

from sojourn import platform
from sojourn.artifact.s3.bucket import Bucket, Entry
from sojourn.artifact.s3.keys import Place, position_of
from sojourn.errors import Unavailable

MAX_MARK_BYTES = 64
"""Larger entries are versions: the size, which listings tell, tells them apart."""

_TRIES = 3
_PAUSE_SECONDS = 0.1


class Log(NamedTuple):
    """The entries of an artifact at some moment.

    Attributes:
        first: The position of version 0; that of the next entry if there are no versions.
        end: The position of the next entry.
        hidden: The entries that the newest mark hides: versions, and older marks.
        marked_at: When the newest mark was made, if it is the last entry; else None.
    """

    first: int
    end: int
    hidden: tuple[Entry, ...]
    marked_at: float | None

    @property
    def versions(self) -> int:
        """How many versions there are."""
        return self.end - self.first

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Log:
        """Makes sense of a listing."""
        found = {position: entry for entry in entries if (position := position_of(entry.key)) is not None}
        end = max(found, default=-1) + 1
        mark = max((position for position, entry in found.items() if is_mark(entry.size)), default=-1)
        # Without a mark, the artifact was deleted so long ago that the mark was removed, or never.
        first = min((position for position in found if position > mark), default=end)
        hidden = tuple(entry for position, entry in sorted(found.items()) if position < mark)
        return cls(first, end, hidden, found[mark].modified if mark == end - 1 >= 0 else None)


class Claim(Enum):
    """What came of the attempt to make an entry."""

    MADE = auto()
    VERSION = auto()
    """A version of somebody else's is there."""
    MARK = auto()
    """A mark of somebody else's is there."""
    GONE = auto()
    """Something was there, and was deleted meanwhile."""


async def read_log(bucket: Bucket, place: Place) -> Log:
    """The entries of an artifact."""
    return Log.of(await bucket.entries(place.versions))


def is_mark(size: int) -> bool:
    """Whether an entry of this size is a mark."""
    return size <= MAX_MARK_BYTES


def new_mark() -> bytes:
    """The body of a mark; no two are the same."""
    return platform.new_id().encode()


async def read_versions(bucket: Bucket, keys: Iterable[str]) -> list[bytes | None]:
    """Reads entries that are versions; None for each that was deleted meanwhile."""
    bodies = await bucket.get_all(keys)
    return [None if body is None or is_mark(len(body)) else body for body in bodies]


async def claim(bucket: Bucket, key: str, body: bytes) -> Claim:
    """Makes an entry unless there is one.

    An answer that was lost is not taken for an outcome: the entry that is there tells whose it is, since no two have the same
    body.

    Raises:
        Unavailable: It is not known whether the entry was made.
    """
    for left in reversed(range(_TRIES)):
        try:
            if await bucket.create(key, body):
                return Claim.MADE
            found = await bucket.get(key)
            return Claim.GONE if found is None else _whose(found, body)
        except Unavailable as error:
            if not error.retryable or not left:
                raise
        found = await bucket.get(key)
        if found is not None:
            return _whose(found, body)
        await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError("the last try returns or raises")


def _whose(found: bytes, body: bytes) -> Claim:
    if found == body:
        return Claim.MADE
    return Claim.MARK if is_mark(len(found)) else Claim.VERSION

"""Entries as the rows of a database keep them."""

from __future__ import annotations

from typing import NamedTuple

from sojourn.memory.types import Memory

Owner = tuple[str, str]
"""App and user."""


class Prepared(NamedTuple):
    """An entry as its row.

    Attributes:
        entry: The entry.
        body: The entry as JSON: numbers of any size, and NUL, come back as they were.
        from_event: Whether an event became it; such entries are replaced with the event.
    """

    entry: Memory
    body: str
    from_event: bool


def prepared(entry: Memory, *, from_event: bool) -> Prepared:
    """An entry, ready to be written."""
    return Prepared(entry, entry.to_json(), from_event)


def memory_of(body: str) -> Memory:
    """The entry that a row is of."""
    return Memory.model_validate_json(body)

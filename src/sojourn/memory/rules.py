"""What every memory service checks, and how events become entries."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

from sojourn import platform
from sojourn.content import Content, Part
from sojourn.errors import InvalidInput
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.jsonvalue import JsonValue
from sojourn.memory.types import Memory, MemoryFilter

MAX_LIMIT = 1000


def entries_of(session_id: str, events: Sequence[Event]) -> list[Memory]:
    """The entries that all of a session's events become."""
    found = (_entry_of(session_id, event.id or f"#{position}", event) for position, event in enumerate(events))
    return [entry for entry in found if entry is not None]


def changes_of(session_id: str, events: Sequence[Event]) -> dict[str, Memory | None]:
    """What some of a session's events do to its entries: by the entry's id, the entry, or None if there is to be none.

    Raises:
        InvalidInput: `id.invalid` for an event without an id.
    """
    return {_entry_id(session_id, check_id(event.id, "event id")): _entry_of(session_id, event.id, event) for event in events}


def _entry_of(session_id: str, event_id: str, event: Event) -> Memory | None:
    """The entry that an event becomes, if it becomes one."""
    said = event.said
    if event.partial or event.superseded or said is None:
        return None
    parts = tuple(Part(text=part.text) for part in said.parts if part.text and not part.thought)
    content = Content(said.role, parts)
    if not content.text.strip():
        return None
    return Memory(
        id=_entry_id(session_id, event_id),
        content=content,
        author=event.author or None,
        timestamp=event.timestamp or platform.now(),
        session_id=session_id,
    )


def _entry_id(session_id: str, event_id: str) -> str:
    # A hash, since the two together may be longer than an id. No id holds a NUL: the pair is unambiguous.
    return hashlib.sha256(f"{session_id}\0{event_id}".encode()).hexdigest()[:32]


def checked(entry: Memory) -> Memory:
    """The entry as it is to be stored: valid, complete and sharing nothing with the caller.

    Raises:
        InvalidInput: `memory.empty`, `id.invalid`.
    """
    if not entry.text.strip():
        raise InvalidInput("a memory without text could not be found again; give it some", code="memory.empty")
    if entry.session_id is not None:
        check_id(entry.session_id, "session_id")
    return copied(
        entry,
        id=check_id(entry.id, "memory id") if entry.id else platform.new_id(),
        timestamp=entry.timestamp or platform.now(),
        score=None,
    )


def copied(entry: Memory, **changes: object) -> Memory:
    """A copy that shares nothing mutable with the entry, with other values of some fields."""
    return entry.model_copy(update=changes, deep=True)


def check_owner(app_name: str, user_id: str) -> tuple[str, str]:
    """What the entries of a user are kept under.

    Raises:
        InvalidInput: `id.invalid`.
    """
    return check_id(app_name, "app_name"), check_id(user_id, "user_id")


def check_query(query: object, limit: object, min_score: object, filter: object) -> None:
    """Checks the arguments of `search`.

    Raises:
        InvalidInput: `id.invalid`, `memory.invalid_query`.
    """
    if isinstance(filter, MemoryFilter):
        if filter.session_id is not None:
            check_id(filter.session_id, "session_id")
    elif filter is not None:
        raise InvalidInput(f"the filter is a {type(filter).__name__}; give a MemoryFilter", code="memory.invalid_query")
    if not isinstance(query, str):
        raise InvalidInput(f"the query is a {type(query).__name__}; give text", code="memory.invalid_query")
    if not query.isascii():
        try:
            query.encode()
        except UnicodeEncodeError:
            raise InvalidInput("the query holds a lone surrogate, which is not text", code="memory.invalid_query") from None
    if not _is_limit(limit):
        raise InvalidInput(f"limit is {limit!r}; give 1 to {MAX_LIMIT}", code="memory.invalid_query")
    if min_score is not None and not (isinstance(min_score, int | float) and math.isfinite(min_score)):
        raise InvalidInput(f"min_score is {min_score!r}; give a number from 0 to 1", code="memory.invalid_query")


def _is_limit(limit: object) -> bool:
    return isinstance(limit, int) and not isinstance(limit, bool) and 1 <= limit <= MAX_LIMIT


def marks_of(metadata: Mapping[str, JsonValue]) -> frozenset[str]:
    """A mark for each key with its value, 32 hexadecimal digits: equal pairs have equal marks, by the rules of `MemoryFilter`.

    An entry meets a filter's metadata if it has all marks of it, so that a store can compare any values by their marks.
    """
    return frozenset(_mark(key, value) for key, value in metadata.items())


def _mark(key: str, value: JsonValue) -> str:
    canonical = json.dumps([key, _canonical(value)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def _canonical(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value


def meets(entry: Memory, filter: MemoryFilter, marks: frozenset[str]) -> bool:
    """Whether an entry meets a filter, whose metadata has these marks."""
    return (
        (filter.author is None or entry.author == filter.author)
        and (filter.session_id is None or entry.session_id == filter.session_id)
        and (filter.since is None or entry.timestamp >= filter.since)
        and (filter.until is None or entry.timestamp < filter.until)
        and (not marks or marks <= marks_of(entry.metadata))
    )

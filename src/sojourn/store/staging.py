"""State as an append will leave it, and what it takes to put it back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from sojourn.errors import InvalidInput
from sojourn.session.state import APP, USER, StateDelta, check_number
from sojourn.session.types import SessionKey

Owner = tuple[str, ...]
"""Whom a state key belongs to: `(app,)`, `(app, user)`, or `()` for the session."""

MISSING: Any = object()
"""In place of the value of a key that does not exist."""


class Undo(NamedTuple):
    """What one change of one key replaced.

    Attributes:
        seq: The event that changed it.
        old: The value before; `MISSING` if there was none.
        new: The value after; `MISSING` if the key was deleted.
        by: What was added, if it was an increment.
    """

    seq: int
    owner: Owner
    key: str
    old: Any
    new: Any
    by: int | float | None


def owner_of(key: SessionKey, name: str) -> Owner:
    """Whom the state key `name` belongs to when it is written in session `key`."""
    if name.startswith(APP):
        return (key.app_name,)
    if name.startswith(USER):
        return (key.app_name, key.user_id)
    return ()


class StagedState:
    """State as it will be when the append commits: reads through to what is stored, keeps writes to itself.

    Args:
        key: The session that is written.
        stored: Reads a stored value; gives `MISSING` for a key that does not exist.
        undoable: Whether to record in `undo` what each change replaces.

    Attributes:
        values: What to store; `MISSING` for a key to delete.
        undo: What the changes replace, in order.
    """

    __slots__ = ("_key", "_stored", "_undoable", "undo", "values")

    def __init__(self, key: SessionKey, stored: Callable[[Owner, str], Any], *, undoable: bool = True) -> None:
        self._key = key
        self._stored = stored
        self._undoable = undoable
        self.values: dict[tuple[Owner, str], Any] = {}
        self.undo: list[Undo] = []

    def read(self, owner: Owner, key: str) -> Any:
        """The value as it will be."""
        staged = self.values.get((owner, key), self)
        return self._stored(owner, key) if staged is self else staged

    def apply(self, delta: StateDelta, seq: int) -> None:
        """Makes the changes that event `seq` carries.

        Raises:
            InvalidInput: `state.not_a_number` for an increment of something else, or beyond what a number can be.
        """
        for key, value in delta.values.items():
            self._write(owner_of(self._key, key), key, value, seq, None)
        for key in delta.deleted:
            self._write(owner_of(self._key, key), key, MISSING, seq, None)
        for key, by in delta.increments.items():
            owner = owner_of(self._key, key)
            old = self.read(owner, key)
            self._write(owner, key, _sum(0 if old is MISSING else old, by), seq, by)

    def _write(self, owner: Owner, key: str, value: Any, seq: int, by: int | float | None) -> None:
        if self._undoable:
            self.undo.append(Undo(seq, owner, key, self.read(owner, key), value, by))
        self.values[owner, key] = value

    def revert(self, undo: Sequence[Undo]) -> None:
        """Puts back what the changes replaced, where nobody else has written since."""
        for entry in reversed(undo):
            current = self.read(entry.owner, entry.key)
            if entry.by is not None:
                if isinstance(current, int | float):
                    self.values[entry.owner, entry.key] = current - entry.by
            elif current is entry.new or current == entry.new:
                self.values[entry.owner, entry.key] = entry.old


def rewind(state: dict[str, Any], undo: Iterable[Undo]) -> None:
    """Takes changes out of a merged view of state, the newest first.

    Args:
        state: The view, which is changed.
        undo: What the changes replaced, in the order they were made.
    """
    for entry in reversed(list(undo)):
        if entry.by is not None:
            if isinstance(state.get(entry.key), int | float):
                state[entry.key] -= entry.by
        elif entry.old is MISSING:
            state.pop(entry.key, None)
        else:
            state[entry.key] = entry.old


def _sum(value: Any, by: int | float) -> int | float:
    try:
        return check_number(check_number(value) + check_number(by))
    except OverflowError:
        raise InvalidInput(f"adding {by!r} leaves the range of numbers", code="state.not_a_number") from None

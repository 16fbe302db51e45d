"""State as a write will leave it, worked out before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from sojourn.session.state import StateDelta, add
from sojourn.session.types import SessionKey
from sojourn.store.rules import MISSING, Owner, Undo, owner_of, put_back


class StagedState:
    """Reads through to what is stored, keeps writes to itself.

    Args:
        key: The session that is written.
        stored: Reads a stored value; gives `MISSING` for a key that is absent.
        undo: Reads what the run's changes so far replaced; None if nothing can be put back.

    Attributes:
        values: What to store; `MISSING` for a key to delete.
        undo: What the changes replace, in order; what was recorded before is in it once something was put back.
        rewritten: Whether something was put back, so that `undo` takes the place of all that was recorded before.
    """

    __slots__ = ("_key", "_read_undo", "_stored", "rewritten", "undo", "values")

    def __init__(self, key: SessionKey, stored: Callable[[Owner, str], Any], undo: Callable[[], list[Undo]] | None) -> None:
        self._key = key
        self._stored = stored
        self._read_undo = undo
        self.values: dict[tuple[Owner, str], Any] = {}
        self.undo: list[Undo] = []
        self.rewritten = False

    def apply(self, delta: StateDelta, seq: int) -> None:
        """Makes the changes that go with event `seq`.

        Raises:
            InvalidInput: `state.not_a_number` for an increment of something else, or out of range.
        """
        for key, value in delta.values.items():
            self._change(seq, owner_of(self._key, key), key, value, None)
        for key in delta.deleted:
            self._change(seq, owner_of(self._key, key), key, MISSING, None)
        for key, by in delta.increments.items():
            owner = owner_of(self._key, key)
            old = self._read(owner, key)
            self._change(seq, owner, key, add(0 if old is MISSING else old, by), by)

    def put_back(self, gone: Container[int]) -> None:
        """Takes back what superseded events changed."""
        if self._read_undo is None:
            return
        if not self.rewritten:
            self.undo[:0] = self._read_undo()
            self.rewritten = True
        self.undo = put_back(self.undo, gone, self._read, self._write)

    def _change(self, seq: int, owner: Owner, key: str, value: Any, by: int | float | None) -> None:
        if self._read_undo is not None:
            self.undo.append(Undo(seq, owner, key, self._read(owner, key), value, by))
        self._write(owner, key, value)

    def _read(self, owner: Owner, key: str) -> Any:
        staged = self.values.get((owner, key), self)
        return self._stored(owner, key) if staged is self else staged

    def _write(self, owner: Owner, key: str, value: Any) -> None:
        self.values[owner, key] = value

"""State: a session's keys and values, in four scopes told apart by prefix."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from sojourn import jsonvalue
from sojourn.errors import InvalidInput
from sojourn.event import EventActions
from sojourn.ids import check_id

APP = "app:"
USER = "user:"
TEMP = "temp:"


def check_key(key: object) -> str:
    """Returns `key` if it may name a state value: 1 to 256 bytes of text without control characters.

    Raises:
        InvalidInput: `state.invalid_key`.
    """
    try:
        text = check_id(key, "state key")
    except InvalidInput as error:
        raise InvalidInput(error.message, code="state.invalid_key") from None
    if text in (APP, USER, TEMP):
        raise InvalidInput(f"state key {text!r} is only a scope; add a name", code="state.invalid_key")
    return text


@dataclass(slots=True)
class StateDelta:
    """Changes of state: at most one kind of change per key."""

    values: dict[str, Any] = field(default_factory=dict)
    deleted: dict[str, None] = field(default_factory=dict)
    increments: dict[str, int | float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values or self.deleted or self.increments)

    @classmethod
    def of(cls, actions: EventActions) -> StateDelta:
        """The changes that an event makes and that are stored: those without `temp:` keys.

        Raises:
            InvalidInput: As `of_all`.
        """
        return cls.of_all(actions).durable()

    @classmethod
    def of_all(cls, actions: EventActions) -> StateDelta:
        """All changes that an event makes.

        Raises:
            InvalidInput: `state.invalid_key`, `json.invalid`, or `state.conflicting_delta` if a key is in two fields.
        """
        delta = cls()
        for key, value in actions.state_delta.items():
            delta.put(key, value)
        for key in actions.state_deleted:
            if key in delta.values:
                raise _conflicting(key)
            delta.deleted[check_key(key)] = None
        for key, by in actions.state_increments.items():
            if key in delta.values or key in delta.deleted:
                raise _conflicting(key)
            delta.increments[check_key(key)] = check_number(by)
        return delta

    @classmethod
    def of_values(cls, values: dict[str, Any] | None) -> StateDelta:
        """Sets all of `values`."""
        delta = cls()
        for key, value in (values or {}).items():
            delta.put(key, value)
        return delta

    def put(self, key: str, value: Any) -> None:
        """Sets a key."""
        check_key(key)
        self.values[key] = jsonvalue.copy(value, where=f"state[{key!r}]")
        self.deleted.pop(key, None)
        self.increments.pop(key, None)

    def delete(self, key: str) -> None:
        """Deletes a key."""
        self.values.pop(key, None)
        self.increments.pop(key, None)
        self.deleted[check_key(key)] = None

    def increment(self, key: str, by: int | float) -> None:
        """Adds to a key's number."""
        check_key(key)
        check_number(by)
        if key in self.values:
            self.values[key] = add(self.values[key], by)
        elif key in self.deleted:
            del self.deleted[key]
            self.values[key] = by
        else:
            self.increments[key] = add(self.increments.get(key, 0), by)

    def join(self, later: StateDelta) -> None:
        """Makes the changes of another delta on top of these."""
        for key, value in later.values.items():
            self.put(key, value)
        for key in later.deleted:
            self.delete(key)
        for key, by in later.increments.items():
            self.increment(key, by)

    def durable(self) -> StateDelta:
        """These changes without those of `temp:` keys, which live only as long as the attempt."""
        if not any(k.startswith(TEMP) for group in (self.values, self.deleted, self.increments) for k in group):
            return self
        return StateDelta(
            {k: v for k, v in self.values.items() if not k.startswith(TEMP)},
            {k: v for k, v in self.deleted.items() if not k.startswith(TEMP)},
            {k: v for k, v in self.increments.items() if not k.startswith(TEMP)},
        )

    def transient(self) -> dict[str, Any]:
        """The values of `temp:` keys that are set, which `durable` leaves out."""
        return {k: v for k, v in self.values.items() if k.startswith(TEMP)}

    def as_actions(self) -> dict[str, Any]:
        """The fields of `EventActions` that carry these changes; empty fields are left out."""
        fields: dict[str, Any] = {}
        if self.values:
            fields["state_delta"] = self.values
        if self.deleted:
            fields["state_deleted"] = tuple(self.deleted)
        if self.increments:
            fields["state_increments"] = self.increments
        return fields


def _conflicting(key: str) -> InvalidInput:
    return InvalidInput(
        f"state key {key!r} is changed in two ways by one event; set, delete or increment it",
        code="state.conflicting_delta",
    )


def check_number(value: Any) -> int | float:
    """Returns `value` if it is a number that can be stored: finite, and no integer of thousands of digits.

    Raises:
        InvalidInput: `state.not_a_number`.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidInput(f"state can only be incremented by and from numbers, not {value!r}", code="state.not_a_number")
    try:
        number: int | float = jsonvalue.copy(value, where="a number in state")
    except InvalidInput as error:
        raise InvalidInput(error.message, code="state.not_a_number") from None
    return number


def add(value: Any, by: Any) -> int | float:
    """Returns the sum of two numbers that is stored after an increment.

    Raises:
        InvalidInput: `state.not_a_number` if one of the two, or the sum, is not a number that can be stored.
    """
    try:
        return check_number(check_number(value) + check_number(by))
    except OverflowError:
        raise InvalidInput(f"{value!r} and {by!r} have no sum that can be stored", code="state.not_a_number") from None


class State(MutableMapping[str, Any]):
    """State as an agent sees it: the snapshot at the start of the run, and its own writes on top.

    Reading gives copies: to change a list, change the copy and assign it. Writes are checked at once and stored with the
    next event. Keys without prefix belong to the session, `user:` keys to all of the user's sessions, `app:` keys to
    everybody; `temp:` keys live until the attempt ends and are never stored.

    Args:
        snapshot: All keys as they are stored.
    """

    def __init__(self, snapshot: dict[str, Any] | None = None) -> None:
        self._seen: dict[str, Any] = snapshot if snapshot is not None else {}
        self._pending: StateDelta | None = None
        # Of a state aside: the one beside it.
        self._beside: State | None = None
        # Of an overlay: what it lies over. Of a state with overlays: what was stored by them, in that order.
        self._base: State | None = None
        self._joined = False
        self._overlays = 0
        self._stored: list[tuple[State, StateDelta]] = []

    def __getitem__(self, key: str) -> Any:
        value = self._seen[key]
        return jsonvalue.copy(value) if isinstance(value, dict | list) else value

    def __setitem__(self, key: str, value: Any) -> None:
        pending = self._changes()
        pending.put(key, value)
        self._seen[key] = pending.values[key]

    def __delitem__(self, key: str) -> None:
        if key not in self._seen:
            raise KeyError(key)
        self._changes().delete(key)
        del self._seen[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._seen))

    def __len__(self) -> int:
        return len(self._seen)

    def __repr__(self) -> str:
        return f"State({self._seen!r})"

    def increment(self, key: str, by: int | float = 1) -> int | float:
        """Adds to a number, atomically across sessions; a missing key counts as 0.

        Returns:
            The value as this run sees it. What is stored may be larger if others increment the same key.

        Raises:
            InvalidInput: `state.not_a_number` if the key holds something else or `by` is not a finite number.
        """
        value = add(self._seen.get(key, 0), by)
        self._changes().increment(key, by)
        self._seen[key] = value
        return value

    def to_dict(self) -> dict[str, Any]:
        """A copy of all keys and values."""
        return {k: self[k] for k in self._seen}

    def take(self) -> StateDelta | None:
        """Returns the writes since the last call and forgets that they are pending; for the runner."""
        pending, self._pending = self._pending, None
        return pending

    @property
    def pending(self) -> StateDelta | None:
        """The writes since the last `take`, still pending; for the runner."""
        return self._pending

    def apply(self, delta: StateDelta) -> None:
        """Takes over changes that somebody else (an event's own actions) makes; for the runner."""
        for key, value in delta.values.items():
            self._seen[key] = value
        for key in delta.deleted:
            self._seen.pop(key, None)
        for key, by in delta.increments.items():
            self._seen[key] = add(self._seen.get(key, 0), by)

    def write(self, delta: StateDelta) -> None:
        """Makes all changes of a delta as writes of this state's own; for the runner."""
        for key, value in delta.values.items():
            self[key] = value
        for key in delta.deleted:
            if key in self._seen:
                del self[key]
        for key, by in delta.increments.items():
            self.increment(key, by)

    def stored(self, delta: StateDelta) -> None:
        """Notes that changes are on their way to the store with an event; for the runner."""
        if self._base is not None:
            self._base._stored.append((self, delta))
            self._base.stored(delta)
        elif self._beside is not None:
            self._beside.show(delta)

    def show(self, delta: StateDelta) -> None:
        """Takes over changes that are on their way to the store, or there, with what others in the run say; for the runner."""
        self._show(delta, self._pending or StateDelta(), increments=True)
        self.stored(delta)

    def aside(self) -> State:
        """A state that starts from what this one shows and keeps its writes to itself, but for those that are stored."""
        state = State(self.to_dict())
        state._beside = self
        return state

    def overlay(self) -> State:
        """A state that starts from what this one shows and keeps its writes to itself; for parallel branches."""
        overlay = State(dict(self._seen))
        overlay._base = self
        self._overlays += 1
        return overlay

    def join(self, overlay: State) -> None:
        """Takes over what an overlay of this state has written; for the runner.

        Of several values for one key, the one that was stored last is seen, whichever branch ends last; one that is still
        to be stored comes after all of them.
        """
        overlay._joined = True
        self._overlays -= 1
        pending = self._pending or StateDelta()
        for source, delta in self._stored:
            if source._joined:
                self._show(delta, pending, increments=source is overlay)
        left = overlay.take()
        if left:
            self.write(left)
        if not self._overlays:
            self._stored.clear()

    def _show(self, delta: StateDelta, pending: StateDelta, *, increments: bool) -> None:
        for key, value in delta.values.items():
            if key not in pending.values and key not in pending.deleted:
                self._seen[key] = value
        for key in delta.deleted:
            if key not in pending.values and key not in pending.deleted:
                self._seen.pop(key, None)
        if increments:
            left = {k: by for k, by in delta.increments.items() if k not in pending.values and k not in pending.deleted}
            self.apply(StateDelta(increments=left))

    def _changes(self) -> StateDelta:
        if self._pending is None:
            self._pending = StateDelta()
        return self._pending

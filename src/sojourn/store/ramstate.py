"""State in RAM: what sessions hold of their own, and what users and apps share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sojourn.store.ramrecords import StoredSession
from sojourn.store.rules import MISSING, Owner, Undo
from sojourn.store.staging import StagedState


class RamState:
    """Reads and changes the state that a session shows."""

    def __init__(self) -> None:
        self._shared: dict[Owner, dict[str, Any]] = {}

    def read(self, session: StoredSession) -> dict[str, Any]:
        """All keys that a session shows; the values are those that are stored."""
        if not self._shared:
            return dict(session.state)
        app, user, _ = session.key
        return {**session.state, **self._shared.get((app,), {}), **self._shared.get((app, user), {})}

    def stage(self, session: StoredSession, undo: Callable[[], list[Undo]] | None = None) -> StagedState:
        """State to be changed; `undo` as in `StagedState`."""
        return StagedState(session.key, partial(self._value, session), undo)

    def store(self, session: StoredSession, staged: StagedState) -> None:
        """Writes what was staged."""
        for (owner, key), value in staged.values.items():
            values = self._shared.setdefault(owner, {}) if owner else session.state
            if value is MISSING:
                values.pop(key, None)
            else:
                values[key] = value

    def of_user(self, app_name: str, user_id: str) -> dict[str, Any]:
        """The keys of a user; the values are those that are stored."""
        return self._shared.get((app_name, user_id), {})

    def users(self) -> list[tuple[str, str]]:
        """The app and the id of the users who have any keys."""
        return [(owner[0], owner[1]) for owner, values in self._shared.items() if len(owner) == _USER and values]

    def erase_user(self, app_name: str, user_id: str) -> None:
        """Removes the keys of a user."""
        self._shared.pop((app_name, user_id), None)

    def _value(self, session: StoredSession, owner: Owner, key: str) -> Any:
        values = self._shared.get(owner) if owner else session.state
        return MISSING if values is None else values.get(key, MISSING)


_USER = 2
"""How many names there are in an owner that is a user."""

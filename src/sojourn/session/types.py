"""Sessions: durable conversations of one user with one app."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field

from sojourn.content import Value
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.jsonvalue import JsonValue


class SessionKey(NamedTuple):
    """What names a session. Two users may use the same session id; they are two sessions."""

    app_name: str
    user_id: str
    session_id: str

    def check(self) -> SessionKey:
        """Returns this key if all three ids are valid.

        Raises:
            InvalidInput: `id.invalid`.
        """
        check_id(self.app_name, "app_name")
        check_id(self.user_id, "user_id")
        check_id(self.session_id, "session_id")
        return self

    def __str__(self) -> str:
        return f"{self.app_name}/{self.user_id}/{self.session_id}"


class Session(Value):
    """A session as it was when it was read.

    Attributes:
        uid: Internal id, never used again: a session deleted and created anew under the same key has another one.
            Artifacts are kept by it.
        state: The session's keys, with the user's (`user:`) and the app's (`app:`).
        events: Filled by `get_session(events=n)` with the last n events that count; empty otherwise.
        event_count: How many events were ever appended; the `seq` of the newest.
        first_seq: From this `seq` on all events are there. Of those before it retention has removed some; 1 if it has removed
            none.
        active_agent: The agent that the next run starts with; None for the root agent.
        created_at: Seconds since the epoch.
        updated_at: Seconds since the epoch, when the session was created or patched, a run's message or answer was logged,
            or a run appended, whichever came last.
    """

    app_name: str
    user_id: str
    id: str
    uid: str
    state: dict[str, JsonValue] = Field(default_factory=dict)
    events: tuple[Event, ...] = ()
    event_count: int = 0
    first_seq: int = 1
    active_agent: str | None = None
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def key(self) -> SessionKey:
        """What names this session."""
        return SessionKey(self.app_name, self.user_id, self.id)


class History(NamedTuple):
    """What a run reads of its session: a window, and what must not be missing from it.

    Attributes:
        events: The newest events that count, oldest first.
        pinned: Events from before the window, oldest first: calls that still wait, calls whose responses are in the
            window, the newest summary.
    """

    events: list[Event]
    pinned: list[Event]


StateMap = dict[str, Any]

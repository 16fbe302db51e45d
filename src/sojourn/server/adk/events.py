"""Events and sessions as google-adk's clients read them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import Field

from sojourn.content import Part, Value
from sojourn.event import CREDENTIAL_CALL, Event, EventActions
from sojourn.jsonvalue import JsonValue
from sojourn.server.secrets import redacted_text
from sojourn.session.types import Session

OURS = "sojournActions"
"""Key in an event's `customMetadata` for what it does that google-adk's actions have no member for."""

_OURS = frozenset({"state_deleted", "state_increments", "summary_until"})


class AdkSession(Value):
    """A session on google-adk's wire.

    Attributes:
        id: Its id.
        app_name: The app.
        user_id: The user.
        state: Its keys, with the user's and the app's; empty in listings.
        events: What was said; empty in listings.
        last_update_time: Seconds since the epoch.
    """

    id: str
    app_name: str
    user_id: str
    state: dict[str, JsonValue] = Field(default_factory=dict)
    events: list[Event] = Field(default_factory=list)
    last_update_time: float = 0.0


def event_text(event: Event) -> str:
    """An event as JSON text on one line, without credentials.

    google-adk's clients refuse actions that they do not know. Of keys that are deleted they are told that they are null; the
    rest stands in `customMetadata`.
    """
    if not _needs_translation(event.actions):
        return redacted_text(event.to_json())
    actions = event.actions
    ours = EventActions(**{name: getattr(actions, name) for name in _OURS}).to_wire()
    theirs = actions.model_copy(
        update={
            "state_delta": {**actions.state_delta, **dict.fromkeys(actions.state_deleted)},
            "state_deleted": (),
            "state_increments": {},
            "summary_until": None,
        }
    )
    told = event.evolve(actions=theirs, custom_metadata={**(event.custom_metadata or {}), OURS: ours})
    return redacted_text(told.to_json())


def _needs_translation(actions: EventActions) -> bool:
    return bool(actions.state_deleted or actions.state_increments or actions.summary_until is not None)


def events_text(events: Sequence[Event]) -> str:
    """Events as a JSON array.

    Where a login is answered among them, its question is without `exchangedAuthCredential`: each time that it loads a session,
    the web UI opens the address that it finds there, and sends the new login as another answer.
    """
    done = {r.id for event in events for r in event.get_function_responses() if r.name == CREDENTIAL_CALL}
    return f"[{','.join(event_text(_without_logins(event, done) if done else event) for event in events)}]"


def _without_logins(event: Event, done: set[str | None]) -> Event:
    if not any(call.name == CREDENTIAL_CALL and call.id in done for call in event.get_function_calls()):
        return event
    assert event.content is not None
    return event.evolve(content=event.content.model_copy(update={"parts": tuple(map(_without_login, event.content.parts))}))


def _without_login(part: Part) -> Part:
    call = part.function_call
    asked = call.args.get("authConfig") if call is not None and call.name == CREDENTIAL_CALL else None
    if call is None or not isinstance(asked, dict):
        return part
    rest = {key: value for key, value in asked.items() if key != "exchangedAuthCredential"}
    return part.model_copy(update={"function_call": call.model_copy(update={"args": {**call.args, "authConfig": rest}})})


def session_text(session: Session) -> str:
    """A session as JSON text, with the events that it holds. google-adk's clients refuse members that they do not know."""
    head = {"id": session.id, "appName": session.app_name, "userId": session.user_id, "lastUpdateTime": session.updated_at}
    state = redacted_text(_json(session.state))
    return f'{_json(head)[:-1]},"state":{state},"events":{events_text(session.events)}}}'


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

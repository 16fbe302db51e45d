"""What google-adk's clients send: camelCase or snake_case; members that are not known are ignored."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sojourn.content import Content, Part, Value
from sojourn.event import Event
from sojourn.jsonvalue import JsonMembers

StateValues = JsonMembers


class NewSession(Value):
    """A session to be created.

    Attributes:
        session_id: Its id; a new one is made if omitted.
        state: First values. `app:` keys are refused.
        events: A conversation that took place elsewhere, the user first. Only what was said is taken over; function calls and
            responses, actions and questions are refused.
    """

    session_id: str | None = None
    state: StateValues | None = None
    events: Annotated[list[Event], Field(fail_fast=True)] | None = None


class SessionPatch(Value):
    """A change of a session.

    Attributes:
        state_delta: Keys to set. `app:` keys are refused.
    """

    state_delta: StateValues


class NewArtifact(Value):
    """An artifact to be saved.

    Attributes:
        filename: Its name; `user:` in front shares it among the user's sessions.
        artifact: Bytes (`inlineData`) or text.
        custom_metadata: Kept with the version.
    """

    filename: str
    artifact: Part
    custom_metadata: JsonMembers | None = None


class SessionToRemember(Value):
    """A session to be added to the user's memory."""

    session_id: str


class RunRequest(Value):
    """A run to be started, or an answer to what one asks.

    Attributes:
        app_name: The app; may be omitted if there is one only.
        user_id: The user; the caller if omitted.
        session_id: A session that exists.
        new_message: What the user says; or function responses, with the ids of the calls that ask.
        streaming: Whether `/run_sse` sends the pieces of messages, too.
        state_delta: Keys to set together with the message. `app:` keys are refused; `temp:` keys are not stored.
        invocation_id: Accepted, and not needed: the call that is answered names its run.
        function_call_event_id: The same.
        custom_metadata: Kept on the run.
    """

    app_name: str | None = None
    user_id: str | None = None
    session_id: str
    new_message: Content | None = None
    streaming: bool = False
    state_delta: StateValues | None = None
    invocation_id: str | None = None
    function_call_event_id: str | None = None
    custom_metadata: JsonMembers | None = None

"""Events: the immutable facts of a session, and partials, the unnumbered pieces of the one being written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from sojourn.content import Content, Flag, FunctionCall, FunctionResponse, JsonObject, Part, Value, null_means
from sojourn.jsonvalue import JsonMembers, JsonNumber, JsonValue, Nothing, clone

_NOTHING = Nothing("an event does not change; give the field when you make it: EventActions(state_delta={...})")


def _nothing() -> dict[str, Any]:
    return _NOTHING


_Names = Annotated[tuple[str, ...], null_means(())]
_Count = Annotated[int, null_means(0)]


class EventActions(Value):
    """What an event does besides saying something.

    Attributes:
        state_delta: Keys set, with their new values. A prefix names the scope: `app:`, `user:`, `temp:` (never
            stored), none for the session.
        state_deleted: Keys deleted. No key is in two of the three state fields.
        state_increments: Keys and what is added to their numbers, atomically across sessions; a missing key counts as 0.
        artifact_delta: Artifacts saved since the event before, by name, with the version that each save got; of several
            saves of one artifact, the newest.
        transfer_to_agent: The agent that takes over the run.
        escalate: Ends the enclosing `LoopAgent`.
        skip_summarization: The function responses are the answer as they are; no model turn follows.
        end_of_agent: The agent that wrote the event has finished.
        requested_auth_configs: Credentials asked for, by call id.
        requested_tool_confirmations: Approvals asked for, by call id.
        summary_until: This event sums up the session up to and including that `seq`; history windows start with it.
    """

    state_delta: JsonObject = Field(default_factory=_nothing)
    state_deleted: _Names = ()
    state_increments: Annotated[dict[str, JsonNumber], null_means({})] = Field(default_factory=_nothing)
    artifact_delta: Annotated[dict[str, int], null_means({})] = Field(default_factory=_nothing)
    transfer_to_agent: str | None = None
    escalate: Flag = False
    skip_summarization: Flag = False
    end_of_agent: Flag = False
    requested_auth_configs: JsonObject = Field(default_factory=_nothing)
    requested_tool_confirmations: JsonObject = Field(default_factory=_nothing)
    summary_until: int | None = None

    @property
    def changes_state(self) -> bool:
        """Whether this sets, deletes or increments any key."""
        return bool(self.state_delta or self.state_deleted or self.state_increments)

    def snapshot(self) -> EventActions:
        """A value that shares nothing mutable with this one; itself if there is nothing mutable in it."""
        fields = self.__dict__
        changes = {name: clone(fields[name]) for name in _OBJECTS if fields[name] is not _NOTHING}
        return self.model_copy(update=changes) if changes else self


_OBJECTS = ("state_delta", "state_increments", "artifact_delta", "requested_auth_configs", "requested_tool_confirmations")

_NO_ACTIONS = EventActions()


def _no_actions() -> EventActions:
    # Most events do nothing: that they share one value keeps them small.
    return _NO_ACTIONS


class Usage(Value):
    """Tokens spent on an event."""

    prompt_token_count: _Count = 0
    candidates_token_count: _Count = 0
    total_token_count: _Count = 0
    cached_content_token_count: _Count = 0
    thoughts_token_count: _Count = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})


class Transcription(Value):
    """What was spoken, as text; google-adk's shape.

    Attributes:
        text: What was said since the transcription before; of a finished one, all of it.
        finished: Whether it is whole. One that is not may change yet, and is never stored.
    """

    text: str = ""
    finished: Flag = False


USER = "user"
"""The author of what people say."""

FINISHED = "STOP"
"""The `finish_reason` of a message that is whole."""

ASK_CALL = "adk_request_input"
"""The function call by which a question to a person stands in the log; google-adk's clients know it."""

CONFIRM_CALL = "adk_request_confirmation"
"""The same for the question whether a function may be called."""

CREDENTIAL_CALL = "adk_request_credential"
"""The same for the wish that somebody log in somewhere, or give a key."""


INLINE_BYTES = 65_536
"""Bytes in a part beyond which they become an artifact."""

SPILLED = "spilled"
"""Key in `custom_metadata` under which an event names what was moved to artifacts: `text:<part>`, `response:<part>`, `output`.
Of a response and of the output, `{"artifact": uri}` is left."""


class Event(Value):
    """One immutable fact in a session.

    What an agent yields needs only `content` and `actions`; the runner fills in the identity and the store the numbers.

    Attributes:
        id: Unique; the partials of a message carry the id of the event that seals it.
        run_id: The run that wrote it (`invocationId` on the wire).
        author: `user`, or the name of the agent.
        timestamp: Seconds since the epoch; for people. The order of events is `seq`, never this.
        content: What is said.
        output: A structured result, any JSON value.
        actions: What the event does besides.
        partial: Always false for an event that was stored; an agent may yield a partial event, whose text is forwarded
            as a piece of its open message.
        interrupted: The message was cut off by a cancel, a timeout or a failure.
        error_code: Stable code, if the event tells of an error.
        error_message: What happened, for people.
        long_running_tool_ids: Ids of the function calls in `content` that wait for a person or a long task.
        branch: Dotted path of the parallel branches it was written in, and of the calls of tools (`#tool:CALL_ID`); None
            outside of any.
        usage_metadata: Tokens spent.
        finish_reason: Why the model ended the message, in google-adk's words: `STOP` (it had said all), `MAX_TOKENS`, `SAFETY`,
            `OTHER`, …; `FINISH_REASON_UNSPECIFIED` if its provider has not told, as when a stream breaks off unnoticed. None
            if no model has said it, or its kind never tells. See `cut_off`.
        custom_metadata: Anything the agent wants to attach.
        turn_complete: Of a live run: the agent has said what it had to say, and listens.
        input_transcription: What the user was heard to say; the event's author is `user` then.
        output_transcription: What the agent has spoken.
        seq: Number in the session, 1, 2, 3 … without gaps.
        pos: Number of its frame in the run; None for what the user said.
        ordinal: Number in (run, branch); with these two its identity.
        attempt: The attempt of the run that wrote it.
        supersedes: A new attempt took another way: what earlier attempts of the run wrote in this event's branch and in
            branches inside of it, from the frame with this `pos` on, no longer counts. What stands in other branches
            does, and so does what the new attempt wrote.
        superseded: The event no longer counts; it stays in the log, out of history and result.
    """

    id: str = ""
    run_id: str = Field(
        default="",
        validation_alias=AliasChoices("invocationId", "invocation_id", "runId", "run_id"),
        serialization_alias="invocationId",
    )
    author: str = ""
    timestamp: float = 0.0
    content: Content | None = None
    output: JsonValue = None
    actions: EventActions = Field(default_factory=_no_actions)
    partial: Flag = False
    interrupted: Flag = False
    error_code: str | None = None
    error_message: str | None = None
    long_running_tool_ids: _Names = ()
    branch: str | None = None
    usage_metadata: Usage | None = None
    finish_reason: str | None = None
    custom_metadata: JsonMembers | None = None
    turn_complete: bool | None = None
    input_transcription: Transcription | None = None
    output_transcription: Transcription | None = None
    seq: int | None = None
    pos: int | None = None
    ordinal: int | None = None
    attempt: int = 1
    supersedes: int | None = None
    superseded: bool = False

    @property
    def invocation_id(self) -> str:
        """google-adk's name for `run_id`."""
        return self.run_id

    @property
    def text(self) -> str:
        """The event's whole text, without thoughts; of speech, its transcript."""
        if self.content is not None:
            return self.content.text
        said = self.said
        return said.text if said is not None else ""

    @property
    def said(self) -> Content | None:
        """The content; of an event without, what its transcript says, as text."""
        if self.content is not None:
            return self.content
        if self.output_transcription is not None:
            return Content.of(self.output_transcription.text, "model")
        if self.input_transcription is not None:
            return Content.of(self.input_transcription.text, USER)
        return None

    @property
    def delta(self) -> str:
        """What a screen appends: the text that the reader of this event has not been given as partials yet."""
        # Kept beside the fields, as `functools.cached_property` does: a private attribute would slow every copy.
        rest: str | None = self.__dict__.get("_rest")
        return self.text if rest is None else rest

    @property
    def thought(self) -> bool:
        """Whether `delta` is reasoning; an event's never is."""
        return False

    def get_function_calls(self) -> list[FunctionCall]:
        """The function calls in this event."""
        return self.content.get_function_calls() if self.content else []

    def get_function_responses(self) -> list[FunctionResponse]:
        """The function responses in this event."""
        return self.content.get_function_responses() if self.content else []

    @property
    def cut_off(self) -> bool:
        """Whether the model did not come to the end of the message, or may not have."""
        return self.finish_reason not in (None, FINISHED)

    def is_message(self) -> bool:
        """Whether this is what a user has said, to open a run or in a live one, rather than an answer to a question."""
        if self.author != USER or self.ordinal is None:
            return False
        return self.ordinal == 0 or not self.get_function_responses()

    def is_opening(self) -> bool:
        """Whether this opens a live run and says nothing: what the user says there comes in events of its own."""
        return self.ordinal == 0 and self.content is None and self.author == USER

    def is_final_response(self) -> bool:
        """Whether this is an answer to the user, as google-adk defines it.

        True for complete messages without function calls or responses, for responses that skip summarization, and for
        calls that wait for a person or a long task.
        """
        if self.actions.skip_summarization or self.long_running_tool_ids:
            return True
        return not (self.partial or self.get_function_calls() or self.get_function_responses())

    def same_as(self, other: Event) -> bool:
        """Whether both say and do the same: what decides if a repeated event is the stored one."""
        return (
            self.author == other.author
            and self.branch == other.branch
            and self.content == other.content
            and self.output == other.output
            and self.interrupted == other.interrupted
            and self.error_code == other.error_code
            and self.input_transcription == other.input_transcription
            and self.output_transcription == other.output_transcription
            and self.actions == other.actions
        )

    def evolve(self, **changes: Any) -> Event:
        """A copy with other values of some fields, which are taken as they are."""
        # `model_copy` in half its time, which every event that is stored would pay.
        return self._assembled({**self.__dict__, **changes})

    def snapshot(self) -> Event:
        """A value that shares nothing mutable with this one; itself if there is nothing mutable in it."""
        # Fields are frozen and tuples are immutable: only dicts and lists of JSON can be changed from outside.
        changes: dict[str, Any] = {}
        if self.output.__class__ in _CONTAINERS:
            changes["output"] = clone(self.output)
        if self.custom_metadata is not None:
            changes["custom_metadata"] = clone(self.custom_metadata)
        if self.actions is not _NO_ACTIONS:
            actions = self.actions.snapshot()
            if actions is not self.actions:
                changes["actions"] = actions
        if self.content is not None:
            for part in self.content.parts:
                if part.function_call is not None or part.function_response is not None:
                    changes["content"] = self.content.model_copy(update={"parts": tuple(map(_copy_part, self.content.parts))})
                    break
        return self.evolve(**changes) if changes else self

    def with_delta(self, delta: str) -> Event:
        """A copy for a reader that has been given all of the text but `delta`."""
        copy = self.model_copy()
        copy.__dict__["_rest"] = delta
        return copy

    def __eq__(self, other: object) -> bool:
        # What a reader has been given of it already does not make it another event.
        return _fields_of(self) == _fields_of(other) if isinstance(other, Event) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)


def _fields_of(event: Event) -> dict[str, Any]:
    if "_rest" not in event.__dict__:
        return event.__dict__
    return {name: value for name, value in event.__dict__.items() if name != "_rest"}


_CONTAINERS = (dict, list)


def _copy_part(part: Part) -> Part:
    if part.function_call is not None:
        call = part.function_call
        return part.model_copy(update={"function_call": call.model_copy(update={"args": clone(call.args)})})
    if part.function_response is not None:
        response = part.function_response
        copy = response.model_copy(update={"response": clone(response.response)})
        return part.model_copy(update={"function_response": copy})
    return part


class Thought(str):
    """A piece of reasoning: what an agent yields for readers to see that is no part of its answer."""

    __slots__ = ()


@dataclass(slots=True, frozen=True)
class CallDelta:
    """A piece of a function call that a message is to hold.

    Attributes:
        id: The id of the call.
        name: The function.
        args: The next characters of its arguments, as JSON text.
    """

    id: str
    name: str
    args: str


class Partial:
    """A piece of a message that is still being written: unnumbered, never stored, superseded by its final event.

    Attributes:
        id: The id of the event that will seal the message.
        offset: How many characters of the message, thoughts included, come before this piece.
        delta: The piece; empty for one of a function call.
        thought: Whether the piece is reasoning.
        call: The piece of a function call, if it is one.
        author: The agent that writes.
        branch: As on the event.
        run_id: The run.
    """

    __slots__ = ("author", "branch", "call", "delta", "id", "offset", "run_id", "thought")

    partial = True
    pos = None
    seq = None
    interrupted = False
    turn_complete = None

    def __init__(
        self,
        id: str,
        run_id: str,
        author: str,
        branch: str | None,
        offset: int,
        delta: str,
        thought: bool,
        call: CallDelta | None = None,
    ) -> None:
        self.id = id
        self.run_id = run_id
        self.author = author
        self.branch = branch
        self.offset = offset
        self.delta = delta
        self.thought = thought
        self.call = call

    @property
    def text(self) -> str:
        """The piece again, as ADK's partial events have it; empty for a thought."""
        return "" if self.thought else self.delta

    @property
    def invocation_id(self) -> str:
        """google-adk's name for `run_id`."""
        return self.run_id

    @property
    def content(self) -> Content:
        """The piece as content."""
        return self.to_event().content or Content("model")

    @property
    def input_transcription(self) -> Transcription | None:
        """What the user is being heard to say, of a `LivePartial` that tells it."""
        return None

    @property
    def output_transcription(self) -> Transcription | None:
        """What the agent is speaking, of a `LivePartial` that tells it."""
        return None

    @property
    def actions(self) -> EventActions:
        """A partial does nothing."""
        return EventActions()

    def is_final_response(self) -> bool:
        """A partial is never final."""
        return False

    def get_function_calls(self) -> list[FunctionCall]:
        """A partial has none."""
        return []

    def get_function_responses(self) -> list[FunctionResponse]:
        """A partial has none."""
        return []

    def to_event(self) -> Event:
        """This piece as a partial event, the form ADK's wire gives it; arguments are under `args_delta` in its metadata."""
        if self.call is None:
            part, metadata = Part(text=self.delta, thought=self.thought), None
        else:
            part, metadata = Part.from_function_call(self.call.name, id=self.call.id), {"args_delta": self.call.args}
        return Event(
            id=self.id,
            run_id=self.run_id,
            author=self.author,
            branch=self.branch,
            content=Content("model", (part,)),
            custom_metadata=metadata,
            partial=True,
        )

    def __repr__(self) -> str:
        return f"Partial(id={self.id!r}, offset={self.offset}, delta={self.delta!r})"


class LivePartial(Partial):
    """What an agent lets readers hear or see in passing: audio, or a transcript in the making. No event repeats it.

    `content` has the bytes as `inline_data`; `delta` is empty.

    Args:
        event: The partial event.
    """

    __slots__ = ("_event",)

    def __init__(self, event: Event) -> None:
        super().__init__(event.id, event.run_id, event.author, event.branch, 0, "", False)
        self._event = event

    @property
    def input_transcription(self) -> Transcription | None:
        """What the user is being heard to say."""
        return self._event.input_transcription

    @property
    def output_transcription(self) -> Transcription | None:
        """What the agent is speaking."""
        return self._event.output_transcription

    def to_event(self) -> Event:
        """The partial event."""
        return self._event

    def __repr__(self) -> str:
        return f"LivePartial(id={self.id!r}, author={self.author!r})"

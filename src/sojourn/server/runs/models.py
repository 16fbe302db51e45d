"""What the routes of runs take and give."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from sojourn.content import Content, Value
from sojourn.errors import InvalidInput
from sojourn.event import Event
from sojourn.jsonvalue import JsonMembers, JsonValue
from sojourn.run.config import RunConfig
from sojourn.run.status import RunStatus
from sojourn.run.types import InterruptKind


class RunOptions(Value):
    """How a run is to be run: what a client may choose. Bounds may be lowered, never raised."""

    streaming_mode: Literal["none", "sse"] | None = Field(None, description="Whole events, or pieces of messages, too.")
    max_turns: int | None = Field(None, ge=1, description="Model calls.")
    max_tokens: int | None = Field(None, ge=1, description="Tokens, in and out.")
    max_transfers: int | None = Field(None, ge=0, description="Hand-overs between agents.")
    timeout: float | None = Field(None, gt=0, description="Seconds of execution, waiting excluded.")
    include_history: int | None = Field(None, ge=0, description="How many of the newest events an agent is shown.")
    when_busy: Literal["enqueue", "reject", "replace"] | None = Field(
        None, description="What happens if the session has a run under way."
    )

    def within(self, allowed: RunConfig) -> dict[str, Any]:
        """The fields that were chosen.

        Args:
            allowed: The operator's, whose bounds are not to be exceeded.

        Raises:
            InvalidInput: `run_config.exceeds`.
        """
        chosen = {name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None}
        for name in _BOUNDS & chosen.keys():
            limit = getattr(allowed, name)
            if isinstance(limit, int | float) and chosen[name] > limit:
                raise InvalidInput(f"{name} is {chosen[name]}; this server allows {limit} at most", code="run_config.exceeds")
        return chosen


_BOUNDS = {"max_turns", "max_tokens", "max_transfers", "timeout", "include_history"}


class StartRun(Value):
    """A run to be started."""

    app_name: str | None = Field(None, description="The app; may be left out if the server has one.")
    user_id: str | None = Field(None, description="The user; the caller if left out.")
    session_id: str | None = Field(None, description="The session, created if missing; a new one if left out.")
    new_message: str | Content = Field(description="What the user says: text, or content.")
    state_delta: JsonMembers | None = Field(None, description="State keys to set with the message; `app:` is refused.")
    run_config: RunOptions = Field(default_factory=RunOptions)
    custom_metadata: JsonMembers | None = Field(None, description="Kept on the run's record.")


class RetryRun(Value):
    """How a run is to be repeated."""

    new_message: str | Content | None = Field(None, description="What the user says instead; the same again if left out.")
    run_config: RunOptions | None = Field(None, description="Those of the repeated run if left out.")
    drop_later: bool = Field(False, description="Whether runs that came after it may cease to count.")


class CancelRun(Value):
    """Why a run is to end."""

    reason: str = Field("cancelled by its caller", min_length=1, max_length=1000)


class GiveAnswer(Value):
    """A person's answer to a question."""

    answer: JsonValue = Field(description="Any JSON value that fits the question's schema.")


class _Told(Value):
    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class ErrorInfo(_Told):
    """Why a run failed or was cancelled."""

    code: str
    message: str
    retryable: bool


class RunInfo(_Told):
    """A run's record. Times are seconds since the epoch."""

    id: str
    app_name: str
    user_id: str
    session_id: str
    no: int = Field(description="Number of the run in its session.")
    status: RunStatus
    attempt: int = Field(description="How often execution has begun.")
    deaths: int = Field(description="How many attempts ended by the death of their process since the last answer.")
    agent: str | None = Field(description="The agent that has the run; null for the root agent.")
    transfers: int = Field(description="Hand-overs so far.")
    message: Event = Field(description="What the user said.")
    config: dict[str, Any] = Field(description="The fields of the run config that differ from the server's.")
    attached: bool = Field(description="Whether the run ends when its reader leaves.")
    cancel_requested: str | None = Field(description="Why a cancel was asked for, if it was.")
    error: ErrorInfo | None
    last_pos: int = Field(description="`pos` of the newest frame.")
    retry_of: str | None = Field(description="The run that this one repeats.")
    superseded_by: str | None = Field(description="The run by which this one has ceased to count.")
    trimmed: bool = Field(description="Whether what it consisted of has been removed since.")
    usage: dict[str, int] = Field(description="Sums of the token counts of its events.")
    custom_metadata: dict[str, Any] | None
    created_at: float
    started_at: float | None
    finished_at: float | None


class RunPage(_Told):
    """Runs, newest submitted first."""

    items: list[RunInfo]
    next: str | None = Field(description="Pass it as `after` to get what follows; null if nothing does.")


class InterruptInfo(_Told):
    """A question to a person. Times are seconds since the epoch."""

    id: str
    run_id: str
    app_name: str
    user_id: str
    session_id: str
    key: str = Field(description="The agent's name for the question.")
    prompt: Any = Field(description="What to show.")
    schema_: dict[str, Any] | None = Field(alias="schema", description="JSON schema of the answer; null for any JSON value.")
    kind: InterruptKind = Field(description="What is asked for.")
    call_id: str | None = Field(description="The function call that waits for the answer.")
    status: Literal["open", "answered", "expired", "dropped"]
    answer: Any
    created_at: float
    expires_at: float | None
    answered_at: float | None


class InterruptList(_Told):
    """Open questions, oldest first."""

    items: list[InterruptInfo]

"""How a run is to be run."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from sojourn.jsonvalue import JsonValue


class StreamingMode(StrEnum):
    """What a reader of a run is sent.

    `NONE`: whole events. `SSE`: pieces of each message as they are written, then the whole event. `BIDI`: as `SSE`, of a live
    run, in which the user goes on sending.
    """

    NONE = "none"
    SSE = "sse"
    BIDI = "bidi"


class RunConfig(BaseModel):
    """Bounds and choices of a run; a Runner has one as its default, each run may override single fields.

    Attributes:
        streaming_mode: What readers are sent.
        max_turns: Model calls (`ctx.turn()`) in the run, those that the journal repeats counted once; `run.max_turns` beyond.
        max_tokens: Tokens that the run's events may tell of (`usage_metadata`), in and out, over all attempts: once they are
            spent, no further model call is made; `run.max_tokens`. None for no bound.
        include_history: How many of the newest events `ctx.history()` returns; `"all"`, or 0 for none.
        timeout: Seconds of execution, waiting excluded; `run.timeout` beyond. None for no bound.
        max_transfers: Hand-overs between agents in one run; `run.max_transfers` beyond.
        when_busy: What happens if the session has an unfinished run that does not wait for a person: `enqueue` (first
            come, first served), `reject` (`session.busy`), `replace` (cancels the earlier ones).
        on_crash: What happens to a detached run whose process died: `resume` or `fail` (`run.lost`).
        inject_memory: How many memories to find for the user's message. None: 5 if the Runner was given a memory
            service, else 0.
        cancel_grace: Seconds a cancelled agent has for cleaning up before it is abandoned.
        max_event_bytes: Size of one event's JSON above which its largest parts are moved to artifacts. What cannot be moved
            may not be larger either: the result of a step (`step.too_large`), the state that is stored at the end of a run
            without an event (`state.too_large`), `custom_metadata` (`run.metadata_too_large`).
        save_live_blob: Whether a live run stores the audio that goes in and out, as artifacts to which events refer.
        custom_metadata: Kept on the run's record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    streaming_mode: StreamingMode = StreamingMode.SSE
    max_turns: int = Field(default=50, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    include_history: int | Literal["all"] = 200
    timeout: float | None = Field(default=None, gt=0)
    max_transfers: int = Field(default=10, ge=0)
    when_busy: Literal["enqueue", "reject", "replace"] = "enqueue"
    on_crash: Literal["resume", "fail"] = "resume"
    inject_memory: int | None = Field(default=None, ge=0)
    cancel_grace: float = Field(default=5.0, ge=0)
    max_event_bytes: int = Field(default=1_048_576, ge=1024)
    save_live_blob: bool = False
    custom_metadata: dict[str, JsonValue] | None = None

    @field_validator("include_history")
    @classmethod
    def _not_negative(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 0:
            raise ValueError('must be 0, a positive number or "all"')
        return value

    def overrides(self) -> dict[str, Any]:
        """The fields that were set, as JSON: what a run's record keeps, so that a later attempt runs under the same."""
        return self.model_dump(mode="json", exclude_unset=True)

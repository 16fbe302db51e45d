"""Runs and what belongs to them: records, steps, interrupts, frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sojourn.errors import CATEGORIES, SojournError
from sojourn.event import Event, Partial
from sojourn.jsonvalue import Nothing, clone
from sojourn.run.status import RunStatus
from sojourn.session.types import SessionKey

MAX_ERROR_CHARACTERS = 16_384
"""How much of an error's message is stored."""


@dataclass(slots=True, frozen=True)
class RunError:
    """Why a run failed or was cancelled, in the form that is stored."""

    code: str
    message: str
    category: str = "AgentError"
    retryable: bool = False

    @classmethod
    def of(cls, error: SojournError) -> RunError:
        """What is stored of an error: of a message beyond `MAX_ERROR_CHARACTERS`, its beginning."""
        message = error.message
        if len(message) > MAX_ERROR_CHARACTERS:
            message = f"{message[:MAX_ERROR_CHARACTERS]}…"
        return cls(error.code, message, type(error).__name__, error.retryable)

    def to_exception(self) -> SojournError:
        """The error again, in its category."""
        cls = CATEGORIES.get(self.category, SojournError)
        return cls(self.message, code=self.code, retryable=self.retryable)


NO_ENTRIES = Nothing("a run's record does not change; make a copy of this dict")
"""In place of an empty `config` or `usage`, where a store shares a record with whoever reads it."""


@dataclass(frozen=True)
class RunRecord:
    """A run as it is stored.

    Attributes:
        uid: The store's own key of the run; unlike `id` unique in the whole store. Not for people.
        id: Its id, unique per (app, user).
        session_uid: `Session.uid` of its session.
        no: Number of the run in its session: the order in which runs were submitted.
        attempt: How often execution has begun; the newest one is the only that may write.
        deaths: How many attempts ended by the death of their process since the last answer.
        agent: The agent that has the run: the session's active agent when the first attempt began, then whoever it was
            handed to; None for the root agent.
        start_agent: The agent that the first attempt began with, whoever has the run now; None for the root agent.
        base_ordinal: Events of the run with a smaller ordinal were written before `agent` took over.
        transfers: Hand-overs so far.
        message: What the user said: the event that opens the run in the log, without its numbers.
        message_seq: `seq` of that event; None until the first attempt begins.
        config: `RunConfig.overrides()`.
        attached: Whether the run ends when its reader leaves.
        cancel_requested: Why a cancel was asked for, if it was.
        error: Set when failed or cancelled.
        last_pos: `pos` of the newest frame.
        retry_of: Id of the run that this one repeats.
        superseded_by: Id of the run by which this one has ceased to count: it repeats this one, or one before it.
        usage: Sums of the token counts of its events.
        trimmed: Whether retention has removed what the run consisted of: its events, steps and questions, and the words of its
            message, whose `content` is None then. The record is left.
        created_at, started_at, finished_at: Seconds since the epoch.
    """

    uid: int
    id: str
    app_name: str
    user_id: str
    session_id: str
    session_uid: str
    no: int
    status: RunStatus
    message: Event
    attempt: int = 0
    deaths: int = 0
    agent: str | None = None
    base_ordinal: int = 0
    transfers: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    attached: bool = False
    cancel_requested: str | None = None
    error: RunError | None = None
    last_pos: int = 0
    retry_of: str | None = None
    start_agent: str | None = None
    message_seq: int | None = None
    superseded_by: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    custom_metadata: dict[str, Any] | None = None
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    trimmed: bool = False

    @property
    def key(self) -> SessionKey:
        """Its session."""
        return SessionKey(self.app_name, self.user_id, self.session_id)

    def evolve(self, **changes: Any) -> RunRecord:
        """A copy with other values of some fields; `dataclasses.replace` without its cost, which every run would pay."""
        copy = object.__new__(RunRecord)
        _set(copy, "__dict__", {**self.__dict__, **changes})
        return copy

    def snapshot(self) -> RunRecord:
        """A value that shares nothing mutable with this one; itself if there is nothing mutable in it."""
        message = self.message.snapshot()
        if message is self.message and self.config is NO_ENTRIES and self.usage is NO_ENTRIES and self.custom_metadata is None:
            return self
        return self.evolve(
            message=message,
            config=clone(self.config),
            usage=clone(self.usage),
            custom_metadata=clone(self.custom_metadata),
        )


_set = object.__setattr__


@dataclass(slots=True, frozen=True)
class Step:
    """One journaled side effect of a run.

    Attributes:
        key: Unique in the run. Steps of agents inside others carry the path of the agent: `tour@1/book:flight`.
        status: `done` (its result is used again by later attempts) or `failed` (a later attempt tries again).
        result: What it returned; any JSON value.
        error: Why it failed.
        attempt: The attempt that did it.
    """

    key: str
    status: Literal["done", "failed"] = "done"
    result: Any = None
    error: RunError | None = None
    attempt: int = 1
    started_at: float = 0.0
    finished_at: float = 0.0


InterruptKind = Literal["input", "confirm", "result", "credential"]


@dataclass(slots=True, frozen=True)
class Interrupt:
    """A question to a person that a run waits for.

    Attributes:
        id: Unique in the run; the id of the function call that stands in the log for the question.
        key: The agent's name for the question (with the agent's path, as in `Step.key`).
        digest: Hash of prompt and schema: another question under the same key is another interrupt.
        prompt: What to show; any JSON value.
        schema: JSON schema of the answer; None for any JSON value.
        kind: What is asked for: `input` (any value), `confirm` (leave to call a function), `result` (what a function call
            gives that somebody else carries out), `credential` (a login or a key; the answer is a secret).
        call_id: The id of the function call that waits for the answer, if one does.
        status: `open`, `answered`, `expired`, or `dropped` (asked differently since, or the run has ended).
        expires_at: Seconds since the epoch; None for never.
    """

    id: str
    key: str
    digest: str
    prompt: Any
    schema: dict[str, Any] | None = None
    status: Literal["open", "answered", "expired", "dropped"] = "open"
    answer: Any = None
    created_at: float = 0.0
    expires_at: float | None = None
    answered_at: float | None = None
    run_id: str = ""
    app_name: str = ""
    user_id: str = ""
    session_id: str = ""
    kind: InterruptKind = "input"
    call_id: str | None = None


FrameKind = Literal["run.started", "event", "interrupt", "run.completed", "run.failed", "run.cancelled"]


@dataclass(slots=True, frozen=True)
class Frame:
    """What a reader of a run gets, durably numbered; partials come between frames and have no number.

    Attributes:
        pos: 1, 2, 3 … without gaps within the run.
        kind: `run.started`, `event`, `interrupt` (an event that asks a person), or one of the three terminal kinds.
        run_id: The run.
        event: Of an `event` or `interrupt` frame.
        error: Of a failed or cancelled run's terminal frame.
        timestamp: Seconds since the epoch.
    """

    pos: int
    kind: FrameKind
    run_id: str
    event: Event | None = None
    error: RunError | None = None
    timestamp: float = 0.0

    partial = False

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self.kind in _TERMINAL_KINDS


_TERMINAL_KINDS = ("run.completed", "run.failed", "run.cancelled")

FrameOrPartial = Frame | Partial


def event_frame(event: Event) -> Frame:
    """The frame of a stored event of an agent."""
    kind: FrameKind = "interrupt" if event.long_running_tool_ids else "event"
    return Frame(event.pos or 0, kind, event.run_id, event, None, event.timestamp)


def started_frame(record: RunRecord) -> Frame:
    """The first frame of a run that has begun."""
    return Frame(1, "run.started", record.id, None, None, record.started_at or 0.0)


def terminal_frame(record: RunRecord) -> Frame:
    """The one terminal frame of a finished run, made from its record."""
    kind: FrameKind = f"run.{record.status.value}"  # type: ignore[assignment]
    return Frame(record.last_pos, kind, record.id, None, record.error, record.finished_at or 0.0)


@dataclass(slots=True, frozen=True)
class RunQuery:
    """Which runs to list."""

    app_name: str
    user_id: str | None = None
    session_id: str | None = None
    status: tuple[RunStatus, ...] = ()

"""What agents say, as messages being written and as events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sojourn import jsonvalue, platform
from sojourn.agents.context import IN_STEP, Context
from sojourn.content import Content
from sojourn.errors import AgentError, LimitExceeded, SojournError
from sojourn.event import USER, CallDelta, Event, EventActions, LivePartial
from sojourn.run.live import LiveRun, OpenMessage
from sojourn.run.types import RunRecord
from sojourn.runner.attempt.history import is_within
from sojourn.runner.attempt.log import Said
from sojourn.session.state import State, StateDelta

MESSAGE_FACTOR = 32
"""A message may take this multiple of `max_event_bytes` in memory before its agent is stopped."""

_NO_ACTIONS = EventActions()


class Speech:
    """Turns what the agents of one attempt yield and return into messages and events.

    Attributes:
        ordinals: Per branch, the next event's ordinal.
    """

    def __init__(self, live: LiveRun, record: RunRecord, max_event_bytes: int) -> None:
        self.ordinals: dict[str | None, int] = {None: max(1, record.base_ordinal)}
        # The event that handed the run to the agent it is with; 0 for none, or once it has been passed.
        self._handover = self.ordinals[None] - 1
        # Of a later attempt: the ordinals up to which earlier ones have said something that counts.
        self._said_before: dict[str | None, int] = {}
        # What they have written with it, inside of steps.
        self._written_before: list[tuple[str, StateDelta]] = []
        self._live = live
        self._run_id = record.id
        self._attempt = record.attempt
        self._max_message = max_event_bytes * MESSAGE_FACTOR
        self._writing: dict[str, Context] = {}

    def resume(self, stored: Iterable[Event]) -> None:
        """Takes note of what earlier attempts of the run have said.

        Args:
            stored: The run's events that count, in order; may be called again with those that follow.
        """
        before = self._handover > 0
        for event in stored:
            branch, ordinal = event.branch, event.ordinal
            if ordinal is None:
                continue
            self._said_before[branch] = max(self._said_before.get(branch, 0), ordinal)
            if before and branch is not None:
                # Said before the run was handed to the agent it is with: that stays, and its ordinals are taken.
                self.ordinals[branch] = ordinal + 1
            elif branch is not None and event.actions.changes_state and IN_STEP in branch:
                self._written_before.append((branch, StateDelta.of(event.actions)))
            if before and branch is None and ordinal == self._handover:
                before, self._handover = False, 0

    def pass_by(self, branch: str, state: State) -> None:
        """Takes what earlier attempts have said in a branch, and in branches inside of it, as said by this one, too.

        Args:
            branch: The branch of a step that is not done again.
            state: Shows what was written there: to the attempt, it is as the run found it.
        """
        for written_in, delta in self._written_before:
            if is_within(written_in, branch):
                state.show(delta)
        for said_in, ordinal in self._said_before.items():
            if is_within(said_in, branch):
                self.ordinals[said_in] = max(ordinal + 1, self.ordinals.get(said_in, 1))

    def repeats(self, ctx: Context) -> bool:
        """Whether what the agent says next was said before, by an earlier attempt."""
        return self.ordinals.get(ctx.branch, 1) <= self._said_before.get(ctx.branch, 0)

    # -- messages ---------------------------------------------------------------------------------------------------

    def open(self, ctx: Context) -> OpenMessage:
        """Begins a message whose pieces readers are sent."""
        message = ctx._message = OpenMessage(platform.new_id(), self._run_id, ctx.agent.name, ctx.branch)
        self._writing[message.id] = ctx
        if self.ordinals.get(ctx.branch, 1) > self._said_before.get(ctx.branch, 0):
            # Pieces of a message that is stored already would stand on the screen twice.
            self._live.open[message.id] = message
        return message

    def add(self, ctx: Context, piece: str | CallDelta, *, thought: bool = False) -> None:
        """Adds a piece to the agent's message: of a text, a thought, or a function call."""
        if not piece:
            return
        message = ctx._message or self.open(ctx)
        if isinstance(piece, str):
            message.add(piece, thought)
        else:
            message.add_call(piece)
        self.check_size(message)
        self._live.touch()

    def check_size(self, message: OpenMessage) -> None:
        """Refuses a message without end with `event.too_large`."""
        if message.size > self._max_message:
            raise LimitExceeded(
                f"a message of run {self._run_id!r} has grown beyond {self._max_message} bytes",
                code="event.too_large",
                retryable=False,
            )

    def seal(self, ctx: Context, *, interrupted: bool = False, error_code: str | None = None, own_actions: bool = True) -> Said:
        """The agent's open message as an event.

        Args:
            ctx: The agent's context.
            interrupted: It was cut off.
            error_code: By what.
            own_actions: Whether what the agent has set for its next event goes with it.
        """
        message = ctx._message
        assert message is not None, "only called with an open message"
        ctx._message = None
        self._writing.pop(message.id, None)
        streamed = message.id in self._live.open
        event = self.event(
            ctx,
            id=message.id,
            content=message.content(),
            interrupted=interrupted,
            error_code=error_code,
            own_actions=own_actions,
        )
        return event, message if streamed else None

    def whole(self, ctx: Context, event: Event) -> Said:
        """An event in place of the agent's open message, under its id; simply an event if none is open."""
        message, fields = ctx._message, _said_fields(event)
        if message is None:
            return self.event(ctx, **fields), None
        # First what may be refused: the message stays open then, and what was said of it is kept.
        said = self.event(ctx, id=message.id, **fields)
        ctx._message = None
        self._writing.pop(message.id, None)
        message.seal_with(said)
        return said, message if message.id in self._live.open else None

    def interrupt_all(self) -> list[Said]:
        """Seals every open message as interrupted."""
        return [self.seal(ctx, interrupted=True) for ctx in list(self._writing.values())]

    def end_turn(self) -> list[Said]:
        """Seals every open message: the agent listens again."""
        sealed = [self.seal(ctx) for ctx in list(self._writing.values())]
        return [(event.evolve(turn_complete=True), message) for event, message in sealed]

    def add_partial(self, ctx: Context, partial: Event) -> None:
        """Takes a partial event: its text belongs to the agent's message, bytes and transcripts are passed on to readers."""
        parts = partial.content.parts if partial.content is not None else ()
        for part in parts:
            self.add(ctx, part.text or "", thought=part.thought)
        media = tuple(part for part in parts if part.inline_data is not None)
        heard, spoken = partial.input_transcription, partial.output_transcription
        if media or heard is not None or spoken is not None:
            event = Event.unchecked(
                {
                    "id": platform.new_id(),
                    "run_id": self._run_id,
                    "author": USER if heard is not None and not media and spoken is None else ctx.agent.name,
                    "timestamp": platform.now(),
                    "branch": ctx.branch,
                    "content": Content("model", media) if media else None,
                    "input_transcription": heard,
                    "output_transcription": spoken,
                    "partial": True,
                    "actions": _NO_ACTIONS,
                }
            )
            self._live.pass_on(LivePartial(event))

    # -- events -----------------------------------------------------------------------------------------------------

    def said(self, ctx: Context, item: Content | Event) -> Said:
        """Something that was yielded or returned whole, as an event."""
        fields: dict[str, Any] = {"content": item} if isinstance(item, Content) else _said_fields(item)
        return self.event(ctx, **fields), None

    def returned(self, ctx: Context, value: Any) -> Said | None:
        """An async function's return value as its last event; None for an empty text.

        Raises:
            AgentError: `agent.bad_yield` if it is not a JSON value.
        """
        if isinstance(value, str):
            return (self.event(ctx, content=Content.of(str(value), "model")), None) if value else None
        if isinstance(value, Content | Event):
            return self.said(ctx, value)
        try:
            output = jsonvalue.copy(value, where="the return value")
        except SojournError as error:
            raise AgentError(
                f"agent {ctx.agent_name!r} returned {shown(value)}: {error.message}", code="agent.bad_yield"
            ) from None
        return self.event(ctx, output=output), None

    def heard(self, content: Content) -> Event:
        """What the user says while the run goes on, as an event."""
        ordinal = self.ordinals[None]
        self.ordinals[None] = ordinal + 1
        return Event.unchecked(
            {
                "id": platform.new_id(),
                "run_id": self._run_id,
                "author": USER,
                "timestamp": platform.now(),
                "ordinal": ordinal,
                "attempt": self._attempt,
                "content": content,
                "actions": _NO_ACTIONS,
            }
        )

    def event(
        self, ctx: Context, *, id: str = "", actions: EventActions | None = None, own_actions: bool = True, **fields: Any
    ) -> Event:
        """An event of the agent's, with its identity; what the agent set for its next event goes with it."""
        branch = ctx.branch
        ordinal = self.ordinals.get(branch, 1)
        self.ordinals[branch] = ordinal + 1
        done = self._actions(ctx, actions, own_actions) if not fields.get("interrupted") else self._kept(ctx)
        if ctx._spent is not None:
            given = fields.get("usage_metadata")
            fields["usage_metadata"] = ctx._spent if given is None else given + ctx._spent
            ctx._spent = None
        event = Event.unchecked(
            {
                "id": id or platform.new_id(),
                "run_id": self._run_id,
                "author": ctx.agent.name,
                "timestamp": platform.now(),
                "branch": branch,
                "ordinal": ordinal,
                "attempt": self._attempt,
                "actions": done,
                **fields,
            }
        )
        if not event.interrupted and (event.output is not None or event.content is not None):
            ctx._output = event.output if event.output is not None else event.text or None
        return event

    def _kept(self, ctx: Context) -> EventActions:
        """The actions of a message that was cut off: what it would have done is dropped, what was saved is told."""
        saved, ctx._artifact_delta = ctx._artifact_delta, None
        return EventActions(artifact_delta=saved) if saved else _NO_ACTIONS

    def _actions(self, ctx: Context, given: EventActions | None, own: bool) -> EventActions:
        """Joins the actions of a yielded event with the pending ones of the context."""
        pending = ctx.state.take()
        if given is None and pending is None and not ctx.has_actions():
            return _NO_ACTIONS
        fields: dict[str, Any] = {}
        if own and ctx._actions is not None:
            fields.update((name, getattr(ctx._actions, name)) for name in ctx._actions.model_fields_set)
            ctx._actions = None
        delta = pending or StateDelta()
        if given is not None:
            fields.update((name, getattr(given, name)) for name in given.model_fields_set - _STATE_FIELDS)
            if given.changes_state:
                own_delta = StateDelta.of_all(given)
                ctx.state.apply(own_delta)
                delta.join(own_delta)
            if given.escalate:
                ctx._escalated = True
            if given.transfer_to_agent is not None:
                ctx.transfer_to(given.transfer_to_agent)
                ctx._transfer_told = True
        if delta:
            ctx.state.stored(delta)
            fields.update(delta.durable().as_actions())
        if ctx._artifact_delta:
            fields["artifact_delta"] = {**fields.get("artifact_delta", {}), **ctx._artifact_delta}
            ctx._artifact_delta = None
        if own and ctx._transfer is not None and not ctx._transfer_told:
            fields["transfer_to_agent"] = ctx._transfer
            ctx._transfer_told = True
        return EventActions(**fields) if fields else _NO_ACTIONS


_STATE_FIELDS = {"state_delta", "state_deleted", "state_increments"}

_SAID_FIELDS = (
    "content", "output", "long_running_tool_ids", "usage_metadata", "finish_reason", "custom_metadata", "error_code",
    "error_message", "interrupted", "turn_complete", "input_transcription", "output_transcription",
)  # fmt: skip


def _said_fields(event: Event) -> dict[str, Any]:
    """What a yielded event says; its identity and numbers are the runner's."""
    fields: dict[str, Any] = {name: getattr(event, name) for name in _SAID_FIELDS if name in event.model_fields_set}
    if event.input_transcription is not None and event.said == Content.of(event.input_transcription.text, USER):
        fields["author"] = USER
    elif event.author and event.author != USER:
        fields["author"] = event.author
    if event.actions.model_fields_set:
        fields["actions"] = event.actions
    return fields


def shown(value: Any) -> str:
    """A value of any type, short, for an error message."""
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'…' if len(text) > 80 else ''}"

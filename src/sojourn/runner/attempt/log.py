"""What one attempt stores: nothing is shown before it is stored, and nothing is stored after the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sojourn import platform
from sojourn.agents.context import Context, not_configured
from sojourn.content import Content, Part
from sojourn.errors import AgentError, Fenced, SojournError, Unavailable
from sojourn.event import USER, Event, EventActions
from sojourn.run.config import RunConfig
from sojourn.run.live import LiveRun, OpenMessage
from sojourn.run.status import Move
from sojourn.run.store import Appended, Batch, Fence
from sojourn.run.types import Interrupt, RunError, RunRecord, Step, event_frame
from sojourn.runner.answers import answers
from sojourn.runner.attempt import spill
from sojourn.runner.observe import stored, tell
from sojourn.runner.plugins import change
from sojourn.session.state import StateDelta
from sojourn.session.types import Session

if TYPE_CHECKING:
    from sojourn.runner.attempt.saves import Saves
    from sojourn.runner.services import Services

APPEND_RETRIES = (0.0, 0.1, 0.5, 1.0, 2.5)
"""Seconds before an append is repeated after the store did not answer: a database server is restarted in less than all of them.

Repeating is safe: what was stored is recognised. After an append for which it was in vain, the next one is repeated only once.
"""

Said = tuple[Event, OpenMessage | None]
"""An event to be stored, with the message it seals if its pieces were sent to readers."""


class Outcome(NamedTuple):
    """How an attempt ends: the move of its run, the error that is stored, and the exception behind it."""

    move: Move
    error: RunError | None = None
    cause: BaseException | None = None


class AttemptLog:
    """Writes what one attempt says and does; it holds the attempt's fence.

    Attributes:
        tail: Events that go with the next append, whatever that is.
        open_calls: Function calls without a response so far, by id.
        closed: Whether the attempt has ended: nothing more is taken.
        usage: Sums of the token counts of the run's events so far.
        saves: What its agents have saved; None if nothing.
        tokens: What its user has spent; None if there is no bound.
    """

    def __init__(
        self,
        services: Services,
        live: LiveRun,
        record: RunRecord,
        session: Session,
        config: RunConfig,
        author: str,
        ordinals: Mapping[str | None, int],
    ) -> None:
        self.tail: list[Said] = []
        self.open_calls: dict[str, str] = {}
        self.closed = False
        self.usage = record.usage
        self.saves: Saves | None = None
        self.tokens = services.tokens.of(record.user_id) if services.tokens is not None else None
        self._kept_steps: list[Step] = []
        self._services = services
        self._store = services.store
        self._live = live
        self._session = session
        self._max_bytes = config.max_event_bytes
        self._author = author
        # Per branch, the next event's ordinal.
        self._ordinals = ordinals
        self._fence = Fence(record.uid, record.attempt)
        self._waited_in_vain = False

    def keep_steps(self, steps: Sequence[Step]) -> None:
        """Takes steps that are stored with the next append, whatever that is.

        Raises:
            CancelledError: The attempt has ended.
        """
        if self.closed:
            raise asyncio.CancelledError
        self._kept_steps.extend(steps)

    async def commit(
        self,
        ctx: Context,
        events: Sequence[Said],
        *,
        steps: Sequence[Step] = (),
        interrupts: Sequence[Interrupt] = (),
        agent: str | None = None,
    ) -> None:
        """Stores events and what goes with them in one append, then shows them.

        Args:
            ctx: Whose they are.
            events: In order; after those of the tail.
            steps: Steps done or failed.
            interrupts: Questions asked.
            agent: The agent that takes over the run with the last event.

        Raises:
            CancelledError: The attempt has ended, or its task was cancelled while the store answered; what was stored is
                shown then.
            SojournError: Nothing was stored.
        """
        if self.closed:
            raise asyncio.CancelledError
        pending = [*self.tail, *events]
        self.tail.clear()
        kept, self._kept_steps = self._kept_steps, []
        try:
            prepared = await self._prepare(ctx, pending)
            batch = Batch([e for e, _ in prepared], [*kept, *steps], list(interrupts), agent=agent)
            appended, cancelled = await self._append(batch)
        except BaseException as error:
            self._kept_steps[:0] = kept
            refused = error.code if isinstance(error, SojournError) and not isinstance(error, Unavailable) else None
            # Messages that readers have seen pieces of go with the next append instead, and what refused ones have cost.
            self.tail[:0] = [
                _left_of(event, message, refused)
                for event, message in pending
                if message is not None or (refused is not None and event.usage_metadata is not None)
            ]
            raise
        self.usage = appended.record.usage
        self._show(appended.events, prepared)
        if cancelled is not None:
            raise cancelled

    async def close(self, outcome: Outcome, state: StateDelta | None, *, complete: bool) -> tuple[RunRecord, Outcome]:
        """Makes the attempt's last append, with the tail. What cannot be stored fails the run; it is closed all the same.

        Args:
            outcome: How the attempt ends.
            state: Changes of state that no event carries.
            complete: Whether that is all the attempt had to say, so that what earlier ones said after it does not count.

        Returns:
            The record, and how the attempt really ended.

        Raises:
            Fenced: The run was closed over the attempt's head.
            Unavailable: The store is away.
        """
        self.closed = True
        events, self.tail = self.tail, []
        steps, self._kept_steps = self._kept_steps, []
        refused: SojournError | None = None
        for _ in range(_CLOSING_TRIES):
            try:
                prepared = await self._prepare(None, [*events, *self._untold(events)])
            except SojournError as error:
                events, state, outcome = self._dropped(events), None, _failed(error)
                continue
            stored, live = [e for e, _ in prepared], dict(self._ordinals) if complete else None
            batch = Batch(stored, steps, state=state, move=outcome.move, error=outcome.error, live=live)
            try:
                appended, _ = await self._append(batch)
            except (Fenced, Unavailable):
                raise
            except SojournError as error:
                # The leftover state may be what cannot be stored, or else one of the events, or else the error's own text.
                outcome = _failed(error) if refused is None else Outcome(Move.FAIL, _UNTOLD, error)
                if state is None:
                    events, steps = self._dropped(events), []
                state, refused = None, error
                continue
            self._show(appended.events, prepared)
            return appended.record, outcome
        code = refused.code if refused is not None else None
        raise Unavailable("the store refuses to close the run", code=code) from refused

    def has_open_calls(self) -> bool:
        """Whether there are calls without a response, in what is stored or in the tail."""
        for event, _ in self.tail:
            self._note_calls(event)
        return bool(self.open_calls)

    def _untold(self, events: Sequence[Said]) -> list[Said]:
        """What tells of the saves that no event does."""
        ordinal = self._ordinals[None]
        event = self.saves.untold((e for e, _ in events), self._author, ordinal) if self.saves is not None else None
        return [] if event is None else [(event, None)]

    def _dropped(self, events: Sequence[Said]) -> list[Said]:
        """What is left when these are refused: at first what they have cost, with what they saved told apart; then nothing."""
        if not events:
            self.saves = None
        return [(_cost_of(event, message), message) for event, message in events if event.usage_metadata and event.content]

    def seal_calls(self, run_id: str, code: str, ordinal: int, attempt: int) -> None:
        """Answers all open calls with an error, so that the next history is valid."""
        parts = [Part.from_function_response(name, {"error": code}, id=call_id) for call_id, name in self.open_calls.items()]
        event = Event(
            id=platform.new_id(),
            run_id=run_id,
            author=USER,
            timestamp=platform.now(),
            content=Content("user", parts),
            ordinal=ordinal,
            attempt=attempt,
        )
        self.tail.append((event, None))

    async def _prepare(self, ctx: Context | None, pending: list[Said]) -> list[Said]:
        """Lets plugins see the events and moves what is too large for one to artifacts."""
        hooks = self._services.plugins.on_event
        prepared = []
        for given, message in pending:
            event = given
            for hook in hooks:
                try:
                    replaced = await change(hook, ctx, event, gives=Event)
                except AgentError:
                    if not self.closed:
                        raise
                    # The run is ending: the event keeps its place, but what no plugin has passed is not stored.
                    event = event.evolve(content=None, output=None, interrupted=True, error_code="plugin.failed")
                    break
                if replaced is not None:
                    event = replaced.evolve(**{name: getattr(event, name) for name in _IDENTITY})
            if message is not None and event is not given:
                message.seal_with(event)
            if spill.is_large(event, self._max_bytes):
                if self._services.artifacts is None:
                    raise not_configured("artifact")
                event = await spill.spill(event, self._services.artifacts, self._session, self._max_bytes)
            prepared.append((event, message))
        return prepared

    async def _append(self, batch: Batch) -> tuple[Appended, asyncio.CancelledError | None]:
        """Appends, repeating while the store does not answer.

        Returns:
            What was stored, and a cancel that came meanwhile: it counts as soon as what was stored is shown.
        """
        cancelled: asyncio.CancelledError | None = None
        retries = iter(APPEND_RETRIES[:1] if self._waited_in_vain else APPEND_RETRIES)
        if self.tokens is not None:
            batch.usage_since = self.tokens.since()
        if self._fence.attempt > 1:
            batch.said = self._said_before(batch.events)
        while True:
            try:
                appended = await stored(self._services.observers, "append", self._store.append(self._fence, batch))
                self._waited_in_vain = False
                if self.tokens is not None and appended.user_usage is not None:
                    self.tokens.learn(appended.user_usage)
                return appended, cancelled
            except asyncio.CancelledError as error:
                # What was stored is recognised and told again: the same append repeated is a no-op.
                cancelled = error
            except Unavailable as error:
                delay = next(retries, None) if error.retryable else None
                if delay is None:
                    self._waited_in_vain = True
                    raise
                try:
                    await asyncio.sleep(delay)
                except asyncio.CancelledError as error:
                    cancelled = error

    def _said_before(self, events: Sequence[Event]) -> dict[str | None, int]:
        """`Batch.said` for a batch of these."""
        said = dict(self._ordinals)
        for event in events:
            said[event.branch] = min(said.get(event.branch, 0), event.ordinal or 0)
        return said

    def _show(self, events: Sequence[Event | None], prepared: Sequence[Said]) -> None:
        live, observers = self._live, self._services.observers
        if observers and events:
            tell(observers, "events_stored", live.record, sum(event is not None for event in events))
        for event, (given, message) in zip(events, prepared, strict=True):
            self._note_calls(given)
            if self.saves is not None:
                self.saves.tell(given)
            if message is not None:
                live.open.pop(message.id, None)
            if event is None:
                continue
            if answers(event):
                live.final = event
            live.publish(event_frame(event), message)

    def _note_calls(self, event: Event) -> None:
        for part in event.content.parts if event.content is not None else ():
            if part.function_call is not None and part.function_call.id:
                self.open_calls[part.function_call.id] = part.function_call.name
            elif part.function_response is not None:
                self.open_calls.pop(part.function_response.id or "", None)


_CLOSING_TRIES = 5

_UNTOLD = RunError("agent.failed", "the run failed, and why could not be stored")

_IDENTITY = ("id", "run_id", "ordinal", "branch", "attempt", "timestamp")


def _left_of(event: Event, message: OpenMessage | None, refused: str | None) -> Said:
    """What is to be stored yet of an event that was not: all of it, or of one that was refused the pieces it stands for."""
    content = message.content() if message is not None else None
    if refused is None or (event.content == content and not event.actions.changes_state):
        return event, message
    cut = event.evolve(
        content=content,
        output=None,
        actions=EventActions(artifact_delta=event.actions.artifact_delta),
        custom_metadata=None,
        long_running_tool_ids=(),
        interrupted=True,
        error_code=refused,
    )
    return cut, message


def _cost_of(event: Event, message: OpenMessage | None) -> Event:
    """An event with nothing but the tokens spent on it."""
    cost = event.evolve(
        content=None, output=None, actions=EventActions(), custom_metadata=None, long_running_tool_ids=(), interrupted=True
    )
    if message is not None:
        message.seal_with(cost)
    return cost


def _failed(error: SojournError) -> Outcome:
    return Outcome(Move.FAIL, RunError.of(error), error)

"""One attempt of one run: drives the agents, and stores what they say before anyone sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import StrEnum
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from sojourn import jsonvalue, platform
from sojourn.agent.base import Agent, AgentCallback
from sojourn.agent.context import Context, not_configured
from sojourn.agent.control import RunPaused
from sojourn.agent.current import CurrentRun, set_current_run
from sojourn.agent.threads import track_calls
from sojourn.content import Content, Part
from sojourn.errors import (
    AgentError,
    Conflict,
    Fenced,
    LimitExceeded,
    NotFound,
    RunCancelled,
    SojournError,
    TimedOut,
    Unavailable,
)
from sojourn.event import ASK_CALL, USER, Event, EventActions
from sojourn.run.config import RunConfig
from sojourn.run.live import LiveRun, OpenMessage
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Appended, Batch, Begun, Fence, Store
from sojourn.run.types import Interrupt, RunError, RunRecord, Step, event_frame, started_frame, terminal_frame
from sojourn.runner import history, spill, transfers
from sojourn.runner.answers import answers
from sojourn.runner.plugins import observe
from sojourn.session.state import State, StateDelta
from sojourn.session.types import SessionKey

if TYPE_CHECKING:
    from sojourn.artifact.service import ArtifactService
    from sojourn.memory.service import MemoryService
    from sojourn.memory.types import Memory
    from sojourn.runner.services import Services

logger = logging.getLogger("sojourn.run")

PIECES_PER_TURN = 64
"""Pieces that an agent may write without awaiting before other tasks get a turn."""

APPEND_RETRIES = (0.0, 0.1, 0.5)
"""Seconds before an append is repeated after the store did not answer. Repeating is safe: what was stored is recognised."""

MESSAGE_FACTOR = 64
"""A message may grow to this multiple of `max_event_bytes` before its agent is stopped."""

_NO_ACTIONS = EventActions()


class Stop(StrEnum):
    """Why an attempt is stopped from outside."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"


class Outcome(NamedTuple):
    """How an attempt ends: the move of its run, the error that is stored, and the exception behind it."""

    move: Move
    error: RunError | None = None
    cause: BaseException | None = None


_COMPLETED = Outcome(Move.COMPLETE)
_SEALING = (Move.FAIL, Move.CANCEL)


class Execution:
    """Executes one attempt.

    It owns the fence: everything the attempt stores goes through `_store`, in order, and nothing does after `finish`.
    """

    def __init__(self, services: Services, begun: Begun, live: LiveRun, ancestors: tuple[SessionKey, ...]) -> None:
        record = begun.record
        self.services = services
        self.store: Store = services.store
        self.live = live
        self.record = record
        self.run_id = record.id
        self.attempt = record.attempt
        self.session = begun.session
        self.user_content = record.message.content or Content("user")
        self.memories: list[Memory] = []
        self.ended = False
        self.config: RunConfig = services.run_config(record)
        self.stop_reason: Stop | None = None
        self.why: str | None = None
        self.finished = False
        self.task: asyncio.Task[None] | None = None
        self.on_timeout: Callable[[], None] = _nothing
        self.thread_calls: set[asyncio.Future[None]] = set()
        self._ancestors = ancestors
        self._fence = Fence(record.uid, record.attempt)
        self._entered = False
        self._timer: asyncio.TimerHandle | None = None
        self._turns = 0
        self._transfers = record.transfers
        self._ordinals: dict[str | None, int] = {None: max(1, record.base_ordinal)}
        self._steps: dict[str, Step] = {s.key: s for s in begun.steps}
        self._steps_done: set[str] = set()
        self._interrupts = {i.key: i for i in begun.interrupts if i.status in ("open", "answered", "expired")}
        self._asked: set[str] = set()
        self._paused = False
        self._open_calls: dict[str, str] = {}
        self._tail: list[tuple[Event, OpenMessage | None]] = []
        self._state = State(dict(begun.session.state))
        self._writing: dict[str, Context] = {}

    # -- from the outside -------------------------------------------------------------------------------------------

    def stop(self, reason: Stop, why: str, after_grace: Callable[[], None]) -> None:
        """Asks the attempt to end: its task gets one CancelledError, and `after_grace` is called if that does not help.

        An attempt that is already ending is left alone; the first reason counts.
        """
        if self.stop_reason is not None or self.finished:
            return
        self.stop_reason = reason
        self.why = why
        self._cancel_timer()
        if self._entered and self.task is not None:
            self.task.cancel()
        self._timer = asyncio.get_running_loop().call_later(self.config.cancel_grace, after_grace)

    def stop_outcome(self) -> Outcome:
        """How a stopped attempt ends."""
        match self.stop_reason:
            case Stop.TIMEOUT:
                error: SojournError = TimedOut(
                    f"run {self.run_id!r} did not finish within {self.config.timeout:g} seconds; raise RunConfig.timeout if it may",
                    code="run.timeout",
                    retryable=False,
                )
                return Outcome(Move.FAIL, RunError.of(error))
            case Stop.CANCEL:
                return Outcome(Move.CANCEL, RunError.of(RunCancelled(self.why or "cancelled")))
            case _:
                if self.record.attached:
                    return Outcome(Move.CANCEL, RunError.of(RunCancelled("its reader's process shut down")))
                return Outcome(Move.REQUEUE)

    async def main(self) -> Outcome | None:
        """Runs the attempt to its end.

        Returns:
            How it ended; None if it was closed from outside before.
        """
        self._entered = True
        set_current_run(CurrentRun(self.run_id, self.record.key, self.attempt, (*self._ancestors, self.record.key)))
        self.thread_calls = track_calls()
        try:
            outcome = await self._work()
        except BaseException as error:
            outcome = self._outcome_of(error)
        if self.thread_calls and self.stop_reason is not None and not self.finished:
            await self._await_threads()
        if self.finished:
            return None
        await self.finish(outcome)
        return outcome

    async def _await_threads(self) -> None:
        # A thread cannot be cancelled; the session's next run may start once it is back or the grace is over.
        try:
            await asyncio.wait(set(self.thread_calls), timeout=self.config.cancel_grace)
        except asyncio.CancelledError:
            pass

    # -- the six steps ----------------------------------------------------------------------------------------------

    async def _work(self) -> Outcome:
        services, config = self.services, self.config
        if self.stop_reason is not None:
            raise asyncio.CancelledError
        if self.attempt == 1:
            self.live.publish(started_frame(self.record))
        if config.timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(config.timeout, self.on_timeout)
        if services.inject_memory(config):
            self.memories = await services.find_memories(self.session, self.user_content, config)
        ctx = self._root_context()
        for hook in services.plugins.before_run:
            if await self._take(ctx, await self._hook(hook, ctx)):
                break
        else:
            await self._drive(ctx)
        return Outcome(Move.WAIT) if self._paused else _COMPLETED

    def _root_context(self) -> Context:
        root = self.services.agent
        name = self.record.agent
        agent = root if name is None else root.find_agent(name) or root
        scope = f"{agent.name}#{self._transfers}" if self._transfers else ""
        return Context(self, agent, self._state, None, scope, None)

    def _outcome_of(self, error: BaseException) -> Outcome:
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if self.stop_reason is None and task is not None and task.cancelling():
                # Nobody asked this run to stop: its event loop is shutting down.
                self.stop_reason = Stop.SHUTDOWN
        if self.stop_reason is not None:
            return self.stop_outcome()
        if isinstance(error, RunPaused):
            return Outcome(Move.WAIT)
        if isinstance(error, SojournError):
            return Outcome(Move.FAIL, RunError.of(error), error)
        logger.error("run %s failed: an agent raised", self.run_id, exc_info=error, extra=self._log_fields())
        message = f"an agent raised {type(error).__name__}; the log of run {self.run_id!r} has the details"
        return Outcome(Move.FAIL, RunError("agent.failed", message), error)

    # -- agents -----------------------------------------------------------------------------------------------------

    async def _drive(self, ctx: Context) -> Context:
        """Runs an agent and those it hands over to, to the end of the last."""
        while True:
            await self._run_agent(ctx)
            name = ctx._transfer
            if name is None or self.ended:
                return ctx
            target = ctx.agent.root_agent.find_agent(name)
            assert target is not None, "checked when the hand-over was asked for"
            scope = f"{target.name}#{self._transfers}"
            if ctx._boundary is not None:
                scope = f"{ctx.scope}/{scope}"
            ctx = Context(self, target, ctx.state, ctx.branch, scope, ctx._boundary)

    async def _run_agent(self, ctx: Context) -> None:
        agent, plugins = ctx.agent, self.services.plugins
        error: BaseException | None = None
        try:
            if not await self._before_agent(ctx):
                produced = agent.run(ctx)
                if hasattr(produced, "__anext__"):
                    await self._consume(ctx, produced)
                else:
                    value = await produced
                    self._raise_if_stopped()
                    if value is not None and not self.ended:
                        await self._return(ctx, value)
            await self._end_agent(ctx)
        except BaseException as e:
            error = e
            if ctx._message is not None:
                code = e.code if isinstance(e, SojournError) else None
                self._tail.append(self._seal(ctx, interrupted=True, error_code=code))
            raise
        finally:
            if plugins.after_agent:
                await observe(plugins.after_agent, ctx, error)

    async def _before_agent(self, ctx: Context) -> bool:
        """Calls what comes before the agent; returns whether that answered in its place."""
        for hook in self.services.plugins.before_agent:
            if await self._take(ctx, await self._hook(hook, ctx)):
                return True
        for callback in ctx.agent.before_agent:
            if await self._take(ctx, await _call(callback, ctx)):
                return True
        return False

    async def _take(self, ctx: Context, said: Any) -> bool:
        """Stores what a hook or callback says; returns whether it said anything."""
        if said is None:
            return False
        await self._commit(ctx, [(self._event(ctx, content=Content.of(said, "model")), None)])
        return True

    async def _hook(self, hook: Callable[..., Any], *args: Any) -> Any:
        """Calls a plugin's hook that may change things; its failure is told as the plugin's."""
        try:
            return await hook(*args)
        except SojournError:
            raise
        except Exception as error:
            name = getattr(hook, "__qualname__", repr(hook))
            logger.exception("run %s failed: %s raised", self.run_id, name, extra=self._log_fields())
            raise AgentError(f"{name} raised {type(error).__name__}", code="plugin.failed") from error

    async def _consume(self, ctx: Context, produced: Any) -> None:
        """Takes what an agent yields, until it ends or hands over, or the run does."""
        live = self.live
        streamed = 0
        try:
            async for item in produced:
                if self.stop_reason is not None or self.ended or self.finished:
                    break
                if type(item) is str:
                    if item:
                        message = ctx._message
                        if message is None:
                            message = self._open(ctx)
                        message.pieces.append((item, False))
                        message.size += len(item)
                        if live._waiters:
                            live.touch()
                        streamed += 1
                        if not streamed % PIECES_PER_TURN:
                            self._check_size(message)
                            await asyncio.sleep(0)
                else:
                    await self._say(ctx, item)
                if ctx._transfer is not None:
                    break
        finally:
            await self._close(produced)
        self._raise_if_stopped()

    async def _close(self, produced: Any) -> None:
        aclose = getattr(produced, "aclose", None)
        if aclose is None:
            return
        try:
            await aclose()
        except RuntimeError as error:
            # It yielded again instead of ending; what it yields after the end is not taken.
            logger.warning("run %s: an agent went on after it was closed: %s", self.run_id, error, extra=self._log_fields())

    def _raise_if_stopped(self) -> None:
        # An agent that swallowed the CancelledError has come to its end all the same.
        if self.stop_reason is not None or self.finished:
            raise asyncio.CancelledError

    async def _say(self, ctx: Context, item: Any) -> None:
        """Stores something that was yielded; returns when it is durable."""
        if isinstance(item, Event) and item.run_id == self.run_id and item.seq is not None:
            return  # An event of this run that is stored already, yielded again by an agent that passes on another's.
        if isinstance(item, str):
            self._add(ctx, str(item), False)
            return
        if isinstance(item, Event) and item.partial:
            for part in item.content.parts if item.content else ():
                if part.text:
                    self._add(ctx, part.text, part.thought)
            return
        if isinstance(item, Content):
            said: dict[str, Any] = {"content": item}
        elif isinstance(item, Event):
            said = _said_fields(item)
        else:
            raise AgentError(
                f"agent {ctx.agent_name!r} yielded {_shown(item)}; yield str, Content or Event, or return a value from an async function",
                code="agent.bad_yield",
            )
        events = []
        if ctx._message is not None:
            events.append(self._seal(ctx, own_actions=False))
        events.append((self._event(ctx, **said), None))
        await self._commit(ctx, events)

    def _add(self, ctx: Context, text: str, thought: bool) -> None:
        if not text:
            return
        message = ctx._message or self._open(ctx)
        message.add(text, thought)
        self._check_size(message)
        if self.live._waiters:
            self.live.touch()

    def _check_size(self, message: OpenMessage) -> None:
        if message.size > self.config.max_event_bytes * MESSAGE_FACTOR:
            raise LimitExceeded(
                f"a message of run {self.run_id!r} has grown beyond {self.config.max_event_bytes * MESSAGE_FACTOR} characters",
                code="event.too_large",
                retryable=False,
            )

    async def _return(self, ctx: Context, value: Any) -> None:
        """Takes an async function's return value as the agent's last event."""
        if isinstance(value, str):
            if value:
                ctx._message = message = OpenMessage(platform.new_id(), self.run_id, ctx.agent_name, ctx.branch)
                message.add(str(value))
        elif isinstance(value, Content | Event):
            await self._say(ctx, value)
        else:
            try:
                output = jsonvalue.copy(value, where="the return value")
            except SojournError as error:
                raise AgentError(
                    f"agent {ctx.agent_name!r} returned {_shown(value)}: {error.message}", code="agent.bad_yield"
                ) from None
            await self._commit(ctx, [(self._event(ctx, output=output), None)])

    async def _end_agent(self, ctx: Context) -> None:
        """Seals what is left, and calls what comes after the agent."""
        agent = ctx.agent
        last: list[tuple[Event, OpenMessage | None]] = []
        if ctx._message is not None:
            last.append(self._seal(ctx))
        elif ctx._transfer is not None or ctx._actions is not None or ctx._artifact_delta:
            last.append((self._event(ctx), None))
        observed = agent.after_agent or self.services.plugins.after_agent
        if ctx._boundary is None and ctx._transfer is None and not observed:
            # The run ends here: the last message and the end are one append.
            self._tail.extend(last)
            return
        if last:
            await self._commit(ctx, last)
        for callback in agent.after_agent:
            if await self._take(ctx, await _call(callback, ctx)):
                break

    async def run_child(self, ctx: Context, agent: Agent, branch: str | None) -> Any:
        if self.ended:
            return None
        if ctx._message is not None:
            await self._commit(ctx, [self._seal(ctx)])
        if ctx._children is None:
            ctx._children = {}
        count = ctx._children[agent.name] = ctx._children.get(agent.name, 0) + 1
        scope = ctx.path(f"{agent.name}@{count}")
        state, path = ctx.state, ctx.branch
        if branch is not None:
            state = ctx.state.overlay()
            path = f"{ctx.branch}.{branch}" if ctx.branch else branch
        child = Context(self, agent, state, path, scope, agent)
        try:
            last = await self._drive(child)
        finally:
            if branch is not None:
                ctx.state.join(state)
        if child._escalated or last._escalated:
            ctx._escalated = True
        return last._output

    # -- events -----------------------------------------------------------------------------------------------------

    def _open(self, ctx: Context) -> OpenMessage:
        message = ctx._message = OpenMessage(platform.new_id(), self.run_id, ctx.agent_name, ctx.branch)
        self.live.open[message.id] = message
        self._writing[message.id] = ctx
        return message

    def _seal(
        self, ctx: Context, *, interrupted: bool = False, error_code: str | None = None, own_actions: bool = True
    ) -> tuple[Event, OpenMessage | None]:
        """The open message as an event."""
        message = ctx._message
        assert message is not None
        ctx._message = None
        streamed = self._writing.pop(message.id, None) is not None
        event = self._event(
            ctx,
            id=message.id,
            content=message.content(),
            interrupted=interrupted,
            error_code=error_code,
            own_actions=own_actions,
        )
        return event, message if streamed else None

    def _event(self, ctx: Context, *, own_actions: bool = True, **fields: Any) -> Event:
        """An event of the agent's, with its identity; what the agent set for its next event goes with it."""
        ordinal = self._ordinals.get(ctx.branch, 1)
        self._ordinals[ctx.branch] = ordinal + 1
        fields.setdefault("author", ctx.agent_name)
        fields.setdefault("id", "")
        actions: EventActions | None = fields.pop("actions", None)
        event = Event(
            run_id=self.run_id,
            timestamp=platform.now(),
            branch=ctx.branch,
            ordinal=ordinal,
            attempt=self.attempt,
            actions=self._actions(ctx, actions, own_actions),
            **{**fields, "id": fields["id"] or platform.new_id()},
        )
        if not event.interrupted and (event.output is not None or event.content is not None):
            ctx._output = event.output if event.output is not None else event.text or None
        return event

    def _actions(self, ctx: Context, given: EventActions | None, own: bool) -> EventActions:
        """Joins the actions of a yielded event with the pending ones of the context."""
        pending = ctx.state.take()
        if given is None and pending is None and ctx._actions is None and ctx._artifact_delta is None and ctx._transfer is None:
            return _NO_ACTIONS
        fields: dict[str, Any] = {}
        if own and ctx._actions is not None:
            fields.update((name, getattr(ctx._actions, name)) for name in ctx._actions.model_fields_set)
            ctx._actions = None
        delta = pending or StateDelta()
        if given is not None:
            fields.update((name, getattr(given, name)) for name in given.model_fields_set)
            if given.changes_state:
                own_delta = StateDelta.of(given)
                ctx.state.apply(own_delta)
                for key, value in own_delta.values.items():
                    delta.put(key, value)
                for key in own_delta.deleted:
                    delta.delete(key)
                for key, by in own_delta.increments.items():
                    delta.increment(key, by)
            for name in ("state_delta", "state_deleted", "state_increments"):
                fields.pop(name, None)
            if given.escalate:
                ctx._escalated = True
            if given.transfer_to_agent is not None:
                ctx.transfer_to(given.transfer_to_agent)
        if delta:
            ctx.state.stored(delta)
            fields.update(delta.durable().as_actions())
        if ctx._artifact_delta is not None:
            fields["artifact_delta"] = {**fields.get("artifact_delta", {}), **ctx._artifact_delta}
            ctx._artifact_delta = None
        if own and ctx._transfer is not None:
            fields["transfer_to_agent"] = ctx._transfer
        return EventActions(**fields) if fields else _NO_ACTIONS

    # -- storing ----------------------------------------------------------------------------------------------------

    async def _commit(
        self,
        ctx: Context,
        events: Sequence[tuple[Event, OpenMessage | None]],
        *,
        steps: Sequence[Step] = (),
        interrupts: Sequence[Interrupt] = (),
    ) -> None:
        """Stores events and what goes with them, then shows them."""
        if self.finished:
            raise asyncio.CancelledError
        pending = [*self._tail, *events]
        self._tail.clear()
        prepared = await self._prepare(ctx, pending)
        target = events[-1][0].actions.transfer_to_agent if events else None
        # Only the run's own agent is recorded: one that runs inside of another starts again with that.
        agent = target if ctx._boundary is None else None
        appended, cancelled = await self._append(Batch([e for e, _ in prepared], list(steps), list(interrupts), agent=agent))
        if target is not None:
            self._transfers += 1
        self._show(appended.events, prepared)
        if cancelled is not None and self.stop_reason is None:
            raise cancelled
        self._raise_if_stopped()

    async def _prepare(
        self, ctx: Context | None, pending: list[tuple[Event, OpenMessage | None]]
    ) -> list[tuple[Event, OpenMessage | None]]:
        """Lets plugins see the events and moves what is too large for one to artifacts."""
        hooks = self.services.plugins.on_event
        prepared = []
        for given, message in pending:
            event = given
            for hook in hooks:
                replaced = await self._hook_event(hook, ctx, event)
                if replaced is not None:
                    event = replaced.evolve(
                        **{n: getattr(event, n) for n in ("id", "run_id", "ordinal", "branch", "attempt", "timestamp")}
                    )
            if spill.is_large(event, self.config.max_event_bytes):
                event = await spill.spill(event, self.artifact_service(), self.session, self.config.max_event_bytes)
            prepared.append((event, message))
        return prepared

    async def _hook_event(self, hook: Callable[..., Any], ctx: Context | None, event: Event) -> Event | None:
        try:
            replaced: Event | None = await hook(ctx, event)
        except Exception as error:
            if self.finished or ctx is None:
                # The run is ending: what it has said must not be lost to a plugin.
                logger.exception("plugin hook on_event failed at the end of run %s", self.run_id, extra=self._log_fields())
                return None
            raise AgentError(
                f"{getattr(hook, '__qualname__', hook)} raised {type(error).__name__}", code="plugin.failed"
            ) from error
        return replaced

    async def _append(self, batch: Batch) -> tuple[Appended, asyncio.CancelledError | None]:
        """Appends, repeating while the store does not answer.

        Returns:
            What was stored, and a cancel that came meanwhile: it counts as soon as what was stored is shown.
        """
        cancelled: asyncio.CancelledError | None = None
        retries = iter(APPEND_RETRIES)
        while True:
            try:
                return await self.store.append(self._fence, batch), cancelled
            except asyncio.CancelledError as error:
                # What was stored is recognised and told again: the same append repeated is a no-op.
                cancelled = error
            except Unavailable:
                delay = next(retries, None)
                if delay is None:
                    raise
                try:
                    await asyncio.sleep(delay)
                except asyncio.CancelledError as error:
                    cancelled = error

    def _show(self, stored: Sequence[Event | None], prepared: Sequence[tuple[Event, OpenMessage | None]]) -> None:
        live = self.live
        for event, (given, message) in zip(stored, prepared, strict=True):
            for call in given.get_function_calls():
                if call.id:
                    self._open_calls[call.id] = call.name
            for response in given.get_function_responses():
                self._open_calls.pop(response.id or "", None)
            if message is not None:
                live.open.pop(message.id, None)
            if event is None:
                continue
            if answers(event):
                live.final = event
            live.publish(event_frame(event), message)

    # -- the end ----------------------------------------------------------------------------------------------------

    async def finish(self, outcome: Outcome) -> None:
        """Stores how the attempt ended and shows it; nothing of the attempt is taken afterwards."""
        self.finished = True
        self._cancel_timer()
        for ctx in list(self._writing.values()):
            self._tail.append(self._seal(ctx, interrupted=True))
        if outcome.move in _SEALING and self._open_calls:
            self._tail.append((self._sealed_calls(outcome), None))
        events = list(self._tail)
        self._tail.clear()
        self.live.cause = outcome.cause
        try:
            await self._close_run(outcome, events)
        except Fenced as error:
            await self._fenced(error)
        except Unavailable as error:
            self.live.failure = error
            self.live.end()
            raise

    async def _close_run(self, outcome: Outcome, events: list[tuple[Event, OpenMessage | None]]) -> None:
        """Makes the run's last append. What cannot be stored fails the run; the run is closed all the same."""
        left = self._state.take() if outcome.move is Move.COMPLETE else None
        ordinals = dict(self._ordinals) if self.attempt > 1 else None
        while True:
            try:
                prepared = await self._prepare(None, events)
            except SojournError as error:
                events, left, outcome = [], None, Outcome(Move.FAIL, RunError.of(error), error)
                continue
            batch = Batch([e for e, _ in prepared], state=left, move=outcome.move, error=outcome.error, live=ordinals)
            try:
                appended, _ = await self._append(batch)
            except (Fenced, Unavailable):
                raise
            except SojournError as error:
                if left is None:
                    events = []
                left, outcome = None, Outcome(Move.FAIL, RunError.of(error), error)
                self.live.cause = error
                continue
            self._show(appended.events, prepared)
            self.conclude(appended.record)
            return

    def conclude(self, record: RunRecord) -> None:
        """Shows the end of the attempt as the store has it."""
        self.record = self.live.record = record
        if record.status.terminal:
            self.live.publish(terminal_frame(record))
        if record.status is not RunStatus.QUEUED:
            self.live.end()

    async def _fenced(self, error: Fenced) -> None:
        """The run was closed over this attempt's head: tells what the store says of it."""
        try:
            record = await self.store.get_run(self.record.app_name, self.run_id, self.record.user_id)
        except NotFound:
            self.live.failure = NotFound(
                f"session {self.record.key} was deleted while run {self.run_id!r} was executing", code="session.deleted"
            )
            self.live.end()
            return
        if record.status.terminal:
            # Readers find in the store what this process does not know of.
            self.live.frames.clear()
            self.live.first_pos = record.last_pos
            self.conclude(record)
        else:
            self.live.failure = error
            self.live.end()

    def _sealed_calls(self, outcome: Outcome) -> Event:
        code = outcome.error.code if outcome.error is not None else "run.cancelled"
        parts = tuple(
            Part.from_function_response(name, {"error": code}, id=call_id) for call_id, name in self._open_calls.items()
        )
        ordinal = self._ordinals[None]
        self._ordinals[None] = ordinal + 1
        return Event(
            id=platform.new_id(),
            run_id=self.run_id,
            author=USER,
            timestamp=platform.now(),
            content=Content("user", parts),
            ordinal=ordinal,
            attempt=self.attempt,
        )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _log_fields(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "session_id": self.record.session_id, "user_id": self.record.user_id}

    # -- what a context asks for ------------------------------------------------------------------------------------

    def count_turn(self, ctx: Context) -> None:
        self._turns += 1
        if self._turns > self.config.max_turns:
            raise LimitExceeded(
                f"run {self.run_id!r} has made {self.config.max_turns} model calls, the limit; raise RunConfig.max_turns if that "
                "is intended",
                code="run.max_turns",
                retryable=False,
            )

    def check_transfer(self, ctx: Context, name: str) -> None:
        transfers.check(ctx, name, ctx._boundary, self._transfers, self.config.max_transfers, self.services.transfer_policy)

    async def step(self, ctx: Context, key: str, fn: Callable[[], Any]) -> Any:
        path = ctx.path(key)
        if path in self._steps_done:
            raise Conflict(
                f"step {path!r} was done before in this attempt; give each step of an agent a key of its own",
                code="step.duplicate_key",
            )
        self._steps_done.add(path)
        known = self._steps.get(path)
        if known is not None and known.status == "done":
            return jsonvalue.copy(known.result)
        plugins = self.services.plugins
        for hook in plugins.before_step:
            await self._hook(hook, ctx, key)
        started = platform.now()
        error: BaseException | None = None
        try:
            result = fn()
            if isawaitable(result):
                result = await result
            result = jsonvalue.copy(result, where=f"the result of step {path!r}")
        except BaseException as e:
            error = e
            if isinstance(e, Exception):
                failure = RunError.of(e) if isinstance(e, SojournError) else RunError("step.failed", f"{type(e).__name__}: {e}")
                step = Step(path, "failed", None, failure, self.attempt, started, platform.now())
                await self._commit(ctx, [], steps=[step])
            raise
        else:
            await self._commit(ctx, [], steps=[Step(path, "done", result, None, self.attempt, started, platform.now())])
        finally:
            if plugins.after_step:
                await observe(plugins.after_step, ctx, key, error)
        return jsonvalue.copy(result)

    async def ask(
        self, ctx: Context, key: str, digest: str, prompt: Any, schema: dict[str, Any] | None, expires: float | None
    ) -> Any:
        path = ctx.path(key)
        if path in self._asked:
            raise Conflict(
                f"question {path!r} was asked before in this attempt; give each question of an agent a key of its own",
                code="interrupt.duplicate_key",
            )
        self._asked.add(path)
        prompt = jsonvalue.copy(prompt, where="prompt")
        known = self._interrupts.get(path)
        new: list[Interrupt] = []
        if known is None or known.digest != digest or known.status not in ("open", "answered"):
            now = platform.now()
            known = Interrupt(
                id=platform.new_id(), key=path, digest=digest, prompt=prompt, schema=schema, created_at=now,
                expires_at=None if expires is None else now + expires,
            )  # fmt: skip
            self._interrupts[path] = known
            new.append(known)
        # A known question is said again: the store recognises it, or puts it where this attempt says it.
        args = {"key": key, "message": prompt, **({"response_schema": schema} if schema is not None else {})}
        content = Content("model", (Part.from_function_call(ASK_CALL, args, id=known.id),))
        events = [self._seal(ctx, own_actions=False)] if ctx._message is not None else []
        events.append((self._event(ctx, content=content, long_running_tool_ids=(known.id,)), None))
        await self._commit(ctx, events, interrupts=new)
        if known.status == "answered":
            self._open_calls.pop(known.id, None)
            return jsonvalue.copy(known.answer)
        self._paused = True
        raise RunPaused

    async def history(self, ctx: Context, limit: int | None) -> list[Event]:
        app, user, session = self.record.key
        found = await self.store.history(self.record.key, limit)
        waiting: set[str] = set()
        if any(e.long_running_tool_ids for e in (*found.pinned, *found.events)):
            waiting = {i.id for i in await self.store.list_interrupts(app, user_id=user, session_id=session)}
        seen = history.visible_to(ctx.branch)

        def keep(event: Event) -> bool:
            # What an earlier attempt said after this point has not been said yet by this one.
            ahead = (
                event.run_id == self.run_id
                and event.ordinal is not None
                and event.ordinal >= self._ordinals.get(event.branch, 1)
            )
            return seen(event) and not ahead

        return history.arrange(found, waiting, keep)

    def artifact_service(self) -> ArtifactService:
        service = self.services.artifacts
        if service is None:
            raise not_configured("artifact")
        return service

    def memory_service(self) -> MemoryService:
        service = self.services.memory
        if service is None:
            raise not_configured("memory")
        return service


def _nothing() -> None:
    """Nobody wants to know."""


async def _call(callback: AgentCallback, ctx: Context) -> Any:
    said = callback(ctx)
    return await said if isawaitable(said) else said


def _said_fields(event: Event) -> dict[str, Any]:
    """What a yielded event says; its identity and numbers are the runner's."""
    fields: dict[str, Any] = {
        name: getattr(event, name)
        for name in ("content", "output", "long_running_tool_ids", "usage_metadata", "custom_metadata", "error_code",
                     "error_message", "interrupted", "turn_complete")
        if name in event.model_fields_set
    }  # fmt: skip
    if event.author and event.author != USER:
        fields["author"] = event.author
    if event.actions.model_fields_set:
        fields["actions"] = event.actions
    return fields


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'…' if len(text) > 80 else ''}"

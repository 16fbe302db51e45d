"""One attempt of one run: drives the agents, and stores what they say before anyone sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from sojourn import jsonvalue
from sojourn.agents.base import PIECES_PER_TURN, Agent, AgentCallback, Whole
from sojourn.agents.context import Context, not_configured
from sojourn.agents.control import RunPaused
from sojourn.agents.current import CurrentRun, Lineage, set_current_run
from sojourn.agents.live import LiveInput, LiveRequestQueue
from sojourn.agents.question import Question
from sojourn.agents.threads import track_calls
from sojourn.content import Content, Part
from sojourn.errors import (
    AgentError,
    Fenced,
    NotFound,
    SojournError,
    Unavailable,
    Unsupported,
)
from sojourn.event import CallDelta, Event, Thought
from sojourn.run.config import RunConfig
from sojourn.run.live import PIECE_OVERHEAD, LiveRun
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Begun, Store
from sojourn.run.types import Interrupt, RunRecord, Step, terminal_frame
from sojourn.runner.attempt import history, transfers
from sojourn.runner.attempt.children import ChildRun, child_context
from sojourn.runner.attempt.ending import Stop, outcome_of_error, outcome_of_stop
from sojourn.runner.attempt.intake import Intake
from sojourn.runner.attempt.journal import Journal
from sojourn.runner.attempt.log import AttemptLog, Outcome, Said
from sojourn.runner.attempt.saves import Saves
from sojourn.runner.attempt.speech import Speech, shown
from sojourn.runner.attempt.turns import check_tokens, check_turns
from sojourn.runner.attempt.unwinding import runs_in, unwind
from sojourn.runner.bounds import check_left_state
from sojourn.runner.lending import HeldSlot, set_held_slot
from sojourn.runner.observe import agent_span
from sojourn.runner.plugins import change, observe
from sojourn.session.state import State, StateDelta

if TYPE_CHECKING:
    from sojourn.artifact.service import ArtifactService
    from sojourn.memory.service import MemoryService
    from sojourn.memory.types import Memory
    from sojourn.runner.services import Services

_COMPLETED = Outcome(Move.COMPLETE)


class Execution:
    """Executes one attempt.

    It owns the fence: everything the attempt stores goes through its `AttemptLog`, in order, and nothing does after `finish`.

    Args:
        services: What the executions of its Runner share.
        begun: The attempt.
        live: Where its frames are shown.
        lineage: The runs that wait for what its agents start, itself included.
        root: The root agent; None for a run that is only to be closed.
        temp_state: `temp:` keys that it finds set.
        queue: What the user sends meanwhile, if the run is live.
    """

    def __init__(
        self,
        services: Services,
        begun: Begun,
        live: LiveRun,
        lineage: Lineage,
        root: Agent | None,
        temp_state: Mapping[str, Any],
        queue: LiveRequestQueue | None = None,
    ) -> None:
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
        # Whether the run was closed or deleted over this attempt's head: no event can tell what it still saves.
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self.on_timeout: Callable[[], None] = _nothing
        self.tearing_down: Callable[[], bool] = bool
        self.thread_calls: set[asyncio.Future[None]] = set()
        self.root_name = root.name if root is not None else "agent"
        self._root = root
        self._lineage = lineage
        self._slot = HeldSlot(lineage.limiters)
        self._entered = False
        self._timer: asyncio.TimerHandle | None = None
        self._turns = 0
        self._handovers = self._transfers = record.transfers
        self._paused = False
        self._speech = Speech(live, record, self.config.max_event_bytes)
        author, ordinals = record.agent or self.root_name, self._speech.ordinals
        self._log = AttemptLog(services, live, record, begun.session, self.config, author, ordinals)
        self._journal = Journal(begun, services.plugins, self.config.max_event_bytes)
        self._state = State({**begun.session.state, **temp_state})
        self._intake = Intake(queue, services, self.config, live, self._log, self._speech) if queue is not None else None

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
        return outcome_of_stop(self.stop_reason, self.why, self.record, self.config)

    async def main(self) -> Outcome | None:
        """Runs the attempt to its end.

        Returns:
            How it ended; None if it was closed from outside before.
        """
        self._entered = True
        set_current_run(CurrentRun(self.run_id, self.record.key, self.attempt, self._lineage))
        set_held_slot(self._slot)
        self.thread_calls = track_calls()
        try:
            outcome = await self._work()
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not runs_in(self.task):
                # The event loop is gone and this task is garbage: nothing can be stored, the run is found again as lost.
                self.finished = self._log.closed = True
                raise
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
        if config.timeout is not None:
            self._timer = asyncio.get_running_loop().call_later(config.timeout, self.on_timeout)
        if self._log.tokens is not None:
            await self._log.tokens.refresh()
        if self.attempt > 1:
            await self._resume()
        if self.record.retry_of is not None and services.ingest is not None:
            # First of all: the agent must not be shown as a memory what the run takes the place of.
            await services.ingest.drop_superseded(self.record)
        if services.inject_memory(config):
            self.memories = await services.find_memories(self.session, self.user_content, config)
        ctx = self._root_context()
        if self._intake is not None:
            self._intake.start(ctx)
        for hook in services.plugins.before_run:
            if await self._take(ctx, await change(hook, ctx)):
                break
        else:
            await self._drive(ctx)
        if self._intake is not None:
            await self._intake.finish()
        if self._paused:
            return Outcome(Move.WAIT)
        if self._state.pending:
            check_left_state(self.run_id, self._state.pending, config.max_event_bytes)
        return _COMPLETED

    async def _resume(self) -> None:
        """Finds out what earlier attempts have said that counts."""
        after = 0
        while events := await self.store.run_events(self.record.uid, after=after):
            self._speech.resume(e for e in events if not e.superseded)
            after = events[-1].pos or 0

    def _root_context(self) -> Context:
        root = self._root
        assert root is not None, "a run without an agent is only closed"
        name = self.record.agent
        agent = root if name is None else root.find_agent(name) or root
        scope = f"{agent.name}#{self._handovers}" if self._handovers else ""
        self._turns = self._journal.turns_over(scope)
        return Context(self, agent, self._state, None, scope, None)

    def _outcome_of(self, error: BaseException) -> Outcome:
        if isinstance(error, asyncio.CancelledError) and self.stop_reason is None and self.tearing_down():
            self.stop_reason = Stop.SHUTDOWN
        if self.stop_reason is not None:
            return self.stop_outcome()
        return outcome_of_error(error, self.record)

    # -- agents -----------------------------------------------------------------------------------------------------

    async def _drive(self, ctx: Context) -> Context:
        """Runs an agent and those it hands over to, to the end of the last."""
        start, hops = ctx.scope, 0
        while True:
            if hops or ctx._boundary is not None:
                with agent_span(self.record, ctx.agent_name):
                    await self._run_agent(ctx)
            else:
                await self._run_agent(ctx)
            name = ctx._transfer
            if name is None or self.ended:
                return ctx
            target = ctx.agent.root_agent.find_agent(name)
            assert target is not None, "checked when the hand-over was asked for"
            hops += 1
            # A later attempt starts with the agent that has the run: its path counts what is recorded, nothing else.
            scope = f"{target.name}#{self._handovers}" if ctx._boundary is None else f"{start}/{target.name}#{hops}"
            ctx = Context(self, target, ctx.state, ctx.branch, scope, ctx._boundary)

    async def _run_agent(self, ctx: Context) -> None:
        agent, plugins = ctx.agent, self.services.plugins
        error: BaseException | None = None
        try:
            returned: Said | None = None
            if not await self._before_agent(ctx):
                produced = agent.run(ctx)
                if hasattr(produced, "__anext__"):
                    await self._consume(ctx, produced)
                else:
                    value = await produced if isawaitable(produced) else produced
                    self._raise_if_stopped(ctx)
                    if value is not None and not self.ended:
                        returned = self._speech.returned(ctx, value)
            await self._end_agent(ctx, returned)
        except BaseException as e:
            error = e
            if ctx._message is not None:
                code = e.code if isinstance(e, SojournError) else None
                self._log.tail.append(self._speech.seal(ctx, interrupted=True, error_code=code))
            elif ctx._spent is not None:
                self._log.tail.append((self._speech.event(ctx, interrupted=True), None))
            raise
        finally:
            if plugins.after_agent:
                await observe(plugins.after_agent, ctx, error)
            # An exception that its own frame holds would keep all that the agent's frames hold.
            error = None

    async def _before_agent(self, ctx: Context) -> bool:
        """Calls what comes before the agent; returns whether that answered in its place."""
        for hook in self.services.plugins.before_agent:
            if await self._take(ctx, await change(hook, ctx)) or ctx._transfer is not None:
                return True
        for callback in ctx.agent.before_agent:
            if await self._take(ctx, await _call(callback, ctx)) or ctx._transfer is not None:
                return True
        return False

    async def _take(self, ctx: Context, said: Any) -> bool:
        """Stores what a hook or callback says; returns whether it said anything."""
        if said is None:
            return False
        await self._commit(ctx, [(self._speech.event(ctx, content=Content.of(said, "model")), None)])
        return True

    async def _consume(self, ctx: Context, produced: Any) -> None:
        """Takes what an agent yields, until it ends or hands over, or the run does."""
        live = self.live
        taken = 0
        task = asyncio.current_task()
        taken_from = produced if self._intake is None else self._intake.hear(ctx, produced)
        try:
            async for item in taken_from:
                if self.stop_reason is not None or self.ended or ctx._paused:
                    break
                if type(item) is str:
                    if item:
                        message = ctx._message
                        if message is None:
                            message = self._speech.open(ctx)
                        message.pieces.append((item, False))
                        message.size += len(item) + PIECE_OVERHEAD
                        if live._waiters:
                            live.touch()
                        else:
                            live.changes += 1
                else:
                    await self._say(ctx, item)
                taken += 1
                if not taken % PIECES_PER_TURN:
                    if ctx._message is not None:
                        self._speech.check_size(ctx._message)
                    await asyncio.sleep(0)
                if ctx._transfer is not None:
                    break
            else:
                produced = None
        finally:
            if produced is not None:
                await unwind(produced, task, self.record)
        self._raise_if_stopped(ctx)

    def _raise_if_stopped(self, ctx: Context) -> None:
        # An agent that swallowed what was to unwind it has come to its end all the same.
        if self.stop_reason is not None or self.finished:
            raise asyncio.CancelledError
        if ctx._paused:
            raise RunPaused

    async def _say(self, ctx: Context, item: Any) -> None:
        """Takes something that was yielded and is not plain text; returns when it is durable."""
        speech = self._speech
        if isinstance(item, str):
            speech.add(ctx, str(item), thought=isinstance(item, Thought))
        elif isinstance(item, CallDelta) and _is_text(item.id, item.name, item.args):
            speech.add(ctx, item)
        elif isinstance(item, Event) and item.partial:
            speech.add_partial(ctx, item)
        elif isinstance(item, Content | Event):
            if isinstance(item, Event) and item.run_id == self.run_id and item.seq is not None:
                return  # An event of this run that is stored already: an agent passes on what another one said.
            events = [speech.seal(ctx, own_actions=False)] if ctx._message is not None else []
            try:
                events.append(speech.said(ctx, item))
            except BaseException:
                # It is refused, but not what was said before it.
                self._log.tail.extend(events)
                raise
            await self._commit(ctx, events)
        elif isinstance(item, Whole) and isinstance(item.event, Event):
            await self._commit(ctx, [speech.whole(ctx, item.event)])
        else:
            raise AgentError(
                f"agent {ctx.agent_name!r} yielded {shown(item)}; yield str, Content, Event, Whole of an event or CallDelta of "
                "text, or return a value from an async function",
                code="agent.bad_yield",
            )

    async def _commit(self, ctx: Context, events: Sequence[Said], interrupts: Sequence[Interrupt] = ()) -> None:
        """Stores and shows events; notes a hand-over that the last of them tells of."""
        target = events[-1][0].actions.transfer_to_agent
        # Only the run's own agent is recorded: one that runs inside of another starts again with that.
        agent = target if ctx._boundary is None else None
        await self._log.commit(ctx, events, interrupts=interrupts, agent=agent)
        if target is not None:
            self._transfers += 1
            self._handovers += agent is not None
        if self.stop_reason is not None:
            raise asyncio.CancelledError

    async def _record_steps(self, ctx: Context, steps: Sequence[Step]) -> None:
        await self._log.commit(ctx, (), steps=steps)
        if self.stop_reason is not None:
            raise asyncio.CancelledError

    async def _keep_steps(self, ctx: Context, steps: Sequence[Step]) -> None:
        self._log.keep_steps(steps)
        if self.stop_reason is not None:
            raise asyncio.CancelledError

    async def _end_agent(self, ctx: Context, returned: Said | None) -> None:
        """Seals what is left, and calls what comes after the agent."""
        callbacks = ctx.agent.after_agent
        if self.ended and not ctx._transfer_told:
            ctx._transfer = None
        last = [self._speech.seal(ctx)] if ctx._message is not None else []
        if returned is not None:
            last.append(returned)
        elif not last and ctx.has_actions():
            last.append((self._speech.event(ctx), None))
        plugins = self.services.plugins
        if ctx._boundary is None and ctx._transfer is None and not (callbacks or plugins.after_agent or plugins.on_event):
            # The run ends here: the last message and the end are one append.
            self._log.tail.extend(last)
            return
        if last:
            await self._commit(ctx, last)
        for callback in callbacks:
            if await self._take(ctx, await _call(callback, ctx)):
                break
        if ctx.has_actions():
            await self._commit(ctx, [(self._speech.event(ctx), None)])

    def run_child(self, ctx: Context, agent: Agent, branch: str | None) -> Awaitable[Any]:
        """See `Context.run_agent`."""
        return ChildRun(self.run_inside, ctx, child_context(ctx, agent, branch))

    async def run_inside(self, ctx: Context, child: Context) -> Any:
        """Runs an agent inside of another one's context."""
        if self.ended:
            return None
        if ctx._message is not None:
            await self._commit(ctx, [self._speech.seal(ctx)])
        try:
            last = await self._drive(child)
        finally:
            if child.state is not ctx.state:
                ctx.state.join(child.state)
        if child._escalated or last._escalated:
            ctx._escalated = True
        return last._output

    # -- the end ----------------------------------------------------------------------------------------------------

    async def finish(self, outcome: Outcome) -> None:
        """Stores how the attempt ended and shows it; nothing of the attempt is taken afterwards.

        Raises:
            Unavailable: The store is away; readers have been told.
        """
        self.finished = self._log.closed = True
        self._cancel_timer()
        if self._intake is not None:
            await self._intake.stop()
        self._slot.withdraw()
        log = self._log
        if self.gone or outcome.move in (Move.WAIT, Move.REQUEUE):
            # Nothing more is stored; or the agent runs again from its input and says again what it had not finished.
            log.tail.clear()
        else:
            log.tail.extend(self._speech.interrupt_all())
        if outcome.move in (Move.FAIL, Move.CANCEL) and log.has_open_calls():
            ordinal = self._speech.ordinals[None]
            self._speech.ordinals[None] = ordinal + 1
            log.seal_calls(self.run_id, outcome.error.code if outcome.error else "run.cancelled", ordinal, self.attempt)
        left = self._state.take() if outcome.move is Move.COMPLETE else None
        if self.record.deaths and log.saves is None and self.services.artifacts is not None:
            log.saves = Saves(self.services.artifacts, self.session, self.record)
        if log.saves is not None:
            await log.saves.find_unknown(self.store)
        try:
            await self._close_run(outcome, left)
        except Unavailable as error:
            self.live.failure = error
            self.live.end()
            raise

    async def _close_run(self, outcome: Outcome, left: StateDelta | None) -> None:
        # Only an agent that came to its own end has left out what an earlier attempt said after that.
        complete = self.attempt > 1 and outcome.move in (Move.COMPLETE, Move.WAIT)
        try:
            record, outcome = await self._log.close(outcome, left, complete=complete)
        except Fenced as error:
            await self._fenced(error)
        else:
            self.live.cause = outcome.cause
            self.conclude(record)

    def conclude(self, record: RunRecord) -> None:
        """Shows the end of the attempt as the store has it, if that is the run's end."""
        self.record = self.live.record = record
        if record.status.terminal:
            self.live.publish_last(terminal_frame(record))
            self.live.end()

    async def _fenced(self, error: Fenced) -> None:
        """The run was closed over this attempt's head, or its own last append is repeated: tells what the store says."""
        try:
            record = await self.store.get_run(self.record.app_name, self.run_id, self.record.user_id)
        except NotFound:
            self.live.failure = NotFound(
                f"session {self.record.key} was deleted while run {self.run_id!r} was executing", code="session.deleted"
            )
            self.live.end()
            return
        if record.status.terminal or (record.attempt == self.attempt and record.status is not RunStatus.RUNNING):
            self.conclude(record)
        else:
            self.live.failure = error
            self.live.end()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- what a context asks for ------------------------------------------------------------------------------------

    def live_input(self) -> LiveInput:
        """See `Context.live`."""
        if self._intake is None:
            raise Unsupported(
                f"run {self.run_id!r} is not live, so that nothing can be sent to it; start it with Runner.run_live",
                code="live.not_live",
            )
        return self._intake.input

    def write(self, ctx: Context, piece: str | CallDelta) -> None:
        """See `Context.write`."""
        if self._intake is not None and not self._intake.takes(ctx, piece):
            return
        if isinstance(piece, str):
            self._speech.add(ctx, str(piece), thought=isinstance(piece, Thought))
        elif isinstance(piece, CallDelta) and _is_text(piece.id, piece.name, piece.args):
            self._speech.add(ctx, piece)
        else:
            raise AgentError(
                f"agent {ctx.agent_name!r} wrote {shown(piece)}; write str, or a CallDelta whose id, name and args are str",
                code="agent.bad_yield",
            )

    def count_turn(self, ctx: Context) -> None:
        """See `Context.turn`."""
        self._turns += 1
        check_turns(self.run_id, self._turns, self.config.max_turns)
        bounded = self.config.max_tokens is not None or self._log.tokens is not None
        # A turn that the journal repeats spends nothing.
        if bounded and not self._speech.repeats(ctx):
            spent = self._log.usage.get("total_token_count", 0)
            check_tokens(self.run_id, spent, self.config.max_tokens, self._log.tokens)

    def check_transfer(self, ctx: Context, name: str) -> None:
        """See `Context.transfer_to`."""
        transfers.check(ctx, name, ctx._boundary, self._transfers, self.config.max_transfers, self.services.transfer_policy)

    def reachable(self, ctx: Context) -> list[Agent]:
        """See `Context.reachable_agents`."""
        return transfers.reachable(ctx.agent, ctx._boundary)

    async def step(self, ctx: Context, key: str, fn: Callable[[], Any], *, with_next_event: bool) -> Any:
        """See `Context.step`."""
        if self._journal.is_done(ctx.path(key)):
            self._speech.pass_by(ctx.step_branch(key), ctx.state)
        return await self._journal.step(ctx, key, fn, self._keep_steps if with_next_event else self._record_steps)

    async def ask(self, ctx: Context, questions: Sequence[Question]) -> list[Any]:
        """See `Context.ask_all`."""
        if not questions:
            return []
        if self._intake is not None:
            raise Unsupported(
                f"run {self.run_id!r} is live and cannot wait for a person; ask the user, and take the answer from ctx.live",
                code="live.cannot_wait",
            )
        asked = self._journal.ask(ctx, questions)
        try:
            await self._say_asked(ctx, questions, asked)
        except SojournError:
            self._journal.take_back(asked)
            raise
        answered = [interrupt for interrupt, _ in asked if interrupt.status == "answered"]
        for interrupt in answered:
            self._log.open_calls.pop(interrupt.id, None)
        if len(answered) == len(asked):
            return [jsonvalue.copy(interrupt.answer) for interrupt in answered]
        self._paused = ctx._paused = True
        raise RunPaused

    async def _say_asked(self, ctx: Context, questions: Sequence[Question], asked: Sequence[tuple[Interrupt, bool]]) -> None:
        # A known question is said again: the store recognises it, or puts it where this attempt says it.
        ids = tuple(interrupt.id for interrupt, _ in asked)
        content = Content("model", tuple(q.to_part(id_) for q, id_ in zip(questions, ids, strict=True)))
        events = [self._speech.seal(ctx, own_actions=False)] if ctx._message is not None else []
        events.append((self._speech.event(ctx, content=content, long_running_tool_ids=ids), None))
        await self._commit(ctx, events, [interrupt for interrupt, new in asked if new])

    async def history(self, ctx: Context, limit: int | None) -> list[Event]:
        """See `Context.history`."""
        return await history.read(self.store, self.record, ctx.branch, limit, self._speech.ordinals)

    def artifact_service(self) -> ArtifactService:
        """See `Context.artifacts`."""
        service = self.services.artifacts
        if service is None:
            raise not_configured("artifact")
        return service

    async def save_artifact(
        self, ctx: Context, name: str, data: Part | bytes, mime_type: str | None, custom_metadata: dict[str, Any] | None
    ) -> int:
        """See `Context.artifacts`."""
        if self.finished or self.gone:
            raise asyncio.CancelledError
        if self._log.saves is None:
            self._log.saves = Saves(self.artifact_service(), self.session, self.record)
        return await self._log.saves.save(ctx, name, data, mime_type, custom_metadata)

    def memory_service(self) -> MemoryService:
        """See `Context.memory`."""
        if self.gone:
            raise asyncio.CancelledError
        service = self.services.memory
        if service is None:
            raise not_configured("memory")
        return service


def _nothing() -> None:
    """Nobody wants to know."""


def _is_text(*values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


async def _call(callback: AgentCallback, ctx: Context) -> Any:
    said = callback(ctx)
    return await said if isawaitable(said) else said

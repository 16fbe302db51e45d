"""The Runner: drives runs of one app's agents."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from sojourn import platform
from sojourn.agent.current import CurrentRun, find_current_run
from sojourn.artifact.service import ArtifactService
from sojourn.content import Content
from sojourn.engine.limiter import Limiter, Limits, queue_timeout
from sojourn.engine.protocol import Delivery
from sojourn.errors import Conflict, InvalidInput, NotFound, SojournError, TimedOut, Unavailable
from sojourn.event import USER, Event
from sojourn.ids import check_id
from sojourn.memory.service import MemoryService
from sojourn.run.config import RunConfig, StreamingMode
from sojourn.run.live import LiveRun
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import MAX_DEATHS, Begun, NewRun, Store
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord
from sojourn.runner import observe, spill
from sojourn.runner.answering import answered_by, give_answer
from sojourn.runner.config import RunnerConfig
from sojourn.runner.execution import Execution, Outcome, Stop
from sojourn.runner.handle import EventStream, Run
from sojourn.runner.hub import Hub, Job, hub_of
from sojourn.runner.plugins import observe as observe_hooks
from sojourn.runner.services import Services
from sojourn.session.types import Page, Session, SessionKey

logger = logging.getLogger("sojourn.run")

CLOSE_RETRY_SECONDS = (0.2, 1.0, 5.0, 15.0)
"""Pauses between tries to close a run whose store does not answer; the last one repeats."""

Message = str | Content
"""What a user says."""


@dataclass(slots=True, frozen=True)
class CloseReport:
    """What became of the runs when a Runner was closed.

    Attributes:
        drained: Runs that came to their end within the grace.
        suspended: Detached runs that were interrupted and go on when a Runner of the app is entered again.
        queued: Detached runs that had not started; they start then.
        cancelled: Attached runs, whose readers end with the process.
        abandoned: Runs whose code did not end; it can store nothing any more.
    """

    drained: int = 0
    suspended: int = 0
    queued: int = 0
    cancelled: int = 0
    abandoned: int = 0


class Runner:
    """Runs an app's agents for its users.

    `Runner(RunnerConfig(…))` and `Runner(**the same fields)` are the same. It works as it is; entered (`async with runner:`)
    it also takes up the runs that an earlier process left unfinished, and is closed at the end.

    Args:
        config: What it is made of.
        **fields: The fields of `RunnerConfig`, instead.

    Raises:
        InvalidInput: `runner.invalid` for fields that are missing, unknown or given twice; what `RunnerConfig` says.
    """

    def __init__(self, config: RunnerConfig | None = None, /, **fields: Any) -> None:
        if config is not None and fields:
            raise InvalidInput("give a RunnerConfig or its fields, not both", code="runner.invalid")
        if config is None:
            try:
                config = RunnerConfig(**fields)
            except TypeError as error:
                known = ", ".join(RunnerConfig.__dataclass_fields__)
                raise InvalidInput(f"a Runner takes {known}: {error}", code="runner.invalid") from None
        self.config = config
        self._services = Services(config, self._timed_out)
        self.limits = Limits(config.max_concurrency, config.max_concurrency_per_user, config.max_queue, config.queue_timeout)
        self.limiter = Limiter(self.limits)
        self.hub: Hub = hub_of(self._services.store)
        self.hub.runners.add(self)
        self._generation = self.hub.generation
        self._closed = False
        self._entered = False

    @property
    def app_name(self) -> str:
        """The app."""
        return self._services.app_name

    @property
    def agent(self) -> Any:
        """The root agent."""
        return self._services.agent

    @property
    def store(self) -> Store:
        """The store of sessions and runs."""
        return self._services.store

    session_service = store

    @property
    def artifacts(self) -> ArtifactService | None:
        """The artifact service, if there is one."""
        return self._services.artifacts

    @property
    def memory(self) -> MemoryService | None:
        """The memory service, if there is one."""
        return self._services.memory

    def streams(self, record: RunRecord) -> bool:
        """Whether a run's readers are sent pieces of messages."""
        return self._services.run_config(record).streaming_mode is not StreamingMode.NONE

    # -- starting runs ----------------------------------------------------------------------------------------------

    def run(
        self,
        user_id: str,
        session_id: str,
        new_message: Message,
        *,
        run_config: RunConfig | None = None,
        run_id: str | None = None,
        create_session: bool = True,
    ) -> EventStream:
        """Runs the agent on a message and gives what it says.

        The run is attached: leaving the loop cancels it, unless it waits for a person.

        Args:
            user_id: The user.
            session_id: The session; created if missing.
            new_message: What the user says.
            run_config: Fields that differ from the Runner's own.
            run_id: Makes it idempotent per (app, user): the same id and message again follow the same run.
            create_session: False to raise `NotFound`, `session.not_found`, for a session that does not exist.

        Raises:
            InvalidInput: `id.invalid`, `message.invalid`.
            LimitExceeded: `limit.queue_full`; nothing is recorded.
            Conflict: `run.conflict`, `session.busy`, `run.nested_session`, `store.in_use`.
            Unavailable: `store.unavailable`, `runner.closed`.
            SojournError: At the end, the coded error of a failed or cancelled run.
        """

        def start() -> Any:
            return self._submit(
                user_id, session_id, new_message, run_config=run_config, run_id=run_id, attached=True, create_session=create_session
            )

        return EventStream(start, self._leave)

    run_async = run

    async def start(
        self,
        user_id: str,
        session_id: str,
        new_message: Message,
        *,
        run_config: RunConfig | None = None,
        run_id: str | None = None,
        create_session: bool = True,
    ) -> Run:
        """Starts a detached run: it goes on whether or not anybody follows it, and is resumed after a crash.

        Takes the same arguments and raises the same errors as `run`.

        Returns:
            The run, recorded, and begun if its turn and a slot were free.
        """
        return await self._submit(
            user_id, session_id, new_message, run_config=run_config, run_id=run_id, attached=False, create_session=create_session
        )

    async def start_attached(
        self,
        user_id: str,
        session_id: str,
        new_message: Message,
        *,
        run_config: RunConfig | None = None,
        run_id: str | None = None,
        has_slot: bool = False,
    ) -> Run:
        """Starts an attached run and gives its handle; the caller promises to `leave` it.

        Args:
            user_id: The user.
            session_id: The session.
            new_message: What the user says.
            run_config: Fields that differ from the Runner's own.
            run_id: As for `run`.
            has_slot: The caller holds a slot of this Runner's limiter for the run.
        """
        return await self._submit(
            user_id, session_id, new_message, run_config=run_config, run_id=run_id, attached=True, has_slot=has_slot
        )

    async def leave(self, run: Run) -> None:
        """Leaves an attached run: cancels it unless it has ended or waits for a person, and waits for its end."""
        self._leave(run)
        await run.settled()

    def _leave(self, run: Run) -> None:
        job = self.hub.jobs.get(run.record.uid)
        if job is None or job.live.ended:
            return
        loop = self.hub.loop
        if loop is not None and not loop.is_closed():
            # A finalizer may call this from anywhere.
            loop.call_soon_threadsafe(self._spawn_cancel, run.record, "its reader left")

    def _spawn_cancel(self, record: RunRecord, reason: str) -> None:
        self.hub.spawn(self._cancel(record, reason))

    async def _submit(
        self,
        user_id: str,
        session_id: str,
        message: Message,
        *,
        run_config: RunConfig | None,
        run_id: str | None,
        attached: bool,
        create_session: bool = True,
        has_slot: bool = False,
        retry_of: str | None = None,
    ) -> Run:
        key = SessionKey(self.app_name, user_id, session_id).check()
        content = _content(message)
        hub = self._ready()
        if content.parts and content.parts[0].function_response is not None:
            found = await answered_by(self.store, self.app_name, user_id, content)
            if found is not None:
                return await self.answer(found[0].id, found[1], found[2], user_id=user_id)
        services = self._services
        for hook in services.plugins.on_user_message:
            content = await hook(key, content) or content
        config = services.merge(run_config)
        run_id = platform.new_id() if run_id is None else check_id(run_id, "run_id")
        event = Event(id=platform.new_id(), run_id=run_id, author=USER, timestamp=platform.now(), content=content, ordinal=0)
        if spill.is_large(event, config.max_event_bytes):
            event = await self._spill_message(key, event, config, create_session)
        ancestors = _ancestors(key, attached)
        new = NewRun(
            id=run_id,
            key=key,
            message=event,
            config=run_config.overrides() if run_config is not None else {},
            attached=attached,
            create_session=create_session,
            reject_if_busy=config.when_busy == "reject",
            retry_of=retry_of,
            custom_metadata=config.custom_metadata,
        )
        if config.when_busy == "replace":
            await self._replace(key)
        return await self._record(hub, new, ancestors, needs_slot=not has_slot and not (attached and ancestors))

    async def _record(self, hub: Hub, new: NewRun, ancestors: tuple[SessionKey, ...], *, needs_slot: bool) -> Run:
        """Records a run and brings it to execution: at once if its turn and a slot are free."""
        limiter = self.limiter
        delivery = Delivery(new.key, new.key.user_id, 0, _never, limiter, needs_slot)
        begin = hub.engine.claim(delivery)
        if not begin and needs_slot:
            limiter.enter_queue()
        job: Job | None = None
        try:
            submitted = await self.store.submit(new, begin=begin)
            record = submitted.record
            if submitted.known:
                return Run(self, record, hub.live.get(record.uid))
            live = LiveRun(record)
            job = Job(self, live, delivery, observe.run_context(self.config.propagate), ancestors)
            delivery.no = record.no
            hub.add(job)
            if submitted.begun is not None:
                self._begin(job, submitted.begun)
            else:
                job.in_queue = needs_slot
                self._queue(job)
            return Run(self, record, live)
        except asyncio.CancelledError:
            if job is None:
                hub.spawn(self._undo(new))
            raise
        finally:
            if job is None:
                hub.engine.free_turn(delivery)
                hub.engine.free_slot(delivery)
                if not begin and needs_slot:
                    limiter.leave_queue()

    async def _undo(self, new: NewRun) -> None:
        """Ends a run whose caller was cancelled while it was being recorded."""
        try:
            record = await self.store.get_run(self.app_name, new.id, new.key.user_id)
        except NotFound:
            return
        if record.uid not in self.hub.jobs:
            error = RunError("run.cancelled", "its caller was cancelled while it was being recorded", "RunCancelled")
            if record.status is RunStatus.RUNNING:
                await self.store.take_over(record.uid, error, move=Move.CANCEL)
            elif record.status is RunStatus.QUEUED:
                await self.store.close_run(record.uid, error, move=Move.CANCEL)

    async def _replace(self, key: SessionKey) -> None:
        """Cancels the session's queued and running runs."""
        query = RunQuery(key.app_name, key.user_id, key.session_id, (RunStatus.QUEUED, RunStatus.RUNNING))
        for record in (await self.store.list_runs(query, limit=1000)).items:
            await self._cancel(record, "replaced by a later run of its session")

    async def _spill_message(self, key: SessionKey, event: Event, config: RunConfig, create: bool) -> Event:
        """Moves what is too large in a user's message to artifacts of its session."""
        if self.artifacts is None:
            raise InvalidInput(
                "the message is too large for an event and there is no artifact service to keep its parts", code="event.too_large"
            )
        session = await self.get_session(key.user_id, key.session_id, create=create)
        return await spill.spill(event, self.artifacts, session, config.max_event_bytes)

    def bound_limiter(self) -> Limiter:
        """The limiter of the running event loop, for callers that reserve slots themselves.

        Raises:
            Unavailable: `runner.closed`.
        """
        self._ready()
        return self.limiter

    def _ready(self) -> Hub:
        if self._closed:
            raise Unavailable("this Runner is closed; make a new one", code="runner.closed", retryable=False)
        generation = self.hub.bind()
        if generation != self._generation:
            # The slots of an event loop that has ended are never given back.
            self._generation = generation
            self.limiter = Limiter(self.limits)
        return self.hub

    # -- executing --------------------------------------------------------------------------------------------------

    def deliver(self, record: RunRecord, *, ahead: bool, close_with: SojournError | None = None) -> LiveRun:
        """Brings a recorded, queued run to execution.

        Args:
            record: The run.
            ahead: Before all others of its session.
            close_with: Fails it with this instead of running its agent.
        """
        live = LiveRun(record)
        delivery = Delivery(record.key, record.user_id, record.no, _never, self.limiter, True, ahead)
        job = Job(self, live, delivery, observe.run_context(()), ())
        job.close_with = close_with
        job.in_queue = True
        self.limiter.queued += 1
        self.hub.add(job)
        self._queue(job)
        return live

    def _queue(self, job: Job) -> None:
        job.delivery.start = lambda: self._start(job)
        bound = self.limits.queue_timeout
        if bound is not None and job.in_queue:
            job.queue_timer = asyncio.get_running_loop().call_later(bound, self._waited_too_long, job, bound)
        self.hub.engine.submit(job.delivery)

    def left_queue(self, job: Job) -> None:
        """Counts a job that waits no more; twice is fine."""
        if job.queue_timer is not None:
            job.queue_timer.cancel()
            job.queue_timer = None
        if job.in_queue:
            job.in_queue = False
            self.limiter.leave_queue()

    def _waited_too_long(self, job: Job, seconds: float) -> None:
        if self.hub.engine.withdraw(job.delivery):
            self.hub.spawn(self._close_queued(job, queue_timeout(seconds)))

    async def _close_queued(self, job: Job, error: SojournError) -> None:
        record = await self.store.close_run(job.live.record.uid, RunError.of(error), move=Move.FAIL)
        self.hub.conclude_queued(job, record)

    def _start(self, job: Job) -> None:
        """A queued run's turn has come."""
        self.left_queue(job)
        asyncio.get_running_loop().create_task(self._execute(job), context=job.context)

    def _begin(self, job: Job, begun: Begun) -> None:
        """Executes a run that has begun."""
        execution = job.execution = Execution(self._services, begun, job.live, job.ancestors)
        job.live.record = begun.record
        task = asyncio.get_running_loop().create_task(self._execute(job), context=job.context)
        execution.task = task
        task.add_done_callback(lambda _: self._released(job))

    async def _execute(self, job: Job) -> None:
        execution = job.execution
        if execution is None:
            execution = await self._next_attempt(job)
            if execution is None:
                return
        started = platform.monotonic()
        record = execution.record
        observe.run_started(record)
        outcome: Outcome | None = None
        try:
            with observe.span(record, execution.services.agent.name) as span:
                if job.close_with is not None:
                    outcome = Outcome(Move.FAIL, RunError.of(job.close_with))
                    await execution.finish(outcome)
                else:
                    outcome = await execution.main()
                observe.end_span(span, job.live.record)
        except Unavailable as error:
            logger.error("run %s cannot be closed: %s", record.id, error, extra={"run_id": record.id})
            self.hub.spawn(self._close_later(job, execution))
            return
        if outcome is not None:
            observe.run_finished(job.live.record, platform.monotonic() - started)
            self._ended(job, outcome)
            await self._after_run(job, outcome)

    async def _next_attempt(self, job: Job) -> Execution | None:
        """Begins the next attempt of a queued run; None if there is nothing to execute any more."""
        live = job.live
        task = asyncio.current_task()
        pauses = iter((*CLOSE_RETRY_SECONDS, CLOSE_RETRY_SECONDS[-1], CLOSE_RETRY_SECONDS[-1]))
        while True:
            try:
                begun = await self.store.begin(live.record.uid)
                break
            except Unavailable as error:
                pause = next(pauses, None)
                if pause is None:
                    live.failure = error
            except SojournError as error:
                live.failure = error
            if live.failure is not None:
                live.end()
                self._ended(job, None)
                return None
            await asyncio.sleep(pause or 0.0)
        live.record = begun.record
        if begun.record.status is not RunStatus.RUNNING:
            self.hub.conclude_queued(job, begun.record)
            self._ended(job, None)
            return None
        execution = job.execution = Execution(self._services, begun, live, job.ancestors)
        execution.task = task
        assert task is not None
        task.add_done_callback(lambda _: self._released(job))
        if job.stop_why is not None:
            self.stop(job, job.stop_why)
        return execution

    def stop(self, job: Job, why: str, reason: Stop = Stop.CANCEL) -> None:
        """Stops a run that has started."""
        if job.execution is None:
            job.stop_why = why
        else:
            job.execution.stop(reason, why, lambda: self._grace_over(job))

    def _timed_out(self, execution: Execution) -> None:
        job = self.hub.jobs.get(execution.record.uid)
        if job is not None and job.execution is execution:
            self.stop(job, "timeout", Stop.TIMEOUT)

    def _grace_over(self, job: Job) -> None:
        """The agent did not end in time: its run is closed over its head, its slot stays taken until it ends."""
        execution = job.execution
        if execution is None or execution.finished or execution.task is None or execution.task.done():
            return
        job.abandoned = True
        self.limiter.abandoned += 1
        execution.finished = True
        logger.warning(
            "run %s was stopped and its code did not end within %g seconds; it is abandoned", execution.run_id,
            execution.config.cancel_grace, extra={"run_id": execution.run_id},
        )  # fmt: skip
        self.hub.spawn(self._abandon(job, execution))

    async def _abandon(self, job: Job, execution: Execution) -> None:
        outcome = execution.stop_outcome()
        try:
            await execution.finish(outcome)
        except Unavailable:
            self.hub.spawn(self._close_later(job, execution))
            return
        self._ended(job, outcome)
        await self._after_run(job, outcome)

    async def _close_later(self, job: Job, execution: Execution) -> None:
        """Closes a run whose store was away, as soon as it is back; its session waits for that, its readers do not."""
        error = job.live.failure or Unavailable("the store did not answer")
        pauses = iter(CLOSE_RETRY_SECONDS)
        while not self._closed:
            await asyncio.sleep(next(pauses, CLOSE_RETRY_SECONDS[-1]))
            try:
                record = await self.store.take_over(execution.record.uid, RunError.of(error), move=Move.FAIL)
            except Unavailable:
                continue
            except SojournError:
                break
            job.live.record = record
            break
        self._ended(job, None)
        await self._after_run(job, Outcome(Move.FAIL, RunError.of(error), error))

    def _ended(self, job: Job, outcome: Outcome | None) -> None:
        """The run has really ended, as far as its session is concerned: the next one may start."""
        self.left_queue(job)
        record = job.live.record
        self.hub.remove(job)
        self.hub.engine.free_turn(job.delivery)
        if job.execution is None or job.execution.task is None:
            self.hub.engine.free_slot(job.delivery)
        elif not job.abandoned and not job.execution.thread_calls:
            self.hub.engine.free_slot(job.delivery)
        if outcome is not None and outcome.move is Move.REQUEUE:
            job.live.failure = suspended_error(record)
            job.live.end()
        elif outcome is not None and outcome.move is Move.WAIT and record.status is RunStatus.QUEUED:
            # Answered while it was still busy with something else: it goes on at once.
            self._go_on(job, record)
        elif record.status is RunStatus.WAITING:
            self.hub.spawn(self._watch_expiry(record))

    def _go_on(self, job: Job, record: RunRecord) -> None:
        delivery = Delivery(record.key, record.user_id, record.no, _never, self.limiter, True, True)
        again = Job(self, job.live, delivery, job.context, job.ancestors)
        again.in_queue = True
        self.limiter.queued += 1
        self.hub.add(again)
        self._queue(again)

    def _released(self, job: Job) -> None:
        """The run's task has ended, whatever became of the run."""
        if job.abandoned:
            self.limiter.abandoned -= 1
        execution = job.execution
        if execution is not None and not execution.finished:
            # The loop was torn down before the task could do anything.
            job.live.failure = Unavailable(f"run {execution.run_id!r} was interrupted by the end of its event loop", code="run.lost")
            job.live.end()
            self._ended(job, None)
        calls = execution.thread_calls if execution is not None else set()
        if not calls:
            self.hub.engine.free_slot(job.delivery)
            return
        self.limiter.abandoned += 1
        self.hub.spawn(self._await_threads(job, calls))

    async def _await_threads(self, job: Job, calls: set[asyncio.Future[None]]) -> None:
        while calls:
            await asyncio.wait(set(calls))
        self.limiter.abandoned -= 1
        self.hub.engine.free_slot(job.delivery)

    async def _after_run(self, job: Job, outcome: Outcome) -> None:
        record = job.live.record
        if self._services.plugins.after_run:
            await observe_hooks(self._services.plugins.after_run, record, job.live.cause)
        if self.config.memory_ingest == "on_run_end" and record.status is RunStatus.COMPLETED and self.memory is not None:
            self.hub.spawn(self._ingest(record))

    async def _ingest(self, record: RunRecord) -> None:
        """Adds a session to memory after one of its runs."""
        try:
            await self.add_session_to_memory(record.user_id, record.session_id)
        except SojournError as error:
            logger.warning("session %s was not added to memory: %s", record.key, error)

    # -- people -----------------------------------------------------------------------------------------------------

    async def _watch_expiry(self, record: RunRecord) -> None:
        """Fails a waiting run when the first of its questions expires."""
        asked = await self.store.list_interrupts(record.app_name, user_id=record.user_id, run_uid=record.uid)
        times = [i.expires_at for i in asked if i.expires_at is not None]
        if times:
            delay = max(0.0, min(times) - platform.now())
            self.hub.at(delay, lambda: self.hub.spawn(self._expire(record)))

    async def _expire(self, record: RunRecord) -> None:
        error = TimedOut(f"nobody answered run {record.id!r} in time", code="interrupt.expired", retryable=False)
        try:
            current = await self.store.get_run(record.app_name, record.id, record.user_id)
            if current.status is RunStatus.WAITING and current.attempt == record.attempt:
                await self.store.close_run(record.uid, RunError.of(error), move=Move.EXPIRE)
        except NotFound:
            return

    async def answer(self, run_id: str, interrupt_id: str, value: Any, *, user_id: str | None = None) -> Run:
        """Answers a question that a run waits for. The run goes on: before the session's queued runs, after the running one.

        Args:
            run_id: The run.
            interrupt_id: The question.
            value: The answer.
            user_id: The user; needed only if several users have a run of this id.

        Returns:
            The run. The same answer again changes nothing.

        Raises:
            NotFound: `run.not_found`, `interrupt.not_found`.
            InvalidInput: `interrupt.invalid_answer`, `run.ambiguous`.
            Conflict: `interrupt.conflict`, `interrupt.closed`.
        """
        hub = self._ready()
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        answered = await give_answer(self.store, record, interrupt_id, value)
        record = answered.record
        live = hub.live.get(record.uid)
        if answered.recorded and record.status is RunStatus.QUEUED and live is None and await self._may_execute():
            live = self.deliver(record, ahead=True)
        return Run(self, record, live, start_pos=record.last_pos)

    async def _may_execute(self) -> bool:
        try:
            await self.store.become_executor()
        except Conflict:
            return False
        return True

    # -- watching and changing runs ---------------------------------------------------------------------------------

    async def follow(self, run_id: str, *, user_id: str | None = None) -> Run:
        """A handle of a run, wherever it is executed.

        Raises:
            NotFound: `run.not_found`.
            InvalidInput: `run.ambiguous`.
        """
        self.hub.bind()
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        return Run(self, record, self.hub.live.get(record.uid))

    async def cancel(self, run_id: str, *, user_id: str | None = None, reason: str = "cancelled by its caller") -> RunRecord:
        """Asks for a run's end, from any process.

        A queued or waiting run is cancelled at once and never starts. A running one gets one `CancelledError` and
        `cancel_grace` seconds; wait for its end with `Run.wait`. A finished one is left as it is.

        Returns:
            The record after the request.

        Raises:
            NotFound: `run.not_found`.
            InvalidInput: `run.ambiguous`.
        """
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        return await self._cancel(record, reason)

    async def _cancel(self, record: RunRecord, reason: str) -> RunRecord:
        job = self.hub.jobs.get(record.uid)
        try:
            after = await self.store.request_cancel(record.uid, reason)
        except NotFound:
            return record
        except Unavailable:
            # The wish cannot be recorded, but a run of this process can still be stopped.
            if job is not None and not job.live.ended:
                job.runner.stop(job, reason)
            raise
        if job is not None:
            if after.status.terminal and self.hub.engine.withdraw(job.delivery):
                self.hub.conclude_queued(job, after)
            elif not job.live.ended:
                job.runner.stop(job, reason)
        return after

    async def retry(self, run_id: str, *, user_id: str | None = None, run_config: RunConfig | None = None) -> Run:
        """Runs the message of a failed or cancelled run again, as a new run; what the old one said does not count any more.

        Raises:
            NotFound: `run.not_found`.
            Conflict: `run.not_retryable` for a run that has not failed and was not cancelled.
        """
        record = await self.store.get_run(self.app_name, check_id(run_id, "run_id"), user_id)
        if record.status not in (RunStatus.FAILED, RunStatus.CANCELLED):
            raise Conflict(f"run {run_id!r} is {record.status}; only failed and cancelled runs can be retried", code="run.not_retryable")
        config = run_config or (RunConfig.model_validate(record.config) if record.config else None)
        return await self._submit(
            record.user_id, record.session_id, record.message.content or Content(USER), run_config=config, run_id=None,
            attached=False, retry_of=record.id,
        )  # fmt: skip

    async def list_runs(
        self,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        status: Sequence[RunStatus] = (),
        limit: int = 100,
        after: str | None = None,
    ) -> Page[RunRecord]:
        """Lists the app's runs, newest submitted first."""
        return await self.store.list_runs(RunQuery(self.app_name, user_id, session_id, tuple(status)), limit=limit, after=after)

    async def list_interrupts(self, *, user_id: str | None = None, session_id: str | None = None) -> list[Interrupt]:
        """Lists the open questions to people, oldest first."""
        return await self.store.list_interrupts(self.app_name, user_id=user_id, session_id=session_id)

    # -- sessions ---------------------------------------------------------------------------------------------------

    async def get_session(self, user_id: str, session_id: str, *, create: bool = False) -> Session:
        """Reads a session.

        Args:
            user_id: The user.
            session_id: The session.
            create: Create it if it is missing.

        Raises:
            NotFound: `session.not_found`.
        """
        key = SessionKey(self.app_name, user_id, session_id).check()
        app, user, session = key
        try:
            return await self.store.get_session(app_name=app, user_id=user, session_id=session)
        except NotFound:
            if not create:
                raise
        try:
            return await self.store.create_session(app_name=app, user_id=user, session_id=session)
        except SojournError:
            return await self.store.get_session(app_name=app, user_id=user, session_id=session)

    async def delete_session(self, user_id: str, session_id: str) -> Session:
        """Deletes a session with its events, runs, state and artifacts; a run under way is stopped.

        Raises:
            NotFound: `session.not_found`.
        """
        key = SessionKey(self.app_name, user_id, session_id).check()
        session = await self.store.delete_session(app_name=key.app_name, user_id=user_id, session_id=session_id)
        for job in [j for j in self.hub.jobs.values() if j.live.record.key == key]:
            await self.hub.closed(job)
        if self.artifacts is not None:
            await self.artifacts.delete_session_artifacts(spill.scope_of(session))
        return session

    async def add_session_to_memory(self, user_id: str, session_id: str) -> None:
        """Adds what was said in a session to the user's memory; adding it again replaces what was added before.

        Raises:
            NotFound: `session.not_found`.
            Unsupported: `memory.not_configured`.
        """
        from sojourn.agent.context import not_configured

        if self.memory is None:
            raise not_configured("memory")
        events: list[Event] = []
        while True:
            page = await self.store.list_events(
                app_name=self.app_name, user_id=user_id, session_id=session_id, after=events[-1].seq or 0 if events else 0, limit=1000
            )
            events.extend(page)
            if len(page) < 1000:
                break
        await self.memory.add_session(self.app_name, user_id, session_id, events)

    # -- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Runner:
        self._ready()
        await self.recover()
        self._entered = True
        self.hub.enter()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def recover(self) -> list[RunRecord]:
        """Takes up the app's runs that an earlier process left unfinished; entering the Runner does this.

        Detached runs go on (`on_crash="resume"`) or fail with `run.lost`; attached ones fail, as their readers are gone; a run
        whose process has died three times fails with `run.crash_loop`. Waiting runs stay as they are.

        Returns:
            The runs taken up.

        Raises:
            Conflict: `store.in_use` if another process executes this store's runs.
        """
        hub = self._ready()
        await self.store.become_executor()
        taken: list[RunRecord] = []
        for found in await self.store.unfinished(self.app_name):
            record = found
            if record.uid in hub.jobs:
                continue
            if record.status is RunStatus.WAITING:
                await self._watch_expiry(record)
                continue
            lost = record.status is RunStatus.RUNNING
            if lost:
                record = await self.store.requeue_lost(record.uid)
            self.deliver(record, ahead=lost, close_with=self._why_not(record, lost))
            taken.append(record)
        return taken

    def _why_not(self, record: RunRecord, lost: bool) -> SojournError | None:
        """Why a run that was left unfinished does not go on, if it does not."""
        if record.deaths >= MAX_DEATHS:
            return Unavailable(
                f"the process died in {record.deaths} attempts of run {record.id!r}; it is not tried again",
                code="run.crash_loop",
                retryable=False,
            )
        if record.attached:
            return Unavailable(f"the process of run {record.id!r} and its reader has ended", code="run.lost", retryable=True)
        if lost and self._services.run_config(record).on_crash == "fail":
            return Unavailable(f"the process of run {record.id!r} has died", code="run.lost", retryable=True)
        return None

    async def close(self, grace: float = 10.0) -> CloseReport:
        """Drains, then suspends, then reports. Closing twice is fine.

        New runs are refused at once. Runs under way get `grace` seconds to come to their end; then they are interrupted:
        detached ones go back to queued and go on when a Runner of the app is entered again. Services that this Runner was
        given stay open.

        Args:
            grace: Seconds.
        """
        if self._closed:
            return CloseReport()
        self._closed = True
        hub = self.hub
        try:
            own = [j for j in hub.jobs.values() if j.runner is self]
            queued = [j for j in own if hub.engine.withdraw(j.delivery)]
            for job in queued:
                self.left_queue(job)
            active = [j for j in own if j not in queued]
            drained, left = await _await_end(active, grace)
            for job in left:
                self.stop(job, "shutdown", Stop.SHUTDOWN)
            longest = max((j.execution.config.cancel_grace for j in left if j.execution), default=0.0)
            await _await_end(left, longest + 1.0)
            cancelled = await self._end_queued(queued)
            abandoned = sum(j.abandoned for j in left)
            suspended = sum(1 for j in left if j.live.record.status is RunStatus.QUEUED)
            await hub.settle(10.0)
            return CloseReport(
                drained=len(drained),
                suspended=suspended,
                queued=len(queued) - cancelled,
                cancelled=cancelled + sum(1 for j in left if j.live.record.status is RunStatus.CANCELLED),
                abandoned=abandoned,
            )
        finally:
            if self._entered:
                hub.leave()
            if not hub.jobs:
                hub.stop_watching()
            if self._services.owns_store:
                await self.store.close()

    async def _end_queued(self, queued: list[Job]) -> int:
        """Lets go of the runs that had not started: attached ones are cancelled, the others stay queued in the store."""
        cancelled = 0
        for job in queued:
            live = job.live
            if live.record.attached:
                error = RunError("run.cancelled", "its reader's process shut down", "RunCancelled")
                live.record = await self.store.close_run(live.record.uid, error, move=Move.CANCEL)
                cancelled += 1
                self.hub.conclude_queued(job, live.record)
                continue
            live.failure = suspended_error(live.record)
            live.end()
            self.hub.remove(job)
        return cancelled


def suspended_error(record: RunRecord) -> Unavailable:
    """What readers of a run are told when its process shuts down."""
    return Unavailable(
        f"run {record.id!r} was suspended by a shutdown; it goes on when a Runner of app {record.app_name!r} is entered again",
        code="run.suspended",
    )


async def _await_end(jobs: list[Job], seconds: float) -> tuple[list[Job], list[Job]]:
    """Waits for runs to end; returns those that did and those that did not."""
    if jobs:
        waits = {asyncio.ensure_future(j.live.wait_ended()): j for j in jobs}
        done, pending = await asyncio.wait(waits, timeout=seconds)
        for wait in pending:
            wait.cancel()
        return [waits[w] for w in done], [waits[w] for w in pending]
    return [], []


def _never() -> None:
    raise AssertionError("a delivery was started before it was given what to start")


def _content(message: object) -> Content:
    if isinstance(message, str):
        if not message:
            raise InvalidInput("the message is empty; give text or Content with parts", code="message.invalid")
        return Content.of(message)
    if isinstance(message, Content):
        if not message.parts:
            raise InvalidInput("the message has no parts; give text or Content with parts", code="message.invalid")
        return message if message.role else message.model_copy(update={"role": USER})
    raise InvalidInput(f"the message must be text or Content, not {type(message).__name__}", code="message.invalid")


def _ancestors(key: SessionKey, attached: bool) -> tuple[SessionKey, ...]:
    """The sessions of the runs that wait for a run started here."""
    parent: CurrentRun | None = find_current_run()
    if parent is None or not attached:
        return ()
    if key in parent.ancestors:
        raise Conflict(
            f"a run of session {key} starts an attached run in the same session and would wait for itself; use another session, "
            "ctx.run_agent, or start()",
            code="run.nested_session",
        )
    return parent.ancestors

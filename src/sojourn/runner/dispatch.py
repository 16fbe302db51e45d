"""The life of the runs that one Runner executes: from the queue to their end, whatever happens on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextvars import Context, ContextVar
from typing import Any

from sojourn import platform
from sojourn.agents.current import Lineage
from sojourn.agents.live import LiveRequestQueue
from sojourn.agents.source import NOT_BUILT, AgentLease
from sojourn.engine.limiter import Limiter, Limits, queue_timeout
from sojourn.engine.protocol import Delivery
from sojourn.errors import Conflict, LimitExceeded, NotFound, SojournError, TimedOut, Unavailable
from sojourn.run.live import LiveRun
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Begun, NewRun, Submitted
from sojourn.run.types import RunError, RunRecord, started_frame, terminal_frame
from sojourn.runner import observe
from sojourn.runner.execution import Execution, Stop
from sojourn.runner.hub import Hub, Job, hub_of
from sojourn.runner.log import Outcome
from sojourn.runner.places import Places
from sojourn.runner.plugins import observe as observe_hooks
from sojourn.runner.services import Services
from sojourn.session.types import SessionKey

logger = logging.getLogger("sojourn.run")

SUBMIT_RETRIES = (0.0, 0.1)
"""Seconds before a run is recorded again after the store did not answer. Repeating is safe: its id is recognised."""

BEGIN_RETRIES = (0.2, 1.0, 5.0, 15.0, 15.0, 15.0)
"""Seconds before an attempt is begun again after the store did not answer."""

CLOSE_RETRY_SECONDS = (0.2, 1.0, 5.0, 15.0)
"""Pauses between tries to begin or close a run whose store does not answer; the last one repeats."""


class Dispatcher:
    """Brings recorded runs to execution and sees them to their end.

    Args:
        services: What the executions share.
        limits: How many may execute and wait.
        propagate: Context variables to hand into runs.
    """

    def __init__(self, services: Services, limits: Limits, propagate: Sequence[ContextVar[Any]]) -> None:
        self.services = services
        self.store = services.store
        self.limits = limits
        self.limiter = Limiter(limits)
        self._places = self._new_places()
        self.hub: Hub = hub_of(services.store)
        self.hub.dispatchers.add(self)
        self.closed = False
        # The event loop in which what an earlier process left was taken up.
        self.recovered_in = -1
        # Runs that are just being recorded: closing waits until it is known what becomes of them.
        self.recording: set[asyncio.Future[None]] = set()
        self._propagate = propagate
        self._generation = self.hub.generation

    @property
    def app_name(self) -> str:
        """The app whose runs these are."""
        return self.services.app_name

    def bound_limiter(self) -> Limiter:
        """The limiter of the running event loop, for callers that reserve slots themselves.

        Raises:
            Unavailable: `runner.closed`.
        """
        self.ready()
        return self.limiter

    def ready(self) -> Hub:
        """Makes sure that runs can be taken on, in the running event loop.

        Raises:
            Unavailable: `runner.closed`.
            Conflict: `runner.other_loop`.
        """
        if self.closed:
            raise runner_closed()
        generation = self.hub.bind()
        if generation != self._generation:
            # The slots of an event loop that has ended are never given back.
            self._generation = generation
            self.limiter = Limiter(self.limits)
            self._places = self._new_places()
        return self.hub

    async def submit(
        self,
        new: NewRun,
        lineage: Lineage,
        slot_freed: Callable[[], None] | None = None,
        temp_state: dict[str, Any] | None = None,
        requests: LiveRequestQueue | None = None,
    ) -> tuple[RunRecord, LiveRun | None]:
        """Records a run and brings it to execution: at once if its turn and a slot are free.

        Args:
            new: The run.
            lineage: The runs that wait for it.
            slot_freed: For a run that uses a slot of its caller's: called when its code has ended, or will never run.
            temp_state: `temp:` keys that its first attempt finds set.
            requests: What the user sends meanwhile, for a live run.

        Returns:
            The record, and the live run if this process executes it.
        """
        hub = self.hub
        limiter = self.limiter
        # Whoever waits for a run while it holds a slot itself must not make it wait for another one.
        needs_slot = slot_freed is None and limiter not in lineage.limiters
        delivery = Delivery(new.key, new.key.user_id, 0, _never, limiter, needs_slot, ended=slot_freed)
        lease, begin = self._admit(delivery)
        job: Job | None = None
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.recording.add(recorded)
        name = (new.key.app_name, new.key.user_id, new.id)
        hub.recording.add(name)
        try:
            submitted, repeated = await self._record(new, begin)
            record = submitted.record
            if not submitted.known:
                live = LiveRun(record)
                job = Job(self, live, delivery, observe.run_context(self._propagate), lineage, lease)
                delivery.no = record.no
                job.temp_state = temp_state or {}
                job.requests = requests
                hub.add(job)
                if lease is not None:
                    # The agent is made ready anyway, and what was taken on before of its session comes first.
                    self._places.let_in_now(new.key.user_id)
                if submitted.begun is not None:
                    self._begin(job, submitted.begun)
                else:
                    job.in_queue = needs_slot
                    self._bound_waiting(job)
                    self._queue(job)
                if self.closed and submitted.begun is not None:
                    self.stop(job, "shutdown", Stop.SHUTDOWN)
                return record, live
            if repeated and record.status is RunStatus.RUNNING and record.uid not in hub.jobs:
                # It was recorded by a call whose reply was lost, and begun; nobody executes it.
                record = await self.store.requeue_lost(record.uid)
        except (asyncio.CancelledError, Unavailable):
            if job is None:
                hub.spawn(self._undo(new))
            raise
        finally:
            hub.recording.discard(name)
            self.recording.discard(recorded)
            recorded.set_result(None)
            if job is None:
                hub.engine.free_turn(delivery)
                hub.engine.free_slot(delivery)
                if not begin and needs_slot:
                    limiter.leave_queue()
        if record.status is RunStatus.QUEUED and record.uid not in hub.jobs:
            self.deliver(record, ahead=False, needs_slot=limiter not in lineage.limiters)
            hub.jobs[record.uid].requests = requests
        return record, hub.live.get(record.uid)

    def _admit(self, delivery: Delivery) -> tuple[AgentLease | None, bool]:
        """Gives a run its turn and its slot if all is there for it, or else counts it as waiting if it needs a slot.

        Returns:
            Its user's agent, as of `_lease_agent`, and whether it may begin.

        Raises:
            LimitExceeded: `limit.queue_full`. Nothing is built for a run that is refused.
        """
        builds = delivery.needs_slot and not self._agent_is_ready(delivery.user_id)
        if builds:
            self._enter_queue_to_build(delivery.user_id)
        try:
            lease = self._lease_agent(delivery)
        except BaseException:
            if builds:
                self.limiter.leave_queue()
            raise
        begin = not builds and not delivery.held and self.hub.engine.claim(delivery)
        if not begin and not builds and delivery.needs_slot:
            try:
                self.limiter.enter_queue()
            except LimitExceeded:
                self.hub.engine.free_slot(delivery)
                raise
        return lease, begin

    def _enter_queue_to_build(self, user_id: str) -> None:
        # Those for whom slots are free wait for their agents alone, which `max_queue` says nothing about.
        self.limiter.enter_queue(beyond=self.limiter.free_slots(user_id))

    def check_room(self, key: SessionKey, lineage: Lineage) -> None:
        """Refuses what `submit` would refuse, before anything else is done for a run.

        Raises:
            LimitExceeded: `limit.queue_full`.
        """
        if self.limiter in lineage.limiters:
            return
        if not self._agent_is_ready(key.user_id):
            self._enter_queue_to_build(key.user_id)
        elif self.limiter.has_room(key.user_id):
            return
        else:
            self.limiter.enter_queue()
        self.limiter.leave_queue()

    async def _record(self, new: NewRun, begin: bool) -> tuple[Submitted, bool]:
        """Records a run, repeating while the store does not answer; returns whether it was repeated."""
        pauses = iter(SUBMIT_RETRIES)
        repeated = False
        while True:
            try:
                submit = self.store.submit(new, begin=begin)
                return await observe.stored(self.services.observers, "submit", submit), repeated
            except Unavailable:
                pause = next(pauses, None)
                if pause is None:
                    raise
                repeated = True
                await asyncio.sleep(pause)

    async def _undo(self, new: NewRun) -> None:
        """Ends a run whose caller does not know that it was recorded."""
        error = RunError("run.cancelled", "its caller was gone before it was known to be recorded", "RunCancelled")
        await self._close_record(new.id, new.key.user_id, error, Move.CANCEL)

    async def _close_record(self, run_id: str, user_id: str, error: RunError, move: Move) -> RunRecord | None:
        """Closes a run that nobody executes, as soon as the store answers.

        Returns:
            Its record; None if there is none, or this Runner was closed before the store answered.
        """
        pauses = iter(CLOSE_RETRY_SECONDS)
        while True:
            try:
                record = await self.store.get_run(self.app_name, run_id, user_id)
                if record.status is RunStatus.RUNNING and record.uid not in self.hub.jobs:
                    record = await self.store.take_over(record.uid, error, move=move)
                elif record.status is RunStatus.QUEUED and record.uid not in self.hub.jobs:
                    record = await self.store.close_run(record.uid, error, move=move)
                return record
            except Unavailable:
                if self.closed:
                    return None
            except SojournError:
                return None
            await asyncio.sleep(next(pauses, CLOSE_RETRY_SECONDS[-1]))

    # -- executing --------------------------------------------------------------------------------------------------

    async def may_execute(self) -> bool:
        """Whether this process executes the store's runs; from now on it does, unless another one does or it never may."""
        try:
            await self.store.become_executor()
        except Conflict:
            return False
        return True

    def deliver(
        self,
        record: RunRecord,
        *,
        ahead: bool,
        close_with: SojournError | None = None,
        needs_slot: bool = True,
        slot_freed: Callable[[], None] | None = None,
    ) -> LiveRun:
        """Brings a recorded, queued run to execution.

        Args:
            record: The run.
            ahead: Before all others of its session.
            close_with: Fails it with this instead of running its agent.
            needs_slot: False if it shares the slot of the run that waits for it.
            slot_freed: For a run that uses a slot of its caller's, as for `submit`.
        """
        job = self._job(
            record,
            LiveRun(record),
            observe.run_context(()),
            Lineage(),
            ahead=ahead,
            needs_slot=needs_slot and slot_freed is None,
            close_with=close_with,
            slot_freed=slot_freed,
        )
        self._queue(job)
        return job.live

    def lend_slot(self, run_uid: int, slot_freed: Callable[[], None]) -> None:
        """Lets a run that waits for a slot use one of its caller's; gives it back at once if the run waits for none.

        Args:
            run_uid: The run.
            slot_freed: As for `submit`.
        """
        job = self.hub.jobs.get(run_uid)
        if job is None or job.delivery.started or not job.delivery.needs_slot or job.delivery.limiter is not self.limiter:
            slot_freed()
            return
        delivery = job.delivery
        release = delivery.ended

        def ended() -> None:
            if release is not None:
                release()
            slot_freed()

        delivery.ended = ended
        self._places.let_in_now(delivery.user_id)
        self.hub.engine.share_slot(delivery)

    def _job(
        self,
        record: RunRecord,
        live: LiveRun,
        context: Context,
        lineage: Lineage,
        *,
        ahead: bool,
        needs_slot: bool = True,
        close_with: SojournError | None = None,
        slot_freed: Callable[[], None] | None = None,
    ) -> Job:
        """A job for a run that is queued in the store; it counts as waiting, whatever the bound of the queue."""
        delivery = Delivery(record.key, record.user_id, record.no, _never, self.limiter, needs_slot, ahead, ended=slot_freed)
        job = Job(self, live, delivery, context, lineage)
        if close_with is not None:
            # Its agent is not needed: building it may be what ended the process.
            pass
        elif not needs_slot or self._agent_is_ready(record.user_id):
            job.lease = self._lease_agent(delivery)
        elif self.closed:
            raise runner_closed()
        else:
            delivery.held = True
        job.close_with = close_with
        job.in_queue = True
        self.limiter.queued += 1
        self.hub.add(job)
        return job

    def _queue(self, job: Job) -> None:
        job.queued_at = platform.now()
        job.delivery.start = lambda: self._start(job)
        self.hub.engine.submit(job.delivery)
        if job.delivery.held and job.lease is None:
            self._places.enter(job)
        elif job.delivery.held:
            self._await_agent(job)

    def _new_places(self) -> Places:
        return Places(self.limits.max_concurrency, self._is_held, self._let_in)

    def _is_held(self, job: Job) -> bool:
        return not self.closed and self.hub.jobs.get(job.live.record.uid) is job and job.delivery.held

    def _let_in(self, job: Job) -> None:
        """Has the agent made ready of a run that was taken on before."""
        try:
            job.lease = self._lease_agent(job.delivery)
        except SojournError as error:
            self._agent_settled(job, error)
            return
        self._await_agent(job)

    def _await_agent(self, job: Job) -> None:
        if job.lease is not None and job.lease.agent is None:
            job.lease.when_settled(lambda error: self._agent_settled(job, error))
        else:
            self._agent_settled(job, None)

    def _lease_agent(self, delivery: Delivery) -> AgentLease | None:
        """Has the agent of a run's user made ready, and kept until the delivery has ended; None if all have the same.

        A run waits for its user's agent in the queue, without a slot: a slow build must not hold up others.
        """
        source = self.services.agent_source
        if source is None:
            return None
        lease, ended = source.lease(delivery.user_id), delivery.ended

        def release() -> None:
            lease.release()
            if ended is not None:
                ended()

        delivery.ended = release
        delivery.held = lease.agent is None
        return lease

    def _agent_settled(self, job: Job, error: SojournError | None) -> None:
        """The agent that a run waits for is there, or cannot be had."""
        if error is None:
            self.hub.engine.end_hold(job.delivery)
            return
        # With the event loop ends the build as well; the run is found again as it was, in the queue.
        torn_down = isinstance(error.__cause__, asyncio.CancelledError) and self.hub.tearing_down()
        if not torn_down and self.hub.engine.withdraw(job.delivery):
            self.hub.spawn(self._close_queued(job, error))

    def _agent_is_ready(self, user_id: str) -> bool:
        source = self.services.agent_source
        return source is None or source.is_ready(user_id)

    def _bound_waiting(self, job: Job) -> None:
        """Limits how long a run waits that its caller has just submitted; what was promised before waits as it must."""
        bound = self.limits.queue_timeout
        if bound is not None and job.in_queue:
            job.queue_timer = asyncio.get_running_loop().call_later(bound, self._waited_too_long, job, bound)

    def left_queue(self, job: Job) -> None:
        """Counts a job that waits no more; twice is fine."""
        if job.queue_timer is not None:
            job.queue_timer.cancel()
            job.queue_timer = None
        if job.in_queue:
            job.in_queue = False
            self.limiter.leave_queue()

    def _waited_too_long(self, job: Job, seconds: float) -> None:
        error = queue_timeout(seconds, NOT_BUILT) if job.delivery.held else queue_timeout(seconds)
        if self.hub.engine.withdraw(job.delivery):
            self.hub.spawn(self._close_queued(job, error))

    async def _close_queued(self, job: Job, error: SojournError) -> None:
        live, record = job.live, job.live.record
        live.failure = error
        self.left_queue(job)
        self.hub.remove(job)
        closed = await self._close_record(record.id, record.user_id, RunError.of(error), Move.FAIL)
        self.hub.conclude_queued(job, closed or record)

    def _start(self, job: Job) -> None:
        """A queued run's turn has come."""
        self.left_queue(job)
        asyncio.get_running_loop().create_task(self._execute(job), context=job.context)

    def _begin(self, job: Job, begun: Begun) -> None:
        """Executes a run that has begun."""
        execution = self._take_up(job, begun)
        task = asyncio.get_running_loop().create_task(self._execute(job), context=job.context)
        execution.task = task
        task.add_done_callback(lambda _: self._released(job))

    def _take_up(self, job: Job, begun: Begun) -> Execution:
        job.live.record = begun.record
        if begun.record.attempt == 1:
            job.live.publish(started_frame(begun.record))
        elif not job.live.frames:
            # What came before this attempt is in the store: readers find it there.
            job.live.first_pos = begun.record.last_pos + 1
        root = self.services.agent if job.lease is None else job.lease.agent
        execution = job.execution = Execution(
            self.services, begun, job.live, self._lineage_of(job), root, job.temp_state, job.requests
        )
        execution.tearing_down = self.hub.tearing_down
        if execution.config.timeout is not None:
            execution.on_timeout = lambda: self.stop(job, "timeout", Stop.TIMEOUT)
        return execution

    def _lineage_of(self, job: Job) -> Lineage:
        """The runs that wait for what this job's agents start, itself included."""
        waiting = job.lineage
        return Lineage((*waiting.sessions, job.live.record.key), (*waiting.limiters, self.limiter))

    async def _execute(self, job: Job) -> None:
        execution = job.execution
        if execution is None:
            execution = await self._next_attempt(job)
            if execution is None:
                return
        began = job.began = platform.monotonic()
        record = execution.record
        observe.run_started(self.services.observers, record, job.queued_at)
        outcome: Outcome | None = None
        try:
            with observe.span(record, execution.root_name) as span:
                if job.close_with is not None:
                    outcome = Outcome(Move.FAIL, RunError.of(job.close_with))
                    await execution.finish(outcome)
                else:
                    outcome = await execution.main()
                seconds = platform.monotonic() - began
                observe.end_span(span, job.live.record, execution.root_name, seconds)
        except Unavailable as error:
            logger.error("run %s cannot be closed: %s", record.id, error, extra={"run_id": record.id})
            self.hub.spawn(self._close_later(job, error))
            return
        except Exception as error:
            # Nothing of ours may fail like this; if it does, nobody must wait for it for ever.
            logger.exception("run %s failed inside the runtime", record.id, extra={"run_id": record.id})
            self._fail_inside(job, error)
            return
        if outcome is not None:
            observe.run_finished(job.live.record, seconds)
            self._ended(job, outcome)
            await self._after_run(job)

    def _fail_inside(self, job: Job, error: Exception) -> None:
        live = job.live
        live.cause = error
        live.failure = SojournError(
            f"run {live.record.id!r} failed inside the runtime; its log has the details", code="internal"
        )
        live.end()
        self.hub.spawn(self._close_later(job, live.failure))

    async def _next_attempt(self, job: Job) -> Execution | None:
        """Begins the next attempt of a queued run; None if there is nothing to execute any more."""
        live = job.live
        task = asyncio.current_task()
        try:
            begun = await self._begin_again(live.record.uid)
        except NotFound:
            # Its session was deleted by another process before its turn came.
            self.hub.conclude_queued(job, live.record)
            self._ended(job, None)
            return None
        except SojournError as error:
            live.failure = error
            live.end()
            self.hub.spawn(self._close_later(job, error))
            return None
        if begun.record.status is not RunStatus.RUNNING:
            self.hub.conclude_queued(job, begun.record)
            self._ended(job, None)
            return None
        try:
            execution = self._take_up(job, begun)
        except Exception as error:
            logger.exception("run %s cannot be taken up", live.record.id, extra={"run_id": live.record.id})
            self._fail_inside(job, error)
            return None
        execution.task = task
        assert task is not None
        task.add_done_callback(lambda _: self._released(job))
        if job.stop is not None:
            self.stop(job, *job.stop)
        return execution

    async def _begin_again(self, run_uid: int) -> Begun:
        """Begins an attempt, repeating while the store does not answer."""
        away = False
        pauses = iter(BEGIN_RETRIES)
        while True:
            try:
                return await observe.stored(self.services.observers, "begin", self.store.begin(run_uid))
            except Unavailable:
                away = True
                pause = next(pauses, None)
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            except Conflict:
                if not away:
                    raise
                # It had begun, and the reply was lost: that attempt is nobody's.
                away = False
                await self.store.requeue_lost(run_uid)

    def stop(self, job: Job, why: str, reason: Stop = Stop.CANCEL) -> None:
        """Stops a run that has started."""
        if job.execution is None:
            job.stop = job.stop or (why, reason)
        else:
            job.execution.stop(reason, why, lambda: self._grace_over(job))

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
        except Unavailable as error:
            self.hub.spawn(self._close_later(job, error))
            return
        self._ended(job, outcome)
        await self._after_run(job)

    async def _close_later(self, job: Job, error: SojournError) -> None:
        """Closes a run whose store was away, as soon as it is back; its session waits for that, its readers do not."""
        record = job.live.record
        self.hub.remove(job)
        closed = await self._close_record(record.id, record.user_id, RunError.of(error), Move.FAIL)
        if closed is not None:
            job.live.record = closed
            if closed.status.terminal:
                # For readers who come to it only now; the others have been told that the store was away.
                job.live.publish_last(terminal_frame(closed))
        self._ended(job, None)
        await self._after_run(job)

    def _ended(self, job: Job, outcome: Outcome | None) -> None:
        """The run has really ended, as far as its session is concerned: the next one may start."""
        execution = job.execution
        if execution is not None and not self.closed and self._cut_off(execution):
            # The event loop is being torn down: what would start now could not end.
            self.hub.engine.stop()
        self.left_queue(job)
        self.hub.remove(job)
        self.hub.engine.free_turn(job.delivery)
        if execution is None or execution.task is None or not (job.abandoned or execution.thread_calls):
            self.hub.engine.free_slot(job.delivery)
        live = job.live
        if live.ended:
            return
        record = live.record
        if record.status is RunStatus.WAITING and job.answered:
            record = live.record = record.evolve(status=RunStatus.QUEUED)
        if record.status is RunStatus.QUEUED and outcome is not None and outcome.move is Move.WAIT and not self.closed:
            # Answered while it was still busy with something else: it goes on at once.
            self._queue(self._job(record, live, job.context, job.lineage, ahead=True))
            # Whoever waits for it may hold the slot that it needs now.
            live.touch()
            return
        if record.status is RunStatus.QUEUED:
            live.failure = suspended_error(record)
        live.end()
        if record.status is RunStatus.WAITING:
            self.hub.spawn(self.watch_waiting(record))

    def _cut_off(self, execution: Execution) -> bool:
        """Whether the event loop ended the attempt; its agent may have made something else of that."""
        if execution.stop_reason is not None:
            return execution.stop_reason is Stop.SHUTDOWN
        return execution.task is not None and execution.task.cancelling() > 0 and self.hub.tearing_down()

    def _released(self, job: Job) -> None:
        """The run's task has ended, whatever became of the run."""
        if job.abandoned:
            self.limiter.abandoned -= 1
        execution = job.execution
        if execution is not None and not execution.finished:
            # The loop was torn down before the task could do anything.
            job.live.failure = Unavailable(
                f"run {execution.run_id!r} was interrupted by the end of its event loop", code="run.lost"
            )
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

    async def _after_run(self, job: Job) -> None:
        record, services = job.live.record, self.services
        adds = services.ingest is not None and services.ingests and record.status is RunStatus.COMPLETED
        # Before anybody can act on the end of the run: who forgets the user then must find this.
        addition = services.ingest.begin(record) if services.ingest is not None and adds else None
        self.tell_ended(job)
        if services.plugins.after_run:
            await observe_hooks(services.plugins.after_run, record, job.live.cause)
        if services.ingest is not None and addition is not None:
            self.hub.spawn(services.ingest.add_run(addition))
        elif services.ingest is not None and record.retry_of is not None and record.status.terminal:
            # It may have ended before it came to that.
            self.hub.spawn(services.ingest.drop_superseded(record))

    def tell_ended(self, job: Job) -> None:
        """Tells the observers that an attempt has ended, or a run before its first one."""
        if self.services.observers:
            seconds = 0.0 if job.began is None else platform.monotonic() - job.began
            observe.tell(self.services.observers, "run_ended", job.live.record, seconds)

    async def watch_waiting(self, record: RunRecord) -> None:
        """Sees to it that a waiting run goes on if it was answered meanwhile, and fails when a question of it expires."""
        pauses = iter(CLOSE_RETRY_SECONDS)
        while not self.closed:
            try:
                current = await self.store.get_run(record.app_name, record.id, record.user_id)
                if current.uid in self.hub.jobs:
                    return
                if current.status is RunStatus.QUEUED:
                    if await self.may_execute() and current.uid not in self.hub.jobs:
                        self.deliver(current, ahead=True)
                elif current.status is RunStatus.WAITING:
                    await self._watch_expiry(current)
                return
            except Unavailable:
                await asyncio.sleep(next(pauses, CLOSE_RETRY_SECONDS[-1]))
            except SojournError:
                return

    async def _watch_expiry(self, record: RunRecord) -> None:
        asked = await self.store.list_interrupts(record.app_name, user_id=record.user_id, run_uid=record.uid)
        times = [i.expires_at for i in asked if i.expires_at is not None]
        if not times:
            return
        delay = min(times) - platform.now()
        if delay > 0:
            self.hub.at(delay, lambda: self.hub.spawn(self.watch_waiting(record)))
            return
        error = TimedOut(f"nobody answered run {record.id!r} in time", code="interrupt.expired", retryable=False)
        await self.store.close_run(record.uid, RunError.of(error), move=Move.EXPIRE)

    async def cancel(self, record: RunRecord, reason: str) -> RunRecord:
        """Asks for a run's end; see `Runner.cancel`."""
        job = self.hub.jobs.get(record.uid)
        try:
            after = await self.store.request_cancel(record.uid, reason)
        except NotFound:
            return record
        except asyncio.CancelledError:
            # The wish may be recorded, and then it counts, whatever becomes of whoever had it.
            self.hub.spawn(self.cancel(record, reason))
            raise
        except Unavailable:
            # The wish cannot be recorded, but a run of this process can still be stopped.
            if job is not None and not job.live.ended:
                job.dispatcher.stop(job, reason)
            raise
        if job is not None:
            if after.status.terminal and self.hub.engine.withdraw(job.delivery):
                self.hub.conclude_queued(job, after)
            elif not job.live.ended:
                job.dispatcher.stop(job, reason)
        return after

    def leave(self, record: RunRecord) -> None:
        """Ends a run whose reader has left, unless it has ended or waits for a person; may be called from any thread."""
        job = self.hub.jobs.get(record.uid)
        if job is None or job.live.ended or not job.live.record.attached:
            return
        loop = self.hub.loop
        if loop is not None and not loop.is_closed():
            # A finalizer may call this from anywhere.
            loop.call_soon_threadsafe(self._spawn_cancel, record, "its reader left")

    def _spawn_cancel(self, record: RunRecord, reason: str) -> None:
        self.hub.spawn(self.cancel(record, reason))


def runner_closed() -> Unavailable:
    """What those are told who come too late."""
    return Unavailable("this Runner is closed; make a new one", code="runner.closed", retryable=False)


def suspended_error(record: RunRecord) -> Unavailable:
    """What readers of a run are told when its process shuts down."""
    return Unavailable(
        f"run {record.id!r} was suspended by a shutdown; it goes on when a Runner of app {record.app_name!r} is entered again",
        code="run.suspended",
    )


def _never() -> None:
    raise AssertionError("a delivery was started before it was given what to start")

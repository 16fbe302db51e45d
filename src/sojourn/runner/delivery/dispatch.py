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
from sojourn.engine.limiter import Limits
from sojourn.engine.protocol import Delivery
from sojourn.errors import Conflict, NotFound, SojournError, TimedOut, Unavailable
from sojourn.run.live import LiveRun
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Begun, NewRun
from sojourn.run.types import RunError, RunRecord, started_frame, terminal_frame
from sojourn.runner import observe
from sojourn.runner.attempt.ending import Stop
from sojourn.runner.attempt.execution import Execution
from sojourn.runner.attempt.log import Outcome
from sojourn.runner.delivery.admission import Admission
from sojourn.runner.delivery.hub import Hub, Job, hub_of
from sojourn.runner.delivery.records import CLOSE_RETRY_SECONDS, Records
from sojourn.runner.plugins import observe as observe_hooks
from sojourn.runner.services import Services

logger = logging.getLogger("sojourn.run")


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
        self.hub: Hub = hub_of(services.store)
        self.hub.dispatchers.add(self)
        self.admission = Admission(self.hub, limits, services.agent_source, self._refuse)
        # The event loop in which what an earlier process left was taken up.
        self.recovered_in = -1
        # Runs that are just being recorded: closing waits until it is known what becomes of them.
        self.recording: set[asyncio.Future[None]] = set()
        self._records = Records(services, self.hub, lambda: self.admission.closed)
        self._propagate = propagate

    @property
    def app_name(self) -> str:
        """The app whose runs these are."""
        return self.services.app_name

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

        Raises:
            Unavailable: `runner.closed`; nothing is recorded then.
        """
        hub, admission = self.admission.ready(), self.admission
        # Whoever waits for a run while it holds a slot itself must not make it wait for another one.
        needs_slot = slot_freed is None and admission.limiter not in lineage.limiters
        delivery = Delivery(new.key, new.key.user_id, 0, _never, admission.limiter, needs_slot, ended=slot_freed)
        lease, begin = admission.admit(delivery)
        job: Job | None = None
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.recording.add(recorded)
        name = (new.key.app_name, new.key.user_id, new.id)
        hub.recording[name] += 1
        try:
            submitted = await self._records.submit(new, begin)
            record = submitted.record
            if not submitted.known:
                delivery.no = record.no
                job = Job(self, LiveRun(record), delivery, observe.run_context(self._propagate), lineage, lease)
                job.temp_state = temp_state or {}
                job.requests = requests
                self._begin_or_queue(job, submitted.begun)
                return record, job.live
        except (asyncio.CancelledError, Unavailable):
            if job is None:
                hub.spawn(self._undo(new))
            raise
        finally:
            hub.recording[name] -= 1
            if not hub.recording[name]:
                del hub.recording[name]
            self.recording.discard(recorded)
            recorded.set_result(None)
            if job is None:
                admission.give_back(delivery, begin=begin)
        left = record.status is RunStatus.QUEUED and record.uid not in hub.jobs
        if left and self.deliver(record, ahead=False, needs_slot=delivery.limiter not in lineage.limiters):
            hub.jobs[record.uid].requests = requests
        return record, hub.live.get(record.uid)

    def _begin_or_queue(self, job: Job, begun: Begun | None) -> None:
        """Executes a run that was just recorded, or lets it wait if it has not begun."""
        self.hub.add(job)
        if job.lease is not None:
            # The agent is made ready anyway, and what was taken on before of its session comes first.
            self.admission.let_in_now(job.delivery.user_id)
        if begun is None:
            job.in_queue = job.delivery.needs_slot
            if self.admission.closed:
                self.hub.spawn(self.end_queued(job))
                return
            self.admission.bound_waiting(job)
            self._queue(job)
            return
        self._begin(job, begun)
        if self.admission.closed:
            self.stop(job, "shutdown", Stop.SHUTDOWN)

    async def _undo(self, new: NewRun) -> None:
        """Ends a run whose caller does not know that it was recorded, unless others have sent it, too, and may get to know."""
        if (new.key.app_name, new.key.user_id, new.id) in self.hub.recording:
            return
        error = RunError("run.cancelled", "its caller was gone before it was known to be recorded", "RunCancelled")
        await self._records.close(new.id, new.key.user_id, error, Move.CANCEL)

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
    ) -> bool:
        """Brings a recorded, queued run to execution.

        If the Runner was closed meanwhile, another one of the app does it that shares the store object. If there is none, the
        run stays queued until a Runner of the app is entered.

        Args:
            record: The run.
            ahead: Before all others of its session.
            close_with: Fails it with this instead of running its agent.
            needs_slot: False if it shares the slot of the run that waits for it.
            slot_freed: For a run that uses a slot of its caller's, as for `submit`.

        Returns:
            Whether somebody does it.
        """
        if self.admission.closed:
            other = self.hub.open_dispatcher(self.app_name)
            return other is not None and other.deliver(
                record, ahead=ahead, close_with=close_with, needs_slot=needs_slot, slot_freed=slot_freed
            )
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
        return True

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
        limiter = self.admission.limiter
        delivery = Delivery(record.key, record.user_id, record.no, _never, limiter, needs_slot, ahead, ended=slot_freed)
        job = Job(self, live, delivery, context, lineage)
        job.close_with = close_with
        self.admission.take_on(job)
        return job

    def _queue(self, job: Job) -> None:
        job.delivery.start = lambda: self._start(job)
        self.admission.enqueue(job)

    def _refuse(self, job: Job, error: SojournError) -> None:
        self.hub.spawn(self._close_queued(job, error))

    async def _close_queued(self, job: Job, error: SojournError) -> None:
        live, record = job.live, job.live.record
        live.failure = error
        self.admission.left_queue(job)
        self.hub.remove(job)
        closed = await self._records.close(record.id, record.user_id, RunError.of(error), Move.FAIL)
        self.hub.conclude_queued(job, closed or record)

    async def end_queued(self, job: Job) -> bool:
        """Lets go of a run that has not started: an attached one is cancelled, another one stays queued in the store.

        Returns:
            Whether it was cancelled.
        """
        live, record = job.live, job.live.record
        self.hub.engine.withdraw(job.delivery)
        self.admission.left_queue(job)
        if record.attached:
            error = RunError("run.cancelled", "its reader's process shut down", "RunCancelled")
            try:
                record = await self.store.close_run(record.uid, error, move=Move.CANCEL)
            except NotFound:
                # Its session was deleted by another process.
                pass
            except SojournError as failure:
                live.failure = failure
                live.end()
            self.hub.conclude_queued(job, record)
        else:
            live.failure = suspended_error(record)
            live.end()
        self.hub.remove(job)
        return record.status is RunStatus.CANCELLED

    def _start(self, job: Job) -> None:
        """A queued run's turn has come."""
        self.admission.left_queue(job)
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
        return Lineage((*waiting.sessions, job.live.record.key), (*waiting.limiters, self.admission.limiter))

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
            self._fail_inside(job, error)
            return
        if outcome is not None:
            observe.run_finished(job.live.record, seconds)
            self._ended(job, outcome)
            await self._after_run(job)

    def _fail_inside(self, job: Job, error: Exception) -> None:
        """Nothing of ours may fail like this; if it does, nobody must wait for the run for ever."""
        live = job.live
        logger.error(
            "run %s failed inside the runtime", live.record.id, exc_info=error, extra={"run_id": live.record.id}
        )  # fmt: skip
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
            begun = await self._records.begin(live.record.uid)
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
            self._fail_inside(job, error)
            return None
        execution.task = task
        assert task is not None
        task.add_done_callback(lambda _: self._released(job))
        if job.stop is not None:
            self.stop(job, *job.stop)
        return execution

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
        self.admission.limiter.abandoned += 1
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
        except Exception as error:
            self._fail_inside(job, error)
            return
        self._ended(job, outcome)
        await self._after_run(job)

    async def _close_later(self, job: Job, error: SojournError) -> None:
        """Closes a run whose store was away, as soon as it is back; its session waits for that, its readers do not."""
        record = job.live.record
        self.hub.remove(job)
        closed = await self._records.close(record.id, record.user_id, RunError.of(error), Move.FAIL)
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
        if execution is not None and not self.admission.closed and self._cut_off(execution):
            # The event loop is being torn down: what would start now could not end.
            self.hub.engine.stop()
        self.admission.left_queue(job)
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
        waited = outcome is not None and outcome.move is Move.WAIT
        if record.status is RunStatus.QUEUED and waited and not self.admission.closed:
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
            self.admission.limiter.abandoned -= 1
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
        self.admission.limiter.abandoned += 1
        self.hub.spawn(self._await_threads(job, calls))

    async def _await_threads(self, job: Job, calls: set[asyncio.Future[None]]) -> None:
        while calls:
            await asyncio.wait(set(calls))
        self.admission.limiter.abandoned -= 1
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
        while not self.admission.closed:
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


def suspended_error(record: RunRecord) -> Unavailable:
    """What readers of a run are told when its process shuts down."""
    return Unavailable(
        f"run {record.id!r} was suspended by a shutdown; it goes on when a Runner of app {record.app_name!r} is entered again",
        code="run.suspended",
    )


def _never() -> None:
    raise AssertionError("a delivery was started before it was given what to start")

"""What all Runners on one store share in this process: the engine, the live runs, and the watch for what others do."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet, ref

from sojourn import platform
from sojourn.agents.current import Lineage
from sojourn.agents.live import LiveRequestQueue
from sojourn.agents.source import AgentLease
from sojourn.engine.inprocess import InProcessEngine
from sojourn.engine.protocol import Delivery
from sojourn.errors import Conflict, NotFound, SojournError, Unavailable
from sojourn.run.live import LiveRun
from sojourn.run.status import RunStatus
from sojourn.run.store import Change, Store
from sojourn.run.types import RunRecord, terminal_frame
from sojourn.runner.attempt.unwinding import LoopLock
from sojourn.runner.delivery.watchdog import Watchdog

if TYPE_CHECKING:
    from sojourn.runner.attempt.ending import Stop
    from sojourn.runner.attempt.execution import Execution
    from sojourn.runner.delivery.dispatch import Dispatcher

logger = logging.getLogger("sojourn.run")

CHANGES_SECONDS = 0.5
"""How often an executor looks for what other processes did."""

BLOCKED_SECONDS = 1.0
"""How long something may block the event loop before it is told."""


class Job:
    """A run that this process is to execute, from its submission to its end."""

    __slots__ = (
        "abandoned", "answered", "began", "close_with", "context", "delivery", "dispatcher", "execution", "in_queue", "lease",
        "lineage", "live", "queue_timer", "queued_at", "requests", "stop", "temp_state",
    )  # fmt: skip

    def __init__(
        self,
        dispatcher: Dispatcher,
        live: LiveRun,
        delivery: Delivery,
        context: contextvars.Context,
        lineage: Lineage,
        lease: AgentLease | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.live = live
        self.delivery = delivery
        self.context = context
        self.lineage = lineage
        # Its user's agent, if the Runner has one per user; held until its delivery has ended.
        self.lease = lease
        self.execution: Execution | None = None
        self.close_with: SojournError | None = None
        self.stop: tuple[str, Stop] | None = None
        self.in_queue = False
        self.abandoned = False
        # Whether a question was answered that this process has not heard of being stored.
        self.answered = False
        self.queue_timer: asyncio.TimerHandle | None = None
        # Since when it has waited for its turn, on the wall clock; and when its attempt began.
        self.queued_at: float | None = None
        self.began: float | None = None
        # `temp:` keys that came with the message: what is not stored has no other place.
        self.temp_state: dict[str, Any] = {}
        # What the user sends meanwhile, if the run is live.
        self.requests: LiveRequestQueue | None = None


class Hub:
    """One per store object."""

    def __init__(self, store: Store) -> None:
        # Weak, as the store is what this is found by: it must go when nobody else uses it.
        self._store = ref(store)
        self.dispatchers: WeakSet[Dispatcher] = WeakSet()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.generation = 0
        self._reset()

    def _reset(self) -> None:
        self.engine = InProcessEngine()
        self.live: dict[int, LiveRun] = {}
        self.jobs: dict[int, Job] = {}
        # How many callers are just recording a run, by (app, user, id): whoever records it brings it to execution.
        self.recording: Counter[tuple[str, str, str]] = Counter()
        # Held while what an earlier process left is taken up.
        self.recovering = LoopLock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._poller: asyncio.Task[None] | None = None
        # What others did that has not been acted on yet.
        self._untreated: deque[Change] = deque()
        self._watchdog: Watchdog | None = None
        self._entered = 0
        self._tearing_down = False

    @property
    def store(self) -> Store:
        """The store; whoever uses this holds it."""
        store = self._store()
        assert store is not None, "a Runner that uses this hub holds the store"
        return store

    def bind(self) -> int:
        """Makes sure that this belongs to the running event loop; what was live in one that has ended is gone.

        Returns:
            A number that is another one for each loop.

        Raises:
            Conflict: `runner.other_loop` while another loop executes runs of this store.
        """
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            if self.loop is not None and not self.loop.is_closed() and self.jobs:
                raise Conflict(
                    "another event loop of this process executes this store's runs; use one loop, or a store object each",
                    code="runner.other_loop",
                )
            if self._watchdog is not None:
                self._watchdog.close()
            self._reset()
            self.loop = loop
            self.generation += 1
        return self.generation

    def add(self, job: Job) -> None:
        """Takes in a run that this process is to execute."""
        uid = job.live.record.uid
        self.jobs[uid] = job
        self.live[uid] = job.live
        if self._watchdog is None and not platform.is_virtual():
            self._watchdog = Watchdog(asyncio.get_running_loop(), BLOCKED_SECONDS)
        if len(self.jobs) == 1:
            if self._watchdog is not None:
                self._watchdog.watch()
            if self.store.shared:
                self.watch_changes()

    def remove(self, job: Job) -> None:
        """Forgets a run that has ended here; twice is fine."""
        uid = job.live.record.uid
        if self.jobs.get(uid) is job:
            del self.jobs[uid]
        if self.live.get(uid) is job.live:
            del self.live[uid]
        if not self.jobs and self._watchdog is not None:
            self._watchdog.rest()

    def tearing_down(self) -> bool:
        """Whether the event loop ends and has cancelled all its tasks, not just the one that asks.

        An agent that has cancelled its own task must not pass for the end of the process.
        """
        if not self._tearing_down:
            others = asyncio.all_tasks() - self._tasks
            self._tearing_down = all(task.cancelling() for task in others)
        return self._tearing_down

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts background work that `settle` waits for; what it raises is logged."""
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        # What the end of the event loop cuts off is taken up from the store by whoever comes next: no cause for alarm.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("background work of the runner failed", exc_info=error)

    async def settle(self, seconds: float) -> None:
        """Waits for the background work under way, but not for ever; what is left then is cancelled."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._tasks:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                if not self._in_use():
                    for task in set(self._tasks):
                        task.cancel()
                return
            await asyncio.wait(set(self._tasks), timeout=left)

    def at(self, seconds: float, call: Callable[[], Any]) -> None:
        """Calls something later, unless this hub has stopped by then."""
        timer: asyncio.TimerHandle

        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(seconds, due)
        self._timers.add(timer)

    # -- what other processes do ------------------------------------------------------------------------------------

    def enter(self) -> None:
        """A Runner was entered: changes are watched even while nothing runs."""
        self._entered += 1
        if self.store.shared:
            self.watch_changes()

    def leave(self) -> None:
        """A Runner was closed."""
        self._entered = max(0, self._entered - 1)
        self.stop_watching()

    def _in_use(self) -> bool:
        """Whether a Runner that has not been closed may still need what runs here."""
        return bool(self.jobs or self._entered or any(not d.admission.closed for d in self.dispatchers))

    def stop_watching(self) -> None:
        """If no Runner needs it any more: stops looking for changes, for questions that expire, and watching the loop."""
        if self._in_use():
            return
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    def watch_changes(self) -> None:
        """Looks for what other processes did, from now on; twice is fine."""
        if self._poller is None or self._poller.done():
            self._poller = asyncio.get_running_loop().create_task(self._poll(), context=contextvars.Context())

    async def _poll(self) -> None:
        while self.jobs or self._entered:
            await asyncio.sleep(CHANGES_SECONDS)
            store = self._store()
            if store is None:
                return
            try:
                # A store tells each change once.
                self._untreated.extend(await store.changes())
                while self._untreated:
                    await self._act_on(self._untreated[0])
                    self._untreated.popleft()
            except Unavailable as error:
                logger.warning("cannot look for changes by other processes: %s", error)
            except Exception:
                # Without the watch, nobody's cancel or answer from elsewhere would be noticed any more.
                logger.exception("looking for changes by other processes failed; it goes on")
                if self._untreated:
                    self._untreated.popleft()

    async def _act_on(self, change: Change) -> None:
        job = self.jobs.get(change.run_uid)
        match change.kind:
            case "cancel" if job is not None:
                job.dispatcher.stop(job, (change.record.cancel_requested if change.record else None) or "cancelled")
            case "closed" if job is not None:
                await self.closed(job)
            case "queued" if job is None and change.record is not None:
                if (dispatcher := self.open_dispatcher(change.record.app_name)) is not None:
                    dispatcher.deliver(change.record, ahead=True)

    def open_dispatcher(self, app_name: str) -> Dispatcher | None:
        """Who brings runs of an app to execution: that of a Runner that has not been closed, if there is one."""
        return next((d for d in self.dispatchers if d.app_name == app_name and not d.admission.closed), None)

    async def closed(self, job: Job) -> None:
        """Acts on a run that was closed over this process's head: by another process, or with its session."""
        record = job.live.record
        try:
            record = await self.store.get_run(record.app_name, record.id, record.user_id)
        except NotFound:
            pass
        self.let_go(job, record)

    def let_go(self, job: Job, record: RunRecord) -> None:
        """Ends the execution of a run that has ended in the store, or was deleted with its session.

        Args:
            job: The run.
            record: As the store has it, or had it last.
        """
        if self.engine.withdraw(job.delivery):
            self.conclude_queued(job, record)
        else:
            if job.execution is not None:
                job.execution.gone = True
            job.dispatcher.stop(job, "closed by somebody else")

    def conclude_queued(self, job: Job, record: RunRecord) -> None:
        """Tells the readers of a run that ended before it started; twice is fine."""
        live = job.live
        job.dispatcher.admission.left_queue(job)
        self.remove(job)
        if live.ended:
            return
        live.record = record
        if record.status.terminal:
            live.publish_last(terminal_frame(record))
        elif record.status is not RunStatus.WAITING:
            live.failure = NotFound(
                f"session {record.key} was deleted before run {record.id!r} started", code="session.deleted"
            )
        live.end()
        job.dispatcher.tell_ended(job)


_hubs: WeakKeyDictionary[Any, Hub] = WeakKeyDictionary()


def hub_of(store: Store) -> Hub:
    """The hub of a store object; two Runners on one store object share it."""
    hub = _hubs.get(store)
    if hub is None:
        hub = _hubs[store] = Hub(store)
    return hub

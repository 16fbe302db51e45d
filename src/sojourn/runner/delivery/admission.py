"""Which runs may start: they wait for their session's turn, for a slot, and for their user's agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sojourn import platform
from sojourn.agents.current import Lineage
from sojourn.agents.source import NOT_BUILT, AgentLease, AgentSource
from sojourn.engine.limiter import Limiter, Limits, queue_timeout
from sojourn.engine.protocol import Delivery
from sojourn.errors import LimitExceeded, SojournError, Unavailable
from sojourn.runner.delivery.hub import Hub, Job
from sojourn.runner.delivery.places import Places


class Admission:
    """Lets the runs of one Runner start when all is there for them.

    Args:
        hub: Where the runs are.
        limits: How many may execute and wait.
        source: Where each user's agent comes from; None if all have the same.
        refuse: Told of a run that was taken out of the queue, and why: its agent cannot be had, or it has waited too long.

    Attributes:
        closed: Whether nothing is taken on any more.
        limiter: The slots, and how many wait for one.
    """

    limiter: Limiter
    _places: Places

    def __init__(
        self, hub: Hub, limits: Limits, source: AgentSource | None, refuse: Callable[[Job, SojournError], object]
    ) -> None:
        self.closed = False
        self._hub = hub
        self._limits = limits
        self._source = source
        self._refuse = refuse
        self._generation = hub.generation
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.limiter = Limiter(self._limits)
        self._places = Places(self._limits.max_concurrency, self._is_held, self._let_in)

    def ready(self) -> Hub:
        """Makes sure that runs can be taken on, in the running event loop.

        Raises:
            Unavailable: `runner.closed`.
            Conflict: `runner.other_loop`.
        """
        if self.closed:
            raise _runner_closed()
        generation = self._hub.bind()
        if generation != self._generation:
            # The slots of an event loop that has ended are never given back.
            self._generation = generation
            self._begin_anew()
        return self._hub

    def bound_limiter(self) -> Limiter:
        """The limiter of the running event loop, for callers that reserve slots themselves.

        Raises:
            Unavailable: `runner.closed`.
        """
        self.ready()
        return self.limiter

    # -- new runs ---------------------------------------------------------------------------------------------------

    def admit(self, delivery: Delivery) -> tuple[AgentLease | None, bool]:
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
        begin = not builds and not delivery.held and self._hub.engine.claim(delivery)
        if not begin and not builds and delivery.needs_slot:
            try:
                self.limiter.enter_queue()
            except LimitExceeded:
                self._hub.engine.free_slot(delivery)
                raise
        return lease, begin

    def give_back(self, delivery: Delivery, *, begin: bool) -> None:
        """Gives back what `admit` gave to a run that nothing came of."""
        self._hub.engine.free_turn(delivery)
        self._hub.engine.free_slot(delivery)
        if not begin and delivery.needs_slot:
            delivery.limiter.leave_queue()

    def check_room(self, user_id: str, lineage: Lineage) -> None:
        """Refuses what `admit` would refuse, before anything else is done for a run.

        Raises:
            LimitExceeded: `limit.queue_full`.
        """
        if self.limiter in lineage.limiters:
            return
        if not self._agent_is_ready(user_id):
            self._enter_queue_to_build(user_id)
        elif self.limiter.has_room(user_id):
            return
        else:
            self.limiter.enter_queue()
        self.limiter.leave_queue()

    def _enter_queue_to_build(self, user_id: str) -> None:
        # Those for whom slots are free wait for their agents alone, which `max_queue` says nothing about.
        self.limiter.enter_queue(beyond=self.limiter.free_slots(user_id))

    # -- runs that wait ---------------------------------------------------------------------------------------------

    def take_on(self, job: Job) -> None:
        """Counts a run as waiting that is queued in the store, whatever the bound of the queue.

        Raises:
            Unavailable: `runner.closed` if its user's agent would have to be built.
        """
        if job.close_with is not None:
            # Its agent is not needed: building it may be what ended the process.
            pass
        elif not job.delivery.needs_slot or self._agent_is_ready(job.delivery.user_id):
            job.lease = self._lease_agent(job.delivery)
        elif self.closed:
            raise _runner_closed()
        else:
            job.delivery.held = True
        job.in_queue = True
        self.limiter.queued += 1
        self._hub.add(job)

    def enqueue(self, job: Job) -> None:
        """Has a run delivered when its turn comes."""
        job.queued_at = platform.now()
        self._hub.engine.submit(job.delivery)
        if job.delivery.held and job.lease is None:
            self._places.enter(job)
        elif job.delivery.held:
            self._await_agent(job)

    def bound_waiting(self, job: Job) -> None:
        """Limits how long a run waits that its caller has just submitted; what was promised before waits as it must."""
        bound = self._limits.queue_timeout
        if bound is not None and job.in_queue:
            job.queue_timer = asyncio.get_running_loop().call_later(bound, self._waited_too_long, job, bound)

    def _waited_too_long(self, job: Job, seconds: float) -> None:
        error = queue_timeout(seconds, NOT_BUILT) if job.delivery.held else queue_timeout(seconds)
        if self._hub.engine.withdraw(job.delivery):
            self._refuse(job, error)

    def left_queue(self, job: Job) -> None:
        """Counts a job that waits no more; twice is fine."""
        if job.queue_timer is not None:
            job.queue_timer.cancel()
            job.queue_timer = None
        if job.in_queue:
            job.in_queue = False
            self.limiter.leave_queue()

    def lend_slot(self, run_uid: int, slot_freed: Callable[[], None]) -> None:
        """Lets a run that waits for a slot use one of its caller's; gives it back at once if the run waits for none.

        Args:
            run_uid: The run.
            slot_freed: Called when its code has ended, or will never run.
        """
        job = self._hub.jobs.get(run_uid)
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
        self._hub.engine.share_slot(delivery)

    # -- users' agents ----------------------------------------------------------------------------------------------

    def let_in_now(self, user_id: str) -> None:
        """Has the agent made ready of runs that were taken on before: it is made ready anyway, and they come first."""
        self._places.let_in_now(user_id)

    def _agent_is_ready(self, user_id: str) -> bool:
        return self._source is None or self._source.is_ready(user_id)

    def _lease_agent(self, delivery: Delivery) -> AgentLease | None:
        """Has the agent of a run's user made ready, and kept until the delivery has ended; None if all have the same.

        A run waits for its user's agent in the queue, without a slot: a slow build must not hold up others.
        """
        if self._source is None:
            return None
        lease, ended = self._source.lease(delivery.user_id), delivery.ended

        def release() -> None:
            lease.release()
            if ended is not None:
                ended()

        delivery.ended = release
        delivery.held = lease.agent is None
        return lease

    def _is_held(self, job: Job) -> bool:
        return not self.closed and self._hub.jobs.get(job.live.record.uid) is job and job.delivery.held

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

    def _agent_settled(self, job: Job, error: SojournError | None) -> None:
        """The agent that a run waits for is there, or cannot be had."""
        if error is None:
            self._hub.engine.end_hold(job.delivery)
            return
        # With the event loop ends the build as well; the run is found again as it was, in the queue.
        torn_down = isinstance(error.__cause__, asyncio.CancelledError) and self._hub.tearing_down()
        if not torn_down and self._hub.engine.withdraw(job.delivery):
            self._refuse(job, error)


def _runner_closed() -> Unavailable:
    """What those are told who come too late."""
    return Unavailable("this Runner is closed; make a new one", code="runner.closed", retryable=False)

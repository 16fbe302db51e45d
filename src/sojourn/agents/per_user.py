"""An agent for each user: built when it is needed, kept for reuse, let go when it is idle."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from sojourn.agents.base import Agent, check_tree, close_agents
from sojourn.agents.threads import in_thread
from sojourn.errors import AgentError, Conflict, InvalidInput, SojournError, Unavailable

logger = logging.getLogger("sojourn.agents")

IDLE_SECONDS = 1800.0
"""How long an agent that nobody uses is kept unless something else is said."""

MAX_KEPT = 1000
"""How many agents are kept unless something else is said."""

EXIT_SECONDS = 10.0
"""How long closing an agent and leaving its context manager may take before it is cancelled."""


class PerUserAgents:
    """Builds an agent per user with a function of the operator's; see `AgentSource`.

    Builds of different users run at the same time, and one user's is shared by all who wait for it. An agent is built,
    entered, closed and left in one task of its own, in an empty context: nothing of the request that happened to come first
    is in it. It is kept for reuse until nobody has used it for `idle` seconds, or until more than `max_kept` are kept: then
    those that have been idle longest go. An agent in use is never let go, however many there are. If its task ends by itself
    (something that its context manager runs has failed), the next one who needs it has it built again.

    Args:
        build: Called with the user's id. Gives an `Agent`, or an async context manager that gives one; or is an async
            function that does. A plain function runs in a thread, so that it holds up nobody.
        idle: Seconds; None for no bound.
        max_kept: Agents; None for no bound.

    Raises:
        InvalidInput: `limit.invalid`.
    """

    def __init__(
        self, build: Callable[[str], Any], *, idle: float | None = IDLE_SECONDS, max_kept: int | None = MAX_KEPT
    ) -> None:
        if idle is not None and not idle > 0:
            raise InvalidInput(
                f"a user's idle agent cannot be kept for {idle!r} seconds; give more than 0, or None", code="limit.invalid"
            )
        if max_kept is not None and max_kept < 1:
            raise InvalidInput(f"{max_kept!r} users' agents cannot be kept; give at least 1, or None", code="limit.invalid")
        self._build = build
        self._idle_seconds = idle
        self._max_kept = max_kept
        self._closed = False
        self._reset(None)

    def _reset(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._loop = loop
        self._kept: dict[str, _Kept] = {}
        # Those of them that nobody uses, idle longest first.
        self._idle: dict[str, _Kept] = {}
        # The tasks of those let go that have not ended, by user.
        self._leaving: dict[str, set[asyncio.Task[None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        # How many users have an agent, by its identity: a builder may give one to several.
        self._holders: dict[int, int] = {}

    # -- getting one ------------------------------------------------------------------------------------------------

    def is_ready(self, user_id: str) -> bool:
        """See `AgentSource.is_ready`."""
        kept = self._kept.get(user_id)
        return kept is not None and kept.agent is not None and self._loop is asyncio.get_running_loop()

    def lease(self, user_id: str) -> Lease:
        """See `AgentSource.lease`.

        Raises:
            Unavailable: `runner.closed`.
            Conflict: `runner.other_loop`.
        """
        if self._closed:
            raise Unavailable(
                "the users' agents are closed with their Runner; make a new one", code="runner.closed", retryable=False
            )
        self._bind()
        kept = self._kept.get(user_id)
        if kept is None:
            kept = self._start(user_id)
        elif not kept.uses:
            del self._idle[user_id]
        kept.uses += 1
        return Lease(self, kept)

    def _bind(self) -> None:
        """Makes sure that this belongs to the running event loop; what was kept in one that has ended is gone."""
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed() and self._kept:
            raise Conflict(
                "another event loop of this process uses these agents; use one loop, or a Runner per loop",
                code="runner.other_loop",
            )
        self._reset(loop)

    def _start(self, user_id: str) -> _Kept:
        assert self._loop is not None
        kept = self._kept[user_id] = _Kept(user_id, self._loop)
        before = frozenset(self._leaving.get(user_id, ()))
        kept.task = self._loop.create_task(self._own(kept, before), context=contextvars.Context())
        kept.task.add_done_callback(lambda task: self._left(kept, task))
        self._trim()
        return kept

    def give_back(self, kept: _Kept) -> None:
        """One less uses an agent."""
        kept.uses -= 1
        if kept.uses or self._kept.get(kept.user_id) is not kept:
            return
        assert self._loop is not None
        kept.idle_since = self._loop.time()
        self._idle[kept.user_id] = kept
        self._trim()
        self._watch_idle()

    # -- the task that owns one -------------------------------------------------------------------------------------

    async def _own(self, kept: _Kept, before: frozenset[asyncio.Task[None]]) -> None:
        """Builds an agent, keeps it entered for as long as it is wanted, and leaves it."""
        if before:
            # The agent that this user had may hold what the new one needs; but it must not keep the user out for ever.
            await asyncio.wait(before, timeout=2 * EXIT_SECONDS)
        async with AsyncExitStack() as stack:
            try:
                kept.agent = await self._built(kept.user_id, stack)
            except BaseException as error:
                self._retire(kept)
                kept.fail(error)
                raise
            kept.settled.set_result(None)
            try:
                await kept.unwanted
            finally:
                self._retire(kept)

    async def _built(self, user_id: str, stack: AsyncExitStack) -> Agent:
        build = self._build
        made = build(user_id) if inspect.iscoroutinefunction(build) else await in_thread(build, user_id)
        if inspect.isawaitable(made):
            made = await made
        entered = await stack.enter_async_context(made) if hasattr(type(made), "__aenter__") else made
        agent = made if isinstance(made, Agent) else entered
        if not isinstance(agent, Agent):
            raise InvalidInput(
                f"the builder gave {agent!r} for user {user_id!r}; it must give an Agent, or an async context manager of one",
                code="agent.invalid",
            )
        # After its context manager, so before it is left: what the agent has open may depend on that.
        holders = self._holders
        holders[id(agent)] = holders.get(id(agent), 0) + 1
        stack.push_async_callback(self._close, agent, holders)
        check_tree(agent)
        return agent

    @staticmethod
    async def _close(agent: Agent, holders: dict[int, int]) -> None:
        """Closes a user's agent unless it is another's as well."""
        holders[id(agent)] -= 1
        if not holders[id(agent)]:
            del holders[id(agent)]
            await close_agents(agent)

    def _left(self, kept: _Kept, task: asyncio.Task[None]) -> None:
        """An agent's task has ended."""
        self._retire(kept)
        if leaving := self._leaving.get(kept.user_id):
            leaving.discard(task)
            if not leaving:
                del self._leaving[kept.user_id]
        if kept.exit_timer is not None:
            kept.exit_timer.cancel()
        error = None if task.cancelled() else task.exception()
        if not kept.settled.done():
            # It was cancelled before it could begin.
            kept.fail(error or asyncio.CancelledError())
        elif error is not None and kept.agent is not None:
            logger.error("the agent of user %r has ended with an error", kept.user_id, exc_info=error)

    # -- letting go -------------------------------------------------------------------------------------------------

    def _trim(self) -> None:
        """Lets go of those idle longest while too many are kept."""
        while self._max_kept is not None and len(self._kept) > self._max_kept and self._idle:
            self._let_go(next(iter(self._idle.values())))

    def _watch_idle(self) -> None:
        """Sees to it that the one idle longest goes when its time has come."""
        if self._timer is None and self._idle and self._idle_seconds is not None:
            assert self._loop is not None
            first = next(iter(self._idle.values()))
            # A context of its own: a timer would keep whatever the caller has in its variables.
            self._timer = self._loop.call_at(
                first.idle_since + self._idle_seconds, self._let_idle_go, context=contextvars.Context()
            )

    def _let_idle_go(self) -> None:
        assert self._loop is not None
        assert self._idle_seconds is not None
        self._timer = None
        now = self._loop.time()
        for kept in list(self._idle.values()):
            if kept.idle_since + self._idle_seconds > now:
                break
            self._let_go(kept)
        self._watch_idle()

    def _let_go(self, kept: _Kept) -> None:
        """Has an agent left by its task, or its build ended."""
        self._retire(kept)
        if not kept.settled.done():
            kept.task.cancel()
        elif not kept.unwanted.done():
            kept.unwanted.set_result(None)

    def _retire(self, kept: _Kept) -> None:
        """Takes an agent out of reach of those who come; its task ends within bounds."""
        if self._kept.get(kept.user_id) is not kept:
            return
        del self._kept[kept.user_id]
        self._idle.pop(kept.user_id, None)
        self._leaving.setdefault(kept.user_id, set()).add(kept.task)
        assert self._loop is not None
        kept.exit_timer = self._loop.call_later(EXIT_SECONDS, kept.task.cancel, context=contextvars.Context())

    async def close(self) -> None:
        """Lets go of all agents and waits until they are left; builds under way end with `runner.closed`."""
        self._closed = True
        if self._loop is not asyncio.get_running_loop():
            return
        for kept in list(self._kept.values()):
            self._let_go(kept)
            kept.fail(Unavailable("the Runner was closed", code="runner.closed", retryable=False))
        if self._timer is not None:
            self._timer.cancel()
        if self._leaving:
            _, late = await asyncio.wait(set().union(*self._leaving.values()), timeout=2 * EXIT_SECONDS)
            if late:
                logger.warning("%d users' agents were cancelled and have not ended", len(late))


class _Kept:
    """A user's agent, from its build to its end."""

    __slots__ = ("agent", "error", "exit_timer", "idle_since", "settled", "task", "unwanted", "user_id", "uses")

    task: asyncio.Task[None]

    def __init__(self, user_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.user_id = user_id
        self.uses = 0
        self.idle_since = 0.0
        self.agent: Agent | None = None
        self.error: SojournError | None = None
        # Done once the agent is built or `error` says why not; then `unwanted` is when its task is to leave it.
        self.settled: asyncio.Future[None] = loop.create_future()
        self.unwanted: asyncio.Future[None] = loop.create_future()
        self.exit_timer: asyncio.TimerHandle | None = None

    def fail(self, error: BaseException) -> None:
        """Tells those who wait why there is no agent; the first reason counts."""
        if self.settled.done():
            return
        self.error = self._coded(error)
        self.settled.set_result(None)

    def _coded(self, error: BaseException) -> SojournError:
        if isinstance(error, SojournError):
            return error
        if isinstance(error, asyncio.CancelledError) and self.task.cancelling():
            what = "was cancelled"
        else:
            logger.error("building the agent of user %r failed", self.user_id, exc_info=error)
            what = f"raised {type(error).__name__}; the log has the details"
        coded = AgentError(f"building the agent of user {self.user_id!r} {what}", code="agent.build_failed")
        coded.__cause__ = error
        return coded


class Lease:
    """See `AgentLease`."""

    __slots__ = ("_kept", "_source")

    def __init__(self, source: PerUserAgents, kept: _Kept) -> None:
        self._source: PerUserAgents | None = source
        self._kept = kept

    @property
    def agent(self) -> Agent | None:
        """See `AgentLease.agent`."""
        return self._kept.agent

    async def built(self) -> Agent:
        """Waits for the agent; giving up leaves the build to the others.

        Raises:
            AgentError: `agent.build_failed` if the builder raised something of its own.
            SojournError: What the builder raised; `agent.invalid` or `agent.duplicate_name` if what it gave is none.
            Unavailable: `runner.closed`.
        """
        if not self._kept.settled.done():
            await asyncio.wait({self._kept.settled})
        if self._kept.error is not None:
            raise self._failure(self._kept.error)
        assert self._kept.agent is not None
        return self._kept.agent

    def when_settled(self, call: Callable[[SojournError | None], object]) -> None:
        """See `AgentLease.when_settled`."""

        def settled(_: asyncio.Future[None]) -> None:
            if self._source is not None:
                call(None if self._kept.error is None else self._failure(self._kept.error))

        self._kept.settled.add_done_callback(settled)

    @staticmethod
    def _failure(error: SojournError) -> SojournError:
        # To each an exception of their own: what raising adds to it is nobody else's.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        return own

    def release(self) -> None:
        """See `AgentLease.release`."""
        if self._source is not None:
            source, self._source = self._source, None
            source.give_back(self._kept)

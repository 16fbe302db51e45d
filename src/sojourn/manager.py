"""SessionManager: opens users' sessions under a common limit, in the shape of NeMo Agent Toolkit's runtime."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from inspect import Parameter, isawaitable, signature
from typing import Any

from sojourn import platform
from sojourn.agents.base import Agent, close_agents
from sojourn.agents.current import find_current_run
from sojourn.agents.per_user import IDLE_SECONDS, MAX_KEPT, PerUserAgents
from sojourn.agents.source import NOT_BUILT, AgentLease, AgentSource
from sojourn.content import Content
from sojourn.engine.limiter import Limiter, queue_timeout
from sojourn.errors import Conflict, InvalidInput
from sojourn.ids import check_id
from sojourn.run.config import RunConfig
from sojourn.runner.config import RunnerConfig
from sojourn.runner.delivery.lifecycle import CloseReport
from sojourn.runner.handle import Run
from sojourn.runner.lending import HeldSlot, held_slot, set_held_slot
from sojourn.runner.runner import Runner
from sojourn.session.state import State
from sojourn.session.types import Session, SessionKey

DEFAULT_CONCURRENCY = 8
"""Runs executing at once under a SessionManager that is not told otherwise."""


class SessionManager:
    """Opens sessions of an app's users.

    The constructor alone suffices; entered (`async with`), it also takes up unfinished runs and is closed at the end.

    Args:
        config: What `shared_builder` builds from: any object; for a `WorkflowBuilder` an `app.yaml`. Without a builder: an
            agent, a `RunnerConfig`, or a mapping of its fields.
        shared_builder: Gives the agent: a `WorkflowBuilder`, another object with `build(config)`, or a callable of the config;
            sync or async. It is asked once, when the first session is opened. It may give an `Agent`, a `RunnerConfig` or a
            `Runner`. It stays the caller's, who closes it.
        max_concurrency: Runs executing at once; the next one waits. 0 or less for no bound.
        runner: A Runner that exists; its own limits count and `max_concurrency` must be left out. It is not closed here.
        per_user: Whether each user has an agent of their own: `shared_builder` is asked for it with the config and the
            user's id, and may give an async context manager of an agent. See `PerUserAgents`. If the user's id may be left
            out, as with a `WorkflowBuilder`, it is asked with the config alone, too, when the first session is opened: of a
            `RunnerConfig` that it gives then, all but the agent counts. If omitted, the builder's attribute `per_user` says
            so, if it has one.
        per_user_idle: Seconds for which a user's agent is kept that nobody uses; None for no bound.
        per_user_max: How many users' agents are kept, unless more are in use; None for no bound.
        **fields: The fields of `RunnerConfig`. They go before what `config` or the builder says. `app_name` is `app` if nothing
            says otherwise.

    Raises:
        InvalidInput: `manager.invalid` for parts that do not go together; `limit.invalid`.
    """

    def __init__(
        self,
        config: Any = None,
        shared_builder: Any = None,
        max_concurrency: int | None = None,
        *,
        runner: Runner | None = None,
        per_user: bool | None = None,
        per_user_idle: float | None = IDLE_SECONDS,
        per_user_max: int | None = MAX_KEPT,
        **fields: Any,
    ) -> None:
        self._runner = runner
        self._given = runner is not None
        self._builder = shared_builder
        self._config = config
        self._opening: Any = None
        self._users_agents: PerUserAgents | None = None
        if per_user is None:
            per_user = bool(getattr(shared_builder, "per_user", False))
        if per_user:
            if shared_builder is None or "agent" in fields:
                raise InvalidInput(
                    "with per_user, the agents come from a shared_builder and from nowhere else", code="manager.invalid"
                )
            build = partial(_build_method(shared_builder), config)
            fields["agent"] = self._users_agents = PerUserAgents(build, idle=per_user_idle, max_kept=per_user_max)
        if runner is not None and (config is not None or shared_builder is not None or fields or max_concurrency is not None):
            raise InvalidInput(
                "a SessionManager with runner= takes nothing else: the Runner has it all", code="manager.invalid"
            )
        if shared_builder is None and runner is None:
            fields = _fields_of(config, fields)
        self._named = {**fields} if max_concurrency is None else {**fields, "max_concurrency": max_concurrency}
        fields.setdefault("app_name", "app")
        if isinstance(config, RunnerConfig) and max_concurrency is None:
            max_concurrency = config.max_concurrency
        fields["max_concurrency"] = (
            fields.get("max_concurrency", DEFAULT_CONCURRENCY) if max_concurrency is None else max_concurrency
        )
        self._fields = fields
        if runner is None and (shared_builder is None or (per_user and not _gives_configs(shared_builder))):
            self._runner = Runner(**fields)

    async def runner(self) -> Runner:
        """The Runner that drives the sessions; built at the first call.

        Raises:
            InvalidInput: `manager.invalid` if the builder gives no agent.
        """
        if self._runner is None:
            if self._opening is None or self._opening.get_loop() is not asyncio.get_running_loop():
                # In a context of its own: nothing of whoever comes first may stay in what all others use.
                self._opening = asyncio.get_running_loop().create_task(self._build(), context=contextvars.Context())
            opening = self._opening
            try:
                await asyncio.shield(opening)
            except asyncio.CancelledError:
                raise
            except BaseException:
                # The next call tries again: what failed once need not fail for ever.
                if self._opening is opening:
                    self._opening = None
                raise
        assert self._runner is not None
        return self._runner

    async def _build(self) -> None:
        built = _build_method(self._builder)(self._config)
        if isawaitable(built):
            built = await built
        if self._users_agents is not None:
            self._runner = Runner(await self._for_users(built, self._users_agents))
        elif isinstance(built, Runner):
            self._runner, self._given = built, True
        elif isinstance(built, RunnerConfig):
            self._runner = Runner(replace(built, **{k: v for k, v in self._named.items() if k != "agent"}))
        elif isinstance(built, Agent):
            self._runner = Runner(agent=built, **{k: v for k, v in self._fields.items() if k != "agent"})
        else:
            raise InvalidInput(
                f"shared_builder gave {built!r}; it must give an Agent, a RunnerConfig or a Runner", code="manager.invalid"
            )

    async def _for_users(self, built: Any, agents: PerUserAgents) -> RunnerConfig:
        """What the Runner is made of if each user has an agent, of what the builder gave for no user."""
        if isinstance(built, RunnerConfig):
            if isinstance(built.agent, Agent):
                await close_agents(built.agent)
            return replace(built, **self._named)
        if isinstance(built, Agent):
            await close_agents(built)
        return RunnerConfig(**self._fields)

    @asynccontextmanager
    async def session(self, user_id: str, session_id: str | None = None) -> AsyncIterator[UserSession]:
        """Opens a session and reserves a slot for its runs; waits for one, fairly between users.

        With an agent per user, it waits for the user's to be built before it takes a slot, and keeps it until the block ends.

        Args:
            user_id: The user.
            session_id: The session; a new one if omitted.

        Raises:
            LimitExceeded: `limit.queue_full`, `limit.queue_timeout`.
            InvalidInput: `id.invalid`.
            AgentError: `agent.build_failed`, or another coded error that the builder raised; the next session of the user
                asks it again.
        """
        runner = await self.runner()
        key = SessionKey(runner.app_name, check_id(user_id, "user_id"), platform.new_id() if session_id is None else session_id)
        key.check()
        limiter = runner.dispatcher.admission.bound_limiter()
        parent = find_current_run()
        # Inside a run that holds a slot of this limiter: waiting for another one could be waiting for itself.
        shared = parent is not None and limiter in parent.lineage.limiters
        lease = await _admitted(runner.agent_source, limiter, user_id, needs_slot=not shared)
        try:
            session = UserSession(runner, key, None if shared else limiter)
            outer = held_slot()
            if not shared:
                session.slot.outer = outer
                set_held_slot(session.slot)
            try:
                yield session
            finally:
                if held_slot() is session.slot:
                    set_held_slot(outer)
                session.closed = True
                session.slot.withdraw()
                session.give_back()
        finally:
            if lease is not None:
                lease.release()

    async def close(self, grace: float = 10.0) -> CloseReport:
        """Closes the Runner, unless it was given; see `Runner.close`."""
        if self._runner is None or self._given:
            return CloseReport()
        return await self._runner.close(grace)

    async def __aenter__(self) -> SessionManager:
        runner = await self.runner()
        if not self._given:
            await runner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _fields_of(config: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """What a manager's Runner is made of, without a builder."""
    if isinstance(config, Agent):
        fields = {**fields, "agent": config}
    elif isinstance(config, RunnerConfig):
        fields = {name: getattr(config, name) for name in RunnerConfig.__dataclass_fields__} | fields
    elif isinstance(config, dict):
        fields = {**config, **fields}
    elif config is not None:
        raise InvalidInput(
            f"config is a {type(config).__name__}; without a shared_builder, give an agent or a RunnerConfig, and for an "
            "app.yaml shared_builder=WorkflowBuilder()",
            code="manager.invalid",
        )
    if "agent" not in fields:
        raise InvalidInput(
            "nothing says which agent to run: give agent=, runner=, or a shared_builder for the config",
            code="manager.invalid",
        )
    return fields


async def _admitted(source: AgentSource | None, limiter: Limiter, user_id: str, *, needs_slot: bool) -> AgentLease | None:
    """Waits for a user's agent and a slot; nothing is built for who is refused."""
    waits = source is not None and needs_slot and not source.is_ready(user_id)
    if waits:
        # Those for whom slots are free wait for their agents alone, which `max_queue` says nothing about.
        limiter.enter_queue(beyond=limiter.free_slots(user_id))
    try:
        lease = None if source is None else await _built(source.lease(user_id), limiter.limits.queue_timeout)
        try:
            if needs_slot:
                await limiter.acquire(user_id, counted=waits)
        except BaseException:
            if lease is not None:
                lease.release()
            raise
        return lease
    finally:
        if waits:
            limiter.leave_queue()


async def _built(lease: AgentLease, seconds: float | None) -> AgentLease:
    """Waits until a user's agent is built, for at most `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await lease.built()
    except BaseException as error:
        lease.release()
        if isinstance(error, TimeoutError):
            raise queue_timeout(seconds or 0.0, NOT_BUILT) from None
        raise
    return lease


def _gives_configs(builder: Any) -> bool:
    """Whether a builder of users' agents can be asked for no user, which may give a `RunnerConfig`."""
    try:
        parameters = list(signature(_build_method(builder)).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 1 and positional[1].default is not Parameter.empty


def _build_method(builder: Any) -> Callable[..., Any]:
    build: Callable[..., Any] = getattr(builder, "build", builder)
    if not callable(build):
        raise InvalidInput(
            f"shared_builder is {builder!r}; give a callable, or an object with build(config)", code="manager.invalid"
        )
    return build


class UserSession:
    """A user's open session.

    Attributes:
        user_id: The user.
        session_id: The session's id.
        app_name: The app.
    """

    def __init__(self, runner: Runner, key: SessionKey, limiter: Limiter | None) -> None:
        self._runner = runner
        self._key = key
        self._limiter = limiter
        # Without a limiter it has no slot of its own: its runs share that of the run it was opened in.
        self.slot = HeldSlot(() if limiter is None else (limiter,), freed=self.give_back)
        self._slot_held = limiter is not None
        self.closed = False

    @property
    def user_id(self) -> str:
        """The user."""
        return self._key.user_id

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._key.session_id

    @property
    def app_name(self) -> str:
        """The app."""
        return self._key.app_name

    def run(
        self, message: str | Content, *, run_config: RunConfig | None = None, run_id: str | None = None
    ) -> AbstractAsyncContextManager[Run]:
        """Runs the agent on a message while the block is open.

        The first run that is active uses the session's slot, others at the same time take their own. Leaving the block
        before the run has ended cancels it and waits for its end; a run that waits for a person is left waiting.

        Args:
            message: What the user says.
            run_config: Fields that differ from the Runner's own.
            run_id: As for `Runner.run`.

        Raises:
            Conflict: `session.closed` after the session's block; what `Runner.start` raises.
        """
        return self._run(message, run_config, run_id)

    @asynccontextmanager
    async def _run(self, message: str | Content, run_config: RunConfig | None, run_id: str | None) -> AsyncIterator[Run]:
        if self.closed:
            raise Conflict(f"session {self._key} was closed; open it again with manager.session()", code="session.closed")
        uses_slot = self._slot_held and not self.slot.in_use
        if uses_slot:
            self.slot.in_use = True
        try:
            run = await self._runner.start_attached(
                self._key.user_id,
                self._key.session_id,
                message,
                run_config=run_config,
                run_id=run_id,
                slot_freed=self.slot.free if uses_slot else None,
            )
        except BaseException:
            if uses_slot:
                self.slot.free()
            raise
        try:
            yield run
        finally:
            await self._runner.leave(run)

    async def get(self) -> Session:
        """Reads the session, created if it is missing."""
        return await self._runner.get_session(self._key.user_id, self._key.session_id, create=True)

    async def state(self) -> State:
        """A copy of the session's state; writing to it changes nothing stored."""
        return State(dict((await self.get()).state))

    def give_back(self) -> None:
        """Gives the slot of a session that was closed back unless a run uses it; twice is fine."""
        if self.closed and self._limiter is not None and self._slot_held and not self.slot.in_use:
            self._slot_held = False
            self._limiter.release(self._key.user_id)

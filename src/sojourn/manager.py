"""SessionManager: opens users' sessions under a common limit, in the shape of NeMo Agent Toolkit's runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import isawaitable
from typing import Any

from sojourn import platform
from sojourn.agents.base import Agent
from sojourn.agents.current import find_current_run
from sojourn.content import Content
from sojourn.engine.limiter import Limiter
from sojourn.errors import Conflict, InvalidInput
from sojourn.ids import check_id
from sojourn.run.config import RunConfig
from sojourn.runner.config import RunnerConfig
from sojourn.runner.handle import Run
from sojourn.runner.lifecycle import CloseReport
from sojourn.runner.runner import Runner
from sojourn.session.state import State
from sojourn.session.types import Session, SessionKey

DEFAULT_CONCURRENCY = 8
"""Runs executing at once under a SessionManager that is not told otherwise."""


class SessionManager:
    """Opens sessions of an app's users.

    The constructor alone suffices; entered (`async with`), it also takes up unfinished runs and is closed at the end.

    Args:
        config: What `shared_builder` builds from: any object. Without a builder: an agent, a `RunnerConfig`, or a
            mapping of its fields.
        shared_builder: Gives the agent: an object with `build(config)`, or a callable of the config; sync or async. It is
            asked once, when the first session is opened. It may give an `Agent` or a `Runner`.
        max_concurrency: Runs executing at once; the next one waits. 0 or less for no bound.
        runner: A Runner that exists; its own limits count and `max_concurrency` must be left out. It is not closed here.
        **fields: The fields of `RunnerConfig`. `app_name` is `app` if nothing says otherwise.

    Raises:
        InvalidInput: `manager.invalid` for parts that do not go together.
    """

    def __init__(
        self,
        config: Any = None,
        shared_builder: Any = None,
        max_concurrency: int | None = None,
        *,
        runner: Runner | None = None,
        **fields: Any,
    ) -> None:
        self._runner = runner
        self._given = runner is not None
        self._builder = shared_builder
        self._config = config
        self._opening: Any = None
        if runner is not None and (config is not None or shared_builder is not None or fields or max_concurrency is not None):
            raise InvalidInput(
                "a SessionManager with runner= takes nothing else: the Runner has it all", code="manager.invalid"
            )
        if shared_builder is None and runner is None:
            if isinstance(config, Agent):
                fields["agent"] = config
            elif isinstance(config, RunnerConfig):
                fields = {name: getattr(config, name) for name in RunnerConfig.__dataclass_fields__} | fields
            elif isinstance(config, dict):
                fields = {**config, **fields}
            elif config is not None:
                raise InvalidInput(
                    f"config is a {type(config).__name__}; without a shared_builder, give an agent or a RunnerConfig",
                    code="manager.invalid",
                )
            if "agent" not in fields:
                raise InvalidInput(
                    "nothing says which agent to run: give agent=, runner=, or a shared_builder for the config",
                    code="manager.invalid",
                )
        fields.setdefault("app_name", "app")
        if isinstance(config, RunnerConfig) and max_concurrency is None:
            max_concurrency = config.max_concurrency
        fields["max_concurrency"] = (
            fields.get("max_concurrency", DEFAULT_CONCURRENCY) if max_concurrency is None else max_concurrency
        )
        self._fields = fields
        if shared_builder is None and runner is None:
            self._runner = Runner(**fields)

    async def runner(self) -> Runner:
        """The Runner that drives the sessions; built at the first call.

        Raises:
            InvalidInput: `manager.invalid` if the builder gives no agent.
        """
        if self._runner is None:
            if self._opening is None or self._opening.get_loop() is not asyncio.get_running_loop():
                self._opening = asyncio.ensure_future(self._build())
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
        build: Callable[[Any], Any] = getattr(self._builder, "build", self._builder)
        if not callable(build):
            raise InvalidInput(
                f"shared_builder is {self._builder!r}; give a callable, or an object with build(config)", code="manager.invalid"
            )
        built = build(self._config)
        if isawaitable(built):
            built = await built
        if isinstance(built, Runner):
            self._runner, self._given = built, True
        elif isinstance(built, Agent):
            self._runner = Runner(agent=built, **{k: v for k, v in self._fields.items() if k != "agent"})
        else:
            raise InvalidInput(f"shared_builder gave {built!r}; it must give an Agent or a Runner", code="manager.invalid")

    @asynccontextmanager
    async def session(self, user_id: str, session_id: str | None = None) -> AsyncIterator[UserSession]:
        """Opens a session and reserves a slot for its runs; waits for one, fairly between users.

        Args:
            user_id: The user.
            session_id: The session; a new one if omitted.

        Raises:
            LimitExceeded: `limit.queue_full`, `limit.queue_timeout`.
            InvalidInput: `id.invalid`.
        """
        runner = await self.runner()
        key = SessionKey(runner.app_name, check_id(user_id, "user_id"), platform.new_id() if session_id is None else session_id)
        key.check()
        limiter = runner.dispatcher.bound_limiter()
        parent = find_current_run()
        # Inside a run that holds a slot of this limiter: waiting for another one could be waiting for itself.
        shared = parent is not None and limiter in parent.lineage.limiters
        if not shared:
            await limiter.acquire(user_id)
        session = UserSession(runner, key, None if shared else limiter)
        try:
            yield session
        finally:
            session.closed = True
            session.give_back()

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
        self._slot_in_use = limiter is None
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
        uses_slot = not self._slot_in_use
        self._slot_in_use = True
        try:
            run = await self._runner.start_attached(
                self._key.user_id,
                self._key.session_id,
                message,
                run_config=run_config,
                run_id=run_id,
                slot_freed=self._slot_freed if uses_slot else None,
            )
        except BaseException:
            if uses_slot:
                self._slot_freed()
            raise
        try:
            yield run
        finally:
            await self._runner.leave(run)

    def _slot_freed(self) -> None:
        self._slot_in_use = False
        if self.closed:
            self.give_back()

    async def get(self) -> Session:
        """Reads the session, created if it is missing."""
        return await self._runner.get_session(self._key.user_id, self._key.session_id, create=True)

    async def state(self) -> State:
        """A copy of the session's state; writing to it changes nothing stored."""
        return State(dict((await self.get()).state))

    def give_back(self) -> None:
        """Gives the session's slot back unless a run uses it; twice is fine."""
        if self._limiter is not None and self._slot_held and not self._slot_in_use:
            self._slot_held = False
            self._limiter.release(self._key.user_id)

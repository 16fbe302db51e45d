"""What an agent may use while it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, overload

from pydantic import TypeAdapter

from sojourn.agents.access import ArtifactAccess, MemoryAccess
from sojourn.agents.effects import Effects
from sojourn.agents.question import Question
from sojourn.content import Content, Part
from sojourn.errors import InvalidInput, Unsupported
from sojourn.event import CallDelta, Event, EventActions, Usage
from sojourn.session.state import State, StateDelta

if TYPE_CHECKING:
    from sojourn.agents.base import Agent
    from sojourn.agents.live import LiveInput
    from sojourn.artifact.service import ArtifactService
    from sojourn.memory.service import MemoryService
    from sojourn.memory.types import Memory
    from sojourn.run.config import RunConfig
    from sojourn.run.live import OpenMessage
    from sojourn.session.types import Session

T = TypeVar("T")

MODEL_STEP = "model:"
"""What the key of a step begins with that is a call of a model, counted by `Context.turn`."""

TOOL_STEP = "tool:"
"""What the key of a step begins with that is a call of a tool."""

IN_STEP = "#"
"""What the name of a branch begins with that is for what is said inside of a step; no agent's name does."""


class StepAround(NamedTuple):
    """The step that the calling code is inside of: whose it is, its key, and the branch for what is said in it."""

    ctx: Context
    key: str
    branch: str


step_around: ContextVar[StepAround | None] = ContextVar("sojourn_step_around", default=None)
"""Set by the runner."""


class Attempt(Protocol):
    """What a context needs of the attempt it belongs to; the runner implements it."""

    run_id: str
    attempt: int
    config: RunConfig
    session: Session
    user_content: Content
    memories: list[Memory]
    ended: bool

    def live_input(self) -> LiveInput:
        """What the user sends; `Unsupported`, `live.not_live`, for a run that is not live."""
        ...

    def write(self, ctx: Context, piece: str | CallDelta) -> None:
        """Adds a piece to the message that an agent is writing."""
        ...

    def count_turn(self, ctx: Context) -> None:
        """Counts a model call; `LimitExceeded`, `run.max_turns`, beyond the bound."""
        ...

    def check_transfer(self, ctx: Context, name: str) -> None:
        """Refuses a hand-over that may not be: unknown, not allowed, too many, or denied by policy."""
        ...

    def reachable(self, ctx: Context) -> list[Agent]:
        """The agents that the context's agent may hand over to."""
        ...

    async def step(self, ctx: Context, key: str, fn: Callable[[], Any], *, with_next_event: bool) -> Any:
        """Does a side effect once and journals its result."""
        ...

    async def ask(self, ctx: Context, questions: Sequence[Question]) -> list[Any]:
        """Returns people's answers, or unwinds the agent until there are all."""
        ...

    async def history(self, ctx: Context, limit: int | None) -> list[Event]:
        """Reads the session's window."""
        ...

    def run_child(self, ctx: Context, agent: Agent, branch: str | None) -> Awaitable[Any]:
        """Runs another agent inside of this one."""
        ...

    def artifact_service(self) -> ArtifactService:
        """The artifact service; `Unsupported`, `artifact.not_configured`, without one."""
        ...

    async def save_artifact(
        self, ctx: Context, name: str, data: Part | bytes, mime_type: str | None, custom_metadata: dict[str, Any] | None
    ) -> int:
        """Saves a version of an artifact and sees to it that an event tells it."""
        ...

    def memory_service(self) -> MemoryService:
        """The memory service; `Unsupported`, `memory.not_configured`, without one."""
        ...


class Context:
    """One agent's view of the attempt it runs in.

    Attributes:
        agent: The agent itself.
        state: The session's state: the snapshot at the start of the run, and the run's own writes.
        branch: Dotted path of parallel branches, and of steps such as calls of tools; None outside of any.
        scope: Path of this agent inside others, part of the keys of its steps and questions; empty for the root agent.
    """

    __slots__ = (
        "_actions", "_artifact_delta", "_attempt", "_boundary", "_children", "_escalated", "_message", "_output", "_paused",
        "_spent", "_transfer", "_transfer_told", "agent", "branch", "scope", "state",
    )  # fmt: skip

    def __init__(
        self, attempt: Attempt, agent: Agent, state: State, branch: str | None, scope: str, boundary: Agent | None
    ) -> None:
        self._attempt = attempt
        self.agent = agent
        self.state = state
        self.branch = branch
        self.scope = scope
        self._boundary = boundary
        self._message: OpenMessage | None = None
        self._actions: EventActions | None = None
        self._artifact_delta: dict[str, int] | None = None
        self._transfer: str | None = None
        self._transfer_told = False
        self._paused = False
        self._children: dict[str, int] | None = None
        self._escalated = False
        self._output: Any = None
        self._spent: Usage | None = None

    # -- who and what -----------------------------------------------------------------------------------------------

    @property
    def agent_name(self) -> str:
        """The agent's name."""
        return self.agent.name

    @property
    def run_id(self) -> str:
        """The run."""
        return self._attempt.run_id

    @property
    def invocation_id(self) -> str:
        """google-adk's name for `run_id`."""
        return self._attempt.run_id

    @property
    def attempt(self) -> int:
        """Which attempt of the run this is, from 1."""
        return self._attempt.attempt

    @property
    def session(self) -> Session:
        """The session as the run found it."""
        return self._attempt.session

    @property
    def app_name(self) -> str:
        """The app."""
        return self._attempt.session.app_name

    @property
    def user_id(self) -> str:
        """The user."""
        return self._attempt.session.user_id

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._attempt.session.id

    @property
    def user_content(self) -> Content:
        """What the user said."""
        return self._attempt.user_content

    @property
    def live(self) -> LiveInput:
        """What the user of a live run sends while the agent speaks: `async for request in ctx.live`.

        Raises:
            Unsupported: `live.not_live` in a run that `Runner.run_live` has not started.
        """
        return self._attempt.live_input()

    @property
    def run_config(self) -> RunConfig:
        """How the run is to be run."""
        return self._attempt.config

    @property
    def memories(self) -> list[Memory]:
        """What was found in the user's memory for the message; empty unless `inject_memory` says how many to find."""
        return self._attempt.memories

    @property
    def memory(self) -> MemoryAccess:
        """The user's memory.

        Raises:
            Unsupported: `memory.not_configured`.
        """
        return MemoryAccess(self._attempt.memory_service(), self._attempt.session)

    @property
    def artifacts(self) -> ArtifactAccess:
        """The session's artifacts, and the user's (`user:` names).

        Raises:
            Unsupported: `artifact.not_configured`.
        """
        return ArtifactAccess(self._attempt.artifact_service(), self)

    # -- what happens next ------------------------------------------------------------------------------------------

    @property
    def actions(self) -> EventActions:
        """What the agent's next event will do, besides state and artifacts."""
        return self._actions if self._actions is not None else EventActions()

    def set_actions(self, actions: EventActions | None = None, /, **fields: Any) -> None:
        """Sets what the agent's next stored event does: `ctx.set_actions(escalate=True)`.

        Args:
            actions: Actions in place of those set so far.
            **fields: Single fields of `EventActions` to change.

        Raises:
            InvalidInput: `actions.invalid` for a field that does not exist or a value that does not fit.
        """
        unknown = [name for name in fields if name not in EventActions.model_fields]
        if unknown:
            known = ", ".join(EventActions.model_fields)
            raise InvalidInput(f"EventActions has no field {unknown[0]!r}; it has {known}", code="actions.invalid")
        base = actions if actions is not None else self.actions
        merged = {name: getattr(base, name) for name in base.model_fields_set} | fields
        target = merged.pop("transfer_to_agent", None)
        try:
            self._actions = EventActions(**merged)
        except ValueError as error:
            raise InvalidInput(f"these actions cannot be: {error}", code="actions.invalid") from error
        if self._actions.changes_state:
            # What is set on the state is a write like any other: seen at once, stored with the next event.
            self.state.write(StateDelta.of_all(self._actions))
            kept = {n: getattr(self._actions, n) for n in self._actions.model_fields_set if n not in _STATE_FIELDS}
            self._actions = EventActions(**kept) if kept else None
        if target is not None:
            self.transfer_to(target)
        self._escalated = self._escalated or self.actions.escalate

    def transfer_to(self, name: str) -> None:
        """Hands the run over to another agent.

        It takes effect when this agent returns, or with the next thing it yields, which is still said.

        Args:
            name: A sub-agent, the parent, or one of the parent's other agents.

        Raises:
            NotFound: `transfer.unknown_agent`.
            Forbidden: `transfer.not_allowed`, or `transfer.denied` by the Runner's policy.
            LimitExceeded: `run.max_transfers`.
        """
        self._attempt.check_transfer(self, name)
        self._transfer = name
        self._transfer_told = False

    def check_transfer(self, name: str) -> None:
        """Refuses what `transfer_to` would refuse, with the same errors, and hands nothing over."""
        self._attempt.check_transfer(self, name)

    def end_invocation(self) -> None:
        """Ends the run: nothing yielded after this is taken, the agent is closed, the run completes."""
        self._attempt.ended = True

    @property
    def ended(self) -> bool:
        """Whether the run is ending."""
        return self._attempt.ended

    def reachable_agents(self) -> list[Agent]:
        """The agents that `transfer_to` may name here, but for what the Runner's policy refuses."""
        return self._attempt.reachable(self)

    @property
    def escalated(self) -> bool:
        """Whether this agent, or one it ran, has escalated."""
        return self._escalated

    def turn(self) -> None:
        """Counts one model call.

        Raises:
            LimitExceeded: `run.max_turns` beyond `run_config.max_turns`, `run.max_tokens` beyond `run_config.max_tokens`;
                `user.max_tokens` if the user has spent what `RunnerConfig.max_tokens_per_user` allows.
        """
        self._attempt.count_turn(self)

    def write(self, piece: str | CallDelta) -> None:
        """Adds a piece to the agent's current message, as yielding it does: readers are sent it at once.

        For code that is called by something else than the agent's own generator. The message is sealed when the agent ends,
        or yields something else than a piece.

        Args:
            piece: Text, a `Thought`, or a piece of a function call.

        Raises:
            LimitExceeded: `event.too_large` for a message without end.
            AgentError: `agent.bad_yield` for what is no such piece; nothing is added.
        """
        self._attempt.write(self, piece)

    def spend(self, usage: Usage) -> None:
        """Counts tokens: the agent's next event tells of them, or one of its own if the agent ends without.

        What is told is part of the sums of the run and of its user, and counts for their limits.
        """
        self._spent = usage if self._spent is None else self._spent + usage

    # -- what takes time --------------------------------------------------------------------------------------------

    async def history(self, limit: int | str | None = None) -> list[Event]:
        """Reads the newest events of the session, this run's included, oldest first.

        Calls and their responses are always both there and next to each other; a call that waits for a person is
        followed by a response that says so, which is not stored. Inside a parallel branch, what siblings said is left out;
        outside of a call of a tool, so is what agents inside of it said: its result tells what came of it.

        Args:
            limit: How many events, or `"all"`; `run_config.include_history` if omitted.
        """
        wanted = self._attempt.config.include_history if limit is None else limit
        if wanted == 0:
            return []
        if wanted != "all" and (not isinstance(wanted, int) or wanted < 0):
            raise InvalidInput(f"history takes a number of events or 'all', not {wanted!r}", code="history.invalid_limit")
        return await self._attempt.history(self, None if wanted == "all" else int(wanted))

    @overload
    async def step(self, key: str, fn: Callable[[], Awaitable[T]], *, with_next_event: bool = False) -> T: ...
    @overload
    async def step(self, key: str, fn: Callable[[], T], *, with_next_event: bool = False) -> T: ...
    async def step(self, key: str, fn: Callable[[], Any], *, with_next_event: bool = False) -> Any:
        """Does a side effect once: a later attempt of the run gets the recorded result and does not do it again.

        A step that was under way when the process died is done again: give what it calls `ctx.step_id(key)` as an
        idempotency key.

        Args:
            key: Names the step; unique within the agent's run.
            fn: Called without arguments, on the event loop; if it gives an awaitable, that is awaited.
            with_next_event: The result is not stored at once, but with what the run stores next, the next event at the
                latest: for a step whose result is that event, and which may be done again if the process dies in between.

        Returns:
            The result, as JSON gives it back (tuples are lists).

        Raises:
            Conflict: `step.duplicate_key`.
            InvalidInput: `json.invalid` if the result is not a JSON value.
            LimitExceeded: `step.too_large` if it is larger than `run_config.max_event_bytes`.
        """
        return await self._attempt.step(self, key, fn, with_next_event=with_next_event)

    def step_id(self, key: str) -> str:
        """The idempotency key of a step: the same in every attempt of the run, different for every other step."""
        return f"{self.run_id}:{self.path(key)}"

    def step_branch(self, key: str) -> str:
        """The branch for what is said inside of a step: it stays when a later attempt does not do the step again."""
        # Dots are between branches.
        name = IN_STEP + self.path(key).replace("%", "%25").replace(".", "%2E")
        step = self.inside_step()
        around = self.branch if step is None else step.branch
        return f"{around}.{name}" if around else name

    async def ask(self, key: str, prompt: Any, schema: Any = None, expires: float | None = None) -> Any:
        """Asks a person and returns the answer.

        Without an answer yet, the agent is unwound (`finally` blocks run) and the run waits, holding no memory and no
        slot, over restarts too. Once answered, the agent runs again from its input, and this call returns the answer:
        what must not happen twice belongs in `step`.

        Args:
            key: Names the question within the agent's run.
            prompt: What to show; text or any JSON value.
            schema: What the answer must be: a Python type (the answer is converted to it), or a JSON schema as a dict.
                Any JSON value if omitted.
            expires: Seconds until the run fails with `interrupt.expired`; None for never.
        """
        adapter: TypeAdapter[Any] | None = None
        shape: dict[str, Any] | None = None
        if isinstance(schema, dict):
            shape = schema
        elif schema is not None:
            adapter = TypeAdapter(schema)
            shape = adapter.json_schema()
        [answer] = await self.ask_all([Question(key, prompt, shape, expires)])
        return adapter.validate_python(answer) if adapter is not None else answer

    async def ask_credential(self, key: str, auth_config: dict[str, Any], expires: float | None = None) -> Any:
        """Asks a person to log in somewhere, or for a key, and returns what they gave; see `ask`.

        The question is google-adk's `adk_request_credential`: its web UI opens
        `auth_config["exchangedAuthCredential"]["oauth2"]["authUri"]` in a window, and answers with the same object, in which
        `authResponseUri` and `redirectUri` are filled in. To get a token for it is the caller's part, in a `step`.

        What is asked and answered is stored. Servers show neither secrets in the question nor the answer to anybody, and no
        model is shown either; still, leave out of `auth_config` what clients do not need, such as a client secret.

        Args:
            key: Names the question within the agent's run.
            auth_config: google-adk's `AuthConfig` as JSON, in camelCase.
            expires: As for `ask`.

        Returns:
            The completed `AuthConfig`, or text, if a person typed a key.
        """
        answer = {"type": ["object", "string"]}
        [given] = await self.ask_all([Question(key, auth_config, answer, expires, kind="credential")])
        return given

    async def ask_all(self, questions: Sequence[Question]) -> list[Any]:
        """Asks several questions at once and returns the answers, in the same order; see `ask`.

        The run waits until all of them are answered. They are stored as one event. Answers are not converted.

        Raises:
            Conflict: `interrupt.duplicate_key`; nothing is asked then.
            InvalidInput: `json.invalid` if a prompt or a schema is not a JSON value; nothing is asked then.
        """
        return await self._attempt.ask(self, questions)

    def run_agent(self, agent: Agent, *, branch: str | None = None) -> Awaitable[Any]:
        """Runs another agent inside of this one, to its end; what it says becomes events of its own.

        Called inside of a step, it stands in a branch of that step's: a later attempt that does not do the step again leaves
        what was said and written there as it is.

        Args:
            agent: The agent.
            branch: Runs it in a parallel branch of this name, with a view of its own of the state at the time of this call.

        Returns:
            To be awaited: the last thing it answered: text, structured output, or None.
        """
        return self._attempt.run_child(self, agent, branch)

    # -- for agents that put others' work together ------------------------------------------------------------------

    def join(self, effects: Effects) -> None:
        """Makes what was done in a `SideContext` part of what the agent's next event does.

        Except for handing over and ending the run: of several such wishes only one can count, and the caller says which.
        """
        if effects.state:
            self.state.write(effects.state)
        if effects.artifacts:
            self._artifact_delta = {**(self._artifact_delta or {}), **effects.artifacts}
        if effects.actions is not None:
            given = effects.actions
            self.set_actions(**{name: getattr(given, name) for name in given.model_fields_set})

    # -- for the runner ---------------------------------------------------------------------------------------------

    def has_actions(self) -> bool:
        """Whether something was set or spent for a next event that has not been told yet, state apart."""
        untold = self._transfer is not None and not self._transfer_told
        return untold or self._actions is not None or bool(self._artifact_delta) or self._spent is not None

    def end_escalation(self) -> None:
        """Stops an escalation at this agent: those around it do not see it."""
        self._escalated = False

    def inside_step(self) -> StepAround | None:
        """The innermost step of this agent's that the calling code is inside of."""
        step = step_around.get()
        return step if step is not None and step.ctx is self else None

    def path(self, key: str) -> str:
        """A key of this agent's, unique in the run."""
        return f"{self.scope}/{key}" if self.scope else key

    def __repr__(self) -> str:
        return f"Context(agent={self.agent.name!r}, run_id={self.run_id!r}, attempt={self.attempt})"


_STATE_FIELDS = ("state_delta", "state_deleted", "state_increments")


def not_configured(what: str) -> Unsupported:
    """The error for a service that was turned off."""
    return Unsupported(f"no {what} service is configured; pass {what}_service= to the Runner", code=f"{what}.not_configured")

"""Agents: what the runtime runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar

from sojourn.content import Content
from sojourn.errors import AgentError, InvalidInput, SojournError, TimedOut
from sojourn.event import USER, CallDelta, Event
from sojourn.ids import check_id

if TYPE_CHECKING:
    from sojourn.agents.context import Context


PIECES_PER_TURN = 64
"""Pieces of a message after which other tasks get a turn: an agent or a buffered stream gives hundreds without waiting."""

CLOSE_GRACE = 5.0
"""Seconds that closing one agent may take before it is cancelled and the next one is closed."""


class Whole:
    """An event that is the whole of the message whose pieces came before it, and takes their place.

    Without it, an event ends the message that is being written, which becomes an event of its own.

    Args:
        event: Its content; a text that does not begin with the pieces leaves on the screens what is there.
    """

    __slots__ = ("event",)

    def __init__(self, event: Event) -> None:
        self.event = event

    def __repr__(self) -> str:
        return f"Whole({self.event!r})"


logger = logging.getLogger("sojourn.agents")

Yielded = str | Content | Event | Whole | CallDelta
"""What an agent may yield."""

AgentCallback = Callable[["Context"], "Content | str | None | Awaitable[Content | str | None]"]
"""Called before or after an agent, sync or async. What it returns is said by the agent: before, in place of running it;
after, in addition."""


Callback = TypeVar("Callback", bound=Callable[..., Any])


class Agent:
    """Something that answers a user's message. Subclass it and write `run`, or use the `@agent` decorator.

    Args:
        name: Its name, unique among the agents of an app, and not `user`.
        description: What it is good for; other agents choose by it whom to hand over to.
        sub_agents: Agents it may hand over to. Each belongs to one parent.
        before_agent: Callbacks before it runs, in order; the first that returns something, or hands over, ends the chain and
            the agent does not run.
        after_agent: Callbacks after it ran, or after a `before_agent` took its place, in order; the first that returns
            something ends the chain. They are not called if it failed, was stopped or asks a person.
        disallow_transfer_to_parent: It may not hand back to its parent.
        disallow_transfer_to_peers: It may not hand over to its parent's other agents.

    Raises:
        InvalidInput: `agent.invalid_name`, `agent.has_parent`.
    """

    def __init__(
        self,
        *,
        name: str,
        description: str = "",
        sub_agents: Sequence[Agent] = (),
        before_agent: AgentCallback | Sequence[AgentCallback] | None = None,
        after_agent: AgentCallback | Sequence[AgentCallback] | None = None,
        disallow_transfer_to_parent: bool = False,
        disallow_transfer_to_peers: bool = False,
    ) -> None:
        try:
            self.name = check_id(name, "agent name")
        except InvalidInput as error:
            raise InvalidInput(error.message, code="agent.invalid_name") from None
        if name == USER or any(c in name for c in "./#"):
            raise InvalidInput(
                f"an agent cannot be named {name!r}: 'user', '.', '/' and '#' are reserved", code="agent.invalid_name"
            )
        self.description = description
        self.before_agent = listed(before_agent)
        self.after_agent = listed(after_agent)
        self.disallow_transfer_to_parent = disallow_transfer_to_parent
        self.disallow_transfer_to_peers = disallow_transfer_to_peers
        self.parent_agent: Agent | None = None
        for child in sub_agents:
            if not isinstance(child, Agent):
                raise InvalidInput(f"sub_agents of {name!r} holds {child!r}, which is not an agent", code="agent.invalid")
            if child.parent_agent is not None:
                raise InvalidInput(
                    f"agent {child.name!r} already belongs to {child.parent_agent.name!r}; make another instance of it",
                    code="agent.has_parent",
                )
        self.sub_agents: tuple[Agent, ...] = tuple(sub_agents)
        for child in self.sub_agents:
            child.parent_agent = self

    def run(self, ctx: Context) -> AsyncIterator[Yielded] | Awaitable[Any]:
        """Answers; written by subclasses, as an async generator or an async function.

        A yielded `str` is the next piece of the agent's current message, and so is a `CallDelta`; `Content` and `Event` are
        said as they are, `Whole(event)` in place of that message, and the generator goes on only when they are stored. An
        async function's return value is one event: text, content, an event, or any other JSON value as structured output.
        `None` says nothing.

        Args:
            ctx: What the agent may use.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement run()")

    async def close(self) -> None:
        """Lets go of what the agent holds open: processes, connections. It can be run again afterwards.

        Called when a Runner that was given the agent is closed. Twice is fine. It is cancelled after `CLOSE_GRACE` seconds.
        """

    @property
    def root_agent(self) -> Agent:
        """The top of the tree this agent belongs to."""
        agent = self
        while agent.parent_agent is not None:
            agent = agent.parent_agent
        return agent

    def walk(self) -> Iterator[Agent]:
        """This agent and all below it, parents first."""
        yield self
        for child in self.sub_agents:
            yield from child.walk()

    def find_agent(self, name: str) -> Agent | None:
        """The agent of this name in this tree (from here down), or None."""
        return next((a for a in self.walk() if a.name == name), None)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


async def close_agents(root: Agent) -> None:
    """Closes an agent and all below it, one after the other; see `close_agent`."""
    for agent in root.walk():
        await close_agent(agent)


async def close_agent(agent: Agent) -> None:
    """Closes one agent, and takes `CLOSE_GRACE` seconds for it at most.

    That it cannot be closed is logged, with the code of the error, `agent.close_timeout` or `agent.close_failed`.

    Raises:
        CancelledError: The caller was cancelled.
    """
    try:
        async with asyncio.timeout(CLOSE_GRACE) as bound:
            await agent.close()
    except Exception as error:
        told: SojournError
        if isinstance(error, SojournError):
            told = error
        elif isinstance(error, TimeoutError) and bound.expired():
            told = TimedOut(f"it took longer than {CLOSE_GRACE:g} seconds and was cancelled", code="agent.close_timeout")
        else:
            told = AgentError(f"it raised {type(error).__name__}", code="agent.close_failed")
        fields = {"agent": agent.name, "code": told.code}
        logger.error("agent %s could not be closed: %s", agent.name, told, exc_info=error, extra=fields)


def check_tree(root: Agent) -> None:
    """Refuses a tree in which two agents have one name, with `agent.duplicate_name`."""
    seen: set[str] = set()
    for agent in root.walk():
        if agent.name in seen:
            raise InvalidInput(
                f"two agents are named {agent.name!r}; names must be unique in an app", code="agent.duplicate_name"
            )
        seen.add(agent.name)


def listed(given: Callback | Sequence[Callback] | None) -> tuple[Callback, ...]:
    """Callbacks as agents take them: none, one, or several."""
    if given is None:
        return ()
    return (given,) if callable(given) else tuple(given)


async def first_answer(callbacks: Sequence[Callable[..., Any]], *args: Any) -> Any:
    """What the first of several callbacks, sync or async, returns that returns something; None if none does."""
    for callback in callbacks:
        given = callback(*args)
        given = await given if isawaitable(given) else given
        if given is not None:
            return given
    return None

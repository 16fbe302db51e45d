"""The seam for agents that differ between users: where a Runner gets the agent of a run from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from sojourn.agents.base import Agent
from sojourn.errors import SojournError

NOT_BUILT = "the user's agent was not built"
"""Why one has waited that is not even in line for a slot."""


class AgentLease(Protocol):
    """A user's agent while somebody needs it."""

    @property
    def agent(self) -> Agent | None:
        """The agent; None while it is not there yet, and if it could not be made."""
        ...

    async def built(self) -> Agent:
        """Waits for the agent; giving up leaves its making to the others.

        Raises:
            SojournError: Why it cannot be had. To each who waits an exception of their own.
        """
        ...

    def when_settled(self, call: Callable[[SojournError | None], object]) -> None:
        """Calls back once, later, from the event loop: with None when the agent is there, or why it cannot be had.

        Not after `release`.
        """
        ...

    def release(self) -> None:
        """Says that the agent is not needed any more. Twice is fine."""
        ...


@runtime_checkable
class AgentSource(Protocol):
    """Gives each user an agent. A Runner takes one in place of an agent, and closes it when it is closed itself.

    All calls are made from one event loop.
    """

    def is_ready(self, user_id: str) -> bool:
        """Whether a lease taken now would have the agent at once. Makes nothing."""
        ...

    def lease(self, user_id: str) -> AgentLease:
        """Has a user's agent made ready, and kept until it is released; never waits.

        Raises:
            Unavailable: `runner.closed`.
        """
        ...

    async def close(self) -> None:
        """Lets go of all agents. Twice is fine."""
        ...

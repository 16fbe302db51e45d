"""Agents that run other agents in a fixed order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from sojourn.agents.base import Agent
from sojourn.agents.control import RunPaused
from sojourn.errors import AgentError, InvalidInput

if TYPE_CHECKING:
    from sojourn.agents.context import Context


class SequentialAgent(Agent):
    """Runs its agents one after the other. They may not hand over to an agent outside of this one."""

    async def run(self, ctx: Context) -> None:
        """Runs each agent once."""
        for child in self.sub_agents:
            if ctx.ended:
                return
            await ctx.run_agent(child)


class LoopAgent(Agent):
    """Runs its agents one after the other, again and again, until one escalates.

    An agent escalates with `ctx.set_actions(escalate=True)` or an event that says so. Hand-overs to an agent outside of
    this one are refused.

    Args:
        max_iterations: How often at most; None for no bound but the run's own.
        **options: As for `Agent`.
    """

    def __init__(self, *, max_iterations: int | None = None, sub_agents: Sequence[Agent] = (), **options: Any) -> None:
        if max_iterations is not None and max_iterations < 1:
            raise InvalidInput(f"max_iterations is {max_iterations}; give 1 or more, or None", code="agent.invalid")
        if not sub_agents:
            raise InvalidInput("a LoopAgent without sub_agents would loop for ever doing nothing", code="agent.invalid")
        super().__init__(sub_agents=sub_agents, **options)
        self.max_iterations = max_iterations

    async def run(self, ctx: Context) -> None:
        """Runs rounds."""
        done = 0
        while self.max_iterations is None or done < self.max_iterations:
            for child in self.sub_agents:
                await ctx.run_agent(child)
                if ctx.ended or ctx.escalated:
                    ctx.end_escalation()
                    return
            done += 1
            # A round of agents that never wait would keep every other run from going on.
            await asyncio.sleep(0)


class ParallelAgent(Agent):
    """Runs its agents at the same time, each in a branch of its own.

    A branch sees what was said before it, not what its siblings say, and has its own view of the state; all deltas are
    stored, and agents after this one see them. If one fails, the others are let finish, everything they said is kept, and
    the first failure is the run's. If one asks a person, the others go on until each is done or asks; then the run waits.
    """

    async def run(self, ctx: Context) -> None:
        """Runs all branches to their end."""
        runs = [ctx.run_agent(child, branch=child.name) for child in self.sub_agents]
        tasks = [asyncio.ensure_future(_guarded(run)) for run in runs]
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            # Reached early only when this agent itself is stopped: its branches are stopped with it.
            running = [t for t in tasks if not t.done()]
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)
            for task in tasks:
                # Looked at even if something else ends this agent: an error nobody sees is told to the event loop.
                if task.done() and not task.cancelled():
                    task.exception()
        failures = [error for t in tasks if not t.cancelled() and (error := t.exception()) is not None]
        # A pause must not hide a failure: the question would be answered for nothing.
        for error in sorted(failures, key=lambda e: isinstance(e, RunPaused)):
            raise error
        if any(t.cancelled() for t in tasks):
            raise asyncio.CancelledError


async def _guarded(run: Awaitable[Any]) -> Any:
    """Keeps what would end the process, raised in a task, from doing so: it is this agent's failure."""
    try:
        return await run
    except (SystemExit, KeyboardInterrupt) as error:
        raise AgentError(f"an agent raised {type(error).__name__}", code="agent.failed") from error

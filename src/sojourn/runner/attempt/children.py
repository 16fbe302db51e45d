"""Agents that run inside of another one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from sojourn.agents.base import Agent
from sojourn.agents.context import Context

RunInside = Callable[[Context, Context], Coroutine[Any, Any, Any]]
"""Runs the agent of the second context inside of the first."""


class ChildRun:
    """Runs an agent inside of another one when this is awaited; a task may be cancelled before it gets to that."""

    __slots__ = ("_child", "_ctx", "_run_inside")

    def __init__(self, run_inside: RunInside, ctx: Context, child: Context) -> None:
        self._run_inside = run_inside
        self._ctx = ctx
        self._child = child

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._run_inside(self._ctx, self._child).__await__()


def child_context(ctx: Context, agent: Agent, branch: str | None) -> Context:
    """What an agent is given that runs inside of another one's context; see `Context.run_agent`."""
    if ctx._children is None:
        ctx._children = {}
    step = ctx.inside_step()
    # A later attempt may not do the step again: who comes after it is counted without those inside.
    name = agent.name if step is None else f"{step.key}/{agent.name}"
    count = ctx._children[name] = ctx._children.get(name, 0) + 1
    path = ctx.branch if step is None else step.branch
    if branch is not None:
        path = f"{path}.{branch}" if path else branch
    # Taken at once: what siblings write meanwhile must not depend on who is scheduled first.
    state = ctx.state if path == ctx.branch else ctx.state.overlay()
    return Context(ctx._attempt, agent, state, path, ctx.path(f"{name}@{count}"), agent)

"""Hand-overs between agents: who may hand over to whom."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING

from sojourn.agents.base import Agent
from sojourn.agents.workflow import LoopAgent, ParallelAgent, SequentialAgent
from sojourn.errors import Forbidden, LimitExceeded, NotFound

if TYPE_CHECKING:
    from sojourn.agents.context import Context
    from sojourn.runner.config import TransferPolicy

_FIXED_ORDER = (SequentialAgent, LoopAgent, ParallelAgent)


def reachable(agent: Agent, boundary: Agent | None) -> list[Agent]:
    """The agents that one may hand over to: its children, its parent, its parent's other children.

    Args:
        agent: Who would hand over.
        boundary: The agent that another one runs inside of itself, if any: what lies above or beside it is out of reach.
            Agents below a sequential,
            parallel or loop agent are run in its order and reach only what is below themselves.
    """
    targets = list(agent.sub_agents) if not isinstance(agent, _FIXED_ORDER) else []
    parent = agent.parent_agent
    if agent is boundary or parent is None or isinstance(parent, _FIXED_ORDER):
        return targets
    if not agent.disallow_transfer_to_parent:
        targets.append(parent)
    if not agent.disallow_transfer_to_peers:
        targets.extend(a for a in parent.sub_agents if a is not agent)
    return targets


def check(ctx: Context, name: str, boundary: Agent | None, done: int, bound: int, policy: TransferPolicy | None) -> Agent:
    """Returns the agent to hand over to.

    Raises:
        NotFound: `transfer.unknown_agent`.
        Forbidden: `transfer.not_allowed`, `transfer.denied`.
        LimitExceeded: `run.max_transfers`.
    """
    agent = ctx.agent
    target = agent.root_agent.find_agent(name)
    allowed = reachable(agent, boundary)
    if target is None or target not in allowed:
        names = ", ".join(sorted(a.name for a in allowed)) or "none"
        if target is None:
            raise NotFound(f"there is no agent {name!r}; agent {agent.name!r} reaches {names}", code="transfer.unknown_agent")
        raise Forbidden(f"agent {agent.name!r} may not hand over to {name!r}; it reaches {names}", code="transfer.not_allowed")
    if done >= bound:
        raise LimitExceeded(
            f"run {ctx.run_id!r} has had {done} hand-overs, the limit; raise RunConfig.max_transfers if that is intended",
            code="run.max_transfers",
            retryable=False,
        )
    verdict = policy(ctx, agent, target) if policy is not None else None
    if verdict is None or verdict is True:
        return target
    if isinstance(verdict, Coroutine):
        verdict.close()
        verdict = "transfer_policy must be a plain function; it gave a coroutine"
    # Whatever else it gives is no permission.
    why = f": {verdict}" if verdict is not False else ""
    raise Forbidden(f"handing over from {agent.name!r} to {name!r} was denied{why}", code="transfer.denied")

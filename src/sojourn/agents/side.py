"""A context whose effects are held back."""

from __future__ import annotations

from sojourn.agents.context import Context
from sojourn.agents.effects import Effects


class SideContext(Context):
    """A context for a part of an agent's work whose effects are to be kept apart, such as a tool's call.

    It reads the state as the agent's context has it, and writes to a view of its own. What is done with it does not go with the
    agent's next event: `effects` gives it, and `Context.join` lets it take effect, in this attempt or in a later one. What
    agents inside of it write goes with their own events, and the agent's context shows it as soon as they are said.

    Args:
        ctx: The agent's context.
        key: The key of the step that the part is; its steps and questions are named within it, and what is said in it stands in
            that step's branch.
    """

    __slots__ = ("_ends",)

    def __init__(self, ctx: Context, key: str) -> None:
        super().__init__(ctx._attempt, ctx.agent, ctx.state.aside(), ctx.step_branch(key), ctx.path(key), ctx._boundary)
        self._ends = False

    def end_invocation(self) -> None:
        """Ends the run once the effects of this are stored."""
        self._ends = True

    def effects(self) -> Effects:
        """What was done with this so far; writes of state are given once."""
        return Effects(self.state.take(), self._artifact_delta, self._actions, self._transfer, self._ends)

"""The tools of an agent."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import PydanticUserError
from pydantic_ai import Tool as EngineTool
from pydantic_ai.exceptions import UserError
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from sojourn.agents.llm.functions import engine_tool
from sojourn.agents.llm.tool import Tool, ToolFunction, context_parameter, tool
from sojourn.errors import InvalidInput

if TYPE_CHECKING:
    from sojourn.agents.llm.turns import Turns

AnyTool = ToolFunction | Tool | EngineTool[Any] | AbstractToolset[Any]
"""What an agent may be given as a tool."""


class Toolbox:
    """What an agent was given as tools, as pydantic-ai takes them.

    Args:
        agent: The agent's name.
        given: The tools.
        reserved: Names that none of them may have.

    Attributes:
        own: Those that are functions or made by `@tool`, by name.
        toolsets: Those that are toolsets.

    Raises:
        InvalidInput: `tool.invalid`, `tool.duplicate_name`.
    """

    def __init__(self, agent: str, given: Sequence[AnyTool], reserved: Collection[str]) -> None:
        self.own: dict[str, Tool] = {}
        self.toolsets: list[AbstractToolset[Turns]] = []
        self._agent = agent
        self._reserved = reserved
        self._functions: FunctionToolset[Turns] = FunctionToolset()
        for one in given:
            if isinstance(one, AbstractToolset):
                self.toolsets.append(one)
            else:
                self._take(one)

    def _take(self, given: ToolFunction | Tool | EngineTool[Any]) -> None:
        agent = self._agent
        if not callable(given) and not isinstance(given, EngineTool):
            raise InvalidInput(f"tools of agent {agent!r} holds {given!r}, which is no tool", code="tool.invalid")
        made = given if isinstance(given, Tool | EngineTool) else tool(given)
        if made.name in self._reserved:
            raise InvalidInput(f"a tool of agent {agent!r} cannot be named {made.name!r}", code="tool.invalid")
        if made.name in self._functions.tools:
            raise InvalidInput(
                f"agent {agent!r} has two tools named {made.name!r}; give one another name with @tool(name=…)",
                code="tool.duplicate_name",
            )
        try:
            self._functions.add_tool(made if isinstance(made, EngineTool) else engine_tool(made))
        except (UserError, NameError, TypeError, PydanticUserError) as error:
            raise InvalidInput(f"tool {made.name!r} of agent {agent!r}: {error}", code="tool.invalid") from error
        if isinstance(made, Tool):
            self.own[made.name] = made

    def all_toolsets(self) -> list[AbstractToolset[Turns]]:
        """All tools, the functions among them, as toolsets."""
        return [self._functions, *self.toolsets] if self._functions.tools else list(self.toolsets)

    def may_ask_people(self) -> bool:
        """Whether any tool might: what could, costs a little with every call."""
        foreign = self.toolsets or len(self._functions.tools) > len(self.own)
        return bool(foreign) or any(t.require_approval or t.long_running or context_parameter(t.fn) for t in self.own.values())

"""The tool by which a model hands over to another agent."""

from __future__ import annotations

from dataclasses import replace

from pydantic_ai import RunContext, ToolDefinition
from pydantic_ai import Tool as EngineTool
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.toolsets import FunctionToolset

from sojourn.agents.llm.calls import TRANSFER_TOOL
from sojourn.agents.llm.tool import agents_named
from sojourn.agents.llm.turns import Turns
from sojourn.errors import SojournError


def handing_over() -> FunctionToolset[Turns]:
    """A toolset of the one tool, which is offered where there is somebody to hand over to."""
    toolset: FunctionToolset[Turns] = FunctionToolset()
    toolset.add_tool(EngineTool(transfer_to_agent, name=TRANSFER_TOOL, takes_ctx=True, prepare=_with_targets))
    return toolset


async def transfer_to_agent(ctx: RunContext[Turns], agent_name: str) -> str:
    """Hands the conversation over to another agent, which answers in your place.

    Args:
        ctx: The turns.
        agent_name: The agent's name.
    """
    try:
        ctx.deps.calls.hand_over(ctx.tool_call_id or "", agent_name)
    except SojournError as error:
        raise ToolFailed(f"{error.code}: {error.message}") from None
    return f"{agent_name} takes over"


def _with_targets(ctx: RunContext[Turns], definition: ToolDefinition) -> ToolDefinition | None:
    """The tool with exactly those it may name; None if there are none."""
    targets = ctx.deps.targets
    if not targets:
        return None
    schema = dict(definition.parameters_json_schema)
    schema["properties"] = {"agent_name": {"type": "string", "enum": [a.name for a in targets]}}
    return replace(
        definition,
        parameters_json_schema=schema,
        description=f"{definition.description}\n\nThe agents:\n{agents_named(targets)}",
    )

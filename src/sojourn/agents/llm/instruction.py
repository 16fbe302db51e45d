"""What a model is told to do."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import TYPE_CHECKING

from sojourn import jsonvalue
from sojourn.agents.llm.tool import agents_named
from sojourn.errors import InvalidInput

if TYPE_CHECKING:
    from sojourn.agents.base import Agent
    from sojourn.agents.context import Context

Instruction = str | Callable[["Context"], str | Awaitable[str]]
"""A text with fields, or a function of the context, sync or async, whose text is taken as it is."""

# A state key, or an artifact; anything else in braces (JSON, code) is no field.
_FIELD = re.compile(r"\{((?:app:|user:|temp:|artifact:(?:user:)?)?[A-Za-z_][\w./-]*)(\?)?\}")


async def instructions_of(ctx: Context, instruction: Instruction, targets: list[Agent]) -> str:
    """All that an agent's model is told before the conversation.

    Args:
        ctx: The agent's context.
        instruction: What the agent was given.
        targets: Whom it may hand over to.

    Raises:
        InvalidInput: `instruction.unknown_field`.
    """
    if callable(instruction):
        text = instruction(ctx)
        text = await text if isawaitable(text) else text
    else:
        text = await filled(ctx, instruction)
    sections = [f"You are an agent. Your name is {ctx.agent.name!r}.", text]
    if ctx.agent.description:
        sections[0] += f" You are described as: {ctx.agent.description}"
    if targets:
        sections.append(
            "If another agent is better suited to answer, hand over to it with the tool transfer_to_agent and say nothing "
            f"else. The agents:\n{agents_named(targets)}"
        )
    return "\n\n".join(section for section in sections if section)


async def filled(ctx: Context, template: str) -> str:
    """A text with the values of its fields.

    `{key}` is a key of the session's state, `{user:key}` and `{app:key}` one of the user's and the app's,
    `{artifact:name}` the text of an artifact. A field that ends with a question mark, `{key?}`, may be missing.

    Raises:
        InvalidInput: `instruction.unknown_field`.
    """
    values: dict[str, str] = {}
    for match in _FIELD.finditer(template):
        name, optional = match.groups()
        values[match[0]] = await _value(ctx, name, optional=bool(optional))
    return _FIELD.sub(lambda match: values[match[0]], template)


async def _value(ctx: Context, name: str, *, optional: bool) -> str:
    if name.startswith("artifact:"):
        return await _artifact(ctx, name.removeprefix("artifact:"), optional=optional)
    if name in ctx.state:
        value = ctx.state[name]
        return value if isinstance(value, str) else jsonvalue.encode(value)
    if optional:
        return ""
    raise _unknown(ctx, name, "the state has no such key")


async def _artifact(ctx: Context, name: str, *, optional: bool) -> str:
    if name not in await ctx.artifacts.names():
        if optional:
            return ""
        raise _unknown(ctx, f"artifact:{name}", "the session has no such artifact")
    part = await ctx.artifacts.load(name)
    return part.text if part.text is not None else (part.inline_data.data.decode(errors="replace") if part.inline_data else "")


def _unknown(ctx: Context, name: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"the instruction of agent {ctx.agent.name!r} has the field {{{name}}}, but {why}; set it, or write {{{name}?}} "
        "if it may be missing",
        code="instruction.unknown_field",
    )

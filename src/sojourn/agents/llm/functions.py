"""Functions as tools of pydantic-ai's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pydantic_ai import Tool as EngineTool

from sojourn.agents.llm.calls import tool_context
from sojourn.agents.llm.tool import Tool, ToolFunction, body_of, context_parameter
from sojourn.agents.threads import in_thread


def engine_tool(made: Tool) -> EngineTool[Any]:
    """A tool as pydantic-ai has them.

    Raises:
        UserError: Its signature or its docstring cannot be read; so does what evaluating its annotations raises.
    """
    return EngineTool(
        _call_of(made.fn),
        name=made.name,
        description=made.description,
        takes_ctx=False,
        max_retries=made.retries,
        sequential=made.sequential,
    )


def _call_of(fn: ToolFunction) -> Callable[..., Any]:
    """The function as the model calls it: async, and without the parameter for the context."""
    body = body_of(fn)
    given = context_parameter(fn)
    is_async = inspect.iscoroutinefunction(body)

    @functools.wraps(body)
    async def call(*args: Any, **kwargs: Any) -> Any:
        if given is not None:
            kwargs[given] = tool_context()
        if is_async:
            return await fn(*args, **kwargs)
        result = await in_thread(functools.partial(fn, *args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    call.__doc__ = body.__doc__ or fn.__doc__
    signature = inspect.signature(fn)
    kept = [p for name, p in signature.parameters.items() if name != given]
    call.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    # The context's annotation may be a name that only type checkers know.
    call.__annotations__ = {name: hint for name, hint in call.__annotations__.items() if name != given}
    return call

"""Tools: functions that a model may call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from sojourn.agents.context import Context
from sojourn.agents.side import SideContext
from sojourn.errors import InvalidInput

if TYPE_CHECKING:
    from sojourn.agents.base import Agent

ToolFunction = Callable[..., Any]

NeedsApproval = bool | Callable[..., bool]
"""Whether a person has to allow a call: always, never, or what a plain function of the call's arguments says."""


class ToolContext(SideContext):
    """What a tool may use while it is called: the agent's context, with a view of the state of its own.

    State that a tool writes, artifacts that it saves and actions that it sets are kept with its result, and take effect
    when the results of all calls of that turn are stored. A tool that runs in a thread uses what needs no `await`.

    Attributes:
        tool_name: The tool.
        call_id: The id of the call, unique in the session.
        idempotency_key: The same for each attempt of this call, different for every other call: give it to the services
            that the tool calls, and what they do is done once even if the process dies in mid-call.
    """

    __slots__ = ("call_id", "idempotency_key", "tool_name")

    def __init__(self, ctx: Context, tool_name: str, call_id: str, key: str) -> None:
        super().__init__(ctx, key)
        self.tool_name = tool_name
        self.call_id = call_id
        self.idempotency_key = ctx.step_id(key)


@dataclass(slots=True, frozen=True)
class Tool:
    """A function that a model may call; made by `@tool`.

    Attributes:
        fn: The function. Its parameters and docstring tell the model how to call it. A parameter annotated with
            `ToolContext` is not the model's to give. Plain functions run in threads.
        name: The function's name if omitted.
        description: The function's docstring if omitted.
        require_approval: Whether a person has to allow a call. The question is bound to the call and its arguments.
        long_running: What the function returns is only the beginning, shown to whoever is asked for the result; the run
            waits for it.
        timeout: Seconds a call may take before the model is told that it has failed; the agent's `tool_timeout` if omitted.
        retries: How often the model may try again after arguments that do not fit or a `ToolError` that is retryable.
        sequential: The call runs alone, not beside the other calls of its turn.
    """

    fn: ToolFunction
    name: str
    description: str | None = None
    require_approval: NeedsApproval = False
    long_running: bool = False
    timeout: float | None = None
    retries: int | None = None
    sequential: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function, as if it were not decorated."""
        return self.fn(*args, **kwargs)

    def needs_approval(self, args: dict[str, Any]) -> bool:
        """Whether a call with these arguments needs a person's leave."""
        if not callable(self.require_approval):
            return self.require_approval
        # What the model left out has the value that the call would have.
        given = inspect.signature(self.fn).parameters
        defaults = {name: p.default for name, p in given.items() if p.default is not p.empty and p.kind is not p.VAR_KEYWORD}
        return bool(self.require_approval(**{**defaults, **args}))


@overload
def tool(fn: ToolFunction, /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    require_approval: NeedsApproval = False,
    long_running: bool = False,
    timeout: float | None = None,
    retries: int | None = None,
    sequential: bool = False,
) -> Callable[[ToolFunction], Tool]: ...
def tool(fn: ToolFunction | None = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Makes a tool of a function, with or without options: `@tool` or `@tool(require_approval=True)`.

    Raises:
        InvalidInput: `tool.invalid`.
    """

    def decorate(function: ToolFunction) -> Tool:
        if not callable(function):
            raise InvalidInput(f"@tool takes a function, not {function!r}", code="tool.invalid")
        try:
            made = Tool(function, name or str(getattr(function, "__name__", type(function).__name__)), **options)
        except TypeError as error:
            raise InvalidInput(f"@tool: {error}", code="tool.invalid") from None
        if inspect.iscoroutinefunction(made.require_approval):
            raise InvalidInput(f"require_approval of tool {made.name!r} must be a plain function", code="tool.invalid")
        if made.timeout is not None and made.timeout <= 0:
            raise InvalidInput(f"timeout of tool {made.name!r} must be positive, or None for no bound", code="tool.invalid")
        return made

    return decorate if fn is None else decorate(fn)


def body_of(fn: ToolFunction) -> Callable[..., Any]:
    """The function that has the annotations and the docstring: of a partial what it calls, of an object its `__call__`."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) or inspect.isclass(fn) else type(fn).__call__


def context_parameter(fn: ToolFunction) -> str | None:
    """The name of the parameter that a function takes a `ToolContext` by, if it does."""
    body = body_of(fn)
    try:
        hints = inspect.get_annotations(body, eval_str=True)
    except Exception:
        # Annotations may be any code, and name what only type checkers know.
        hints = inspect.get_annotations(body)
    names = (ToolContext, Context, "ToolContext", "Context")
    return next((name for name, hint in hints.items() if hint in names and name != "return"), None)


def agents_named(agents: list[Agent]) -> str:
    """Agents and what they are good for, one a line, for a model to choose from."""
    return "\n".join(f"- {a.name}: {a.description or 'no description'}" for a in agents)

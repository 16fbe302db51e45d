"""Agents made of functions."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from sojourn.agents.base import Agent, AgentCallback, Yielded
from sojourn.agents.threads import in_thread
from sojourn.errors import InvalidInput

if TYPE_CHECKING:
    from sojourn.agents.context import Context

AgentFunction = Callable[..., Any]
_END: Any = object()


class FunctionAgent(Agent):
    """An agent whose `run` is a function of one parameter, the context.

    Args:
        fn: An async generator function, an async function, a plain function or a plain generator function. Plain ones
            run in a thread with their context variables; of the context they may use everything that needs no `await`:
            the ids, `user_content`, `memories`, `state`, `actions`, `transfer_to`, `end_invocation`, `turn`. A thread
            cannot be stopped: cancelled, it is left behind and its slot is taken until it returns.
        **options: As for `Agent`; `name` defaults to the function's name, `description` to the first line of its docstring.
    """

    def __init__(self, fn: AgentFunction, **options: Any) -> None:
        if not callable(fn):
            raise InvalidInput(f"@agent takes a function, not {fn!r}", code="agent.invalid")
        options.setdefault("name", getattr(fn, "__name__", type(fn).__name__))
        options.setdefault("description", (inspect.getdoc(fn) or "").partition("\n")[0])
        super().__init__(**options)
        self.fn = fn
        self._run = _adapt(fn)
        self.__doc__ = inspect.getdoc(fn)

    def run(self, ctx: Context) -> AsyncIterator[Yielded] | Awaitable[Any]:
        """Calls the function."""
        return self._run(ctx)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the plain function, as if it were not decorated."""
        return self.fn(*args, **kwargs)


def _adapt(fn: AgentFunction) -> Callable[[Context], AsyncIterator[Yielded] | Awaitable[Any]]:
    call = fn if inspect.isroutine(fn) else type(fn).__call__
    if inspect.isasyncgenfunction(call) or inspect.iscoroutinefunction(call):
        return fn
    if inspect.isgeneratorfunction(call):

        async def generate(ctx: Context) -> AsyncIterator[Yielded]:
            items: Iterator[Yielded] = await in_thread(fn, ctx)
            try:
                while (item := await in_thread(next, items, _END)) is not _END:
                    yield item
            finally:
                # Throws ValueError while the generator is still running in its thread: it cannot be closed then.
                try:
                    items.close()  # type: ignore[attr-defined]
                except ValueError:
                    pass

        return generate

    async def call_in_thread(ctx: Context) -> Any:
        result = await in_thread(fn, ctx)
        return await result if inspect.isawaitable(result) else result

    return call_in_thread


@overload
def agent(fn: AgentFunction, /) -> FunctionAgent: ...
@overload
def agent(
    *,
    name: str = ...,
    description: str = ...,
    sub_agents: Sequence[Agent] = ...,
    before_agent: AgentCallback | Sequence[AgentCallback] | None = ...,
    after_agent: AgentCallback | Sequence[AgentCallback] | None = ...,
    disallow_transfer_to_parent: bool = ...,
    disallow_transfer_to_peers: bool = ...,
) -> Callable[[AgentFunction], FunctionAgent]: ...
def agent(fn: AgentFunction | None = None, /, **options: Any) -> FunctionAgent | Callable[[AgentFunction], FunctionAgent]:
    """Makes an agent of a function; as `@agent` or `@agent(name=…, description=…, sub_agents=…)`.

    See `FunctionAgent` for what the function may be and `Agent` for the options.
    """
    if fn is not None:
        return FunctionAgent(fn)
    return lambda f: FunctionAgent(f, **options)

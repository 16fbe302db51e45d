"""An agent that a language model drives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from pydantic import PydanticUserError
from pydantic_ai import Agent as Engine
from pydantic_ai import RunContext, ToolDefinition
from pydantic_ai import Tool as EngineTool
from pydantic_ai.exceptions import ModelRetry, ToolFailed, UserError
from pydantic_ai.models import Model
from pydantic_ai.output import StructuredDict
from pydantic_ai.settings import ModelSettings
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, FunctionToolset

from sojourn.agents.base import Agent, Yielded
from sojourn.agents.context import Context
from sojourn.agents.llm.calls import TRANSFER_TOOL, AfterTool, BeforeTool, People, RecordedTools, tool_context
from sojourn.agents.llm.instruction import Instruction, instructions_of
from sojourn.agents.llm.models import resolve
from sojourn.agents.llm.tool import Tool, ToolFunction, agents_named, context_parameter, tool
from sojourn.agents.llm.turns import Turns
from sojourn.agents.threads import in_thread
from sojourn.content import Content
from sojourn.errors import InvalidInput, SojournError

BeforeModel = Callable[[Context, Sequence[Any]], Any]
"""Called with the context and the messages that the model is to read (pydantic-ai's), sync or async. What it returns, if not
None, is said in place of calling the model: text or content."""

AfterModel = Callable[[Context, Content], Any]
"""Called with the context and what the model said. What it returns, if not None, is said instead: text or content."""

AnyTool = ToolFunction | Tool | EngineTool[Any] | AbstractToolset[Any]
"""What an agent may be given as a tool."""


class LlmAgent(Agent):
    """An agent that a language model drives: it reads the session, calls tools, hands over and answers.

    Each call of the model and of a tool is a step of the run: what is done is not done again when a run goes on after a
    crash. What the model says is streamed; each of its messages is one event.

    Args:
        name: As for `Agent`.
        model: `provider:name` of any provider that pydantic-ai knows, or one of its models.
        base_url: Address of a server that speaks OpenAI's protocol, such as Ollama, vLLM or llama.cpp; `model` is the name
            it knows the model by.
        api_key: The key for `base_url`; else the provider's environment variable is read.
        instruction: What the agent is to do. In a text, `{key}` stands for a value of the state (`{user:key}`,
            `{app:key}`), `{artifact:name}` for an artifact's text, and `{key?}` for one that may be missing.
        tools: Functions with typed parameters, with or without `@tool`; tools and toolsets of pydantic-ai, MCP servers
            among them.
        output_schema: What the answer must be: a type, or a JSON schema as a dict. Text if omitted.
        output_key: The state key under which the answer is kept.
        model_settings: As pydantic-ai has them: `temperature`, `max_tokens`, …
        tool_timeout: Seconds a call of a tool may take before the model is told that it has failed; None for no bound.
        retries: How often the model may try again after a call or an output that does not fit.
        before_model: Callbacks before each call of the model; the first that returns something answers in its place.
        after_model: Callbacks after each call of the model; the first that returns something replaces what it said.
        before_tool: Callbacks before each call of a tool; the first that returns something gives the result in its place.
        after_tool: Callbacks after each call of a tool; the first that returns something replaces the result.
        **options: As for `Agent`: `description`, `sub_agents`, …

    Raises:
        InvalidInput: `tool.invalid`, `tool.duplicate_name`, `agent.invalid`; what `Agent` says.
    """

    def __init__(
        self,
        *,
        name: str,
        model: Model | str,
        base_url: str | None = None,
        api_key: str | None = None,
        instruction: Instruction = "",
        tools: Sequence[AnyTool] = (),
        output_schema: Any = None,
        output_key: str | None = None,
        model_settings: Mapping[str, Any] | None = None,
        tool_timeout: float | None = None,
        retries: int = 3,
        before_model: BeforeModel | Sequence[BeforeModel] | None = None,
        after_model: AfterModel | Sequence[AfterModel] | None = None,
        before_tool: BeforeTool | Sequence[BeforeTool] | None = None,
        after_tool: AfterTool | Sequence[AfterTool] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        self.model = model
        self.base_url = base_url
        self.instruction = instruction
        self.output_schema = output_schema
        self.output_key = output_key
        self.before_model = _listed(before_model)
        self.after_model = _listed(after_model)
        self.before_tool = _listed(before_tool)
        self.after_tool = _listed(after_tool)
        self.tool_timeout = tool_timeout
        self.own_tools: dict[str, Tool] = {}
        self._api_key = api_key
        self._model: Model | None = model if isinstance(model, Model) else None
        self._settings = dict(model_settings or {})
        self._retries = retries
        self._functions: FunctionToolset[Turns] = FunctionToolset()
        self._toolsets: list[AbstractToolset[Turns]] = []
        self._take_tools(tools)

    async def run(self, ctx: Context) -> AsyncIterator[Yielded]:
        """Takes turns with the model until it has answered."""
        turns = Turns(self, ctx)
        instructions = await instructions_of(ctx, self.instruction, turns.targets)
        # What closes this closes the turns: nothing is left to a garbage collector.
        async with aclosing(turns.take(self.engine, instructions)) as taken:
            async for said in taken:
                yield said

    def resolved_model(self) -> Model:
        """The model, made when it is first needed.

        Raises:
            InvalidInput: `model.unknown`, `model.no_key`, `model.invalid`.
            Unsupported: `model.not_installed`.
        """
        if self._model is None:
            self._model = resolve(self.model, self.base_url, self._api_key)
        return self._model

    @cached_property
    def engine(self) -> Engine[Turns, Any]:
        """What drives the model: pydantic-ai's agent, made when it is first needed.

        Raises:
            InvalidInput: `agent.invalid`.
        """
        tools = [self._functions, *self._toolsets]
        if self.sub_agents or self.parent_agent is not None:
            handing_over: FunctionToolset[Turns] = FunctionToolset()
            handing_over.add_tool(EngineTool(transfer_to_agent, name=TRANSFER_TOOL, takes_ctx=True, prepare=_with_targets))
            tools.append(handing_over)
        used = [t for t in tools if not isinstance(t, FunctionToolset) or t.tools]
        try:
            engine: Engine[Turns, Any] = Engine(
                output_type=self._output_type(),
                deps_type=Turns,
                name=self.name,
                toolsets=[RecordedTools(CombinedToolset(used) if len(used) > 1 else used[0])] if used else [],
                capabilities=[People()] if self._asks_people() else [],
                model_settings=cast(ModelSettings, self._settings) if self._settings else None,
                retries=self._retries,
                defer_model_check=True,
            )
        except (UserError, TypeError, PydanticUserError) as error:
            raise InvalidInput(f"agent {self.name!r} cannot be built: {error}", code="agent.invalid") from error
        if isinstance(self.output_schema, dict):
            engine.output_validator(self._check_output)
        return engine

    def _asks_people(self) -> bool:
        """Whether any tool might: what could, costs a little with every call."""
        own = self.own_tools.values()
        return bool(self._toolsets) or any(t.require_approval or t.long_running or context_parameter(t.fn) for t in own)

    def _output_type(self) -> Any:
        schema = self.output_schema
        if schema is None:
            return str
        if not isinstance(schema, dict):
            return schema
        return StructuredDict(schema if schema.get("type") == "object" else _wrapping(schema))

    async def _check_output(self, output: Any) -> Any:
        # pydantic-ai shows a schema to the model, and takes whatever comes.
        import jsonschema

        try:
            jsonschema.validate(self.unwrapped(output), self.output_schema)
        except jsonschema.ValidationError as error:
            raise ModelRetry(f"the output does not fit its schema: {error.message}") from None
        return output

    def unwrapped(self, output: Any) -> Any:
        """The output as `output_schema` has it: models give objects only."""
        schema = self.output_schema
        wraps = isinstance(schema, dict) and schema.get("type") != "object" and isinstance(output, dict)
        return output.get("value") if wraps else output

    def _take_tools(self, given: Sequence[AnyTool]) -> None:
        for one in given:
            if isinstance(one, AbstractToolset):
                self._toolsets.append(one)
                continue
            made = one if isinstance(one, Tool | EngineTool) else tool(one)
            if made.name == TRANSFER_TOOL:
                raise InvalidInput(f"a tool of agent {self.name!r} cannot be named {made.name!r}", code="tool.invalid")
            if made.name in self._functions.tools:
                raise InvalidInput(
                    f"agent {self.name!r} has two tools named {made.name!r}; give one another name with @tool(name=…)",
                    code="tool.duplicate_name",
                )
            if isinstance(made, Tool):
                self.own_tools[made.name] = made
            try:
                self._functions.add_tool(made if isinstance(made, EngineTool) else _engine_tool(made))
            except (UserError, NameError, TypeError, PydanticUserError) as error:
                raise InvalidInput(f"tool {made.name!r} of agent {self.name!r}: {error}", code="tool.invalid") from error


async def transfer_to_agent(ctx: RunContext[Turns], agent_name: str) -> str:
    """Hands the conversation over to another agent, which answers in your place.

    Args:
        ctx: The turns.
        agent_name: The agent's name.
    """
    try:
        ctx.deps.calls.hand_over(agent_name)
    except SojournError as error:
        raise ToolFailed(f"{error.code}: {error.message}") from None
    return f"{agent_name} takes over"


def _with_targets(ctx: RunContext[Turns], definition: ToolDefinition) -> ToolDefinition | None:
    """The tool for handing over, with exactly those it may name; None if there are none."""
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


def _engine_tool(made: Tool) -> EngineTool[Any]:
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
    given = context_parameter(fn)
    is_async = inspect.iscoroutinefunction(fn if inspect.isroutine(fn) else type(fn).__call__)

    @functools.wraps(fn)
    async def call(*args: Any, **kwargs: Any) -> Any:
        if given is not None:
            kwargs[given] = tool_context()
        if is_async:
            return await fn(*args, **kwargs)
        result = await in_thread(functools.partial(fn, *args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    signature = inspect.signature(fn)
    kept = [p for name, p in signature.parameters.items() if name != given]
    call.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    # The context's annotation may be a name that only type checkers know.
    call.__annotations__ = {name: hint for name, hint in call.__annotations__.items() if name != given}
    return call


def _wrapping(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"value": schema}, "required": ["value"], "additionalProperties": False}


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if callable(value) else tuple(value)

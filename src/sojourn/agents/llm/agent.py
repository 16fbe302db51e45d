"""An agent that a language model drives."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import PydanticUserError
from pydantic_ai import Agent as Engine
from pydantic_ai import RunContext, ToolDefinition
from pydantic_ai import Tool as EngineTool
from pydantic_ai.exceptions import ModelRetry, ToolFailed, UserError
from pydantic_ai.models import Model
from pydantic_ai.output import NativeOutput, PromptedOutput, StructuredDict, ToolOutput
from pydantic_ai.toolsets import AbstractToolset, CombinedToolset, FunctionToolset

from sojourn.agents.base import Agent, Yielded
from sojourn.agents.context import Context
from sojourn.agents.llm.calls import TRANSFER_TOOL, AfterTool, BeforeTool, People, RecordedTools, tool_context
from sojourn.agents.llm.instruction import Instruction, instructions_of
from sojourn.agents.llm.models import resolve
from sojourn.agents.llm.tool import Tool, ToolFunction, agents_named, body_of, context_parameter, tool
from sojourn.agents.llm.turns import Turns
from sojourn.agents.threads import in_thread
from sojourn.content import Content
from sojourn.errors import InvalidInput, SojournError

logger = logging.getLogger("sojourn.llm")

OUTPUT_TOOL = "final_result"
"""The tool by which a model gives structured output; pydantic-ai's name for it."""

BeforeModel = Callable[[Context, Sequence[Any]], Any]
"""Called with the context and the messages that the model is to read (pydantic-ai's), sync or async. What it returns, if not
None, is said in place of calling the model: text or content."""

AfterModel = Callable[[Context, Content], Any]
"""Called with the context and what the model said. What it returns, if not None, is said instead: text or content."""

OutputMode = Literal["tool", "native", "prompted"]
_OUTPUT_MODES: dict[str, Callable[[Any], Any]] = {"tool": ToolOutput, "native": NativeOutput, "prompted": PromptedOutput}

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
        api_key: The key; without it, the provider's environment variable is read.
        instruction: What the agent is to do. In a text, `{key}` stands for a value of the state (`{user:key}`,
            `{app:key}`), `{artifact:name}` for an artifact's text, and `{key?}` for one that may be missing.
        tools: Functions with typed parameters, with or without `@tool`; tools and toolsets of pydantic-ai, MCP servers
            among them.
        output_schema: What the answer must be: a type, or a JSON schema as a dict. Text if omitted.
        output_key: The state key under which the answer is kept.
        output_mode: How the model is made to keep to the schema: `tool` (the answer is a function call), `native` (the provider
            enforces the schema; some local models know no other way), `prompted` (it is told to); what suits the model best if
            omitted.
        model_settings: As pydantic-ai has them: `temperature`, `max_tokens`, …; or a function of the context that gives them,
            called before each call of the model.
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
        output_mode: OutputMode | None = None,
        model_settings: Mapping[str, Any] | Callable[[Context], Mapping[str, Any]] | None = None,
        tool_timeout: float | None = None,
        retries: int = 3,
        before_model: BeforeModel | Sequence[BeforeModel] | None = None,
        after_model: AfterModel | Sequence[AfterModel] | None = None,
        before_tool: BeforeTool | Sequence[BeforeTool] | None = None,
        after_tool: AfterTool | Sequence[AfterTool] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(name=name, **options)
        if not isinstance(instruction, str) and not callable(instruction):
            raise InvalidInput(f"the instruction of agent {name!r} is neither a text nor a function", code="agent.invalid")
        if isinstance(output_schema, dict):
            _check_schema(name, output_schema)
        self.model = model
        self.base_url = base_url
        self.instruction = instruction
        self.output_schema = output_schema
        self.output_key = output_key
        if output_mode not in (None, *_OUTPUT_MODES):
            known = ", ".join(_OUTPUT_MODES)
            raise InvalidInput(f"output_mode of agent {name!r} is {output_mode!r}; it may be {known}", code="agent.invalid")
        self._output_mode = output_mode
        self.before_model = _listed(before_model)
        self.after_model = _listed(after_model)
        self.before_tool = _listed(before_tool)
        self.after_tool = _listed(after_tool)
        self.tool_timeout = tool_timeout
        self.own_tools: dict[str, Tool] = {}
        self._api_key = api_key
        self._model: Model | None = model if isinstance(model, Model) else None
        self._settings = model_settings
        self._retries = retries
        self._functions: FunctionToolset[Turns] = FunctionToolset()
        self._toolsets: list[AbstractToolset[Turns]] = []
        self._engine: tuple[bool, Engine[Turns, Any]] | None = None
        self._running = 0
        self._closing = False
        self._take_tools(tools)

    async def run(self, ctx: Context) -> AsyncIterator[Yielded]:
        """Takes turns with the model until it has answered."""
        turns = Turns(self, ctx)
        instructions = await instructions_of(ctx, self.instruction, turns.targets)
        # What closes this closes the turns: nothing is left to a garbage collector.
        self._running += 1
        try:
            async with aclosing(turns.take(self.engine, instructions)) as taken:
                async for said in taken:
                    yield said
        finally:
            self._running -= 1
            if self._closing and not self._running:
                await self._close_late()

    async def close(self) -> None:
        """Ends the processes of the agent's MCP servers and its model's connections; what is needed again is opened again.

        Not while runs use them, of another Runner or abandoned ones: then when the last of them has ended.
        """
        self._closing = self._running > 0
        if self._closing:
            logger.warning("agent %s is closed later: %d of its runs have not ended", self.name, self._running)
            return
        for toolset in self._toolsets:
            leaves: list[AbstractToolset[Any]] = []
            toolset.apply(leaves.append)
            for leaf in leaves:
                client = getattr(leaf, "client", None)
                if client is not None:
                    await client.close()
        if self._model is not None and self._model is not self.model:
            made, self._model = self._model, None
            async with made:
                """Leaving it closes its connections."""

    async def _close_late(self) -> None:
        # How the run ended is not to be covered up.
        try:
            await self.close()
        except Exception:
            logger.exception("agent %s could not be closed", self.name)

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        # What was made for the original's name and place, and what is its own to close.
        made._engine = None
        made._model = self.model if isinstance(self.model, Model) else None
        made._running = 0
        made._closing = False
        return made

    def resolved_model(self) -> Model:
        """The model, made when it is first needed.

        Raises:
            InvalidInput: `model.unknown`, `model.no_key`, `model.invalid`.
            Unsupported: `model.not_installed`.
        """
        if self._model is None:
            self._model = resolve(self.model, self.base_url, self._api_key)
        return self._model

    def use_model(self, model: Model | str, *, base_url: str | None = None, api_key: str | None = None) -> None:
        """Talks to another model from the next run on.

        Args:
            model: As for the constructor.
            base_url: As for the constructor.
            api_key: As for the constructor.
        """
        self.model = model
        self.base_url = base_url
        self._api_key = api_key
        self._model = model if isinstance(model, Model) else None

    @property
    def engine(self) -> Engine[Turns, Any]:
        """What drives the model: pydantic-ai's agent, made when it is first needed, and again if the agent got a family.

        Raises:
            InvalidInput: `agent.invalid`.
        """
        has_family = bool(self.sub_agents) or self.parent_agent is not None
        if self._engine is None or self._engine[0] != has_family:
            self._engine = has_family, self._make_engine(has_family)
        return self._engine[1]

    def _make_engine(self, has_family: bool) -> Engine[Turns, Any]:
        tools = [self._functions, *self._toolsets]
        if has_family:
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
                model_settings=self._engine_settings(),
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
        foreign = self._toolsets or len(self._functions.tools) > len(self.own_tools)
        return bool(foreign) or any(t.require_approval or t.long_running or context_parameter(t.fn) for t in own)

    def _output_type(self) -> Any:
        schema = self.output_schema
        if schema is None:
            return str
        if isinstance(schema, dict):
            schema = StructuredDict(schema if schema.get("type") == "object" else _wrapping(schema))
        return schema if self._output_mode is None else _OUTPUT_MODES[self._output_mode](schema)

    def _engine_settings(self) -> Any:
        settings = self._settings
        if settings is None or isinstance(settings, Mapping):
            return settings or None
        return lambda ctx: settings(ctx.deps.ctx)

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
            if not callable(one) and not isinstance(one, EngineTool):
                raise InvalidInput(f"tools of agent {self.name!r} holds {one!r}, which is no tool", code="tool.invalid")
            made = one if isinstance(one, Tool | EngineTool) else tool(one)
            if made.name == TRANSFER_TOOL or (made.name == OUTPUT_TOOL and self.output_schema is not None):
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
        ctx.deps.calls.hand_over(ctx.tool_call_id or "", agent_name)
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


def _check_schema(agent: str, schema: dict[str, Any]) -> None:
    # Only agents with a schema pay for loading the validator.
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        message = f"output_schema of agent {agent!r} is not a JSON schema: {error.message}"
        raise InvalidInput(message, code="agent.invalid") from None


def _wrapping(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"value": schema}, "required": ["value"], "additionalProperties": False}


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return (value,) if callable(value) else tuple(value)

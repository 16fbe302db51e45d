"""An agent that a language model drives."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any, Self

from pydantic import PydanticUserError
from pydantic_ai import Agent as Engine
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model
from pydantic_ai.toolsets import CombinedToolset

from sojourn.agents.base import Agent, Yielded, close_agent, listed
from sojourn.agents.context import Context
from sojourn.agents.llm.calls import TRANSFER_TOOL, AfterTool, BeforeTool, People, RecordedTools
from sojourn.agents.llm.clients import Clients
from sojourn.agents.llm.handover import handing_over
from sojourn.agents.llm.instruction import Instruction, instructions_of
from sojourn.agents.llm.models import resolve
from sojourn.agents.llm.output import OutputMode, OutputShape
from sojourn.agents.llm.tool import Tool
from sojourn.agents.llm.toolbox import AnyTool, Toolbox
from sojourn.agents.llm.turns import Turns
from sojourn.content import Content
from sojourn.errors import InvalidInput

logger = logging.getLogger("sojourn.llm")

BeforeModel = Callable[[Context, Sequence[Any]], Any]
"""Called with the context and the messages that the model is to read (pydantic-ai's), sync or async. What it returns, if not
None, is said in place of calling the model: text or content."""

AfterModel = Callable[[Context, Content], Any]
"""Called with the context and what the model said. What it returns, if not None, is said instead: text or content."""


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
        self.model = model
        self.base_url = base_url
        self.instruction = instruction
        self.output = OutputShape(name, output_schema, output_mode)
        self.output_key = output_key
        self.before_model = listed(before_model)
        self.after_model = listed(after_model)
        self.before_tool = listed(before_tool)
        self.after_tool = listed(after_tool)
        self.tool_timeout = tool_timeout
        self._api_key = api_key
        self._settings = model_settings
        self._retries = retries
        self._toolbox = Toolbox(name, tools, (TRANSFER_TOOL, *self.output.reserved_names()))
        self._hold_nothing()

    def _hold_nothing(self) -> None:
        """As the agent is before its first run: nothing is made, nothing is open."""
        self._engine: tuple[bool, Engine[Turns, Any]] | None = None
        self._model: Model | None = None
        # Models made of names that the agent had before.
        self._outgrown: list[Model] = []
        self._clients = Clients(self._toolbox.toolsets)
        self._running = 0
        self._closing = False

    @property
    def output_schema(self) -> Any:
        """What the answer must be: a type, or a JSON schema as a dict; None for text."""
        return self.output.schema

    @property
    def own_tools(self) -> dict[str, Tool]:
        """The agent's tools that are functions or made by `@tool`, by name."""
        return self._toolbox.own

    async def run(self, ctx: Context) -> AsyncIterator[Yielded]:
        """Takes turns with the model until it has answered."""
        turns = Turns(self, ctx)
        instructions = await instructions_of(ctx, self.instruction, turns.targets)
        # What closes this closes the turns: nothing is left to a garbage collector.
        self._running += 1
        self._clients.use()
        try:
            async with aclosing(turns.take(self.engine, instructions)) as taken:
                async for said in taken:
                    yield said
        finally:
            self._running -= 1
            if self._closing and not self._running:
                await close_agent(self)

    async def close(self) -> None:
        """Ends the processes of the agent's MCP servers and its model's connections; what is needed again is opened again.

        Not while runs use them, of another Runner or abandoned ones: then when the last of them has ended. A toolset that
        other agents have, too, such as copies of this one, is closed by the last of those that have used it.
        """
        self._closing = self._running > 0
        if self._closing:
            logger.warning("agent %s is closed later: %d of its runs have not ended", self.name, self._running)
            return
        made, self._model, self._outgrown = self._made_models(), None, []
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._clients.let_go)
            for model in made:
                # Leaving it closes its connections.
                await stack.enter_async_context(model)

    def _made_models(self) -> list[Model]:
        """The models that are the agent's own to close: those that it was not given."""
        return [*self._outgrown, *([self._model] if self._model is not None else [])]

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        # What was made, was made for the original's name and place, and is its own to close.
        made._hold_nothing()
        return made

    def resolved_model(self) -> Model:
        """The model, made when it is first needed.

        Raises:
            InvalidInput: `model.unknown`, `model.no_key`, `model.invalid`.
            Unsupported: `model.not_installed`.
        """
        if isinstance(self.model, Model):
            return self.model
        if self._model is None:
            self._model = resolve(self.model, self.base_url, self._api_key)
        return self._model

    def use_model(self, model: Model | str, *, base_url: str | None = None, api_key: str | None = None) -> None:
        """Talks to another model from the next run on; copies of the agent go on with theirs.

        Args:
            model: As for the constructor.
            base_url: As for the constructor.
            api_key: As for the constructor.
        """
        self._outgrown, self._model = self._made_models(), None
        self.model = model
        self.base_url = base_url
        self._api_key = api_key

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
        tools = self._toolbox.all_toolsets()
        if has_family:
            tools.append(handing_over())
        try:
            engine: Engine[Turns, Any] = Engine(
                output_type=self.output.engine_type(),
                deps_type=Turns,
                name=self.name,
                toolsets=[RecordedTools(CombinedToolset(tools) if len(tools) > 1 else tools[0])] if tools else [],
                capabilities=[People()] if self._toolbox.may_ask_people() else [],
                model_settings=self._engine_settings(),
                retries=self._retries,
                defer_model_check=True,
            )
        except (UserError, TypeError, PydanticUserError) as error:
            raise InvalidInput(f"agent {self.name!r} cannot be built: {error}", code="agent.invalid") from error
        if self.output.checks:
            engine.output_validator(self.output.check)
        return engine

    def _engine_settings(self) -> Any:
        settings = self._settings
        if settings is None or isinstance(settings, Mapping):
            return settings or None
        return lambda ctx: settings(ctx.deps.ctx)

"""The turns of an agent: what its model says becomes messages and events, what it calls becomes steps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent as Engine
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import AgentRunError, RetryModelRequest
from pydantic_ai.messages import (
    AgentStreamEvent,
    DeferredToolRequestsEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
)
from pydantic_ai.models import ModelRequestContext
from pydantic_ai.tools import DeferredToolRequests, DeferredToolResults, RunContext, ToolDefinition
from pydantic_ai.usage import RequestUsage, UsageLimits
from pydantic_core import to_jsonable_python

from sojourn import jsonvalue, platform
from sojourn.agents.base import Whole, Yielded
from sojourn.agents.context import Context
from sojourn.agents.llm.calls import Calls, Handler
from sojourn.agents.llm.conversation import content_of, messages_of, response_of, usage_of, wrapped_result
from sojourn.agents.llm.models import model_error, retry_delay
from sojourn.content import Content, Part
from sojourn.event import CallDelta, Event, Thought
from sojourn.run.config import StreamingMode

if TYPE_CHECKING:
    from sojourn.agents.base import Agent
    from sojourn.agents.llm.agent import LlmAgent

logger = logging.getLogger("sojourn.llm")

TRANSFER_TOOL = "transfer_to_agent"
"""The tool by which a model hands over; google-adk's name for it."""

_NO_LIMITS = UsageLimits(request_limit=None)


class Turns:
    """One agent's turns in one attempt.

    Attributes:
        ctx: The agent's context.
        targets: Whom the agent may hand over to.
    """

    def __init__(self, agent: LlmAgent, ctx: Context) -> None:
        self.ctx = ctx
        self.targets: list[Agent] = ctx.reachable_agents()
        self.calls = Calls(ctx, agent.own_tools, agent.before_tool, agent.after_tool)
        self._agent = agent
        self._count = 0
        self._call_ids: set[str] = set()
        self._spent = RequestUsage()
        # Of the message being streamed: its calls, by the index of their part.
        self._streamed: dict[int, tuple[str, str]] = {}

    async def run(self, engine: Engine[Turns, Any], instructions: str) -> AsyncIterator[Yielded]:
        """Takes turns until the model has answered, handed over, or the run ends otherwise."""
        history = await messages_of(self.ctx, await self.ctx.history())
        self._call_ids.update(_call_ids(history))
        streams = self.ctx.run_config.streaming_mode is not StreamingMode.NONE
        model = self._agent.resolved_model()
        try:
            async with engine.iter(
                message_history=history, instructions=instructions, model=model, deps=self, usage_limits=_NO_LIMITS
            ) as run:
                node: Any = run.next_node
                while not Engine.is_end_node(node):
                    if Engine.is_model_request_node(node):
                        self.ctx.turn()
                        if streams:
                            stream: Any
                            async with node.stream(run.ctx) as stream:
                                async for piece in stream:
                                    if (said := self._piece(piece)) is not None:
                                        yield said
                        node = await run.next(node)
                        if Engine.is_call_tools_node(node) and (event := self._said(node.model_response)) is not None:
                            yield Whole(event)
                    elif Engine.is_call_tools_node(node):
                        returned: list[ToolReturnPart] = []
                        order = [p.tool_call_id for p in node.model_response.parts if isinstance(p, ToolCallPart)]
                        async with node.stream(run.ctx) as happened:
                            async for one in happened:
                                if isinstance(one, FunctionToolResultEvent):
                                    returned.append(one.part)
                                elif isinstance(one, DeferredToolRequestsEvent) and returned:
                                    yield self._returned(returned, order)
                                    returned = []
                        if returned:
                            event = self._returned(returned, order)
                            answered = self.ctx.actions.skip_summarization
                            yield event
                            if answered:
                                return
                        node = await run.next(node)
                    else:
                        node = await run.next(node)
                if (event := self._output(node.data.output)) is not None:
                    yield event
        except AgentRunError as error:
            raise model_error(error, self._agent.name) from error

    # -- what readers and the log get -------------------------------------------------------------------------------

    def _piece(self, event: AgentStreamEvent) -> str | CallDelta | None:
        """What readers are sent of a stream's event, if anything."""
        if isinstance(event, PartDeltaEvent):
            delta = event.delta
            if isinstance(delta, TextPartDelta):
                return delta.content_delta
            if isinstance(delta, ThinkingPartDelta):
                return Thought(delta.content_delta) if delta.content_delta else None
            if isinstance(delta, ToolCallPartDelta):
                call = self._streamed.get(event.index)
                return None if call is None or not delta.args_delta else CallDelta(*call, _json_text(delta.args_delta))
        elif isinstance(event, PartStartEvent):
            part = event.part
            if isinstance(part, TextPart):
                return part.content
            if isinstance(part, ThinkingPart):
                return Thought(part.content) if part.content else None
            if isinstance(part, ToolCallPart) and part.tool_name not in self._agent.hidden_calls:
                self._streamed[event.index] = (part.tool_call_id, part.tool_name)
                return CallDelta(part.tool_call_id, part.tool_name, _json_text(part.args or ""))
        return None

    def _said(self, response: ModelResponse) -> Event | None:
        """A model's response as an event; None if there is nothing in it for anybody else."""
        content = content_of(response, self._agent.hidden_calls)
        self._spent = self._spent + response.usage
        if content is None:
            return None
        usage, self._spent = usage_of(self._spent), RequestUsage()
        key = self._agent.output_key
        if key is not None and self._agent.output_schema is None and not content.get_function_calls() and content.text:
            self.ctx.state[key] = content.text
        return Event(content=content, usage_metadata=usage)

    def _returned(self, parts: Sequence[ToolReturnPart], order: Sequence[str]) -> Event:
        """What calls gave as an event, in the order of the calls: which was done first is chance."""
        self.calls.take_effect(order)
        ranked = sorted(parts, key=lambda p: order.index(p.tool_call_id) if p.tool_call_id in order else len(order))
        responses = [Part.from_function_response(p.tool_name, _response_of(p), id=p.tool_call_id) for p in ranked]
        return Event(content=Content("user", tuple(responses)))

    def _output(self, output: Any) -> Event | None:
        """The agent's structured output as an event; None if its answer was text, which has been said."""
        usage, self._spent = usage_of(self._spent), RequestUsage()
        if self._agent.output_schema is None:
            return None
        value = jsonvalue.copy(to_jsonable_python(output), where="the output")
        if self._agent.output_key is not None:
            self.ctx.state[self._agent.output_key] = value
        return Event(output=value, usage_metadata=usage)

    # -- what the journal gets --------------------------------------------------------------------------------------

    async def request(
        self, context: ModelRequestContext, handler: Callable[[ModelRequestContext], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """Makes a call of the model, or gives what it gave in an earlier attempt."""
        self._count += 1
        self._streamed = {}
        fresh: ModelResponse | None = None

        async def call() -> Any:
            nonlocal fresh
            fresh = await self._callbacks_before(context.messages) or await handler(context)
            fresh = self._with_own_ids(await self._callbacks_after(fresh))
            [stored] = ModelMessagesTypeAdapter.dump_python([fresh], mode="json")
            return stored

        stored = await self.ctx.step(f"model:{self._count}", call, with_next_event=True)
        if fresh is None:
            [known] = ModelMessagesTypeAdapter.validate_python([stored])
            assert isinstance(known, ModelResponse), "only responses are stored under this key"
            self._call_ids.update(_call_ids([known]))
            fresh = known
        return fresh

    async def _callbacks_before(self, messages: Sequence[ModelMessage]) -> ModelResponse | None:
        for callback in self._agent.before_model:
            given = callback(self.ctx, messages)
            given = await given if isawaitable(given) else given
            if given is not None:
                return response_of(Content.of(given, "model"))
        return None

    async def _callbacks_after(self, response: ModelResponse) -> ModelResponse:
        for callback in self._agent.after_model:
            given = callback(self.ctx, content_of(response, frozenset()) or Content("model"))
            given = await given if isawaitable(given) else given
            if given is not None:
                return replace(response, parts=response_of(Content.of(given, "model")).parts)
        return response

    def _with_own_ids(self, response: ModelResponse) -> ModelResponse:
        """The response with ids of calls that no other call of the conversation has: some models count from 0 each time."""
        if not any(isinstance(p, ToolCallPart) for p in response.parts):
            return response
        parts = list(response.parts)
        for i, part in enumerate(parts):
            if isinstance(part, ToolCallPart):
                id_ = part.tool_call_id if part.tool_call_id not in self._call_ids else platform.new_id()
                self._call_ids.add(id_)
                parts[i] = replace(part, tool_call_id=id_)
        return replace(response, parts=parts)


def _call_ids(messages: Sequence[ModelMessage]) -> set[str]:
    return {p.tool_call_id for m in messages if isinstance(m, ModelResponse) for p in m.parts if isinstance(p, ToolCallPart)}


def _json_text(args: Any) -> str:
    return args if isinstance(args, str) else jsonvalue.encode(args)


def _response_of(part: ToolReturnPart) -> dict[str, Any]:
    if part.outcome == "success":
        return wrapped_result(to_jsonable_python(part.content))
    return {"error": part.model_response_str()}


@dataclass
class Recorded(AbstractCapability[Turns]):
    """Puts the run's journal between pydantic-ai and what it calls."""

    async def wrap_model_request(
        self,
        ctx: RunContext[Turns],
        *,
        request_context: ModelRequestContext,
        handler: Callable[[ModelRequestContext], Awaitable[ModelResponse]],
    ) -> ModelResponse:
        """Each call of the model is a step."""
        return await ctx.deps.request(request_context, handler)

    async def on_model_request_error(
        self, ctx: RunContext[Turns], *, request_context: ModelRequestContext, error: Exception
    ) -> ModelResponse:
        """A provider that asks to come back later is asked again later."""
        delay = retry_delay(error, request_context.attempt)
        if delay is None:
            raise error
        logger.warning("run %s: the model is asked again in %.1f seconds: %s", ctx.deps.ctx.run_id, delay, error)
        await asyncio.sleep(delay)
        raise RetryModelRequest

    async def wrap_tool_execute(
        self, ctx: RunContext[Turns], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any], handler: Handler
    ) -> Any:
        """Each call of a tool is a step."""
        if call.tool_name == TRANSFER_TOOL:
            return await handler(args)
        return await ctx.deps.calls.execute(call, args, handler, approved=ctx.tool_call_approved)

    async def handle_deferred_tool_calls(
        self, ctx: RunContext[Turns], *, requests: DeferredToolRequests
    ) -> DeferredToolResults | None:
        """People are asked."""
        return await ctx.deps.calls.ask(requests)

"""The turns of an agent: what its model says and what its tools give, as events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent as Engine
from pydantic_ai.exceptions import AgentRunError, FallbackExceptionGroup, UserError
from pydantic_ai.messages import (
    ERROR_OUTCOMES,
    DeferredToolRequestsEvent,
    FunctionToolResultEvent,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.run import AgentRun
from pydantic_ai.usage import RequestUsage, UsageLimits
from pydantic_core import to_jsonable_python

from sojourn import jsonvalue
from sojourn.agents.base import Whole, Yielded
from sojourn.agents.context import Context
from sojourn.agents.llm.answering import Answer, RecordedModel
from sojourn.agents.llm.calls import Calls
from sojourn.agents.llm.conversation import (
    as_the_run_began,
    content_of,
    messages_of,
    usage_of,
    with_message,
    wrapped_result,
)
from sojourn.agents.llm.finish import check_calls, cut_calls, finish_reason_of
from sojourn.agents.llm.models import engine_error, model_error
from sojourn.agents.llm.spilled import LOAD_TOOL, shown_again
from sojourn.content import Content, FunctionResponse, Part
from sojourn.errors import ToolError
from sojourn.event import Event

if TYPE_CHECKING:
    from sojourn.agents.base import Agent
    from sojourn.agents.llm.agent import LlmAgent

logger = logging.getLogger("sojourn.llm")

# The run's own bounds count; pydantic-ai's default one would end a long run early.
_NO_LIMITS = UsageLimits(request_limit=None)


class Turns:
    """One agent's turns in one attempt.

    Attributes:
        agent: The agent.
        ctx: Its context.
        targets: Whom it may hand over to.
        calls: The calls that its model makes.
        call_ids: Ids of the calls that are known of the conversation.
        knows_all: Whether there are no others, beyond the window.
        answer: The answer of its model that came last.
    """

    def __init__(self, agent: LlmAgent, ctx: Context) -> None:
        self.agent = agent
        self.ctx = ctx
        self.targets: list[Agent] = ctx.reachable_agents()
        self.calls = Calls(ctx, agent.own_tools, agent.tool_timeout, agent.before_tool, agent.after_tool)
        self.call_ids: set[str] = set()
        self.knows_all = True
        self.answer: Answer
        self._finish_reason: str | None = None
        self._turn = 0
        # How many portions of what the calls of this turn gave have been told.
        self._portions = 0
        # Whether there are answers whose cost no event has told of.
        self._unpaid = False

    async def take(self, engine: Engine[Turns, Any], instructions: str) -> AsyncGenerator[Yielded]:
        """Takes turns until the model has answered, handed over, or the run ends otherwise.

        Raises:
            ModelError: The model failed.
            ToolError: `tool.unavailable` if a toolset cannot be used.
        """
        events = await self.ctx.history()
        self.call_ids.update(call.id for event in events for call in event.get_function_calls() if call.id)
        self.knows_all = len(events) >= self.ctx.session.event_count
        events = as_the_run_began(self.ctx.run_id, events)
        events = await shown_again(self.ctx, with_message(self.ctx, events), can_load=LOAD_TOOL in self.agent.own_tools)
        history = await messages_of(self.ctx, events)
        model = RecordedModel(self.agent.resolved_model(), self)
        opening = engine.iter(
            message_history=history, instructions=instructions, model=model, deps=self, usage_limits=_NO_LIMITS
        )
        try:
            async with AsyncExitStack() as stack:
                run: AgentRun[Turns, Any] = await self._open(stack, opening)
                async for node in run:
                    if Engine.is_model_request_node(node) and self._unpaid:
                        # For output that did not fit and that nobody was shown; limits are to know before the next call.
                        self._unpaid = False
                        yield Event()
                    if not Engine.is_call_tools_node(node):
                        continue
                    said = self._said(node.model_response)
                    if said is not None:
                        yield Whole(said)
                    elif self.answer.streamed:
                        # A callback took back what readers were sent.
                        yield Whole(Event(content=Content("model")))
                    self._unpaid = self._unpaid and said is None and not self.answer.streamed
                    check_calls(node.model_response)
                    if self.answer.effects.ends:
                        self.ctx.end_invocation()
                        return
                    self._turn += 1
                    self._portions = 0
                    returned: list[ToolReturnPart] = []
                    answered = False
                    async with node.stream(run.ctx) as happened:
                        async for one in happened:
                            if isinstance(one, FunctionToolResultEvent):
                                returned.append(one.part)
                            elif isinstance(one, DeferredToolRequestsEvent) and returned:
                                # Whoever reads the session while people are asked finds what is done.
                                for event in await self._in_portions(returned, node.model_response, ends_turn=False):
                                    answered = answered or self.ctx.actions.skip_summarization
                                    yield event
                                returned = []
                    if returned:
                        for event in await self._in_portions(returned, node.model_response, ends_turn=True):
                            answered = answered or self.ctx.actions.skip_summarization
                            yield event
                        if self.calls.ends:
                            self.ctx.end_invocation()
                        if answered or self.calls.ends or self.calls.transfer is not None:
                            return
                if run.result is not None and (output := self._output(run.result.output)) is not None:
                    yield output
        except (AgentRunError, FallbackExceptionGroup, UserError, NotImplementedError) as error:
            raise model_error(error, self.agent.name) from error
        except Exception as error:
            known = engine_error(error, self.agent.name)
            if known is None:
                raise
            raise known from error

    async def _open(self, stack: AsyncExitStack, opening: Any) -> AgentRun[Turns, Any]:
        try:
            return await stack.enter_async_context(opening)
        except (AgentRunError, UserError):
            raise
        except Exception as error:
            # What a server's address or command is, is not for clients.
            logger.warning("a toolset of agent %s cannot be used: %s", self.agent.name, error)
            raise ToolError(
                f"a toolset of agent {self.agent.name!r} cannot be used: {type(error).__name__}; is its server running?",
                code="tool.unavailable",
                retryable=True,
            ) from error

    def spend(self, usage: RequestUsage) -> None:
        """Counts what an answer has cost, whatever becomes of it."""
        if (spent := usage_of(usage)) is not None:
            self._unpaid = True
            self.ctx.spend(spent)

    def _said(self, response: ModelResponse) -> Event | None:
        """A model's answer as an event; None if there is nothing in it for anybody else."""
        answer = self.answer
        if answer.effects.transfer is not None:
            self.ctx.transfer_to(answer.effects.transfer)
        self._finish_reason = finish_reason_of(response)
        cut = cut_calls(response)
        content = content_of(response, answer.hidden | cut, text=not answer.text_is_output, files=answer.files)
        if content is None:
            return Event(finish_reason=self._finish_reason) if cut else None
        agent = self.agent
        if agent.output_key is not None and agent.output_schema is None and not content.get_function_calls() and content.text:
            self.ctx.state[agent.output_key] = content.text
        return Event(content=content, finish_reason=self._finish_reason)

    async def _in_portions(
        self, parts: Sequence[ToolReturnPart], response: ModelResponse, *, ends_turn: bool
    ) -> Iterator[Event]:
        """What calls gave, in the portions in which earlier attempts told it; see `_returned`.

        Each time that people have answered, more calls are done. If all were told at once then, what was told while they were
        asked would be another event than the one that is stored.
        """
        portions: list[list[ToolReturnPart]] = []
        left = {part.tool_call_id: part for part in parts}
        while left:
            ids = list(left)
            if self._portions or not ends_turn or self.ctx.attempt > 1:
                key = f"told:{self._turn}:{self._portions}"
                ids = await self.ctx.step(key, partial(list, left), with_next_event=True)
            self._portions += 1
            if portion := [left.pop(id_) for id_ in ids if id_ in left]:
                portions.append(portion)
        return (
            event
            for portion in portions
            for event in self._returned(portion, response, ends_turn=ends_turn and portion is portions[-1])
        )

    def _returned(self, parts: Sequence[ToolReturnPart], response: ModelResponse, *, ends_turn: bool) -> Iterator[Event]:
        """What calls gave, in the order of the calls: which was done first is chance. One event, or as many as it takes.

        Each is to be yielded before the next is asked for. With the last of a turn the run is handed over, if a call has.
        """
        by_id = {part.tool_call_id: part for part in parts}
        ordered = [by_id.pop(p.tool_call_id) for p in response.parts if isinstance(p, ToolCallPart) and p.tool_call_id in by_id]
        given = [
            FunctionResponse(id=p.tool_call_id, name=p.tool_name, response=_response_of(p)) for p in [*ordered, *by_id.values()]
        ]
        left = len(given)
        for told in self.calls.shared_out(given):
            left -= len(told)
            if ends_turn and not left and self.calls.transfer is not None:
                self.ctx.transfer_to(self.calls.transfer)
            yield Event(content=Content("user", tuple(Part(function_response=response) for response in told)))

    def _output(self, output: Any) -> Event | None:
        """The agent's structured output as an event; None if its answer was text, which has been said."""
        agent = self.agent
        if agent.output_schema is None:
            return None
        value = jsonvalue.copy(to_jsonable_python(agent.output.unwrapped(output)), where="the output")
        if agent.output_key is not None:
            self.ctx.state[agent.output_key] = value
        return Event(output=value, finish_reason=self._finish_reason)


def _response_of(part: ToolReturnPart) -> dict[str, Any]:
    if part.outcome == "success":
        return wrapped_result(to_jsonable_python(part.content))
    told = part.model_response_object()
    return told if part.outcome in ERROR_OUTCOMES else {"error": part.model_response_str()}

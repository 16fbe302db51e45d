"""Calls of the model: each is a step of the run, and what it says is streamed as it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from sojourn import jsonvalue, platform
from sojourn.agents.base import PIECES_PER_TURN, first_answer
from sojourn.agents.context import MODEL_STEP, TOOL_STEP, Context
from sojourn.agents.effects import Effects
from sojourn.agents.llm.conversation import content_of, response_of
from sojourn.agents.llm.models import retry_delay
from sojourn.agents.llm.observed import observed
from sojourn.agents.llm.record import DONE, recorded, restored
from sojourn.agents.llm.storable import storable, storable_args, storable_text
from sojourn.agents.side import SideContext
from sojourn.content import Content
from sojourn.event import CallDelta, Thought
from sojourn.run.config import StreamingMode

if TYPE_CHECKING:
    from sojourn.agents.llm.turns import Turns

logger = logging.getLogger("sojourn.llm")

RANDOM_ID = 16
"""Characters from which on a call's id is taken for one that no other call has ever had; shorter ones are counted."""


class RecordedModel(WrapperModel):
    """A model whose answers are steps of a run, for one agent in one attempt.

    Args:
        wrapped: The model that answers.
        turns: What the answers are for.
    """

    def __init__(self, wrapped: Model, turns: Turns) -> None:
        super().__init__(observed(wrapped))
        self._turns = turns
        self._count = 0

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Asks the model, or gives what it answered in an earlier attempt."""
        turns = self._turns
        turns.ctx.turn()
        self._count += 1
        answer = Answer(self.wrapped, turns, model_request_parameters)
        turns.answer = answer
        key = f"{MODEL_STEP}{self._count}"
        fresh: ModelResponse | None = None

        async def ask() -> Any:
            nonlocal fresh
            side = ModelContext(turns.ctx, key) if turns.agent.before_model or turns.agent.after_model else None
            fresh = await self._instead(side, messages) if side is not None else None
            if fresh is None:
                fresh = storable(await answer.ask(messages, _without_retries(self.wrapped, model_settings)))
            if side is not None:
                fresh = await self._changed(side, fresh)
            fresh = answer.with_own_ids(fresh)
            kept, answer.files = await recorded(turns.ctx, fresh)
            if side is not None and (done := side.effects().to_json()):
                kept[DONE] = done
            return kept

        stored = await turns.ctx.step(key, ask, with_next_event=True)
        if fresh is None:
            fresh, answer.files = await restored(turns.ctx, stored)
            turns.spend(fresh.usage)
            turns.call_ids.update(p.tool_call_id for p in fresh.parts if isinstance(p, ToolCallPart))
        if DONE in stored:
            answer.effects = Effects.from_json(stored[DONE])
            turns.ctx.join(answer.effects)
        return fresh

    async def _instead(self, ctx: Context, messages: Sequence[ModelMessage]) -> ModelResponse | None:
        """What a callback says in place of the model."""
        given = await first_answer(self._turns.agent.before_model, ctx, messages)
        return None if given is None else response_of(Content.of(given, "model"))

    async def _changed(self, ctx: Context, response: ModelResponse) -> ModelResponse:
        """What a callback makes of what the model said."""
        given = await first_answer(self._turns.agent.after_model, ctx, content_of(response) or Content("model"))
        if given is None:
            return response
        # Whether the model had come to its end is of no interest any more.
        parts = response_of(Content.of(given, "model")).parts
        return replace(response, parts=parts, finish_reason=None, provider_name=None)


class ModelContext(SideContext):
    """What callbacks around a call of the model may use: what they do is kept with the call, and done by the answer's event.

    Args:
        ctx: The agent's context.
        key: The key of the call's step.
    """

    __slots__ = ("_around",)

    def __init__(self, ctx: Context, key: str) -> None:
        super().__init__(ctx, key)
        self._around = ctx

    def write(self, piece: str | CallDelta) -> None:
        """Adds a piece to the message that the answer takes the place of."""
        self._around.write(piece)


class Answer:
    """One answer of a model, while it comes.

    Args:
        model: Who answers.
        turns: What it is for.
        parameters: What the model is offered.

    Attributes:
        hidden: The tools by which the agent's output is given.
        text_is_output: Whether its text is the agent's output, as JSON: nothing for a screen.
        streamed: Pieces that readers were sent.
        files: Where those of its files are kept that are too large for the log: URIs of artifacts, by the parts' numbers.
        effects: What callbacks have done besides.
    """

    def __init__(self, model: Model, turns: Turns, parameters: ModelRequestParameters) -> None:
        self._model = model
        self._turns = turns
        self._parameters = parameters
        self.hidden = frozenset(tool.name for tool in parameters.output_tools)
        self.text_is_output = parameters.output_mode in ("native", "prompted")
        self.streamed = 0
        self.files: dict[int, str] = {}
        self.effects = Effects()
        # The ids of the calls, by those that the model gave them and how many had the same before; and which call a part is.
        self._own_ids: dict[tuple[str, int], str] = {}
        self._given: dict[int, str] = {}
        self._calls: dict[int, tuple[str, str]] = {}

    async def ask(self, messages: list[ModelMessage], settings: ModelSettings | None) -> ModelResponse:
        """Asks the model, again if its provider asks to come back later and nothing was said yet."""
        attempt = 0
        while True:
            attempt += 1
            try:
                if self._turns.ctx.run_config.streaming_mode is StreamingMode.NONE:
                    response = await self._model.request(messages, settings, self._parameters)
                    self._turns.spend(response.usage)
                    return response
                return await self._stream(messages, settings)
            except Exception as error:
                delay = None if self.streamed else retry_delay(error, attempt)
                if delay is None:
                    raise
                logger.warning("run %s: the model is asked again in %.1f s: %s", self._turns.ctx.run_id, delay, error)
            await asyncio.sleep(delay)

    async def _stream(self, messages: list[ModelMessage], settings: ModelSettings | None) -> ModelResponse:
        write = self._turns.ctx.write
        async with self._model.request_stream(messages, settings, self._parameters) as stream:
            events = cast(AsyncIterator[ModelResponseStreamEvent], stream)
            try:
                async for event in events:
                    piece = self._piece(event)
                    if piece:
                        write(piece)
                        self.streamed += 1
                        if not self.streamed % PIECES_PER_TURN:
                            await asyncio.sleep(0)
            finally:
                # What a provider told before its stream broke off was spent, too.
                self._turns.spend(stream.usage)
            return stream.get()

    def _piece(self, event: ModelResponseStreamEvent) -> str | CallDelta | None:
        """What readers are sent of a stream's event, if anything."""
        if isinstance(event, PartDeltaEvent):
            delta = event.delta
            if isinstance(delta, TextPartDelta):
                return None if self.text_is_output else storable_text(delta.content_delta)
            if isinstance(delta, ThinkingPartDelta):
                return Thought(storable_text(delta.content_delta or ""))
            if isinstance(delta, ToolCallPartDelta) and delta.args_delta and event.index in self._calls:
                return CallDelta(*self._calls[event.index], _json_text(delta.args_delta))
        elif isinstance(event, PartStartEvent):
            part = event.part
            if isinstance(part, TextPart):
                return None if self.text_is_output else storable_text(part.content)
            if isinstance(part, ThinkingPart):
                return Thought(storable_text(part.content))
            if isinstance(part, ToolCallPart) and part.tool_name not in self.hidden:
                before = [given for index, given in self._given.items() if index < event.index]
                self._given[event.index] = part.tool_call_id
                own = self._own_id(part.tool_call_id, before.count(part.tool_call_id))
                call = self._calls[event.index] = (own, storable_text(part.tool_name))
                return CallDelta(*call, _json_text(part.args or ""))
        return None

    def with_own_ids(self, response: ModelResponse) -> ModelResponse:
        """The answer with ids of calls that no other call of the conversation has."""
        if not any(isinstance(part, ToolCallPart) for part in response.parts):
            return response
        parts = list(response.parts)
        given: list[str] = []
        for i, part in enumerate(parts):
            if isinstance(part, ToolCallPart):
                parts[i] = replace(part, tool_call_id=self._own_id(part.tool_call_id, given.count(part.tool_call_id)))
                given.append(part.tool_call_id)
        return replace(response, parts=parts)

    def _own_id(self, given: str, number: int) -> str:
        """The id of a call: the model's own if nobody has it; some count from 0 each time.

        Args:
            given: The model's own.
            number: How many calls of the answer had the same before this one.
        """
        known = self._own_ids.get((given, number))
        if known is not None:
            return known
        turns = self._turns
        # What the models of parallel branches and calls say is not known here, nor what lies beyond the window of history.
        beside = turns.ctx.branch is not None or TOOL_STEP in turns.ctx.scope
        counted = len(given) < RANDOM_ID and not turns.knows_all
        id_ = platform.new_id() if beside or counted or given in turns.call_ids else given
        turns.call_ids.add(id_)
        self._own_ids[given, number] = id_
        return id_


def _without_retries(model: Model, settings: ModelSettings | None) -> ModelSettings | None:
    """Settings by which a provider's client leaves it to us to ask again; what the user has set counts."""
    if "max_retries" in model.unsupported_settings:
        return settings
    return {"max_retries": 0, **(settings or {})}


def _json_text(given: Any) -> str:
    args = storable_text(given) if isinstance(given, str) else storable_args(given)
    return args if isinstance(args, str) else jsonvalue.encode(args)

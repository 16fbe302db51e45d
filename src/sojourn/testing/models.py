"""A model that says what it is told to, for tests of agents that a model drives. Needs the extra `sojourn[llm]`.

    model = ScriptedModel(
        [Thinks("Rome, then."), Calls("find_flights", {"to": "Rome"})],    # what it says to the first request
        "There is one at nine.",                                           # to the second
    )
    helper = LlmAgent(name="helper", model=model, tools=[find_flights])
    assert (await run_agent(helper, "To Rome")).text == "There is one at nine."
    assert "nine" in model.requests[1].text                                # what it was shown

It streams like a model behind a provider does. Tokens are estimated by words, the same each time.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any

from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponsePart,
    RetryPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel


@dataclass(slots=True, frozen=True)
class Thinks:
    """A piece of reasoning."""

    text: str


@dataclass(slots=True, frozen=True)
class Calls:
    """A call of a tool.

    Attributes:
        tool: The tool's name.
        args: Its arguments; a text is sent as it is, for arguments that are no JSON.
        id: The call's id; `call-1`, `call-2`, … over all calls of the model if omitted.
        pieces: In how many pieces the arguments are streamed.
    """

    tool: str
    args: dict[str, Any] | str = field(default_factory=dict)
    id: str | None = None
    pieces: int = 1


Piece = str | Thinks | Calls | BaseException | Callable[[], Any]
"""What a model does at one point of a turn: says a piece of text, thinks, calls, raises; or calls a function without arguments
(awaited if it gives an awaitable) between two pieces, such as the `wait` of an `asyncio.Event`."""

Turn = Piece | Sequence[Piece] | Callable[["Shown"], "Piece | Sequence[Piece]"]
"""What a model says to one request: one piece, several, or what a function of the request gives. The function may be async."""


@dataclass(slots=True, frozen=True)
class Shown:
    """What the model was shown by one request.

    Attributes:
        messages: The conversation, as pydantic-ai's messages.
        info: Tools, settings and so on, as pydantic-ai has them.
    """

    messages: list[ModelMessage]
    info: AgentInfo

    @property
    def instructions(self) -> str:
        """What it was told to do."""
        return self.info.instructions or ""

    @property
    def tools(self) -> list[str]:
        """The names of the tools it was offered, without those that carry an output."""
        return [tool.name for tool in self.info.function_tools]

    @property
    def lines(self) -> list[str]:
        """The conversation, one line a part: `user: …`, `model: …`, `call NAME {…}`, `return NAME …`, `retry NAME …`."""
        return [line for message in self.messages for line in _lines(message)]

    @property
    def text(self) -> str:
        """`lines` as one text."""
        return "\n".join(self.lines)


class ScriptedModel(FunctionModel):
    """Says what its script says, in order, one turn for each request; a request beyond its end fails the run.

    Args:
        *script: The turns. A function that stands for a turn is called with what the model was shown.
        repeat: Begins again at the end of the script.
        name: The model's name.

    Attributes:
        requests: What it was shown, one for each request.
    """

    def __init__(self, *script: Turn, repeat: bool = False, name: str = "scripted") -> None:
        super().__init__(self._respond, stream_function=self._stream, model_name=name)
        self.script = script
        self.requests: list[Shown] = []
        self._repeat = repeat
        self._calls = 0

    async def _stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        index = 0
        async for piece in self._pieces(messages, info):
            if isinstance(piece, str):
                yield piece
                continue
            index += 1
            if isinstance(piece, Thinks):
                yield {index: DeltaThinkingPart(content=piece.text)}
                continue
            first, *rest = _cut(_args(piece), piece.pieces)
            yield {index: DeltaToolCall(name=piece.tool, json_args=first, tool_call_id=self._id_of(piece))}
            for args in rest:
                yield {index: DeltaToolCall(json_args=args)}

    async def _respond(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts: list[ModelResponsePart] = []
        async for piece in self._pieces(messages, info):
            if isinstance(piece, Calls):
                parts.append(ToolCallPart(piece.tool, _args(piece), self._id_of(piece)))
            elif isinstance(piece, Thinks):
                parts.append(ThinkingPart(piece.text))
            elif parts and isinstance(parts[-1], TextPart):
                parts[-1] = TextPart(parts[-1].content + piece)
            else:
                parts.append(TextPart(piece))
        return ModelResponse(parts)

    async def _pieces(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | Thinks | Calls]:
        """What the script says to a request."""
        shown = Shown(list(messages), info)
        self.requests.append(shown)
        turn: Any = self._turn(len(self.requests) - 1)
        if callable(turn):
            turn = await _result(turn(shown))
        for piece in [turn] if isinstance(turn, str | Thinks | Calls | BaseException) else turn:
            if isinstance(piece, BaseException):
                raise piece
            if callable(piece):
                await _result(piece())
            else:
                yield piece

    def _turn(self, number: int) -> Turn:
        if self._repeat and self.script:
            number %= len(self.script)
        if number >= len(self.script):
            raise AssertionError(f"the model's script has {len(self.script)} turns, and it was asked once more")
        return self.script[number]

    def _id_of(self, call: Calls) -> str:
        self._calls += 1
        return call.id if call.id is not None else f"call-{self._calls}"


async def _result(value: Any) -> Any:
    return await value if isawaitable(value) else value


def _args(call: Calls) -> str:
    return call.args if isinstance(call.args, str) else json.dumps(call.args)


def _cut(text: str, pieces: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


def _lines(message: ModelMessage) -> list[str]:
    if isinstance(message, ModelRequest):
        return [line for part in message.parts for line in _request_lines(part)]
    return [line for part in message.parts for line in _response_lines(part)]


def _request_lines(part: Any) -> list[str]:
    if isinstance(part, UserPromptPart):
        items = [part.content] if isinstance(part.content, str) else part.content
        return [f"user: {_item(item)}" for item in items]
    if isinstance(part, ToolReturnPart):
        return [f"return {part.tool_name} {part.model_response_str()}"]
    if isinstance(part, RetryPromptPart):
        return [f"retry {part.tool_name or ''} {part.model_response()}"]
    return [f"{part.part_kind}: {getattr(part, 'content', '')}"]


def _response_lines(part: Any) -> list[str]:
    if isinstance(part, TextPart):
        return [f"model: {part.content}"]
    if isinstance(part, ToolCallPart):
        return [f"call {part.tool_name} {part.args_as_json_str()}"]
    return [f"{part.part_kind}: {getattr(part, 'content', '')}"]


def _item(item: Any) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, BinaryContent):
        return f"<{item.media_type}, {len(item.data)} bytes>"
    return f"<{getattr(item, 'url', type(item).__name__)}>"

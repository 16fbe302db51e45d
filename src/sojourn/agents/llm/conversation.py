"""A session's events as the messages that a model reads, and a model's responses as content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    DocumentUrl,
    FilePart,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
    VideoUrl,
)
from pydantic_ai.usage import RequestUsage

from sojourn import jsonvalue, platform
from sojourn.agents.context import Context
from sojourn.artifact.types import ARTIFACT_SCHEME, parse_artifact_uri
from sojourn.content import Blob, Content, FileData, FunctionResponse, Part
from sojourn.errors import InvalidInput, NotFound, Unsupported
from sojourn.event import ASK_CALL, CONFIRM_CALL, CREDENTIAL_CALL, USER, Event, Usage

QUESTIONS = (ASK_CALL, CONFIRM_CALL, CREDENTIAL_CALL)
"""Calls that ask people: they stand in the log for people's eyes, no model has made them."""

GO_ON = "Go on."
"""What a model is told if the last word was its own."""

REMEMBERED = "What is remembered from earlier conversations with this user:"
"""What memories are introduced with."""

# -- what a model reads -----------------------------------------------------------------------------------------------


async def messages_of(ctx: Context, events: Iterable[Event]) -> list[ModelMessage]:
    """What an agent's model is shown of a session.

    What people said is the user's; what the agent said and called is the model's own, but for its reasoning, which counts
    for the turn that it belongs to; what other agents said and called is told to it as context.

    Args:
        ctx: The agent's context; files that events refer to are loaded through it.
        events: In the order that `ctx.history` gives them.
    """
    events = list(events)
    reader = _Reader(ctx, events)
    for event in events:
        await reader.read(event)
    if not reader.messages or isinstance(reader.messages[-1], ModelResponse):
        reader.messages.append(ModelRequest([UserPromptPart(GO_ON)]))
    if ctx.memories:
        # With the newest request: what comes before it stays the same from run to run, and providers cache that.
        found = "\n".join(f"- {memory.text}" for memory in ctx.memories)
        last = reader.messages[-1]
        reader.messages[-1] = ModelRequest([*last.parts, UserPromptPart(f"{REMEMBERED}\n{found}")])
    return reader.messages


def with_message(ctx: Context, events: Sequence[Event]) -> list[Event]:
    """Events with what the user said to open the run, which a small window may have left out."""
    run_id = ctx.run_id
    own = next((i for i, event in enumerate(events) if event.run_id == run_id), len(events))
    if any(event.is_message() and event.run_id == run_id for event in events[own:]):
        return list(events)
    message = Event(run_id=run_id, author=USER, content=ctx.user_content, ordinal=0)
    return [*events[:own], message, *events[own:]]


def as_the_run_began(run_id: str, events: Sequence[Event]) -> list[Event]:
    """Events without those of later runs: while the run waited for a person, the conversation went on without it.

    What the run's model is shown after the answer is so what it was shown before it asked.
    """
    own = next((i for i, event in enumerate(events) if event.is_message() and event.run_id == run_id), -1)
    later = {event.run_id for event in events[own + 1 :] if event.is_message()}
    later.discard(run_id)
    # A summary stands for what came before it, whoever wrote it.
    return [event for event in events if event.run_id not in later or event.actions.summary_until is not None]


class _Reader:
    def __init__(self, ctx: Context, events: Sequence[Event]) -> None:
        self.messages: list[ModelMessage] = []
        self._ctx = ctx
        self._name = ctx.agent.name
        # The calls that the agent made, by id, with the function's name.
        self._calls: dict[str, str] = {}
        # Who has said something in which run.
        self._spoke = {(e.run_id, e.author) for e in events if _answers(e)}
        self._answered = {run_id for run_id, _ in self._spoke}

    async def read(self, event: Event) -> None:
        """Adds what an event says."""
        content = event.said
        if content is None:
            if event.output is not None and event.author != USER:
                output = Content("model").with_text(jsonvalue.encode(event.output))
                if event.author == self._name:
                    await self._own(output)
                else:
                    await self._heard(event, output)
            return
        given = [] if event.is_message() else content.get_function_responses()
        returns = [self._returned(r) for r in given if r.id in self._calls]
        if returns:
            self._request(returns)
            return
        if event.author == self._name and content.role != USER:
            await self._own(content)
        elif event.author == USER:
            said = [item for part in content.parts for item in await self._items(event, part)]
            if said:
                self._request([UserPromptPart(said[0] if len(said) == 1 and isinstance(said[0], str) else said)])
        else:
            await self._heard(event, content)

    def _request(self, parts: Sequence[ModelRequestPart]) -> None:
        last = self.messages[-1] if self.messages else None
        if isinstance(last, ModelRequest):
            self.messages[-1] = ModelRequest([*last.parts, *parts])
        else:
            self.messages.append(ModelRequest(list(parts)))

    async def _own(self, content: Content) -> None:
        parts: list[ModelResponsePart] = []
        for part in content.parts:
            call = part.function_call
            if part.text and not part.thought:
                parts.append(TextPart(part.text))
            elif call is not None and call.id and call.name not in QUESTIONS:
                self._calls[call.id] = call.name
                parts.append(ToolCallPart(call.name, dict(call.args), call.id))
            elif part.inline_data is not None:
                parts.append(FilePart(_binary(part.inline_data)))
            elif part.file_data is not None:
                shown = await file_content(self._ctx, part.file_data)
                if isinstance(shown, BinaryContent):
                    parts.append(FilePart(shown))
                else:
                    parts.append(TextPart(shown if isinstance(shown, str) else _note(part)))
        if not parts:
            return
        last = self.messages[-1] if self.messages else None
        if isinstance(last, ModelResponse):
            self.messages[-1] = ModelResponse([*last.parts, *parts])
        else:
            self.messages.append(ModelResponse(parts))

    def _returned(self, response: FunctionResponse) -> ToolReturnPart:
        id_ = response.id or ""
        return ToolReturnPart(self._calls[id_], plain_result(response.response), id_)

    async def _heard(self, event: Event, content: Content) -> None:
        """Tells what another agent said."""
        lines: list[str] = []
        for part in content.parts:
            if part.text and not part.thought:
                lines.append(f"[{event.author}] said: {part.text}")
            elif part.function_call is not None and part.function_call.name not in QUESTIONS:
                call = part.function_call
                lines.append(f"[{event.author}] called {call.name} with {jsonvalue.encode(call.args)}")
            elif part.function_response is not None and part.function_response.name not in QUESTIONS:
                answer = part.function_response
                lines.append(f"[{event.author}] got from {answer.name}: {jsonvalue.encode(answer.response)}")
            elif part.file_data is not None and (part.file_data.mime_type or "").startswith("text/"):
                shown = await file_content(self._ctx, part.file_data)
                lines.append(f"[{event.author}] said: {shown if isinstance(shown, str) else _note(part)}")
            elif part.inline_data is not None or part.file_data is not None:
                lines.append(f"[{event.author}] gave: {_note(part)}")
        if lines:
            self._request([UserPromptPart("For context:\n" + "\n".join(lines))])

    async def _items(self, event: Event, part: Part) -> list[UserContent]:
        if part.text is not None:
            return [part.text] if part.text and not part.thought else []
        if (part.inline_data is not None or part.file_data is not None) and not self._can_take(event, part):
            return [_note(part)]
        if part.inline_data is not None:
            return [_binary(part.inline_data)]
        if part.file_data is not None:
            return [await file_content(self._ctx, part.file_data)]
        return []

    def _can_take(self, event: Event, part: Part) -> bool:
        """Whether a file may be shown as it is: one that a model cannot take must not fail later runs, too."""
        run_id = event.run_id
        if run_id == self._ctx.run_id or (run_id, self._name) in self._spoke:
            return True
        return run_id in self._answered and _is_common(part)


def _answers(event: Event) -> bool:
    said = event.said is not None or event.output is not None
    return said and event.author != USER and event.error_code is None


def _is_common(part: Part) -> bool:
    """Whether a file is of a kind that models mostly take."""
    file = part.file_data
    if file is not None and not file.file_uri.startswith(ARTIFACT_SCHEME):
        return file.file_uri.startswith(("https://", "http://")) and (file.mime_type or "").startswith(_COMMON)
    return _kind_of(part).startswith(_COMMON)


_COMMON = ("image/", "text/", "application/pdf", "audio/wav", "audio/mpeg", "audio/mp3")


def _kind_of(part: Part) -> str:
    file = part.inline_data or part.file_data
    return (file.mime_type if file is not None else None) or "unknown"


def _note(part: Part) -> str:
    """What stands for a file that is not shown."""
    file = part.file_data
    uri = "" if file is None or file.file_uri.startswith(ARTIFACT_SCHEME) else f": {file.file_uri}"
    return f"[a file of type {_kind_of(part)}, which is not shown{uri}]"


async def file_content(ctx: Context, file: FileData) -> UserContent:
    """A file as a model is shown it: an artifact's bytes or text, or a URL; a note in place of what is not there."""
    if not file.file_uri.startswith(ARTIFACT_SCHEME):
        return _url(file)
    try:
        name, version = parse_artifact_uri(file.file_uri)
        part = await ctx.artifacts.load(name, version)
    except (InvalidInput, NotFound, Unsupported) as error:
        return f"[the file {file.display_name or file.file_uri} cannot be shown: {error.code}]"
    if part.inline_data is None:
        return part.text or ""
    blob = part.inline_data
    if blob.mime_type.startswith("text/"):
        return blob.data.decode(errors="replace")
    return _binary(blob)


def _binary(blob: Blob) -> BinaryContent:
    return BinaryContent(blob.data, media_type=blob.mime_type)


_URLS: dict[str, type[ImageUrl | AudioUrl | VideoUrl]] = {"image": ImageUrl, "audio": AudioUrl, "video": VideoUrl}


def _url(file: FileData) -> UserContent:
    kind = _URLS.get((file.mime_type or "").partition("/")[0], DocumentUrl)
    return kind(file.file_uri, media_type=file.mime_type)


# -- what a model said ------------------------------------------------------------------------------------------------


def content_of(
    response: ModelResponse,
    hidden: frozenset[str] = frozenset(),
    *,
    text: bool = True,
    files: Mapping[int, str] = MappingProxyType({}),
) -> Content | None:
    """A model's response as content.

    Args:
        response: The response.
        hidden: Names of calls that carry the agent's output: nobody else is to see them.
        text: Whether its text is for others; else it is the agent's output too.
        files: URIs of artifacts that stand for files of the response, by the parts' numbers.

    Returns:
        The content; None if there is nothing in it.
    """
    parts: list[Part] = []
    for number, part in enumerate(response.parts):
        if isinstance(part, TextPart):
            if part.content and text:
                parts.append(Part(text=part.content))
        elif isinstance(part, ThinkingPart) and part.content:
            parts.append(Part(text=part.content, thought=True))
        elif isinstance(part, ToolCallPart) and part.tool_name not in hidden:
            parts.append(Part.from_function_call(part.tool_name, part.args_as_dict(), id=part.tool_call_id))
        elif isinstance(part, FilePart) and number in files:
            parts.append(Part.from_uri(files[number], part.content.media_type))
        elif isinstance(part, FilePart):
            parts.append(Part.from_bytes(part.content.data, part.content.media_type))
    return Content("model", tuple(parts)) if parts else None


def response_of(content: Content) -> ModelResponse:
    """Content as if a model had said it."""
    parts: list[ModelResponsePart] = []
    for part in content.parts:
        if part.function_call is not None:
            call = part.function_call
            parts.append(ToolCallPart(call.name, dict(call.args), call.id or platform.new_id()))
        elif part.text is not None:
            parts.append(ThinkingPart(part.text) if part.thought else TextPart(part.text))
    return ModelResponse(parts)


def usage_of(usage: RequestUsage) -> Usage | None:
    """Tokens as an event tells them; None if the provider did not say."""
    if not (usage.input_tokens or usage.output_tokens):
        return None
    return Usage(
        prompt_token_count=usage.input_tokens,
        candidates_token_count=usage.output_tokens,
        total_token_count=usage.input_tokens + usage.output_tokens,
        cached_content_token_count=usage.cache_read_tokens,
        thoughts_token_count=usage.output_reasoning_tokens,
    )


# -- results of tools -------------------------------------------------------------------------------------------------


def wrapped_result(value: Any) -> dict[str, Any]:
    """A tool's result as the object that a function response holds."""
    return value if isinstance(value, dict) else {"result": value}


def plain_result(response: dict[str, Any]) -> Any:
    """What `wrapped_result` was given."""
    return response["result"] if response.keys() == {"result"} else response

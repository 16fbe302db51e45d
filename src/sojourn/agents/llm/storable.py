"""What a model says, as far as it can be stored: what is no text and no JSON stands in another form."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_core import from_json

from sojourn import jsonvalue
from sojourn.errors import InvalidInput


def storable(response: ModelResponse) -> ModelResponse:
    """An answer whose texts are texts, and whose calls have arguments that are JSON or are told to the model as none."""
    parts = list(response.parts)
    for i, part in enumerate(parts):
        if isinstance(part, TextPart | ThinkingPart):
            if (text := storable_text(part.content)) is not part.content:
                parts[i] = replace(part, content=text)
        elif isinstance(part, ToolCallPart):
            name, args = storable_text(part.tool_name), storable_args(part.args)
            if name is not part.tool_name or args is not part.args:
                fields: dict[str, Any] = {"tool_name": name, "args": args}
                parts[i] = replace(part, **fields)
    return response if all(a is b for a, b in zip(parts, response.parts, strict=True)) else replace(response, parts=parts)


def storable_text(given: str) -> str:
    """A text without lone surrogates: some servers cut characters in two when they stream."""
    if given.isascii():
        return given
    try:
        given.encode()
    except UnicodeEncodeError:
        return given.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return given


def storable_args(given: Any) -> Any:
    """Arguments of a call; those that only Python takes for JSON, such as NaN, as a text that no tool takes for arguments."""
    if not given:
        return given
    try:
        jsonvalue.copy(from_json(given) if isinstance(given, str) else given)
    except InvalidInput:
        return jsonvalue.encode(given if isinstance(given, str) else json.dumps(given, default=str))
    except ValueError:
        # pydantic-ai tells the model so.
        assert isinstance(given, str)
        return storable_text(given)
    return given

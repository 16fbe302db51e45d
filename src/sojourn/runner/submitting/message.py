"""What a user says, as callers give it."""

from __future__ import annotations

from sojourn.content import Content
from sojourn.errors import InvalidInput
from sojourn.event import USER

Message = str | Content
"""What a user says."""


def content_of(message: object) -> Content:
    """A user's message as content.

    Raises:
        InvalidInput: `message.invalid` for what is no message: nothing, function calls, or answers with something else.
    """
    if isinstance(message, str):
        if not message:
            raise InvalidInput("the message is empty; give text or Content with parts", code="message.invalid")
        try:
            return Content.of(message)
        except ValueError:
            raise InvalidInput("the message holds a lone surrogate, which is not text", code="message.invalid") from None
    if isinstance(message, Content):
        if not message.parts:
            raise InvalidInput("the message has no parts; give text or Content with parts", code="message.invalid")
        if message.get_function_calls():
            raise InvalidInput("a message of a user cannot call functions; give text, bytes or files", code="message.invalid")
        answers = len(message.get_function_responses())
        if answers and answers < len(message.parts):
            raise InvalidInput(
                "function responses answer questions; give them in a message of their own, without text", code="message.invalid"
            )
        return message if message.role else message.model_copy(update={"role": USER})
    raise InvalidInput(f"the message must be text or Content, not {type(message).__name__}", code="message.invalid")

"""Answers to questions, in the forms that google-adk's clients give them."""

from __future__ import annotations

import json
from typing import Any

from sojourn.content import Content, FunctionResponse, Part
from sojourn.errors import InvalidInput
from sojourn.run.types import Interrupt
from sojourn.runner.runner import Runner
from sojourn.runner.submitting.answering import check_answer
from sojourn.session.types import SessionKey


async def as_asked(runner: Runner, key: SessionKey, message: Content) -> Content:
    """Function responses with values of the type that was asked for.

    A text field is all that the web UI has for an answer that is no object: what was typed is read as JSON where text does not
    fit the question. Some clients put an object into a text: `{"response": "{…}"}`.
    """
    app, user, session = key
    # Those that are answered, too: the same answer again has to be the same.
    asked = {i.id: i for i in await runner.store.list_interrupts(app, user_id=user, session_id=session, open_only=False)}
    return message.model_copy(update={"parts": tuple(_fitting(part, asked) for part in message.parts)})


def _fitting(part: Part, asked: dict[str, Interrupt]) -> Part:
    given = part.function_response
    interrupt = asked.get(given.id or "") if given is not None else None
    if given is None or interrupt is None:
        return part
    value = _value(given)
    if not isinstance(value, str) or _fits(interrupt, value):
        return part
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return part
    response = given.model_copy(update={"response": {"result": read}})
    return part.model_copy(update={"function_response": response})


def _value(given: FunctionResponse) -> Any:
    response = given.response
    if len(response) == 1:
        return response.get("result", response.get("response"))
    return None


def _fits(interrupt: Interrupt, value: Any) -> bool:
    if interrupt.schema is None:
        return interrupt.kind != "confirm"
    try:
        check_answer(interrupt, value)
    except InvalidInput:
        return False
    return True

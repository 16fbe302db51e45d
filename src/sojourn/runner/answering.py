"""Answers of people to the questions of runs."""

from __future__ import annotations

from typing import Any

from sojourn import jsonvalue, platform
from sojourn.content import Content, Part
from sojourn.errors import InvalidInput, NotFound
from sojourn.event import ASK_CALL, CONFIRM_CALL, USER, Event
from sojourn.run.store import Answered, Store
from sojourn.run.types import Interrupt, RunRecord
from sojourn.session.types import SessionKey


async def give_answer(store: Store, record: RunRecord, interrupt_id: str, value: Any) -> Answered:
    """Answers one question of a run, exactly once; works in any process that can open the store.

    Args:
        store: Where the run is recorded.
        record: The run.
        interrupt_id: The question.
        value: The answer; must fit the question's schema.

    Raises:
        NotFound: `interrupt.not_found`.
        InvalidInput: `interrupt.invalid_answer` if it does not fit the schema; `json.invalid`.
        Conflict: `interrupt.conflict`, `interrupt.closed`.
    """
    value = jsonvalue.copy(value, where="answer")
    asked = await store.list_interrupts(record.app_name, user_id=record.user_id, run_uid=record.uid, open_only=False)
    interrupt = next((i for i in asked if i.id == interrupt_id), None)
    if interrupt is None:
        known = ", ".join(i.id for i in asked if i.status == "open") or "none"
        raise NotFound(f"run {record.id!r} has no interrupt {interrupt_id!r}; open ones: {known}", code="interrupt.not_found")
    check_answer(interrupt, value)
    call = CONFIRM_CALL if interrupt.kind == "confirm" else ASK_CALL
    event = Event(
        id=platform.new_id(),
        run_id=record.id,
        author=USER,
        timestamp=platform.now(),
        content=Content("user", (Part.from_function_response(call, {"result": value}, id=interrupt_id),)),
    )
    return await store.answer(record.uid, interrupt_id, value, event)


def check_answer(interrupt: Interrupt, value: Any) -> None:
    """Refuses an answer that does not fit the question's schema, with `interrupt.invalid_answer`."""
    if interrupt.schema is None:
        return
    # Only questions with a schema pay for loading the validator.
    import jsonschema

    try:
        jsonschema.validate(value, interrupt.schema)
    except jsonschema.ValidationError as error:
        raise InvalidInput(
            f"the answer does not fit what {interrupt.key!r} asks for: {error.message}", code="interrupt.invalid_answer"
        ) from None
    except jsonschema.SchemaError as error:
        raise InvalidInput(
            f"the schema of {interrupt.key!r} is not a JSON schema: {error.message}", code="interrupt.invalid_schema"
        ) from None


async def answered_by(store: Store, key: SessionKey, message: Content) -> tuple[RunRecord, str, Any] | None:
    """The question of its session that a message answers: one that holds nothing but a function response with its id.

    Returns:
        The run, the question's id and the answer; None if the message is an ordinary one.
    """
    responses = message.get_function_responses()
    if len(responses) != 1 or len(message.parts) != 1:
        return None
    response = responses[0]
    app, user, session = key
    for interrupt in await store.list_interrupts(app, user_id=user, session_id=session, open_only=False):
        if interrupt.id == response.id:
            record = await store.get_run(app, interrupt.run_id, user)
            return record, interrupt.id, response.response.get("result", response.response)
    return None

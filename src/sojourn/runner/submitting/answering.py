"""Answers of people to the questions of runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from sojourn import jsonvalue, platform
from sojourn.agents.question import call_of
from sojourn.content import Content, Part
from sojourn.errors import InvalidInput, NotFound
from sojourn.event import USER, Event
from sojourn.run.config import RunConfig
from sojourn.run.store import Answered, Store
from sojourn.run.types import Interrupt, RunRecord
from sojourn.runner.bounds import check_answer_size
from sojourn.session.types import SessionKey


async def give_answer(
    store: Store, record: RunRecord, interrupt_id: str, value: Any, *, max_bytes: int | None = None
) -> Answered:
    """Answers one question of a run, exactly once; works in any process that can open the store.

    Args:
        store: Where the run is recorded.
        record: The run.
        interrupt_id: The question.
        value: The answer; must fit the question's schema.
        max_bytes: How large it may be as JSON; the run's own `max_event_bytes` if omitted.

    Raises:
        NotFound: `interrupt.not_found`.
        InvalidInput: `interrupt.invalid_answer` if it does not fit the schema; `interrupt.answer_too_large`; `json.invalid`.
        Conflict: `interrupt.conflict`, `interrupt.closed`.
    """
    value = jsonvalue.copy(value, where="answer")
    asked = await store.list_interrupts(record.app_name, user_id=record.user_id, run_uid=record.uid, open_only=False)
    interrupt = next((i for i in asked if i.id == interrupt_id), None)
    if interrupt is None:
        known = ", ".join(i.id for i in asked if i.status == "open") or "none"
        raise NotFound(f"run {record.id!r} has no interrupt {interrupt_id!r}; open ones: {known}", code="interrupt.not_found")
    if max_bytes is None:
        max_bytes = RunConfig.model_validate(record.config).max_event_bytes
    check_answer_size(interrupt_id, value, max_bytes)
    check_answer(interrupt, value)
    event = Event(
        id=platform.new_id(),
        run_id=record.id,
        author=USER,
        timestamp=platform.now(),
        content=Content("user", (Part.from_function_response(call_of(interrupt.kind), {"result": value}, id=interrupt_id),)),
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


class Given(NamedTuple):
    """An answer that a message gives: to which question of which run, and what."""

    run_id: str
    interrupt_id: str
    value: Any


async def answers_in(store: Store, key: SessionKey, message: Content) -> list[Given]:
    """What a message answers that consists of function responses.

    Each names a question of the session by its id, or by the id of the function call whose result it is; any other would
    forge what a function gave.

    Raises:
        NotFound: `interrupt.not_found` if one answers nothing that was asked.
    """
    app, user, session = key
    asked = await store.list_interrupts(app, user_id=user, session_id=session, open_only=False)
    by_id = {i.call_id: i for i in asked if i.kind == "result" and i.call_id} | {i.id: i for i in asked}
    given: list[Given] = []
    for response in message.get_function_responses():
        interrupt = by_id.get(response.id or "")
        if interrupt is None:
            known = ", ".join(i.id for i in asked if i.status == "open") or "none"
            raise NotFound(
                f"session {key} has no question {response.id!r} for {response.name!r} to answer; open ones: {known}",
                code="interrupt.not_found",
            )
        given.append(Given(interrupt.run_id, interrupt.id, response.response.get("result", response.response)))
    return given

"""Values as rows of a database, and rows as values."""

from __future__ import annotations

import json
from typing import Any

from sojourn.content import Content
from sojourn.errors import InvalidInput
from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.run.types import Interrupt, RunError, RunRecord, Step
from sojourn.session.types import Session, SessionKey

MAX_INTEGER = 2**63 - 1
"""The largest number in an integer column."""

Row = tuple[Any, ...]

# -- JSON -------------------------------------------------------------------------------------------------------------

dump = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""Encodes a value that has been checked to be JSON before."""


def load(text: str) -> Any:
    """Decodes what `dump` gave."""
    return {} if text == "{}" else _decode(text)


_decode = json.JSONDecoder().decode

# Words of people and libraries may hold lone surrogates, which only an escaped form can carry into the database.
_dump_words = json.JSONEncoder(separators=(",", ":")).encode


def dump_words(text: str | None) -> str | None:
    """Encodes any text at all; None stays None."""
    return None if text is None else _dump_words(text)


def dump_error(error: RunError | None) -> str | None:
    """Encodes why a run or a step failed."""
    return None if error is None else _dump_words([error.code, error.message, error.category, error.retryable])


def load_error(text: str | None) -> RunError | None:
    """Decodes what `dump_error` gave."""
    return None if text is None else RunError(*load(text))


# -- events -----------------------------------------------------------------------------------------------------------

EVENT = "seq, pos, ordinal, attempt, supersedes, superseded, body"
"""The columns that `event_of` takes."""

BY_ATTEMPT = 1
"""In the column `superseded`: a later attempt of the run took another way."""

BY_RUN = 2
"""In the column `superseded`: the event counted in its run until another run took that one's place."""

EVENT_OF_RUN = f"seq, pos, ordinal, attempt, supersedes, superseded = {BY_ATTEMPT}, body"
"""The same, for who looks at one run by itself."""

_NUMBERS = {"seq", "pos", "ordinal", "attempt", "supersedes", "superseded"}
_NUMBERS_OF_LOG = {"seq", "pos", "supersedes", "superseded"}
_ACTIONS = {"actions"}

_serializer = Event.__pydantic_serializer__
_validator = Event.__pydantic_validator__


def event_body(event: Event) -> str:
    """An event as JSON, without what has a column of its own.

    Raises:
        InvalidInput: `json.invalid` if it holds something that JSON cannot.
    """
    return _encode(event, _NUMBERS)


def message_body(event: Event) -> str:
    """The event that opens a run as JSON, as it is submitted: the columns of the stored event take precedence.

    Raises:
        InvalidInput: `json.invalid` if it holds something that JSON cannot.
    """
    return _encode(event, _NUMBERS_OF_LOG)


def _encode(event: Event, exclude: set[str]) -> str:
    if not event.actions.model_fields_set:
        # To find out that they do nothing takes the serializer as long as all the rest.
        exclude = exclude | _ACTIONS
    try:
        return _serializer.to_json(event, by_alias=True, exclude_defaults=True, exclude=exclude).decode()
    except ValueError as error:
        raise InvalidInput(f"event {event.id!r} is not JSON: {error}", code="json.invalid") from None


def event_of(row: Row) -> Event:
    """An event from its columns `EVENT`."""
    seq, pos, ordinal, attempt, supersedes, superseded, body = row
    numbers = f'"seq":{seq},"attempt":{attempt}'
    if pos is not None:
        numbers += f',"pos":{pos}'
    if ordinal is not None:
        numbers += f',"ordinal":{ordinal}'
    if supersedes is not None:
        numbers += f',"supersedes":{supersedes}'
    if superseded:
        numbers += ',"superseded":true'
    event: Event = _validator.validate_json(f"{body[:-1]},{numbers}}}" if body != "{}" else f"{{{numbers}}}")
    return event


def message_of(body: str) -> Event:
    """The event that opens a run, as it was submitted."""
    message: Event = _validator.validate_json(body)
    return message


def path_of(branch: str | None) -> str:
    """A branch as it stands in the column `path`, where outside of branches is a text too."""
    return "" if branch is None else f".{branch}"


Link = tuple[bool, str]
"""The id of a function call (true) or of the response to one (false)."""


def links_of(content: Content | None) -> list[Link]:
    """The calls and responses in a content, in order."""
    links: list[Link] = []
    for part in content.parts if content is not None else ():
        if part.function_call is not None and part.function_call.id:
            links.append((True, part.function_call.id))
        elif part.function_response is not None and part.function_response.id:
            links.append((False, part.function_response.id))
    return links


# -- sessions and runs ------------------------------------------------------------------------------------------------

SESSION = "sid, uid, app_name, user_id, id, active_agent, event_count, trimmed_seq, created_at, updated_at"
"""The columns that `session_of` takes."""


def session_of(row: Row, state: dict[str, Any], events: tuple[Event, ...] = ()) -> Session:
    """A session from its columns `SESSION`."""
    _, uid, app_name, user_id, id_, active_agent, event_count, trimmed_seq, created_at, updated_at = row
    return Session.unchecked(
        {
            "app_name": app_name,
            "user_id": user_id,
            "id": id_,
            "uid": uid,
            "state": state,
            "events": events,
            "event_count": event_count,
            "first_seq": trimmed_seq + 1,
            "active_agent": active_agent,
            "created_at": created_at,
            "updated_at": updated_at,
        }
    )


STATUS = {status.value: status for status in RunStatus}

RUN = """
    r.uid, r.id, s.app_name, s.user_id, s.id, s.uid, r.no, r.status, coalesce(r.message, m.body), r.attempt, r.deaths,
    r.agent, r.base_ordinal, r.transfers, r.config, r.attached, r.cancel_requested, r.error, r.last_pos, r.retry_of, r.usage,
    r.custom_metadata, r.created_at, r.started_at, r.finished_at, r.start_agent, r.first_seq, r.superseded_by,
    r.trimmed
"""
"""The columns that `record_of` takes."""

RUNS = "runs r JOIN sessions s ON s.sid = r.sid LEFT JOIN events m ON m.sid = r.sid AND m.seq = r.first_seq"
"""Where the columns `RUN` come from."""


def record_of(row: Row) -> RunRecord:
    """A run from its columns `RUN`."""
    (
        uid, id_, app_name, user_id, session_id, session_uid, no, status, message, attempt, deaths, agent, base_ordinal,
        transfers, config, attached, cancel_requested, error, last_pos, retry_of, usage, custom_metadata, created_at,
        started_at, finished_at, start_agent, message_seq, superseded_by, trimmed,
    ) = row  # fmt: skip
    return RunRecord(
        uid, id_, app_name, user_id, session_id, session_uid, no, STATUS[status], message_of(message), attempt, deaths, agent,
        base_ordinal, transfers, load(config), bool(attached), load_words(cancel_requested), load_error(error), last_pos,
        retry_of, start_agent, message_seq, superseded_by, load_usage(usage),
        None if custom_metadata is None else load(custom_metadata), created_at, started_at, finished_at,
        bool(trimmed),
    )  # fmt: skip


def load_words(text: str | None) -> str | None:
    """Decodes what `dump_words` gave."""
    return None if text is None else load(text)


def load_usage(text: str | None) -> dict[str, int]:
    """Token counts of a run."""
    return {} if text is None else load(text)


# -- steps and interrupts ---------------------------------------------------------------------------------------------

STEP = "key, status, result, error, attempt, started_at, finished_at"
"""The columns that `step_of` takes."""


def step_of(row: Row) -> Step:
    """A step from its columns `STEP`."""
    key, status, result, error, attempt, started_at, finished_at = row
    return Step(key, status, load(result), load_error(error), attempt, started_at, finished_at)


INTERRUPT = """
    i.id, i.key, i.digest, i.prompt, i.schema, i.status, i.answer, i.created_at, i.expires_at, i.answered_at, i.kind, i.call_id
"""
"""The columns that `interrupt_of` takes."""


def interrupt_of(row: Row, run_id: str, key: SessionKey) -> Interrupt:
    """An interrupt from its columns `INTERRUPT`."""
    id_, name, digest, prompt, schema, status, answer, created_at, expires_at, answered_at, kind, call_id = row
    return Interrupt(
        id_, name, digest, load(prompt), None if schema is None else load(schema), status,
        None if answer is None else load(answer), created_at, expires_at, answered_at, run_id, *key, kind, call_id,
    )  # fmt: skip

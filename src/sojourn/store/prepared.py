"""What is to be stored, encoded and checked before any transaction begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sojourn import jsonvalue
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.run.store import Batch, NewRun
from sojourn.session.state import StateDelta
from sojourn.store.rows import MAX_INTEGER, Link, Row, dump_error, event_body, links_of, message_body, path_of
from sojourn.store.rules import check_delta

# -- events -----------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An event ready to be stored: encoded and checked."""

    event: Event
    body: str
    path: str
    links: Sequence[Link]
    delta: StateDelta | None
    summary_until: int | None


def entry_of(event: Event) -> Entry:
    """Encodes and checks an event.

    Raises:
        InvalidInput: `json.invalid`, `state.*`.
    """
    return _entry(event, event_body(event))


def message_entry_of(event: Event) -> Entry:
    """Encodes and checks the event that opens a run.

    Raises:
        InvalidInput: `json.invalid`, `state.*`.
    """
    return _entry(event, message_body(event))


def _entry(event: Event, body: str) -> Entry:
    actions = event.actions
    until = actions.summary_until
    return Entry(
        event,
        body,
        path_of(event.branch),
        links_of(event.content),
        StateDelta.of(actions) if actions.changes_state else None,
        None if until is None else max(0, min(until, MAX_INTEGER)),
    )


# -- appends ----------------------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A batch ready to be stored: encoded and checked."""

    batch: Batch
    entries: Sequence[Entry]
    state: StateDelta | None
    steps: Sequence[Row]
    interrupts: Sequence[Row]


def prepare(batch: Batch) -> Prepared:
    """Encodes and checks a batch.

    Raises:
        InvalidInput: `json.invalid`, `state.*`.
    """
    return Prepared(
        batch,
        [entry_of(event) for event in batch.events],
        check_delta(batch.state) if batch.state else None,
        [
            (
                s.key, s.status, jsonvalue.encode(s.result, where=f"the result of step {s.key!r}"), dump_error(s.error),
                s.attempt, s.started_at, s.finished_at,
            )
            for s in batch.steps
        ],
        [
            (
                i.id, i.key, i.digest, jsonvalue.encode(i.prompt, where="prompt"),
                None if i.schema is None else jsonvalue.encode(i.schema, where="schema"), i.status,
                None if i.answer is None else jsonvalue.encode(i.answer, where="answer"), i.created_at, i.expires_at,
                i.answered_at, i.kind, i.call_id,
            )
            for i in batch.interrupts
        ],
    )  # fmt: skip


# -- runs -------------------------------------------------------------------------------------------------------------


class Submission(NamedTuple):
    """A run ready to be recorded: encoded and checked."""

    run: NewRun
    message: Event
    entry: Entry
    config: str
    custom_metadata: str | None


def submission_of(run: NewRun) -> Submission:
    """Encodes and checks a run.

    Raises:
        InvalidInput: `id.invalid`, `json.invalid`, `state.*`.
    """
    run.key.check()
    check_id(run.id, "run_id")
    message = run.message.snapshot()
    return Submission(
        run,
        message,
        message_entry_of(message),
        jsonvalue.encode(run.config, where="config") if run.config else "{}",
        None if run.custom_metadata is None else jsonvalue.encode(run.custom_metadata, where="custom_metadata"),
    )

"""What happened in a run, one line per happening, in order."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sojourn.cli.questions import prompt_text
from sojourn.cli.screen import one_line
from sojourn.cli.transcript import duration_text
from sojourn.cli.views import details
from sojourn.event import ASK_CALL, Event
from sojourn.run.types import Interrupt, RunRecord, Step

DETAIL_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Entry:
    """One happening in a run.

    Attributes:
        at: When, in seconds since the epoch; never before the entry above.
        what: What kind of happening: `queued`, `started`, `event`, `step`, `asked`, `answered`, or how the run ended.
        detail: Who, and what.
        seconds: How long it took; None if it took no time of its own.
        tokens: Tokens spent on it.
        notes: What is remarkable about it: the attempt, an error, that it does not count any more.
    """

    at: float
    what: str
    detail: str = ""
    seconds: float | None = None
    tokens: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunStory:
    """All that is stored of a run.

    Attributes:
        record: Its record.
        events: Its agents' events, in the order of `pos`, superseded ones included.
        steps: Its journal.
        interrupts: Its questions.
    """

    record: RunRecord
    events: Sequence[Event] = field(default=())
    steps: Sequence[Step] = field(default=())
    interrupts: Sequence[Interrupt] = field(default=())


def timeline(story: RunStory) -> list[Entry]:
    """The happenings of a run. Events are in the order of their `pos`; what else there is stands between them by its time."""
    record = story.record
    entries = [Entry(record.created_at, "queued", one_line(record.message.text or "(no text)", DETAIL_WIDTH))]
    if record.started_at is not None:
        entries.append(Entry(record.started_at, "started", "", record.started_at - record.created_at))
    for entry in heapq.merge(sorted(_others(story), key=_time), _events(story), key=_time):
        # What an event took is the time since whatever came before it.
        entries.append(replace(entry, seconds=entry.at - entries[-1].at) if entry.what == "event" else entry)
    if record.finished_at is not None:
        error = f"{record.error.message} [{record.error.code}]" if record.error is not None else ""
        took = record.finished_at - (record.started_at or record.created_at)
        entries.append(Entry(record.finished_at, record.status.value, one_line(error), took))
    else:
        entries.append(Entry(entries[-1].at, f"is {record.status.value}", _wish(record)))
    return entries


def _time(entry: Entry) -> float:
    return entry.at


def _events(story: RunStory) -> Iterator[Entry]:
    """The events, in the order of the log whatever their times say."""
    questions = {question.id: question for question in story.interrupts}
    at = story.record.started_at or story.record.created_at
    attempt = 1
    for event in story.events:
        at = max(at, event.timestamp)
        notes = []
        if event.attempt != attempt:
            attempt = event.attempt
            notes.append(f"attempt {attempt}")
        if event.superseded:
            notes.append("superseded")
        if event.interrupted:
            notes.append("interrupted")
        if event.error_code:
            notes.append(event.error_code)
        asked = next((questions[c.id] for c in event.get_function_calls() if c.name == ASK_CALL and c.id in questions), None)
        if asked is not None:
            if asked.status in ("expired", "dropped"):
                notes.append(asked.status)
            detail = f"{event.author}: {asked.key}: {prompt_text(asked.prompt)}"
            yield Entry(at, "asked", one_line(detail, DETAIL_WIDTH), None, 0, tuple(notes))
        else:
            tokens = event.usage_metadata.total_token_count if event.usage_metadata else 0
            yield Entry(at, "event", f"{event.author}: {_said(event)}", None, tokens, tuple(notes))


def _said(event: Event) -> str:
    words = [event.text] if event.text else []
    if event.output is not None:
        words.append(_json(event.output))
    words += [line for line in details(event) if line != "(interrupted)"]
    return one_line(" ".join(words), DETAIL_WIDTH) or "(nothing)"


def _others(story: RunStory) -> Iterator[Entry]:
    for step in story.steps:
        result = f"{step.error.message} [{step.error.code}]" if step.error is not None else _json(step.result)
        notes = [f"attempt {step.attempt}"] if step.attempt > 1 else []
        if step.status == "failed":
            notes.append("failed")
        seconds = step.finished_at - step.started_at
        yield Entry(step.finished_at, "step", one_line(f"{step.key}: {result}", DETAIL_WIDTH), seconds, 0, tuple(notes))
    for question in story.interrupts:
        if question.answered_at is not None:
            answer = one_line(f"{question.key}: {_json(question.answer)}", DETAIL_WIDTH)
            yield Entry(question.answered_at, "answered", answer, question.answered_at - question.created_at)


def _wish(record: RunRecord) -> str:
    return f"a cancel was asked for: {record.cancel_requested}" if record.cancel_requested else ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def rows(entries: Sequence[Entry]) -> list[list[str]]:
    """The entries as cells of a table: time since the first, what, how long, tokens, detail."""
    start = entries[0].at
    return [
        [
            f"+{duration_text(e.at - start)}",
            e.what,
            duration_text(e.seconds) if e.seconds is not None else "",
            f"{e.tokens:,}" if e.tokens else "",
            "  ".join([e.detail, *(f"({note})" for note in e.notes)]).strip(),
        ]
        for e in entries
    ]

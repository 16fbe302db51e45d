"""The story of a run as lines."""

from itertools import pairwise

from sojourn.cli.timeline import RunStory, rows, timeline
from sojourn.content import Content, Part
from sojourn.event import ASK_CALL, Event, EventActions, Usage
from sojourn.run.status import RunStatus
from sojourn.run.types import Interrupt, RunError, RunRecord, Step

START = 1_000_000.0


def record(status=RunStatus.COMPLETED, **fields):
    message = Event(id="m", run_id="r1", author="user", timestamp=START, content=Content.of("Hello there"))
    defaults = {"created_at": START, "started_at": START + 1, "finished_at": START + 10 if status.terminal else None}
    key = {"app_name": "shop", "user_id": "alice", "session_id": "s1", "session_uid": "x"}
    return RunRecord(uid=1, id="r1", no=1, status=status, message=message, **key, **{**defaults, **fields})


def said(pos, at, text="Hi.", **fields):
    content = fields.pop("content", Content("model", (Part.from_text(text),)))
    return Event(id=f"e{pos}", run_id="r1", author="helper", timestamp=START + at, content=content, pos=pos, **fields)


def asking(pos, at, id="q1", **fields):
    return said(pos, at, content=Content("model", (Part.from_function_call(ASK_CALL, {"message": "Sure?"}, id=id),)), **fields)


def question(id="q1", **fields):
    return Interrupt(id=id, key="sure", digest="d", prompt="Sure?", created_at=START + 3, run_id="r1", **fields)


def whats(story):
    return [entry.what for entry in timeline(story)]


def test_a_run_that_says_something():
    entries = timeline(RunStory(record(), [said(2, 4, usage_metadata=Usage(total_token_count=1200))]))
    assert [(e.what, e.at - START) for e in entries] == [("queued", 0), ("started", 1), ("event", 4), ("completed", 10)]
    assert [e.seconds for e in entries] == [None, 1, 3, 9]
    assert [e.tokens for e in entries] == [0, 0, 1200, 0]
    assert entries[0].detail == "Hello there"
    assert entries[2].detail == "helper: Hi."


def test_the_order_of_events_is_that_of_the_log():
    entries = timeline(RunStory(record(), [said(2, 5, "first"), said(3, 4, "second"), said(4, 6, "third")]))
    assert [e.detail for e in entries[2:5]] == ["helper: first", "helper: second", "helper: third"]
    assert all(a.at <= b.at for a, b in pairwise(entries))


def test_steps_stand_where_they_were_done():
    step = Step("charge", "done", {"ok": True}, None, 1, START + 4, START + 4.5)
    entries = timeline(RunStory(record(), [said(2, 3), said(3, 7)], [step]))
    assert [e.what for e in entries] == ["queued", "started", "event", "step", "event", "completed"]
    assert entries[3].detail == 'charge: {"ok": true}'
    assert entries[3].seconds == 0.5
    assert entries[4].seconds == 2.5


def test_a_failed_step_of_a_later_attempt():
    step = Step("charge", "failed", None, RunError("step.failed", "no money"), 2, START + 4, START + 5)
    entry = timeline(RunStory(record(), [], [step]))[2]
    assert entry.detail == "charge: no money [step.failed]"
    assert entry.notes == ("attempt 2", "failed")


def test_a_question_and_its_answer():
    answered = question(status="answered", answer=True, answered_at=START + 8)
    story = RunStory(record(), [asking(2, 3), said(3, 9, attempt=2)], [], [answered])
    entries = timeline(story)
    assert [e.what for e in entries] == ["queued", "started", "asked", "answered", "event", "completed"]
    assert entries[2].detail == "helper: sure: Sure?"
    assert entries[3].detail == "sure: true"
    assert entries[3].seconds == 5
    assert entries[4].notes == ("attempt 2",)
    assert entries[4].seconds == 1


def test_a_question_that_expired():
    story = RunStory(record(RunStatus.FAILED), [asking(2, 3)], [], [question(status="expired")])
    assert timeline(story)[2].notes == ("expired",)


def test_what_does_not_count_is_marked():
    events = [said(2, 3, superseded=True), said(3, 4, attempt=2, supersedes=2), said(4, 5, attempt=2, interrupted=True)]
    notes = [e.notes for e in timeline(RunStory(record(RunStatus.CANCELLED), events)) if e.what == "event"]
    assert notes == [("superseded",), ("attempt 2",), ("interrupted",)]


def test_what_an_event_does_is_told():
    content = Content("model", (Part.from_function_call("look_up", {"q": "lamp"}, id="c"),))
    events = [
        said(2, 3, content=content),
        said(3, 4, content=None, output={"a": 1}),
        said(4, 5, content=None, actions=EventActions(transfer_to_agent="billing", artifact_delta={"a.txt": 0})),
        said(5, 6, content=None),
    ]
    details = [e.detail for e in timeline(RunStory(record(), events)) if e.what == "event"]
    assert details == [
        'helper: → look_up(q="lamp")',
        'helper: {"a": 1}',
        "helper: saved a.txt (version 0) handed over to billing",
        "helper: (nothing)",
    ]


def test_a_run_that_failed_says_why():
    error = RunError("run.timeout", "too slow")
    assert timeline(RunStory(record(RunStatus.FAILED, error=error)))[-1].detail == "too slow [run.timeout]"


def test_a_run_that_never_started():
    story = RunStory(record(RunStatus.CANCELLED, started_at=None))
    assert whats(story) == ["queued", "cancelled"]
    assert timeline(story)[-1].seconds == 10


def test_a_run_that_goes_on():
    story = RunStory(record(RunStatus.RUNNING, cancel_requested="enough"), [said(2, 3)])
    last = timeline(story)[-1]
    assert last.what == "is running"
    assert last.detail == "a cancel was asked for: enough"
    assert whats(RunStory(record(RunStatus.QUEUED, started_at=None))) == ["queued", "is queued"]


def test_rows_are_cells_for_people():
    found = rows(
        timeline(RunStory(record(finished_at=START + 3700), [said(2, 64, usage_metadata=Usage(total_token_count=1200))]))
    )
    assert found[0] == ["+0.00 s", "queued", "", "", "Hello there"]
    assert found[2] == ["+1 min 4 s", "event", "1 min 3 s", "1,200", "helper: Hi."]
    assert found[3] == ["+1 h 1 min", "completed", "1 h 1 min", "", ""]

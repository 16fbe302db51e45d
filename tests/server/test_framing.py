"""What is put on the wire: bytes, and JSON for each kind of thing that a run says."""

import json

import pytest

from sojourn.content import Content, Part
from sojourn.errors import LimitExceeded
from sojourn.event import CallDelta, Event, EventActions, Partial
from sojourn.run.types import Frame, Interrupt, RunError, event_frame
from sojourn.server.framing import JsonLines, ServerSentEvents, accepted_framing
from sojourn.server.vocabulary import AdkEvents, RunFrames
from sojourn.wire import frame_to_wire
from tests.server.eventsource import Parser

HARD = 'é "quoted" \\ \n\r\t\0 \u2028\u2029\x85 \U0001f600 </script>'

PARTIALS = [
    Partial("m1", "r1", "bot", None, 0, HARD, False),
    Partial("m1", "r1", "bot", None, 7, "", False),
    Partial("m1", "r1", "bot", None, 7, "thinking", True),
    Partial("m1", "r1", "bot", None, 7, "", False, CallDelta("c1", "look_up", '{"q": "')),
    Partial("m1", "r1", "bot", None, 7, "", False, CallDelta("c1", "look_up", HARD)),
    Partial("m1", "r1", "bot", None, 7, "", False, CallDelta("c2", "look_up", "{}")),
    Partial("m2", "r1", 'an "agent"', "a.b", 0, "x", False),
    Partial("m1", "r1", "bot", None, 9, "again", False),
]

EVENT = Event(
    id="e1",
    run_id="r1",
    author="bot",
    timestamp=1.5,
    content=Content("model", [Part(text=HARD), Part.from_bytes(b"\0\xff", "image/png")]),
    actions=EventActions(state_delta={"k": [1, None]}),
    pos=2,
    seq=3,
    ordinal=1,
)


def test_a_partial_is_told_as_the_partial_event_of_adks_wire():
    vocabulary = AdkEvents()
    for piece in PARTIALS:
        pos, text = vocabulary.item(piece)
        assert pos is None
        assert json.loads(text) == json.loads(piece.to_event().to_json())


def test_frames_are_told_as_the_command_line_prints_them():
    vocabulary = RunFrames()
    frames = [
        Frame(1, "run.started", "r1", None, None, 1.0),
        event_frame(EVENT),
        event_frame(EVENT.evolve(long_running_tool_ids=("c",))),
        Frame(3, "run.failed", "r1", None, RunError("a.b", HARD, retryable=True), 2.25),
        Frame(3, "run.completed", "r1", None, None, 2.25),
    ]
    for item in [*PARTIALS, *frames]:
        pos, text = vocabulary.item(item)
        assert pos == item.pos
        assert json.loads(text) == frame_to_wire(item)


def test_adks_wire_has_events_and_errors_only():
    vocabulary = AdkEvents()
    assert vocabulary.item(Frame(1, "run.started", "r1")) is None
    assert vocabulary.item(Frame(9, "run.completed", "r1")) is None
    assert vocabulary.item(event_frame(EVENT.evolve(superseded=True))) is None
    assert vocabulary.waiting("r1", []) is None
    pos, text = vocabulary.item(event_frame(EVENT))
    assert (pos, json.loads(text)) == (2, json.loads(EVENT.to_json()))
    pos, text = vocabulary.item(Frame(9, "run.failed", "r1", None, RunError("agent.failed", "It failed.")))
    assert pos == 9
    assert json.loads(text) == {
        "error": "It failed.",
        "errorCode": "agent.failed",
        "errorMessage": "It failed.",
        "code": "agent.failed",
        "retryable": False,
    }


def test_what_ends_a_stream_of_frames_says_so():
    vocabulary = RunFrames()
    asked = Interrupt("i1", "sure", "d", "Sure?", {"type": "boolean"})
    waiting = json.loads(vocabulary.waiting("r1", [asked]))
    assert (waiting["kind"], waiting["runId"]) == ("run.waiting", "r1")
    assert [(i["id"], i["prompt"], i["status"]) for i in waiting["interrupts"]] == [("i1", "Sure?", "open")]
    assert json.loads(vocabulary.error(LimitExceeded("There is no room."))) == {
        "kind": "error",
        "error": {"code": "limit.exceeded", "message": "There is no room.", "retryable": True},
    }


@pytest.mark.parametrize("vocabulary", [AdkEvents, RunFrames])
def test_a_credential_that_an_event_holds_is_not_told(vocabulary):
    part = Part.from_function_call(
        "adk_request_credential", {"authConfig": {"rawAuthCredential": {"clientSecret": "S3CRET"}}}, id="c"
    )
    event = EVENT.evolve(content=Content("model", [part]))
    assert "S3CRET" not in vocabulary().item(event_frame(event))[1]


def test_server_sent_events_are_read_back_as_they_were_said():
    framing = ServerSentEvents(2.0)
    parser = Parser()
    wire = b"".join(
        [
            framing.heartbeat,
            framing.frame(None, json.dumps(HARD, ensure_ascii=False)),
            framing.heartbeat,
            framing.heartbeat,
            framing.frame(7, '"x"'),
            framing.heartbeat,
            framing.frame(None, '"y"'),
        ]
    )
    messages = parser.feed(wire)
    assert [(m.json(), m.last_event_id) for m in messages] == [(HARD, ""), ("x", "7"), ("y", "7")]
    assert parser.retry == 2000
    assert parser.comments == 4
    assert wire.count(b"retry:") == 1


def test_no_block_holds_nothing_but_a_comment_or_the_reconnection_time():
    framing = ServerSentEvents(2.0)
    wire = framing.frame(1, "{}") + framing.heartbeat + framing.frame(2, "{}") + framing.heartbeat
    for block in wire.split(b"\n\n")[:-1]:
        assert b"data:" in block


@pytest.mark.parametrize("framing", [ServerSentEvents(), JsonLines()])
def test_json_stays_on_its_line_however_lines_are_split(framing):
    wire = framing.frame(3, json.dumps(HARD, ensure_ascii=False))
    lines = [line for line in wire.decode().splitlines() if line and not line.startswith("id:")]
    assert len(lines) == 1
    assert json.loads(lines[0].removeprefix("data: ")) == HARD


@pytest.mark.parametrize("framing", [ServerSentEvents(), JsonLines()])
def test_half_a_character_passes_as_an_escape(framing):
    piece = Partial("m", "r", "bot", None, 0, "\ud83d", False)
    wire = framing.frame(*AdkEvents().item(piece)).decode()
    event = json.loads(wire.removeprefix("data: "))
    assert event["content"]["parts"] == [{"text": "\ud83d"}]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, "text/event-stream"),
        ("", "text/event-stream"),
        ("*/*", "text/event-stream"),
        ("application/json", "text/event-stream"),
        ("text/event-stream", "text/event-stream"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("Application/X-NDJSON;q=0.9, */*", "application/x-ndjson"),
        ("text/event-stream, application/x-ndjson", "text/event-stream"),
        ("application/x-ndjson, text/event-stream", "application/x-ndjson"),
    ],
)
def test_a_client_chooses_the_framing(accept, media_type):
    assert accepted_framing(accept, 2.0).media_type == media_type

"""What is printed of a run's frames."""

import json

import pytest

from sojourn.cli.screen import Screen, one_line, printable
from sojourn.cli.views import JsonView, TextView
from sojourn.content import Content, Part
from sojourn.event import CallDelta, Event, EventActions, Partial
from sojourn.run.types import Frame, RunError


def piece(id, delta, offset=0, *, thought=False, author="helper"):
    return Partial(id, "r1", author, None, offset, delta, thought)


def whole(id, text, *, left="", pos=2, author="helper", **fields):
    content = Content("model", (Part.from_text(text),)) if text else None
    event = Event(id=id, run_id="r1", author=author, content=content, pos=pos, **fields).with_delta(left)
    return Frame(pos, "event", "r1", event)


STARTED = Frame(1, "run.started", "r1")
COMPLETED = Frame(9, "run.completed", "r1")


@pytest.fixture
def shown(capsys):
    def show(*frames, end=True, fancy=False):
        screen = Screen()
        screen.fancy = fancy
        view = TextView(screen, names=True)
        for frame in frames:
            view.show(frame)
        if end:
            view.end()
        return capsys.readouterr().out

    return show


def test_pieces_are_shown_as_they_come(shown):
    assert shown(STARTED, piece("a", "He"), piece("a", "llo"), end=False) == "Hello"
    assert shown(STARTED, piece("a", "He"), piece("a", "llo"), whole("a", "Hello"), COMPLETED) == "Hello\n"


def test_a_message_that_came_at_once(shown):
    assert shown(STARTED, whole("a", "Hello", left="Hello"), COMPLETED) == "Hello\n"


def test_a_message_that_ends_its_line_itself(shown):
    assert shown(piece("a", "Hello\n"), whole("a", "Hello\n"), whole("b", "Bye", left="Bye")) == "Hello\nBye\n"


def test_the_rest_of_a_message_follows_its_pieces(shown):
    assert shown(piece("a", "He"), whole("a", "Hello", left="llo")) == "Hello\n"


def test_thoughts_are_not_shown(shown):
    assert shown(piece("a", "hmm", thought=True), piece("a", "Yes"), whole("a", "Yes")) == "Yes\n"


def test_what_does_not_count_is_not_shown(shown):
    assert shown(whole("a", "No", left="No", superseded=True), whole("b", "Yes", left="Yes")) == "Yes\n"


def test_structured_output_is_json(shown):
    assert shown(whole("a", "", output={"ä": [1, None]})) == '{"ä": [1, null]}\n'


def test_messages_written_at_once_do_not_mix(shown):
    frames = (
        piece("a", "1"),
        piece("b", "x"),
        piece("a", "2"),
        piece("b", "y"),
        whole("a", "12"),
        piece("b", "z"),
        whole("b", "xyz"),
    )
    assert shown(*frames) == "12\nxyz\n"


def test_a_message_that_ends_while_another_is_written_waits(shown):
    frames = (
        piece("a", "1"),
        piece("b", "x"),
        whole("b", "xy", left="y"),
        whole("c", "!", left="!"),
        piece("a", "2"),
        whole("a", "12"),
    )
    assert shown(*frames) == "12\nxy\n!\n"


def test_three_messages_at_once(shown):
    frames = (
        piece("a", "1"),
        piece("b", "x"),
        piece("c", "u"),
        whole("a", "1"),
        piece("c", "v"),
        whole("b", "x"),
        whole("c", "uv"),
    )
    assert shown(*frames) == "1\nx\nuv\n"


def test_what_was_held_back_is_shown_in_the_end(shown):
    assert shown(piece("a", "1"), piece("b", "x"), piece("c", "u")) == "1\nx\nu\n"


def test_a_pipe_gets_what_was_said_as_it_is(shown):
    assert shown(whole("a", "\x1b[31mred", left="\x1b[31mred")) == "\x1b[31mred\n"


def test_a_terminal_is_not_given_commands(shown):
    assert (
        shown(whole("a", "x", left="\x1b]0;title\x07\r\x9b31mred\t!\n"), fancy=True)
        == "helper\n\ufffd]0;title\ufffd\ufffd31mred\t!\n"
    )


def test_a_call_that_is_being_written_does_not_say_who_speaks(shown):
    def of_call(id, args, author="desk"):
        return Partial(id, "r1", author, None, 0, "", False, CallDelta("c1", "look_up", args))

    called = Content("model", (Part.from_function_call("look_up", {}, id="c1"),))
    call = Frame(2, "event", "r1", Event(id="a", run_id="r1", author="desk", content=called, pos=2))
    out = shown(piece("b", "Hm."), whole("b", "Hm."), of_call("a", "{"), of_call("a", "}"), call, end=False, fancy=True)
    assert [line for line in out.splitlines() if "desk" in line] == []
    assert shown(of_call("a", "{"), piece("b", "Hm."), call, whole("b", "Hm.")) == "Hm.\n", (
        "what is said meanwhile does not wait"
    )
    said = shown(of_call("a", "{"), piece("a", "So:", author="desk"), end=False, fancy=True)
    assert [line.strip() for line in said.splitlines()] == ["desk", "So:"]


def test_a_terminal_shows_who_speaks_and_what_is_done(capsys, shown):
    call = Content("model", (Part.from_function_call("look_up", {"q": "lamp"}, id="c"),))
    screen = Screen()
    screen.fancy = True
    view = TextView(screen, names=True)
    view.show(Frame(2, "event", "r1", Event(id="a", author="front", content=call)))
    view.show(whole("b", "Hi", left="Hi", author="front"))
    view.show(whole("c", "Ho", left="Ho", author="billing", actions=EventActions(transfer_to_agent="front")))
    view.show(whole("d", "Hey", left="Hey", author="billing"))
    view.end()
    out, err = capsys.readouterr()
    assert out == "front\nHi\nbilling\nHo\nHey\n"
    assert err == '→ look_up(q="lamp")\nhanded over to front\n'


def test_json_lines(capsys):
    view = JsonView(Screen())
    for frame in (
        STARTED,
        piece("a", "é", 3),
        whole("a", "é"),
        Frame(3, "run.failed", "r1", None, RunError("run.timeout", "slow"), 5.0),
    ):
        view.show(frame)
    started, partial, event, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert started == {"kind": "run.started", "runId": "r1", "pos": 1, "timestamp": 0.0}
    assert partial["kind"] == "partial"
    assert partial["offset"] == 3
    assert Event.model_validate(partial["event"]) == piece("a", "é").to_event()
    assert (event["kind"], event["pos"]) == ("event", 2)
    assert Event.model_validate(event["event"]).text == "é"
    assert failed["error"] == {"code": "run.timeout", "message": "slow", "retryable": False}


def test_one_line():
    assert one_line(" a\n b\t c ") == "a b c"
    assert one_line("abcdef", 4) == "abc…"
    assert printable("a\r\nb\x7f") == "a\nb\ufffd"

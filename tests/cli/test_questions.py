"""What a text stands for as an answer, and the command that gives it."""

import shlex

import pytest

from sojourn.cli.questions import AnswerCommand, parse_answer, schema_text
from sojourn.errors import InvalidInput
from sojourn.run.types import Interrupt


def question(schema=None, **fields):
    return Interrupt(id="q1", key="k", digest="d", prompt="?", schema=schema, run_id="r1", app_name="my shop", **fields)


@pytest.mark.parametrize(
    ("schema", "text", "answer"),
    [
        (None, "hello", "hello"),
        (None, "42", 42),
        (None, '{"a": [1, null]}', {"a": [1, None]}),
        (None, "{broken", "{broken"),
        (None, "NaN", "NaN"),
        (None, "[1, Infinity]", "[1, Infinity]"),
        (None, "", ""),
        (None, "[" * 5000, "[" * 5000),
        ({"type": "string"}, "42", "42"),
        ({"type": "string"}, '"quoted"', "quoted"),
        ({"type": "string"}, "yes", "yes"),
        ({"type": "integer"}, "42", 42),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "yes", True),
        ({"type": "boolean"}, " N ", False),
        ({"enum": ["red", "blue"]}, "red", "red"),
        ({"enum": [1, 2]}, "2", 2),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null", None),
    ],
)
def test_json_that_fits_else_the_text(schema, text, answer):
    assert parse_answer(text, question(schema)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", True),
        ("N", False),
        ("true", True),
        ('{"confirmed": false, "reason": "no"}', {"confirmed": False, "reason": "no"}),
    ],
)
def test_leave_to_call_a_tool(text, answer):
    schema = {"anyOf": [{"type": "boolean"}, {"type": "object", "required": ["confirmed"]}]}
    assert parse_answer(text, question(schema, kind="confirm")) == answer
    with pytest.raises(InvalidInput):
        parse_answer("perhaps", question(schema, kind="confirm"))


@pytest.mark.parametrize(
    ("schema", "text", "told"),
    [
        ({"type": "integer"}, "4.5", "4.5 is not of type 'integer'"),
        ({"type": "integer"}, "many", "'many' is not of type 'integer'"),
        ({"type": "boolean"}, "maybe", "'maybe' is not of type 'boolean'"),
        ({"enum": ["red"]}, "green", "'green' is not one of ['red']"),
    ],
)
def test_what_does_not_fit_is_refused(schema, text, told):
    with pytest.raises(InvalidInput, match="does not fit") as caught:
        parse_answer(text, question(schema))
    assert caught.value.code == "interrupt.invalid_answer"
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (None, ""),
        ({"type": "boolean"}, "yes or no"),
        ({"type": "string", "title": "Name"}, "text"),
        ({"type": "array"}, "a JSON array"),
        ({"enum": ["red", 1]}, 'one of "red", 1'),
        ({"type": "integer", "minimum": 3}, 'JSON that fits {"type": "integer", "minimum": 3}'),
    ],
)
def test_the_schema_in_words(schema, words):
    assert schema_text(schema) == words


def test_the_command_names_what_it_must():
    line = AnswerCommand(".sojourn/sojourn.db").line(question(), only=True)
    assert line == "sojourn runs answer r1 VALUE --app 'my shop'"
    line = AnswerCommand("other db.db", "my agents.py:helper").line(question(), only=False)
    assert shlex.split(line)[3:] == [
        "r1",
        "q1",
        "VALUE",
        "--app",
        "my shop",
        "--target",
        "my agents.py:helper",
        "--db",
        "other db.db",
    ]

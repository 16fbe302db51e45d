"""Content and parts: building, reading, and google-adk's wire form."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sojourn.content import Blob, Content, FileData, FunctionCall, FunctionResponse, Part
from sojourn.event import EventActions

BYTES = bytes([0xFB, 0xEF, 0xBE, 0xFF, 0x00, 0x10])
"""Bytes whose base64 differs between the two alphabets."""

WIRE = {
    "role": "model",
    "parts": [
        {"text": "Hello"},
        {"text": "let me think", "thought": True},
        {"inlineData": {"mimeType": "image/png", "data": "++++_-__", "displayName": "a.png"}},
        {"fileData": {"fileUri": "artifact:a.png", "mimeType": "image/png", "displayName": "a.png"}},
        {"functionCall": {"id": "c1", "name": "look_up", "args": {"cityName": "Kyiv", "snake_case": [1, 2.5, None]}}},
        {"functionResponse": {"id": "c1", "name": "look_up", "response": {"result": {"temp_c": 3}}}},
    ],
}
WIRE["parts"][2]["inlineData"]["data"] = base64.urlsafe_b64encode(BYTES).decode()  # type: ignore[index]

CONTENT = Content(
    "model",
    (
        Part.from_text("Hello"),
        Part.from_text("let me think", thought=True),
        Part.from_bytes(BYTES, "image/png", display_name="a.png"),
        Part(file_data=FileData(file_uri="artifact:a.png", mime_type="image/png", display_name="a.png")),
        Part.from_function_call("look_up", {"cityName": "Kyiv", "snake_case": [1, 2.5, None]}, id="c1"),
        Part.from_function_response("look_up", {"result": {"temp_c": 3}}, id="c1"),
    ),
)


def kind(value: object) -> str:
    return type(value).__name__


def snake(value):
    """Wire keys in snake case, as google-adk's Python clients may send them."""
    renamed = {
        "inlineData": "inline_data", "mimeType": "mime_type", "displayName": "display_name", "fileData": "file_data",
        "fileUri": "file_uri", "functionCall": "function_call", "functionResponse": "function_response",
    }  # fmt: skip
    if isinstance(value, dict):
        return {renamed.get(k, k): snake(v) for k, v in value.items()}
    return [snake(v) for v in value] if isinstance(value, list) else value


class TestWire:
    def test_out(self):
        assert CONTENT.to_wire() == WIRE
        assert json.loads(CONTENT.to_json()) == WIRE

    @pytest.mark.parametrize("form", [WIRE, snake(WIRE)], ids=["camel", "snake"])
    def test_in(self, form):
        assert Content.model_validate(form) == CONTENT
        assert Content.model_validate_json(json.dumps(form)) == CONTENT

    def test_names_inside_arguments_are_not_renamed(self):
        call = CONTENT.get_function_calls()[0]
        assert call.args == {"cityName": "Kyiv", "snake_case": [1, 2.5, None]}

    def test_defaults_are_left_out(self):
        assert Content().to_wire() == {}
        assert Part(text="x").to_wire() == {"text": "x"}
        assert Part(text="").to_wire() == {"text": ""}

    def test_unknown_fields_are_ignored(self):
        part = Part.model_validate({"text": "x", "thoughtSignature": "abc", "videoMetadata": {"fps": 1}})
        assert part == Part(text="x")

    def test_null_is_absent(self):
        """google-genai's own models dump every absent field as null."""
        part = {
            "text": None, "thought": None, "inline_data": None, "file_data": None, "function_response": None,
            "function_call": {"id": None, "name": "f", "args": None},
        }  # fmt: skip
        expected = Content("model", (Part.from_function_call("f"),))
        assert Content.model_validate({"role": "model", "parts": [part]}) == expected
        assert Content.model_validate_json(json.dumps({"role": "model", "parts": [part]})) == expected
        assert FunctionResponse.model_validate({"name": "f", "response": None}) == FunctionResponse(name="f")
        assert Content.model_validate({"role": None, "parts": None}) == Content()

    @pytest.mark.parametrize("text", ["\x00", "a\x00b", "😀", "\u2028", "日本語", ""])
    def test_any_text_survives(self, text):
        content = Content("user").with_text(text)
        assert Content.model_validate_json(content.to_json()) == content


@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode], ids=["standard", "urlsafe"])
class TestBase64:
    @pytest.mark.parametrize("padded", [True, False], ids=["padded", "bare"])
    @pytest.mark.parametrize("data", [BYTES, BYTES[:5], BYTES[:4], b"", b"\x00"], ids=len)
    def test_in(self, alphabet, padded, data):
        text = alphabet(data).decode()
        text = text if padded else text.rstrip("=")
        assert Blob.model_validate({"data": text}).data == data
        assert Blob.model_validate_json(json.dumps({"mimeType": "image/png", "data": text})).data == data

    @given(data=st.binary())
    def test_any_bytes(self, alphabet, data):
        assert Blob.model_validate_json(json.dumps({"data": alphabet(data).decode()})).data == data
        blob = Blob(data=data)
        assert Blob.model_validate_json(blob.to_json()) == blob
        assert Blob.model_validate(blob.to_wire()) == blob


def test_what_is_no_base64_is_refused():
    for text in ("*", "a", "ab cd", "é"):
        with pytest.raises(ValidationError):
            Blob.model_validate_json(json.dumps({"data": text}))


class TestBuilding:
    def test_step_by_step(self):
        content = (
            Content("user").with_text("Look:").with_bytes(b"\x89PNG", "image/png").with_part(Part.from_uri("s3://a", "x/y"))
        )
        assert content == Content(
            "user",
            (
                Part(text="Look:"),
                Part(inline_data=Blob(data=b"\x89PNG", mime_type="image/png")),
                Part(file_data=FileData(file_uri="s3://a", mime_type="x/y")),
            ),
        )

    def test_each_step_leaves_the_one_before_as_it_was(self):
        first = Content("user")
        first.with_text("x")
        assert first.parts == ()

    def test_by_keyword_and_from_a_list(self):
        assert Content(role="user", parts=[Part(text="x")]) == Content("user", (Part(text="x"),))
        assert Content("user", [{"text": "x"}]) == Content("user", (Part(text="x"),))
        assert Content("user", None) == Content("user")

    def test_of_takes_text_or_content(self):
        assert Content.of("hi") == Content("user", (Part(text="hi"),))
        assert Content.of("hi", "model").role == "model"
        assert Content.of(CONTENT) is CONTENT

    def test_of_refuses_anything_else(self):
        with pytest.raises(ValidationError):
            Content.of(7)  # type: ignore[arg-type]


class TestReading:
    def test_text_leaves_thoughts_out(self):
        content = Content(
            "model", (Part(text="a"), Part(text="hm", thought=True), Part.from_function_call("f"), Part(text="b"))
        )
        assert content.text == "ab"
        assert content.thoughts == "hm"

    @pytest.mark.parametrize(
        ("parts", "text"),
        [
            ((), ""),
            ((Part(text="a"),), "a"),
            ((Part(text=""),), ""),
            ((Part(text="hm", thought=True),), ""),
            ((Part.from_bytes(b"x"),), ""),
        ],
    )
    def test_text_of_few_parts(self, parts, text):
        assert Content("model", parts).text == text

    def test_calls_and_responses(self):
        assert CONTENT.get_function_calls() == [CONTENT.parts[4].function_call]
        assert CONTENT.get_function_responses() == [CONTENT.parts[5].function_response]
        assert Content.of("x").get_function_calls() == []


class TestValues:
    def test_they_are_frozen(self):
        with pytest.raises(ValidationError):
            CONTENT.role = "user"  # type: ignore[misc]
        with pytest.raises(ValidationError):
            CONTENT.parts[0].text = "x"  # type: ignore[misc]

    def test_the_caller_s_dict_is_copied(self):
        args = {"list": [1], "dict": {"a": 1}}
        call = FunctionCall(name="f", args=args)
        part = Part.from_function_response("f", args)
        args["list"].append(2)
        args["dict"]["a"] = 2
        args["more"] = 3
        assert call.args == {"list": [1], "dict": {"a": 1}}
        assert part.function_response is not None
        assert part.function_response.response == call.args

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1}, b"x", object(), "\ud800", {1: 2}, 2**20_000], ids=kind)
    def test_arguments_are_json(self, bad):
        for make in (FunctionCall, EventActions, lambda **k: FunctionResponse(name="f", response=k["args"])):
            with pytest.raises(ValidationError):
                make(name="f", args={"x": bad}, state_delta={"x": [bad]})

    @pytest.mark.parametrize(
        "make",
        [
            lambda s: Part(text=s),
            Content,
            Part.from_uri,
            Part.from_function_call,
            lambda s: Part.from_function_call("f", {s: 1}),
            lambda s: Part.from_function_call("f", {"a": [s]}),
        ],
    )
    def test_a_lone_surrogate_is_no_text(self, make):
        make("ok")
        with pytest.raises(ValidationError):
            make("\ud83d")

    @pytest.mark.parametrize(
        "bad", [{"parts": [{"text": 1}]}, {"parts": "text"}, {"parts": [{"functionCall": {}}]}, {"role": 5}]
    )
    def test_wrong_shapes_are_refused(self, bad):
        with pytest.raises(ValidationError):
            Content.model_validate(bad)

    def test_copies_are_equal(self):
        assert CONTENT.model_copy(deep=True) == CONTENT

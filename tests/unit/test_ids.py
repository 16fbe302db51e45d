"""Which names may be ids and artifact names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.errors import InvalidInput
from sojourn.ids import MAX_ID_BYTES, check_artifact_name, check_id

GOOD = [
    "a",
    "user-123",
    "with space",
    " ",
    "a/b",
    "..",
    "é",
    "日本語",
    "😀",
    "user@example.org",
    "%2e%2e",
    "\u200b",
    "-" * 256,
    "é" * 128,
]
BAD = ["", "\x00", "a\nb", "\t", "\x7f", "\x85", "\x9f", "x" * 257, "é" * 129, "\ud800", "a\udfff"]


@pytest.mark.parametrize("value", GOOD, ids=ascii)
def test_ids(value):
    assert check_id(value, "user_id") == value


@pytest.mark.parametrize("value", [*BAD, None, 1, b"bytes", ["a"]], ids=ascii)
def test_what_is_no_id(value):
    with pytest.raises(InvalidInput) as caught:
        check_id(value, "user_id")
    assert caught.value.code == "id.invalid"
    assert "user_id" in caught.value.message
    caught.value.message.encode()


@given(st.text())
def test_an_id_is_what_its_rule_says(value):
    encodable = all(not 0xD800 <= ord(c) <= 0xDFFF for c in value)
    control = any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value)
    allowed = encodable and not control and 1 <= len(value.encode()) <= MAX_ID_BYTES if encodable else False
    try:
        accepted = check_id(value, "id") == value
    except InvalidInput:
        accepted = False
    assert accepted is allowed


def test_a_subclass_of_text_becomes_text():
    class Name(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    checked = check_id(Name("plain"), "id")
    assert type(checked) is str
    assert checked == "plain"


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "reports/july.pdf",
        "user:avatar.png",
        "user:a/b",
        "...",
        ".hidden",
        "a..b",
        "a b",
        "é/日本",
        "User:",
        "app:x",
        "xy:z",
    ],
    ids=ascii,
)
def test_artifact_names(name):
    assert check_artifact_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *BAD, None, 7, "user:", "/", "/etc/passwd", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "./a", "a/.",
        "a\\b", "..\\a", "c:", "c:/x", "c:x", "a/c:x", "user:/a", "user:../a", "user:..", "user:c:x", "user:a/../b",
    ],
    ids=ascii,
)  # fmt: skip
def test_what_names_no_artifact(name):
    with pytest.raises(InvalidInput) as caught:
        check_artifact_name(name)
    assert caught.value.code == "artifact.invalid_name"

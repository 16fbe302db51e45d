"""The rules for names that people and programs choose: ids, keys and artifact names."""

from __future__ import annotations

import unicodedata

from sojourn.errors import InvalidInput

MAX_ID_BYTES = 256


def check_id(value: object, what: str) -> str:
    """Returns `value` if it may be an id: text of 1 to 256 bytes (UTF-8) without control characters.

    Args:
        value: The id.
        what: What it names, for the message: `user_id`, `session_id`, `run_id`, …

    Raises:
        InvalidInput: `id.invalid`.
    """
    if type(value) is str and value.isascii() and value.isprintable() and 0 < len(value) <= MAX_ID_BYTES:
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"{what} must be text, got {type(value).__name__}", code="id.invalid")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} holds a lone surrogate, which is not text", code="id.invalid") from None
    if not size:
        raise InvalidInput(f"{what} is empty; give 1 to {MAX_ID_BYTES} bytes of text", code="id.invalid")
    if size > MAX_ID_BYTES:
        raise InvalidInput(f"{what} has {size} bytes; at most {MAX_ID_BYTES} are allowed", code="id.invalid")
    if any(unicodedata.category(c) == "Cc" for c in value):
        raise InvalidInput(f"{what} {value!r} holds a control character", code="id.invalid")
    return str.__str__(value)


def check_artifact_name(name: object) -> str:
    """Returns `name` if it may name an artifact: an id made of safe relative segments.

    Segments are separated by `/`; none may be empty, `.` or `..`, hold a backslash, or look like a drive (`c:`).
    A leading `user:` is the namespace shared by a user's sessions and is not a segment.

    Raises:
        InvalidInput: `artifact.invalid_name`.
    """
    try:
        text = check_id(name, "artifact name")
    except InvalidInput as error:
        raise InvalidInput(error.message, code="artifact.invalid_name") from None
    path = text.removeprefix("user:")
    for segment in path.split("/"):
        if segment in ("", ".", "..") or "\\" in segment or segment[1:2] == ":":
            raise InvalidInput(
                f"artifact name {text!r} is not a safe relative path; use segments like 'reports/july.pdf'",
                code="artifact.invalid_name",
            )
    return text

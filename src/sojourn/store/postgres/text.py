"""Texts as PostgreSQL takes them: it refuses NUL, and its indexes refuse what is long."""

from __future__ import annotations

import hashlib

_MAX_INDEXED = 600


def column(text: str) -> str:
    """A text as it stands in a column; no two have the same form."""
    if "\\" not in text and "\0" not in text:
        return text
    return text.replace("\\", "\\\\").replace("\0", "\\0")


def maybe_column(text: str | None) -> str | None:
    """The same; None stays None."""
    return None if text is None else column(text)


def text_of(value: str) -> str:
    """The text that `column` was given."""
    if "\\" not in value:
        return value
    # A backslash is followed by another one, or by the 0 of NUL.
    return "\\".join(piece.replace("\\0", "\0") for piece in value.split("\\\\"))


def maybe_text(value: str | None) -> str | None:
    """The same; None stays None."""
    return None if value is None else text_of(value)


def indexed(text: str) -> str:
    """A text as it stands in an index that only compares it; a long one is told by its digest."""
    if len(text) <= _MAX_INDEXED // 4 or len(text.encode(errors="surrogatepass")) <= _MAX_INDEXED:
        return column(text)
    return f"\\sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"

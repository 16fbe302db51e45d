"""How JSON is put on a stream: server-sent events (WHATWG HTML, 9.2), or a line each.

Some readers take a block of lines that holds nothing but a comment, or nothing but `retry:`, for an empty event once the stream
has ids. So a heartbeat is a comment line without the blank line that would make it a block, and `retry:` stands in the first
block that has data.
"""

from __future__ import annotations

from typing import Protocol


class Framing(Protocol):
    """How JSON is put on the wire; one per stream."""

    media_type: str
    heartbeat: bytes

    def frame(self, pos: int | None, text: str) -> bytes:
        """JSON text on one line as bytes; `pos` is where a reader who has read it goes on."""
        ...


class ServerSentEvents:
    """`text/event-stream`.

    Args:
        reconnect_after: Seconds after which a browser whose stream broke comes back; None to leave it to the browser.
    """

    media_type = "text/event-stream"
    heartbeat = b": ping\n"

    __slots__ = ("_first",)

    def __init__(self, reconnect_after: float | None = None) -> None:
        self._first = b"" if reconnect_after is None else b"retry: %d\n" % round(reconnect_after * 1000)

    def frame(self, pos: int | None, text: str) -> bytes:
        """See `Framing`."""
        block = b"data: %b\n\n" % _bytes(text) if pos is None else b"id: %d\ndata: %b\n\n" % (pos, _bytes(text))
        if self._first:
            block, self._first = self._first + block, b""
        return block


class JsonLines:
    """`application/x-ndjson`: one JSON text per line; an empty line is a heartbeat."""

    media_type = "application/x-ndjson"
    heartbeat = b"\n"

    __slots__ = ()

    def frame(self, pos: int | None, text: str) -> bytes:
        """See `Framing`."""
        return _bytes(text) + b"\n"


def accepted_framing(accept: str | None, reconnect_after: float | None) -> Framing:
    """The framing that a client asks for: server-sent events unless it prefers lines.

    Args:
        accept: Its `Accept` header.
        reconnect_after: As for `ServerSentEvents`.
    """
    for choice in (accept or "").lower().split(","):
        match choice.partition(";")[0].strip():
            case JsonLines.media_type:
                return JsonLines()
            case ServerSentEvents.media_type:
                break
    return ServerSentEvents(reconnect_after)


# Many programs split text into lines at these, too; in JSON they stand in strings only, where they may be escaped.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def _bytes(text: str) -> bytes:
    if text.isascii():
        return text.encode("ascii")
    for end, escaped in _LINE_ENDS.items():
        if end in text:
            text = text.replace(end, escaped)
    # The halves of a character that was cut in two between pieces are escaped as JSON has them.
    return text.encode("utf-8", "backslashreplace")

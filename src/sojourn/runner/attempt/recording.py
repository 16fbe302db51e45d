"""Sound as it came in or went out, collected until a piece of it is stored."""

from __future__ import annotations

from sojourn.content import Blob, Content, Part

SEGMENT_BYTES = 1_048_576
"""Bytes after which a recording goes on in another event: of 16-bit PCM at 16 kHz, half a minute."""


class Recording:
    """Collects blobs of one media type.

    Args:
        role: Whose they are: `user` or `model`.
    """

    __slots__ = ("_data", "_mime_type", "_role")

    def __init__(self, role: str) -> None:
        self._role = role
        self._data = bytearray()
        self._mime_type = ""

    def add(self, blob: Blob) -> Content | None:
        """Adds a blob; gives what was collected before, if that ends here."""
        ended = None
        if blob.mime_type != self._mime_type or len(self._data) >= SEGMENT_BYTES:
            ended = self.end()
            self._mime_type = blob.mime_type
        self._data += blob.data
        return ended

    def end(self) -> Content | None:
        """What was collected, which is then forgotten; None if there is nothing."""
        if not self._data:
            return None
        part = Part.from_bytes(bytes(self._data), self._mime_type)
        self._data.clear()
        return Content(self._role, (part,))

"""Ids and names as segments of a path: any text, on any file system."""

from __future__ import annotations

import hashlib
from urllib.parse import unquote

MAX_SEGMENT = 128
"""Longer segments end in a hash. Well under the 255 bytes of common file systems, and the 143 of encrypting ones."""

HASH_MARK = "~"
"""Stands before the hash of a shortened segment, and in no other one."""

# No capitals: on a file system that ignores case, two ids would share a directory.
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_.")


def encode_segment(text: str) -> str:
    """A segment of 1 to `MAX_SEGMENT` characters that is different for every text.

    It has only small letters, digits and `-_.%~`, and no dot at either end: it is neither hidden nor `.` or `..`, nor is it
    another one on a file system that drops dots at the end.
    """
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in text.encode())
    if encoded.startswith("."):
        encoded = f"%2e{encoded[1:]}"
    if encoded.endswith("."):
        encoded = f"{encoded[:-1]}%2e"
    if len(encoded) <= MAX_SEGMENT:
        return encoded
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{encoded[: MAX_SEGMENT - len(HASH_MARK) - len(digest)]}{HASH_MARK}{digest}"


def decode_segment(segment: str) -> str | None:
    """The text that a segment stands for; None if it was shortened, or is not one of ours."""
    try:
        text = unquote(segment, errors="strict")
        return text if HASH_MARK not in segment and encode_segment(text) == segment else None
    except UnicodeError:
        return None

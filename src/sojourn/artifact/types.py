"""Artifacts: named, versioned bytes, and the URIs by which events refer to them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote

from pydantic import Field

from sojourn.content import Blob, Part, Value
from sojourn.errors import InvalidInput
from sojourn.ids import check_artifact_name, check_id
from sojourn.jsonvalue import JsonValue

USER_PREFIX = "user:"
"""Names that start with it are shared by all sessions of the user."""

ARTIFACT_SCHEME = "artifact:"
"""What the URI of an artifact starts with."""

_URI = re.compile(r"artifact:([^?#]+)\?version=(0|[1-9][0-9]{0,17})")


class ArtifactScope(NamedTuple):
    """Whose artifacts are meant: the session a call speaks for.

    A name that starts with `user:` belongs to (app, user); every other name belongs to the session's `uid`, so that a
    session deleted and created anew under the same id starts without artifacts.

    Attributes:
        app_name: The app.
        user_id: The user.
        session_id: The session's id; for messages.
        session_uid: The session's internal id, `Session.uid`.
    """

    app_name: str
    user_id: str
    session_id: str
    session_uid: str

    def check(self) -> ArtifactScope:
        """Returns this scope if all four ids are valid.

        Raises:
            InvalidInput: `id.invalid`.
        """
        check_id(self.app_name, "app_name")
        check_id(self.user_id, "user_id")
        check_id(self.session_id, "session_id")
        check_id(self.session_uid, "session_uid")
        return self

    def __str__(self) -> str:
        return f"{self.app_name}/{self.user_id}/{self.session_id}"


class ArtifactVersion(Value):
    """What is known of one saved version, without its bytes.

    Attributes:
        name: The artifact.
        version: 0 for the first save of the name, 1 for the second, and so on without gaps.
        mime_type: What the bytes are.
        size: How many bytes.
        created_at: When it was saved, in seconds since the epoch.
        custom_metadata: What the saver attached.
        display_name: The display name of the part that was saved.
        is_text: Whether it was saved as a part of text, and loads as one. The bytes are its UTF-8.
        run_id: The run that saved it, if an agent did.
    """

    name: str
    version: int
    mime_type: str
    size: int
    created_at: float
    custom_metadata: dict[str, JsonValue] = Field(default_factory=dict)
    display_name: str | None = None
    is_text: bool = False
    run_id: str | None = None

    @property
    def uri(self) -> str:
        """How an event of the session refers to this version."""
        return artifact_uri(self.name, self.version)

    def to_part(self, data: bytes) -> Part:
        """The part that was saved, given the bytes of this version."""
        if self.is_text:
            return Part(text=data.decode())
        return Part(inline_data=Blob(mime_type=self.mime_type, data=data, display_name=self.display_name))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A version, or a range of its bytes, opened for reading.

    Attributes:
        info: What is known of the version; `info.size` is that of all of it.
        chunks: The bytes, piece by piece, in order; to be iterated once. No piece is empty. Who is cancelled while waiting
            for a piece may go on, and misses nothing. What it holds open is released at the end, or when the iterator is
            dropped.
        start: The first byte of the range, counted from 0.
        end: The byte that the range stops before.
    """

    info: ArtifactVersion
    chunks: AsyncIterator[bytes]
    start: int
    end: int

    async def read(self) -> bytes:
        """All bytes that `chunks` has not given yet."""
        return b"".join([chunk async for chunk in self.chunks])


class ArtifactRef(NamedTuple):
    """What an artifact's URI names, relative to the session whose event holds it."""

    name: str
    version: int


def artifact_uri(name: str, version: int) -> str:
    """The URI of a version: `artifact:reports/july.pdf?version=3`, the name percent-encoded.

    It goes into `FileData.file_uri` and is relative to the session of the event that holds it: no app, user or session
    is in it, so that it can neither point at somebody else's artifact nor tell who somebody is.

    Raises:
        InvalidInput: `artifact.invalid_name`, `artifact.invalid_version`.
    """
    return f"{ARTIFACT_SCHEME}{quote(check_artifact_name(name), safe='/:')}?version={check_version(version)}"


def parse_artifact_uri(uri: str) -> ArtifactRef:
    """The name and version that a URI made by `artifact_uri` names.

    Raises:
        InvalidInput: `artifact.invalid_uri` if it is none.
    """
    match = _URI.fullmatch(uri)
    try:
        if match:
            return ArtifactRef(check_artifact_name(unquote(match[1], errors="strict")), int(match[2]))
    except (InvalidInput, UnicodeDecodeError):
        pass
    raise InvalidInput(
        f"{uri!r} is not the URI of an artifact; it looks like 'artifact:reports/july.pdf?version=0'",
        code="artifact.invalid_uri",
    )


def check_version(version: object) -> int:
    """Returns `version` if it may number a version: an integer from 0 on.

    Raises:
        InvalidInput: `artifact.invalid_version`.
    """
    if isinstance(version, int) and not isinstance(version, bool) and 0 <= version < 10**18:
        return version
    raise InvalidInput(f"version is {version!r}; versions are 0, 1, 2 …", code="artifact.invalid_version")

"""What every artifact service checks and says in the same way."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard

from sojourn import jsonvalue, platform
from sojourn.artifact.types import ArtifactScope, ArtifactVersion, check_version
from sojourn.content import Part
from sojourn.errors import InvalidInput, NotFound, Unavailable, Unsupported
from sojourn.ids import check_artifact_name, check_id
from sojourn.page import Page, check_page

BLOCK_BYTES = 1_048_576
"""Small pieces of a stream are joined until they reach this size, so that each write is worth its cost."""

DEFAULT_MIME_TYPE = "application/octet-stream"

MAX_EXPIRY = 604_800
"""Seconds for which a presigned URL may be good: what S3, GCS and Azure all allow."""

# Visible ASCII, since it becomes a header when the artifact is served.
_MIME_TYPE = re.compile(r"[!-.0-~]+/[ -~]+")
_MAX_MIME_TYPE = 256
_VERSION_TOKEN = re.compile("0|[1-9][0-9]{0,17}")
_BYTES = (bytes, bytearray, memoryview)


@dataclass(frozen=True, slots=True)
class Draft:
    """A version that is about to be saved: checked, and sharing nothing with the caller but the stream."""

    name: str
    mime_type: str
    custom_metadata: dict[str, Any]
    display_name: str | None
    is_text: bool
    body: bytes | AsyncIterable[bytes]
    run_id: str | None = None

    @classmethod
    def of(
        cls,
        scope: ArtifactScope,
        name: str,
        data: Part | bytes | AsyncIterable[bytes],
        mime_type: str | None,
        custom_metadata: dict[str, Any] | None,
        run_id: str | None = None,
    ) -> Draft:
        """Checks the arguments of `save_artifact`.

        Raises:
            InvalidInput: `id.invalid`, `artifact.invalid_name`, `artifact.invalid_data`, `artifact.invalid_mime_type`,
                `json.invalid`.
        """
        scope.check()
        if run_id is not None:
            check_id(run_id, "run_id")
        check_artifact_name(name)
        blob = data.inline_data if isinstance(data, Part) else None
        is_text = isinstance(data, Part) and data.text is not None
        kind = mime_type
        if kind is None:
            kind = blob.mime_type if blob else "text/plain" if is_text else DEFAULT_MIME_TYPE
        display_name = blob.display_name if blob else None
        return cls(name, _mime_type(kind), _metadata(custom_metadata), display_name, is_text, _body(data, name), run_id)

    def version(self, version: int, size: int) -> ArtifactVersion:
        """What is known of the version once it has a number and a size."""
        return ArtifactVersion(
            name=self.name,
            version=version,
            mime_type=self.mime_type,
            size=size,
            created_at=platform.now(),
            custom_metadata=self.custom_metadata,
            display_name=self.display_name,
            is_text=self.is_text,
            run_id=self.run_id,
        )

    async def blocks(self) -> AsyncGenerator[bytes | bytearray]:
        """The bytes, in blocks of at least `BLOCK_BYTES` but for the last one; none if there are no bytes."""
        if isinstance(self.body, bytes):
            if self.body:
                yield self.body
            return
        block = bytearray()
        async for piece in self.body:
            if not isinstance(piece, _BYTES):
                raise _invalid_data(f"the stream for artifact {self.name!r} gave a {type(piece).__name__}")
            if not block and type(piece) is bytes and len(piece) >= BLOCK_BYTES:
                # Nobody can change it, so it need not be copied.
                yield piece
                continue
            block += piece
            if len(block) >= BLOCK_BYTES:
                yield block
                block = bytearray()
        if block:
            yield block


def check_target(scope: ArtifactScope, name: str, version: int | None = None) -> None:
    """Checks what a call names.

    Raises:
        InvalidInput: `id.invalid`, `artifact.invalid_name`, `artifact.invalid_version`.
    """
    scope.check()
    check_artifact_name(name)
    if version is not None:
        check_version(version)


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes of a version that somebody wants to read."""

    start: int
    end: int | None

    @classmethod
    def of(cls, start: object, end: object) -> ByteRange:
        """Checks the range that is given to `open_artifact`.

        Raises:
            InvalidInput: `artifact.invalid_range`.
        """
        if not _is_offset(start) or not (end is None or (_is_offset(end) and end >= start)):
            raise InvalidInput(
                f"bytes {start!r} to {end!r} are no range; give a start from 0 on and an end that is not before it",
                code="artifact.invalid_range",
            )
        return cls(start, end)

    def within(self, size: int) -> tuple[int, int]:
        """The first byte and the one to stop before, of bytes of this size."""
        end = size if self.end is None else min(self.end, size)
        return min(self.start, end), end


def _is_offset(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_names_page(limit: object, after: object) -> tuple[int, str]:
    """Checks the arguments of a page of names; gives the name that the page starts after, "" for the first page.

    Raises:
        InvalidInput: `page.invalid`.
    """
    size = check_page(limit)
    try:
        return size, "" if after is None else check_artifact_name(after)
    except InvalidInput:
        raise _invalid_token(after) from None


def check_versions_page(limit: object, after: object) -> tuple[int, int]:
    """Checks the arguments of a page of versions; gives the version that the page starts with.

    Raises:
        InvalidInput: `page.invalid`.
    """
    size = check_page(limit)
    if after is None:
        return size, 0
    if isinstance(after, str) and _VERSION_TOKEN.fullmatch(after):
        return size, int(after) + 1
    raise _invalid_token(after)


def page_of_names(names: Iterable[str], limit: int, after: str) -> Page[str]:
    """The page after a name, of names in any order."""
    items = heapq.nsmallest(limit + 1, (name for name in names if name > after))
    return Page(items[:limit], items[limit - 1] if len(items) > limit else None)


def page_of_versions(infos: list[ArtifactVersion], limit: int) -> Page[ArtifactVersion]:
    """The page of the first `limit` versions; the list goes on beyond them if there are more."""
    return Page(infos[:limit], str(infos[limit - 1].version) if len(infos) > limit else None)


def _invalid_token(token: object) -> InvalidInput:
    return InvalidInput(f"{token!r} is not a page token; pass Page.next of the page before", code="page.invalid")


def check_expiry(seconds: object) -> int:
    """The whole seconds for which a presigned URL is to be good.

    Raises:
        InvalidInput: `artifact.invalid_expiry`.
    """
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 1 <= seconds <= MAX_EXPIRY:
        return math.floor(seconds)
    raise InvalidInput(f"expires_in is {seconds!r}; give 1 to {MAX_EXPIRY} seconds", code="artifact.invalid_expiry")


def no_urls(service: str) -> Unsupported:
    """There are no presigned URLs for what is kept there."""
    return Unsupported(
        f"{service} has no presigned URLs; load the artifact, or keep artifacts in S3ArtifactService", code="artifact.no_urls"
    )


def storable_mime_type(given: str) -> str:
    """A MIME type that an artifact may have: what somebody calls their bytes must not decide whether they are kept."""
    return given if _is_mime_type(given) else DEFAULT_MIME_TYPE


def _is_mime_type(value: str) -> bool:
    return len(value) <= _MAX_MIME_TYPE and _MIME_TYPE.fullmatch(value) is not None


def _mime_type(value: object) -> str:
    if isinstance(value, str) and _is_mime_type(value):
        return value
    raise InvalidInput(f"{value!r} is not a MIME type; use one like 'image/png'", code="artifact.invalid_mime_type")


def _metadata(value: dict[str, Any] | None) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"custom_metadata is a {type(value).__name__}; give a dict", code="json.invalid")
    copy: dict[str, Any] = jsonvalue.copy(value or {}, where="custom_metadata")
    return copy


def _body(data: object, name: str) -> bytes | AsyncIterable[bytes]:
    if isinstance(data, _BYTES):
        return bytes(data)
    if isinstance(data, Part):
        return _part_body(data, name)
    if isinstance(data, AsyncIterable):
        return data
    raise _invalid_data(f"artifact {name!r} cannot be saved from a {type(data).__name__}")


def _part_body(part: Part, name: str) -> bytes:
    if part.file_data is None and part.function_call is None and part.function_response is None:
        if part.inline_data is not None and part.text is None:
            return part.inline_data.data
        if part.text is not None and part.inline_data is None:
            return part.text.encode()
    raise _invalid_data(f"the part for artifact {name!r} is not one of either text or bytes")


def _invalid_data(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what}; give Part.from_bytes(...), Part.from_text(...), bytes, or an async iterator of bytes",
        code="artifact.invalid_data",
    )


def not_found(scope: ArtifactScope, name: str, version: int | None = None) -> NotFound:
    """The artifact, or this version of it, does not exist."""
    which = "" if version is None else f"version {version} of "
    return NotFound(f"{which}artifact {name!r} does not exist in session {scope}", code="artifact.not_found")


def damaged(name: str, version: int, why: str) -> Unavailable:
    """What is stored is not what was saved; trying again does not help."""
    return Unavailable(
        f"version {version} of artifact {name!r} is damaged: {why}; restore it from a backup, or delete the artifact",
        code="artifact.damaged",
        retryable=False,
    )

"""Moves what is too large for an event to artifacts, and back."""

from __future__ import annotations

import hashlib
from typing import Any

from sojourn import jsonvalue
from sojourn.artifact.rules import storable_mime_type
from sojourn.artifact.service import ArtifactService
from sojourn.artifact.types import ArtifactScope, artifact_uri, parse_artifact_uri
from sojourn.content import Content, FileData, FunctionResponse, Part
from sojourn.errors import LimitExceeded
from sojourn.event import INLINE_BYTES, SPILLED, Event
from sojourn.page import MAX_PAGE, each_item
from sojourn.session.types import Session

DIGEST = "digest"
"""Key in a spilled message's `custom_metadata` under which it keeps the hash of what it was."""


def digest(content: Content) -> str:
    """A hash that tells whether two contents are the same."""
    return hashlib.sha256(content.to_json().encode()).hexdigest()


def is_large(event: Event, max_bytes: int) -> bool:
    """Whether something of the event must be moved."""
    size = 0
    structured = event.output is not None or bool(event.actions.model_fields_set) or event.custom_metadata is not None
    structured = structured or event.error_message is not None
    for part in event.content.parts if event.content is not None else ():
        if part.text is not None:
            size += len(part.text)
        elif part.inline_data is not None:
            if len(part.inline_data.data) > INLINE_BYTES:
                return True
            size += len(part.inline_data.data) * 4 // 3
        else:
            structured = True
    # Characters may take several bytes: only near the bound is it worth encoding the event to know.
    if structured or size * 4 > max_bytes:
        return len(event.to_json().encode()) > max_bytes
    return False


async def spill(event: Event, service: ArtifactService, session: Session, max_bytes: int) -> Event:
    """Returns the event with its large parts replaced by references.

    Bytes of more than 64 KiB always go; if the event is still too large, its texts, function responses and output go,
    the largest first.

    Raises:
        LimitExceeded: `event.too_large` if what remains is too large: state deltas and function calls stay.
    """
    scope = scope_of(session)
    parts = list(event.content.parts) if event.content is not None else []
    moved: list[str] = list((event.custom_metadata or {}).get(SPILLED, []))
    delta = dict(event.actions.artifact_delta)

    async def save(label: str, data: bytes, mime_type: str) -> str:
        name = f"{_folder(event.id)}{label.replace(':', '-')}"
        version = delta[name] = await service.save_artifact(scope, name, data, mime_type=storable_mime_type(mime_type))
        return artifact_uri(name, version)

    def changed() -> Event:
        content = Content(event.content.role, tuple(parts)) if event.content is not None else None
        metadata = {**(event.custom_metadata or {}), SPILLED: moved} if moved else event.custom_metadata
        return event.evolve(
            content=content, actions=event.actions.model_copy(update={"artifact_delta": delta}), custom_metadata=metadata
        )

    for i, part in enumerate(parts):
        blob = part.inline_data
        if blob is not None and len(blob.data) > INLINE_BYTES:
            uri = await save(f"bytes:{i}", blob.data, blob.mime_type)
            parts[i] = Part(file_data=FileData(file_uri=uri, mime_type=blob.mime_type, display_name=blob.display_name))
    event = changed()
    sizes = _sizes(event)
    while len(event.to_json().encode()) > max_bytes:
        if not sizes:
            raise LimitExceeded(
                f"event {event.id} of run {event.run_id!r} has more than {max_bytes} bytes even without its texts and results; "
                "keep large data in artifacts instead of state or arguments",
                code="event.too_large",
                retryable=False,
            )
        _, label, data = sizes.pop()
        uri = await save(label, data, "text/plain" if label.startswith("text") else "application/json")
        moved.append(label)
        kind, _, index = label.partition(":")
        if kind == "output":
            event = event.evolve(output={"artifact": uri})
        else:
            parts[int(index)] = _reference(kind, parts[int(index)], uri)
        event = changed()
    return event


def _reference(kind: str, part: Part, uri: str) -> Part:
    """What an event has in place of a text or a function response that was moved."""
    if kind == "text":
        return Part(file_data=FileData(file_uri=uri, mime_type="text/plain"))
    old = part.function_response
    assert old is not None
    return Part(function_response=FunctionResponse(id=old.id, name=old.name, response={"artifact": uri}))


def _sizes(event: Event) -> list[tuple[int, str, bytes]]:
    """What can be moved, smallest first."""
    found: list[tuple[int, str, bytes]] = []
    for i, part in enumerate(event.content.parts if event.content is not None else ()):
        if part.text is not None and not part.thought:
            data = part.text.encode()
            found.append((len(data), f"text:{i}", data))
        elif part.function_response is not None:
            data = jsonvalue.encode(part.function_response.response).encode()
            found.append((len(data), f"response:{i}", data))
    if event.output is not None:
        data = jsonvalue.encode(event.output).encode()
        found.append((len(data), "output", data))
    return sorted(found, key=lambda f: f[:2])


async def take_back(event_id: str, service: ArtifactService, session: Session) -> None:
    """Deletes what `spill` has moved of an event that was not stored."""
    scope = scope_of(session)
    async for name in each_item(lambda after: service.list_artifact_names(scope, limit=MAX_PAGE, after=after)):
        if name.startswith(_folder(event_id)):
            await service.delete_artifact(scope, name)


def _folder(event_id: str) -> str:
    return f"spilled/{event_id}/"


async def restore(event: Event, service: ArtifactService, session: Session) -> Event:
    """Returns the event with what `spill` moved put back, but for large bytes."""
    moved = (event.custom_metadata or {}).get(SPILLED, [])
    parts = list(event.content.parts) if event.content is not None else []
    output: Any = event.output
    for label in moved:
        kind, _, index = label.partition(":")
        if kind == "output":
            output = jsonvalue.decode(await _load(service, session, output["artifact"]))
        elif kind == "text":
            reference = parts[int(index)].file_data
            assert reference is not None
            parts[int(index)] = Part(text=(await _load(service, session, reference.file_uri)).decode())
    content = Content(event.content.role, tuple(parts)) if event.content is not None else None
    return event.evolve(content=content, output=output)


async def _load(service: ArtifactService, session: Session, uri: str) -> bytes:
    name, version = parse_artifact_uri(uri)
    part = await service.load_artifact(scope_of(session), name, version)
    if part.inline_data is not None:
        return part.inline_data.data
    return (part.text or "").encode()


def scope_of(session: Session) -> ArtifactScope:
    """Where a session's artifacts are kept."""
    return ArtifactScope(session.app_name, session.user_id, session.id, session.uid)

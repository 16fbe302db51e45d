"""A model's answer as the JSON that its step keeps; files that are too large for that are artifacts before it is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai.messages import BinaryContent, FilePart, ModelResponse

from sojourn import jsonvalue, platform
from sojourn.agents.context import Context
from sojourn.agents.effects import Effects
from sojourn.artifact.rules import storable_mime_type
from sojourn.artifact.types import artifact_uri, parse_artifact_uri
from sojourn.errors import Unsupported
from sojourn.event import INLINE_BYTES

FILES = "files"
"""Key of a recorded answer under which it has the URIs of its files that are artifacts, by the parts' numbers."""

DONE = "effects"
"""Key of a recorded answer under which it has what callbacks have done besides."""

EVENT_BYTES = 4096
"""What an answer's event may take besides what its step does."""

_response: TypeAdapter[ModelResponse] = TypeAdapter(ModelResponse)


async def recorded(ctx: Context, response: ModelResponse) -> tuple[dict[str, Any], dict[int, str]]:
    """An answer as JSON.

    Its files of more than 64 KiB are saved as artifacts, and if it is still too large for a step, the others are as well. The
    agent's next event tells that they were saved.

    Returns:
        The JSON, and the URIs of the files that are artifacts, by the parts' numbers.

    Raises:
        Unsupported: `artifact.not_configured`.
    """
    sizes = {i: len(part.content.data) for i, part in enumerate(response.parts) if isinstance(part, FilePart)}
    if not sizes:
        return _dumped(response), {}
    name = f"spilled/{platform.new_id()}"
    files = {i: await _saved(ctx, f"{name}/bytes-{i}", response.parts[i]) for i in sizes if sizes[i] > INLINE_BYTES}
    kept = _dumped(_with_bytes(response, dict.fromkeys(files, b"")))
    if len(files) < len(sizes) and jsonvalue.size(kept) + EVENT_BYTES > ctx.run_config.max_event_bytes:
        files |= {i: await _saved(ctx, f"{name}/bytes-{i}", response.parts[i]) for i in sizes.keys() - files.keys()}
        kept = _dumped(_with_bytes(response, dict.fromkeys(files, b"")))
    if files:
        kept[FILES] = {str(i): uri for i, uri in files.items()}
    return kept, files


async def restored(ctx: Context, kept: Mapping[str, Any]) -> tuple[ModelResponse, dict[int, str]]:
    """What `recorded` made JSON of, in a later attempt; the agent's next event tells of its files as it did the first time.

    Returns:
        The answer, and the URIs of its files that are artifacts.

    Raises:
        NotFound: `artifact.not_found`.
        Unsupported: `artifact.not_configured`.
    """
    response = _response.validate_python(kept)
    files = {int(i): uri for i, uri in kept.get(FILES, {}).items()}
    if not files:
        return response, files
    found: dict[int, bytes] = {}
    told: dict[str, int] = {}
    for i, uri in files.items():
        name, version = parse_artifact_uri(uri)
        blob = (await ctx.artifacts.load(name, version)).inline_data
        found[i] = blob.data if blob is not None else b""
        told[name] = version
    ctx.join(Effects(artifacts=told))
    return _with_bytes(response, found), files


def _dumped(response: ModelResponse) -> dict[str, Any]:
    # Not `exclude_defaults`: what kind a part is, is a default.
    dumped: dict[str, Any] = _response.dump_python(response, mode="json", exclude_none=True)
    return dumped


async def _saved(ctx: Context, name: str, part: Any) -> str:
    file = part.content
    try:
        artifacts = ctx.artifacts
    except Unsupported as error:
        raise Unsupported(
            f"the model of agent {ctx.agent_name!r} answered with a file of {len(file.data)} bytes, which is too large for the "
            "log and is kept as an artifact, but no artifact service is configured; pass artifact_service= to the Runner",
            code=error.code,
        ) from None
    return artifact_uri(name, await artifacts.save(name, file.data, mime_type=storable_mime_type(file.media_type)))


def _with_bytes(response: ModelResponse, found: Mapping[int, bytes]) -> ModelResponse:
    """An answer whose files have other bytes."""
    parts = list(response.parts)
    for i, data in found.items():
        part = parts[i]
        assert isinstance(part, FilePart)
        file = part.content
        # What it is called goes by the bytes that it has had from the beginning.
        content = BinaryContent(
            data, media_type=file.media_type, identifier=file.identifier, vendor_metadata=file.vendor_metadata
        )
        parts[i] = replace(part, content=BinaryContent.narrow_type(content))
    return replace(response, parts=parts)

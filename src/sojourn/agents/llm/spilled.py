"""Results and outputs that were too large for their events, as a model is shown them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sojourn import jsonvalue
from sojourn.agents.context import Context
from sojourn.agents.llm.conversation import wrapped_result
from sojourn.artifact.types import parse_artifact_uri
from sojourn.content import Content, FunctionResponse, Part
from sojourn.errors import InvalidInput, NotFound, Unsupported
from sojourn.event import SPILLED, Event

MAX_SHOWN = 262_144
"""Bytes up to which one of them is shown in full."""

MAX_SHOWN_IN_ALL = 1_048_576
"""Bytes of them that one conversation shows; the newest come first."""

LOAD_TOOL = "load_artifact"
"""The tool by which a model reads an artifact, if its agent has it."""


async def shown_again(ctx: Context, events: Sequence[Event], *, can_load: bool) -> list[Event]:
    """Events with the results and outputs in their place that were moved to artifacts.

    What is too large to be shown is replaced by a note that says where it is.

    Args:
        ctx: The agent's context.
        events: In order.
        can_load: Whether the model has a tool to load it with.
    """
    shown = list(events)
    loader = _Loader(ctx, can_load, MAX_SHOWN_IN_ALL)
    for i in reversed(range(len(shown))):
        metadata = shown[i].custom_metadata
        if metadata is not None and isinstance(labels := metadata.get(SPILLED), list):
            shown[i] = await _with_moved(loader, shown[i], labels)
    return shown


async def _with_moved(loader: _Loader, event: Event, labels: Sequence[Any]) -> Event:
    if "output" in labels:
        event = event.evolve(output=await loader.value(event.output))
    parts = list(event.content.parts) if event.content is not None else []
    for i, part in enumerate(parts):
        if (given := part.function_response) is not None and f"response:{i}" in labels:
            response = wrapped_result(await loader.value(given.response))
            parts[i] = Part(function_response=FunctionResponse(id=given.id, name=given.name, response=response))
    return event.evolve(content=Content(event.content.role, tuple(parts))) if event.content is not None else event


@dataclass
class _Loader:
    """Loads what was moved, up to a bound."""

    ctx: Context
    can_load: bool
    left: int

    async def value(self, reference: Any) -> Any:
        """What a reference stands for, or a note."""
        uri = reference.get("artifact") if isinstance(reference, dict) else None
        if not isinstance(uri, str):
            return reference
        try:
            name, version = parse_artifact_uri(uri)
            size = await self._size(name, version)
            if size > min(MAX_SHOWN, self.left):
                return {"artifact": uri, "note": self._note(name, version, size)}
            part = await self.ctx.artifacts.load(name, version)
            value = jsonvalue.decode(part.inline_data.data if part.inline_data is not None else part.text or "null")
        except (InvalidInput, NotFound, Unsupported) as error:
            return {"artifact": uri, "note": f"cannot be shown: {error.code}"}
        except ValueError:
            # Whoever wrote the event has said that something was moved, and nothing was.
            return reference
        self.left -= size
        return value

    async def _size(self, name: str, version: int) -> int:
        versions = await self.ctx.artifacts.versions(name)
        return next((one.size for one in versions if one.version == version), 0)

    def _note(self, name: str, version: int, size: int) -> str:
        what = f"{size} bytes, too large to be shown again"
        if self.can_load:
            return f"{what}; {LOAD_TOOL} loads it, with name={name!r} and version={version}"
        return f"{what}; kept as the artifact {name!r}, version {version}"

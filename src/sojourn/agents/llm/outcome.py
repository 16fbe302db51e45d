"""What came of a tool's call, as the JSON that its step keeps, and what of it one event can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import BinaryContent, ToolReturn, UserContent
from pydantic_core import to_jsonable_python

from sojourn import jsonvalue
from sojourn.agents.context import Context
from sojourn.agents.effects import EFFECTS
from sojourn.content import Content
from sojourn.errors import SojournError, Unsupported
from sojourn.event import Event, EventActions

CALL_BYTES = 128
"""What an event takes for a call besides its name, its id, what it gave and what it did; or for a result that was moved."""

SURELY_FITS = 16_384
"""Bytes that no event takes for all but what its calls gave and did."""

_user_content: TypeAdapter[list[UserContent]] = TypeAdapter(
    list[UserContent], config={"ser_json_bytes": "base64", "val_json_bytes": "base64"}
)


def told(result: Any) -> dict[str, Any]:
    """A tool's result as JSON.

    Raises:
        ToolFailed: It cannot be.
    """
    content: Sequence[UserContent] | str | None = None
    if isinstance(result, ToolReturn):
        result, content = result.return_value, result.content
    elif isinstance(result, BinaryContent):
        result, content = f"{result.media_type}, which follows", [result]
    try:
        fields = {"result": jsonvalue.copy(to_jsonable_python(result), where="the result")}
        if content is not None:
            items: list[UserContent] = [content] if isinstance(content, str) else list(content)
            fields["content"] = _user_content.dump_python(items, mode="json")
    except ValueError as error:
        raise ToolFailed(f"the tool returned a {type(result).__name__}, which is not JSON: {error}") from None
    except SojournError as error:
        raise ToolFailed(f"the tool returned what is not JSON: {error.message}") from None
    return fields


def returned(outcome: Mapping[str, Any]) -> Any:
    """The result that `told` made JSON of, as pydantic-ai takes it from a tool."""
    if "content" in outcome:
        return ToolReturn(outcome["result"], content=_user_content.validate_python(outcome["content"]))
    return outcome["result"]


def effects_of(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What of an outcome says what the call did besides giving a result."""
    return {key: value for key, value in outcome.items() if key in EFFECTS}


class Room:
    """How much of what calls gave and did one event of an agent's can hold.

    Args:
        ctx: The agent's context.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._max_bytes = ctx.run_config.max_event_bytes

    def bounded(self, name: str, call_id: str, outcome: dict[str, Any]) -> dict[str, Any]:
        """An outcome that a step and an event may have; a failure in place of one that is too large for that."""
        size = jsonvalue.size(outcome)
        if size + SURELY_FITS <= self._max_bytes:
            return outcome
        effects = effects_of(outcome)
        done = self.size_of(name, call_id, {}, effects)
        if done > self._bytes:
            written = jsonvalue.size(effects)
            return {
                "failed": f"it wrote {written} bytes of state, and events hold {self._max_bytes} in all; nothing of that was "
                "kept: write less, or keep it in artifacts"
            }
        # A result can be moved to the artifacts, where there are any.
        if size > self._max_bytes or (done + jsonvalue.size(outcome["result"]) > self._bytes and not self._has_artifacts):
            return {
                "failed": f"the result is too large: {size} bytes, and events hold {self._max_bytes} in all; ask for less of it"
            }
        return outcome

    def shared_out(self, sizes: Iterable[int]) -> list[int]:
        """How many of several calls go into each of as few events as hold them, in their order."""
        counts: list[int] = []
        left = 0
        for size in sizes:
            if counts and size <= left:
                counts[-1] += 1
                left -= size
            else:
                counts.append(1)
                left = self._bytes - size
        return counts

    def size_of(self, name: str, call_id: str, response: Any, effects: Mapping[str, Any]) -> int:
        """How many bytes of an event a call takes."""
        return jsonvalue.size([name, call_id, response, effects]) + CALL_BYTES

    @cached_property
    def _bytes(self) -> int:
        """What an event has room for besides what is the same in all of the agent's."""
        ctx = self._ctx
        empty = Event(
            id="i" * 36,
            run_id=ctx.run_id,
            author=ctx.agent_name,
            branch=ctx.branch,
            timestamp=1e10 / 3,
            ordinal=10**9,
            attempt=10**6,
            content=Content("user", ()),
            actions=EventActions(transfer_to_agent="a" * 256, skip_summarization=True, escalate=True),
        )
        return self._max_bytes - len(empty.to_json().encode())

    @property
    def _has_artifacts(self) -> bool:
        try:
            return self._ctx.artifacts is not None
        except Unsupported:
            return False

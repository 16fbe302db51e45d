"""Memory: what is recalled across a user's sessions."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from sojourn.content import Content, Part, Value
from sojourn.jsonvalue import JsonValue


class Memory(Value):
    """One entry of a user's memory.

    `Memory("likes tea")` is an entry of text; `Memory(content=...)` one of any content that has some text.

    Attributes:
        id: Unique among the user's entries; made when the entry is added, if empty.
        content: What is remembered. Searches look at its text.
        author: Who said it: `user`, or the name of an agent. None if nobody in particular.
        timestamp: When it was said, in seconds since the epoch; the time of adding if 0.
        session_id: The session that it comes from, if any.
        score: In what `search` returns, how well it fits the query: from above 0 to 1, more is better. The scale is the
            service's own, so only scores of one service can be compared. None elsewhere.
        metadata: Anything to keep beside it.
    """

    id: str = ""
    content: Content
    author: str | None = None
    timestamp: float = 0.0
    session_id: str | None = None
    score: float | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    def __init__(self, text: str | None = None, **data: Any) -> None:
        if text is not None:
            data.setdefault("content", Content(None, (Part(text=text),)))
        super().__init__(**data)

    @property
    def text(self) -> str:
        """The text that is remembered."""
        return self.content.text


class MemoryFilter(Value):
    """Which entries a search may find. An entry must meet every condition that is set; without any, all do.

    Attributes:
        author: Only entries of this author.
        session_id: Only entries of this session, however they were added.
        metadata: Only entries whose metadata has each of these keys with an equal value. Values are equal if they are the same
            JSON: numbers by what they are (1 and 1.0), `true` is no number, lists in their order, objects whatever the order
            of their keys. A key with None is met by an entry that has the key with None, not by one without the key.
        since: Only entries with this timestamp or a later one, in seconds since the epoch.
        until: Only entries with an earlier timestamp than this.
    """

    model_config = ConfigDict(extra="forbid")

    author: str | None = None
    session_id: str | None = None
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    since: float | None = None
    until: float | None = None

"""Memory: what is recalled across a user's sessions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

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

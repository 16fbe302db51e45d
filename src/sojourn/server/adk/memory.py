"""What is remembered for a user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from sojourn.agents.context import not_configured
from sojourn.content import Content, Value
from sojourn.jsonvalue import JsonValue
from sojourn.memory.types import Memory
from sojourn.page import MAX_PAGE
from sojourn.server.access import CallerDep
from sojourn.server.adk.bodies import SessionToRemember
from sojourn.server.jsonbody import JsonRoute

router = APIRouter(prefix="/apps/{app_name}/users/{user_id}/memory", tags=["adk"], route_class=JsonRoute)


class MemoryEntry(Value):
    """One entry of a user's memory, as google-adk has it.

    Attributes:
        id: Unique among the user's entries.
        content: What is remembered.
        author: Who said it.
        timestamp: When (ISO 8601, UTC).
        custom_metadata: What is kept beside it.
        session_id: The session that it comes from.
        score: How well it fits the query: from above 0 to 1.
    """

    id: str
    content: Content
    author: str | None = None
    timestamp: str
    custom_metadata: dict[str, JsonValue]
    session_id: str | None = None
    score: float | None = None


class Memories(Value):
    """What a search has found, best first."""

    memories: list[MemoryEntry]


@router.patch("", summary="Add a session to memory")
async def add_session_to_memory(app_name: str, user_id: str, caller: CallerDep, wanted: SessionToRemember) -> None:
    """Adds what was said in a session to its user's memory; adding it again replaces what was added before."""
    runner = caller.runner(app_name)
    await runner.add_session_to_memory(caller.user(user_id), wanted.session_id)


@router.get("", summary="Search memory", response_model_exclude_none=True)
async def search_memory(
    app_name: str,
    user_id: str,
    caller: CallerDep,
    query: Annotated[str, Query(description="Words or a sentence.")],
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many.")] = 5,
) -> Memories:
    """Finds what is remembered for the user. google-adk has no such route."""
    runner = caller.runner(app_name)
    user = caller.user(user_id)
    if runner.memory is None:
        raise not_configured("memory")
    found = await runner.memory.search(runner.app_name, user, query, limit=limit)
    return Memories(memories=[_entry(memory) for memory in found])


def _entry(memory: Memory) -> MemoryEntry:
    return MemoryEntry(
        id=memory.id,
        content=memory.content,
        author=memory.author,
        timestamp=datetime.fromtimestamp(memory.timestamp, UTC).isoformat(),
        custom_metadata=memory.metadata,
        session_id=memory.session_id,
        score=memory.score,
    )

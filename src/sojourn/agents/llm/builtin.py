"""Tools that an agent may be given as they are: over the user's memory and the session's artifacts."""

from __future__ import annotations

from typing import Any

from pydantic_ai.messages import ToolReturn

from sojourn.agents.llm.conversation import file_content
from sojourn.agents.llm.tool import ToolContext, tool
from sojourn.artifact.types import artifact_uri
from sojourn.content import FileData


@tool
async def load_memory(query: str, context: ToolContext, limit: int = 5) -> list[dict[str, Any]]:
    """Finds what is remembered from earlier conversations with this user.

    Args:
        query: Words to look for.
        context: Of the call.
        limit: How many memories to give at most.
    """
    found = await context.memory.search(query, limit=max(1, min(limit, 50)))
    return [{"text": memory.text, "session_id": memory.session_id} for memory in found]


@tool
async def save_memory(text: str, context: ToolContext) -> str:
    """Remembers something about this user for later conversations.

    Args:
        text: What to remember, in a sentence that can be understood without this conversation.
        context: Of the call.
    """
    await context.memory.add(text)
    return "remembered"


@tool
async def list_artifacts(context: ToolContext) -> list[str]:
    """Lists the names of the files of this conversation; those that begin with 'user:' belong to all of the user's."""
    return await context.artifacts.names()


@tool
async def load_artifact(name: str, context: ToolContext, version: int | None = None) -> Any:
    """Loads a file of this conversation.

    Args:
        name: The file's name.
        context: Of the call.
        version: The version, counted from 0; the newest if omitted.
    """
    if version is None:
        versions = await context.artifacts.versions(name)
        version = versions[-1].version if versions else 0
    part = await context.artifacts.load(name, version)
    if part.text is not None:
        return part.text
    kind = part.inline_data.mime_type if part.inline_data is not None else ""
    if part.inline_data is not None and kind == "application/json":
        # Models take JSON as text; results that were too large for the log are kept as such files.
        return part.inline_data.data.decode(errors="replace")
    shown = await file_content(context, FileData(file_uri=artifact_uri(name, version), mime_type=kind))
    return shown if isinstance(shown, str) else ToolReturn(f"the file {name}, {kind}, follows", content=[shown])


@tool
async def save_artifact(name: str, text: str, context: ToolContext) -> str:
    """Saves a text as a file of this conversation, as a new version if there is one of this name.

    Args:
        name: The file's name, for example 'report.md'.
        text: What is in it.
        context: Of the call.
    """
    version = await context.artifacts.save(name, text)
    return f"saved {name}, version {version}"

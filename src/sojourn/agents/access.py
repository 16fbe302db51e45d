"""What an agent has of its session's artifacts and its user's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sojourn.content import Part
from sojourn.page import MAX_PAGE, each_item

if TYPE_CHECKING:
    from sojourn.agents.context import Context
    from sojourn.artifact.service import ArtifactService
    from sojourn.artifact.types import ArtifactScope, ArtifactVersion
    from sojourn.memory.service import MemoryService
    from sojourn.memory.types import Memory, MemoryFilter
    from sojourn.session.types import Session


class ArtifactAccess:
    """A session's artifacts, for an agent.

    Each save is told by the agent's next event (`artifact_delta`). If there is none, because the agent fails, is stopped or
    asks a person, an event at the end of the attempt tells it; if its process dies, one at the end of the next attempt.
    """

    def __init__(self, service: ArtifactService, ctx: Context) -> None:
        self._service = service
        self._ctx = ctx

    @property
    def _scope(self) -> ArtifactScope:
        from sojourn.artifact.types import ArtifactScope

        session = self._ctx.session
        return ArtifactScope(session.app_name, session.user_id, session.id, session.uid)

    async def save(
        self,
        name: str,
        data: Part | bytes | str,
        *,
        mime_type: str | None = None,
        custom_metadata: dict[str, Any] | None = None,
    ) -> int:
        """Saves a version.

        Args:
            name: A relative path; `user:` in front shares it among the user's sessions.
            data: A part with bytes or text, bytes, or text.
            mime_type: Media type; taken from the part, or `text/plain` for text, if omitted.
            custom_metadata: Kept with the version.

        Returns:
            The version: 0, 1, 2 …
        """
        if isinstance(data, str):
            data = Part(text=data)
        return await self._ctx._attempt.save_artifact(self._ctx, name, data, mime_type, custom_metadata)

    async def load(self, name: str, version: int | None = None) -> Part:
        """Loads a version, the newest if omitted; `NotFound`, `artifact.not_found`, if there is none."""
        return await self._service.load_artifact(self._scope, name, version)

    async def names(self) -> list[str]:
        """The names of the session's and the user's artifacts, sorted."""
        scope = self._scope
        pages = each_item(lambda after: self._service.list_artifact_names(scope, limit=MAX_PAGE, after=after))
        return [name async for name in pages]

    async def versions(self, name: str) -> list[ArtifactVersion]:
        """The versions of an artifact, oldest first."""
        scope = self._scope
        pages = each_item(lambda after: self._service.list_versions(scope, name, limit=MAX_PAGE, after=after))
        return [version async for version in pages]

    async def delete(self, name: str) -> None:
        """Deletes all versions of an artifact."""
        await self._service.delete_artifact(self._scope, name)


class MemoryAccess:
    """The user's memory, for an agent."""

    def __init__(self, service: MemoryService, session: Session) -> None:
        self._service = service
        self._session = session

    async def search(
        self, query: str, *, limit: int = 5, min_score: float | None = None, filter: MemoryFilter | None = None
    ) -> list[Memory]:
        """Finds what the user's sessions recall, best first; see `MemoryService.search`."""
        session = self._session
        return await self._service.search(
            session.app_name, session.user_id, query, limit=limit, min_score=min_score, filter=filter
        )

    async def add(self, *texts: str) -> None:
        """Remembers texts for all of the user's sessions."""
        from sojourn.memory.types import Memory

        entries = [Memory(text=text, session_id=self._session.id) for text in texts]
        await self._service.add(self._session.app_name, self._session.user_id, entries)

"""What the agents of an attempt save as artifacts: each save is told by an event, whatever becomes of who saved."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sojourn import platform
from sojourn.agents.context import Context
from sojourn.artifact.service import ArtifactService
from sojourn.content import Part
from sojourn.errors import InvalidInput, NotFound
from sojourn.event import Event, EventActions
from sojourn.page import MAX_PAGE, Page, each_item
from sojourn.runner.attempt.spill import scope_of

if TYPE_CHECKING:
    from sojourn.run.store import Store
    from sojourn.run.types import RunRecord
    from sojourn.session.types import Session

logger = logging.getLogger("sojourn.run")

LOOK_SECONDS = 30.0
"""How long the end of an attempt may be kept waiting by the search for what was saved unknown to it."""


class Saves:
    """The saves of one attempt, and which of them events have told.

    Of several versions of one artifact, the newest is to be told: that is what an event says of the time since the one
    before it.

    Args:
        service: Where they go.
        session: Whose they are.
        record: The run, as the attempt found it.
    """

    def __init__(self, service: ArtifactService, session: Session, record: RunRecord) -> None:
        self._service = service
        self._scope = scope_of(session)
        self._record = record
        self._saved: dict[str, int] = {}
        self._told: set[tuple[str, int]] = set()
        # Whether there may be a save that nobody knows of: its process died, or the reply was lost.
        self._unsure = record.deaths > 0

    async def save(
        self, ctx: Context, name: str, data: Part | bytes, mime_type: str | None, custom_metadata: dict[str, Any] | None
    ) -> int:
        """Saves a version for an agent, whose next event tells it."""
        try:
            version = await self._service.save_artifact(
                self._scope, name, data, mime_type=mime_type, custom_metadata=custom_metadata, run_id=self._record.id
            )
        except InvalidInput:
            raise
        except BaseException:
            self._unsure = True
            raise
        self._saved[name] = version
        if ctx._artifact_delta is None:
            ctx._artifact_delta = {}
        ctx._artifact_delta[name] = version
        return version

    def tell(self, event: Event) -> None:
        """Takes note of what a stored event tells."""
        self._told.update(event.actions.artifact_delta.items())

    def untold(self, events: Iterable[Event], author: str, ordinal: int) -> Event | None:
        """An event that tells what neither those stored do nor these, which are about to be; None if there is nothing."""
        told = self._told.union(*(event.actions.artifact_delta.items() for event in events))
        left = {name: version for name, version in self._saved.items() if (name, version) not in told}
        if not left:
            return None
        return Event(
            id=platform.new_id(),
            run_id=self._record.id,
            author=author,
            timestamp=platform.now(),
            ordinal=ordinal,
            attempt=self._record.attempt,
            actions=EventActions(artifact_delta=left),
        )

    async def find_unknown(self, store: Store) -> None:
        """Finds what the run has saved without this attempt knowing; a service that is away is logged, and nothing found."""
        if not self._unsure:
            return
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._read_told(store)
                async for name in each_item(self._names):
                    await self._look_at(name)
        except asyncio.CancelledError:
            # The attempt must come to its end all the same.
            logger.warning("run %s: the search for untold artifacts was cut off", self._record.id)
        except Exception as error:
            # Nor must a service that is broken keep it from that.
            logger.warning("run %s: artifacts saved before a crash may stay untold: %r", self._record.id, error)

    async def _read_told(self, store: Store) -> None:
        after = 0
        while events := await store.run_events(self._record.uid, after=after, limit=MAX_PAGE):
            for event in events:
                self.tell(event)
            after = events[-1].pos or 0

    async def _names(self, after: str | None) -> Page[str]:
        return await self._service.list_artifact_names(self._scope, limit=MAX_PAGE, after=after)

    async def _look_at(self, name: str) -> None:
        pages = each_item(lambda after: self._service.list_versions(self._scope, name, limit=MAX_PAGE, after=after))
        try:
            own = [version.version async for version in pages if version.run_id == self._record.id]
        except NotFound:
            return
        if own:
            self._saved[name] = own[-1]

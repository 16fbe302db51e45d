"""What the executions of one Runner share."""

from __future__ import annotations

import logging

from sojourn.agents.base import check_tree
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content
from sojourn.errors import InvalidInput, SojournError
from sojourn.event import Event
from sojourn.ids import check_id
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.page import MAX_PAGE
from sojourn.run.config import RunConfig
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.runner.config import Default, RunnerConfig
from sojourn.runner.plugins import PluginChain
from sojourn.session.types import Session, SessionKey
from sojourn.store.inmemory import InMemorySessionService

logger = logging.getLogger("sojourn.run")

DEFAULT_MEMORIES = 5
"""How many memories are found for a message if a memory service was given and `inject_memory` is not set."""


class Services:
    """A Runner's parts, checked, with the defaults put in.

    Raises:
        InvalidInput: `id.invalid`, `agent.invalid`, `agent.duplicate_name`, `runner.invalid`.
    """

    def __init__(self, config: RunnerConfig) -> None:
        self.app_name = check_id(config.app_name, "app_name")
        self.agent = config.agent
        if not hasattr(config.agent, "walk"):
            raise InvalidInput(
                f"agent is {config.agent!r}, which is not an agent; decorate a function with @agent or subclass Agent",
                code="agent.invalid",
            )
        check_tree(config.agent)
        self.owns_store = isinstance(config.session_service, Default)
        self.store: Store = InMemorySessionService() if isinstance(config.session_service, Default) else config.session_service
        if self.store is None:
            raise InvalidInput("session_service is None; omit it for sessions in memory", code="runner.invalid")
        self.artifacts = InMemoryArtifactService() if isinstance(config.artifact_service, Default) else config.artifact_service
        self.memory = InMemoryMemoryService() if isinstance(config.memory_service, Default) else config.memory_service
        given = not isinstance(config.memory_service, Default) and config.memory_service is not None
        self._memories = DEFAULT_MEMORIES if given else 0
        self.plugins = PluginChain(config.plugins)
        self.transfer_policy = config.transfer_policy
        self.ingests = config.memory_ingest == "on_run_end" and self.memory is not None
        self._run_config = config.run_config

    def run_config(self, record: RunRecord) -> RunConfig:
        """How a recorded run is to be run: the Runner's defaults and what the run overrides."""
        if not record.config:
            return self._run_config
        return self.merge(RunConfig.model_validate(record.config))

    def merge(self, overrides: RunConfig | None) -> RunConfig:
        """The Runner's defaults with the fields that are set in `overrides`."""
        if overrides is None:
            return self._run_config
        return self._run_config.model_copy(update={n: getattr(overrides, n) for n in overrides.model_fields_set})

    def inject_memory(self, config: RunConfig) -> int:
        """How many memories are found for a message."""
        if self.memory is None:
            return 0
        return self._memories if config.inject_memory is None else config.inject_memory

    async def find_memories(self, session: Session, message: Content, config: RunConfig) -> list[Memory]:
        """Finds what the user's memory has on a message; none if the memory service fails, which is logged."""
        text = message.text
        if self.memory is None or not text:
            return []
        try:
            return await self.memory.search(session.app_name, session.user_id, text, limit=self.inject_memory(config))
        except SojournError as error:
            logger.warning("memory search failed; the run goes on without memories: %s", error)
            return []

    async def add_to_memory(self, key: SessionKey) -> None:
        """Adds what counts in a session to the user's memory, in place of what was added of it before.

        Raises:
            NotFound: `session.not_found`.
        """
        assert self.memory is not None, "checked by the caller"
        app, user, session = key
        events: list[Event] = []
        while True:
            after = events[-1].seq or 0 if events else 0
            page = await self.store.list_events(app_name=app, user_id=user, session_id=session, after=after, limit=MAX_PAGE)
            events.extend(page)
            if len(page) < MAX_PAGE:
                break
        await self.memory.add_session(app, user, session, events)

    async def ingest(self, record: RunRecord) -> None:
        """Adds a session to memory after one of its runs; a failure is logged."""
        try:
            await self.add_to_memory(record.key)
        except SojournError as error:
            logger.warning("session %s was not added to memory: %s", record.key, error)

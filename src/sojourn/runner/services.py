"""What the executions of one Runner share."""

from __future__ import annotations

import logging

from sojourn import telemetry
from sojourn.agents.base import Agent, check_tree
from sojourn.agents.source import AgentSource
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.content import Content
from sojourn.errors import InvalidInput, SojournError
from sojourn.ids import check_id
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.run.config import RunConfig
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.runner.config import Default, RunnerConfig
from sojourn.runner.ingest import Ingest
from sojourn.runner.observe import Observers
from sojourn.runner.plugins import PluginChain
from sojourn.runner.tokens import TokenLimit
from sojourn.session.types import Session
from sojourn.store.inmemory import InMemorySessionService

logger = logging.getLogger("sojourn.run")

DEFAULT_MEMORIES = 5
"""How many memories are found for a message if a memory service was given and `inject_memory` is not set."""


class Services:
    """A Runner's parts, checked, with the defaults put in.

    Attributes:
        agent: The root agent; None if each user has one.
        agent_source: Where each user's agent comes from; None if all have the same.
        observers: Who is told what happens.
        tokens: How many tokens a user may spend; None for no bound.

    Raises:
        InvalidInput: `id.invalid`, `agent.invalid`, `agent.duplicate_name`, `runner.invalid`, `limit.invalid`.
    """

    def __init__(self, config: RunnerConfig) -> None:
        self.app_name = check_id(config.app_name, "app_name")
        self.agent_source: AgentSource | None = None
        self.agent: Agent | None = None
        # An agent first: it may happen to have methods of a source's names.
        if isinstance(config.agent, Agent) or not isinstance(config.agent, AgentSource):
            self.agent = _checked(config.agent)
        else:
            self.agent_source = config.agent
        self.owns_store = isinstance(config.session_service, Default)
        self.store: Store = InMemorySessionService() if isinstance(config.session_service, Default) else config.session_service
        if self.store is None:
            raise InvalidInput("session_service is None; omit it for sessions in memory", code="runner.invalid")
        self.artifacts = InMemoryArtifactService() if isinstance(config.artifact_service, Default) else config.artifact_service
        self.memory = InMemoryMemoryService() if isinstance(config.memory_service, Default) else config.memory_service
        given = not isinstance(config.memory_service, Default) and config.memory_service is not None
        self._memories = DEFAULT_MEMORIES if given else 0
        self.plugins = PluginChain(config.plugins)
        self.observers: Observers = []
        self.transfer_policy = config.transfer_policy
        self.ingest = Ingest(self.store, self.memory) if self.memory is not None else None
        self.ingests = config.memory_ingest == "on_run_end"
        self._run_config = config.run_config
        most, window = config.max_tokens_per_user, config.token_window
        self.tokens = TokenLimit(self.store, self.app_name, most, window) if most is not None else None

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
        with telemetry.Span("search_memory", {"gen_ai.operation.name": "search_memory"}) as span:
            try:
                found = await self.memory.search(session.app_name, session.user_id, text, limit=self.inject_memory(config))
            except SojournError as error:
                span.fail(error.code)
                logger.warning("memory search failed; the run goes on without memories: %s", error)
            except Exception as error:
                span.fail(telemetry.error_type(error))
                logger.exception("memory search failed with an error without a code; the run goes on without memories")
            else:
                span.set({"sojourn.memory.found": len(found)})
                return found
        return []


def _checked(agent: object) -> Agent:
    if not hasattr(agent, "walk"):
        raise InvalidInput(
            f"agent is {agent!r}, which is not an agent; decorate a function with @agent or subclass Agent",
            code="agent.invalid",
        )
    root: Agent = agent  # type: ignore[assignment]
    check_tree(root)
    return root

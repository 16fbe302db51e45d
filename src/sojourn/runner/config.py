"""What a Runner is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sojourn.agents.base import Agent
from sojourn.agents.source import AgentSource
from sojourn.artifact.service import ArtifactService
from sojourn.data.pruning import Retention
from sojourn.memory.service import MemoryService
from sojourn.run.config import RunConfig
from sojourn.run.store import Store
from sojourn.runner.plugins import Plugin

if TYPE_CHECKING:
    from sojourn.agents.context import Context


class Default:
    """Marks a service that was omitted: an in-memory one is used. An explicit None turns the service off."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT = Default()

TransferPolicy = Callable[["Context", Agent, Agent], "bool | str | None"]
"""Asked before each hand-over with the context, the agent that hands over and the one that would take over. False, or a
text that says why, denies it; True or None allows it."""


@dataclass(slots=True, kw_only=True)
class RunnerConfig:
    """What a Runner is made of.

    Attributes:
        app_name: The app; sessions, state, artifacts and memory belong to it.
        agent: The root agent, or where each user's comes from.
        session_service: The store of sessions and runs. In memory if omitted.
        artifact_service: In memory if omitted; None for none.
        memory_service: In memory if omitted; None for none.
        run_config: Defaults of the runs.
        plugins: Called around runs, agents, steps and events, in order.
        max_concurrency: Runs executing at once; 0 or less for no bound.
        max_concurrency_per_user: Of these, how many of one user; None for no bound.
        max_queue: Runs that may wait for their turn or a slot; None for no bound. Beyond: `limit.queue_full`, before
            anything is recorded.
        queue_timeout: Seconds a run may wait for its turn and a slot before it fails with `limit.queue_timeout`; None for
            no bound.
        max_tokens_per_user: Tokens, in and out, that one user may spend within `token_window`, in all sessions, as events tell
            of them (`usage_metadata`). Beyond, a run is refused before anything is recorded, and one under way makes no
            further model call: `user.max_tokens`. None for no bound.
        token_window: Seconds. Tokens are counted by the hour, and those of an hour until all of it has left the window.
        propagate: Context variables whose values at the call are handed into the run; it sees no others.
        transfer_policy: Governs hand-overs between agents.
        memory_ingest: `on_run_end`: what a run has said is added to the user's memory when it has completed, at a cost that
            depends on the run alone; `manual`: only by hand.
        retention: How long the app's data is kept. A Runner that executes runs removes in the background what was kept long
            enough. None for ever.
    """

    app_name: str
    agent: Agent | AgentSource
    session_service: Store | Default = DEFAULT
    artifact_service: ArtifactService | Default | None = DEFAULT
    memory_service: MemoryService | Default | None = DEFAULT
    run_config: RunConfig = field(default_factory=RunConfig)
    plugins: Sequence[Plugin] = ()
    max_concurrency: int = 100
    max_concurrency_per_user: int | None = None
    max_queue: int | None = 10_000
    queue_timeout: float | None = None
    max_tokens_per_user: int | None = None
    token_window: float = 86_400.0
    propagate: Sequence[ContextVar[Any]] = ()
    transfer_policy: TransferPolicy | None = None
    memory_ingest: Literal["on_run_end", "manual"] = "manual"
    retention: Retention | None = None

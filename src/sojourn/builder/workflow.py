"""WorkflowBuilder: makes what a Runner runs of a config."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from sojourn.agents.base import Agent, check_tree
from sojourn.agents.per_user import PerUserAgents
from sojourn.builder.agents import Agents
from sojourn.builder.load import ConfigLike, load_config
from sojourn.builder.making import Making
from sojourn.builder.references import root_of, walk
from sojourn.builder.schema import AppConfig, LlmAgentConfig
from sojourn.builder.services import artifact_service, memory_service, session_service
from sojourn.errors import InvalidInput, Unsupported
from sojourn.runner.config import RunnerConfig
from sojourn.runner.plugins import Plugin

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from sojourn.builder.models import Models
    from sojourn.builder.tools import Tools


_UNUSED = "test"
"""The model of agents that are given another one before they are used."""


class WorkflowBuilder:
    """Makes agents, and all that a Runner needs besides, of configs.

    The services that it makes are shared by all that it makes, and closed with it: it is entered (`async with`), or closed by
    hand. Agents are new each time; with their MCP servers they are closed by the Runner that they are given to.

    Args:
        model: Takes the place of the models of all agents: `provider:name`, or a model of pydantic-ai's.
        base_url: Where `model` is; as for `LlmAgent`.
        models: Take the place of single models, by the names that agents have for them.
        environ: Where `${NAME}` is looked up; `os.environ` if omitted.
    """

    def __init__(
        self,
        *,
        model: Model | str | None = None,
        base_url: str | None = None,
        models: Mapping[str, Model | str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        if base_url is not None and model is None:
            raise InvalidInput("base_url says where a model is; give model=, too", code="model.invalid")
        self._model = model
        self._base_url = base_url
        self._models = dict(models or {})
        self._environ = environ
        self._shared: dict[str, Any] = {}

    def load(self, config: ConfigLike) -> AppConfig:
        """Reads and checks a config; see `load_config`."""
        return load_config(config, environ=self._environ)

    @overload
    def build(self, config: ConfigLike) -> RunnerConfig: ...
    @overload
    def build(self, config: ConfigLike, user_id: str) -> Agent: ...
    def build(self, config: ConfigLike, user_id: str | None = None) -> RunnerConfig | Agent:
        """Makes what a Runner is made of. Modules that the config names are imported; nothing is connected to.

        Args:
            config: The path of an `app.yaml` or `app.json`, a mapping of the same values, or an `AppConfig`.
            user_id: Whose agents to make. With it, they alone are made: new ones, under the root.

        Raises:
            ConfigError: Whatever is wrong with it; an `InvalidInput` with `problems` that name file, line and remedy.
            InvalidInput: `model.no_key` and others for the `model` that was given to the builder.
            Unsupported: `config.no_yaml`, `model.not_installed`.
        """
        app = self.load(config)
        making = Making(app, self._shared)
        if user_id is not None:
            return self._root(making)
        fields: dict[str, Any] = {"app_name": app.app_name, "run_config": app.run_config.to_run_config()}
        fields |= _limits(app)
        fields["memory_ingest"] = app.services.memory_ingest
        if app.retention is not None:
            fields["retention"] = app.retention.to_retention()
        fields["session_service"] = making.tried(("services", "session"), lambda: session_service(app, making.once))
        fields["artifact_service"] = making.tried(("services", "artifacts"), lambda: artifact_service(app, making.once))
        fields["memory_service"] = making.tried(("services", "memory"), lambda: memory_service(app, making.once))
        fields["plugins"] = [
            making.tried(("plugins", i), partial(_plugin, making, i, dotted)) for i, dotted in enumerate(app.plugins)
        ]
        policy = app.transfer_policy
        if policy is not None:
            fields["transfer_policy"] = making.tried(
                ("transfer_policy",), lambda: making.function(("transfer_policy",), policy)
            )
        fields["propagate"] = [
            making.tried(("propagate", i), partial(_variable, making, i, dotted)) for i, dotted in enumerate(app.propagate)
        ]
        # Made also if each user gets agents of their own: what is wrong with them is told here, not to the first user.
        # It need not be closed then: an agent opens nothing before it is run.
        root = self._root(making)
        if not app.per_user:
            return RunnerConfig(agent=root, **fields)
        agents = PerUserAgents(partial(self.build, app), idle=app.per_user_idle, max_kept=app.per_user_max)
        return RunnerConfig(agent=agents, **fields)

    async def close(self) -> None:
        """Closes the services that were made. It may be used again."""
        shared, self._shared = self._shared, {}
        # On a stack: one that fails to close leaves none of the others open.
        async with AsyncExitStack() as stack:
            for part in shared.values():
                close = getattr(part, "close", None)
                if close is not None:
                    stack.push_async_callback(close)

    async def __aenter__(self) -> WorkflowBuilder:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- agents -----------------------------------------------------------------------------------------------------

    def _root(self, making: Making) -> Agent:
        """The root of new agents.

        Raises:
            ConfigError: If there are problems with them or with anything made before.
        """
        app = making.config
        models, tools = self._for_models(making)
        agents = Agents(making, models, tools)
        named = {child for _, agent in walk(app) for child in agent.sub_agents if isinstance(child, str)}
        made = {name: agents.named(name) for name in app.agents if name not in named}
        root = made[root_of(app)]
        if root is not None:
            making.tried(("agents", root.name), lambda: check_tree(root))
            if self._model is not None:
                from sojourn.builder.models import use_model

                use_model(root, self._model, self._base_url)
        making.check()
        assert root is not None, "what is not made has a problem"
        return root

    def _for_models(self, making: Making) -> tuple[Models | None, Tools | None]:
        """What agents that a model drives need; nothing of it is imported if there are none."""
        app = making.config
        driven = [agent for _, agent in walk(app) if isinstance(agent, LlmAgentConfig)]
        if not (driven or app.tools or app.mcp_servers or self._model is not None):
            return None, None
        try:
            from sojourn.agents.llm.models import resolve
            from sojourn.builder.models import Models
            from sojourn.builder.tools import Tools
        except ImportError as error:
            if error.name != "pydantic_ai":
                raise
            raise Unsupported(str(error), code="model.not_installed") from error
        given = self._models
        if self._model is not None:
            # What cannot be is told at once, and of the builder's model, not of the agents that it is for.
            resolve(self._model, self._base_url, None)
            given = {agent.model: _UNUSED for agent in driven}
        tools = Tools(making)
        tools.make_all()
        return Models(making, given), tools


def _limits(app: AppConfig) -> dict[str, Any]:
    limits = app.limits
    return {name: getattr(limits, name) for name in limits.model_fields_set if getattr(limits, name) is not None}


def _plugin(making: Making, index: int, dotted: str) -> Plugin:
    path = ("plugins", index)
    value = making.loaded(path, dotted)
    if isinstance(value, type) and issubclass(value, Plugin):
        return value()
    if not isinstance(value, Plugin):
        raise making.wrong_kind(path, dotted, value, "a Plugin, or a class of them")
    return value


def _variable(making: Making, index: int, dotted: str) -> ContextVar[Any]:
    path = ("propagate", index)
    value = making.loaded(path, dotted)
    if not isinstance(value, ContextVar):
        raise making.wrong_kind(path, dotted, value, "a ContextVar")
    return value

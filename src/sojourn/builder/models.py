"""Models that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_ai.models import Model

from sojourn.agents.base import Agent
from sojourn.agents.llm.agent import LlmAgent
from sojourn.builder.making import Making
from sojourn.builder.schema import LlmAgentConfig, ModelConfig
from sojourn.builder.source import KeyPath


def use_model(root: Agent, model: Model | str, base_url: str | None = None) -> list[str]:
    """Gives an agent and all below it that a model drives another model.

    Args:
        root: The agent.
        model: As for `LlmAgent`.
        base_url: As for `LlmAgent`.

    Returns:
        The names of the agents that have it now.

    Raises:
        InvalidInput: `model.unknown`, `model.no_key`, `model.invalid`.
        Unsupported: `model.not_installed`.
    """
    driven = [agent for agent in root.walk() if isinstance(agent, LlmAgent)]
    for agent in driven:
        agent.use_model(model, base_url=base_url)
        agent.resolved_model()
    return [agent.name for agent in driven]


class Models:
    """The models of one making.

    Args:
        making: The making.
        given: Models that take the place of those that agents have under these names.
    """

    def __init__(self, making: Making, given: Mapping[str, Model | str]) -> None:
        self._making = making
        self._given = given

    def options_of(self, agent: LlmAgentConfig) -> dict[str, Any]:
        """What of an `LlmAgent`'s options says which model it has."""
        entry = self._entry(agent)
        own = {**(entry.settings if entry is not None else {}), **agent.settings}
        options: dict[str, Any] = {"model_settings": own or None}
        if agent.model in self._given:
            return {**options, "model": self._given[agent.model]}
        if entry is None:
            return {**options, "model": agent.model}
        key = entry.api_key.get_secret_value() if entry.api_key is not None else None
        return {**options, "model": entry.model, "base_url": entry.base_url, "api_key": key}

    def check(self, path: KeyPath, agent: LlmAgentConfig, made: LlmAgent) -> None:
        """Finds out now, and not in the first run, whether an agent can have its model.

        Raises:
            ConfigError: `model.unknown`, `model.no_key`, `model.not_installed`, …, as of `LlmAgent`.
        """
        with self._making.at(("models", agent.model) if self._entry(agent) is not None else (*path, "model")):
            made.resolved_model()

    def _entry(self, agent: LlmAgentConfig) -> ModelConfig | None:
        return self._making.config.models.get(agent.model)

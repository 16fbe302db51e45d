"""Agents that a config describes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from sojourn.agents.base import Agent
from sojourn.agents.function import FunctionAgent
from sojourn.agents.workflow import LoopAgent, ParallelAgent, SequentialAgent
from sojourn.builder.making import Making
from sojourn.builder.references import name_of
from sojourn.builder.schema import (
    AgentConfig,
    FunctionAgentConfig,
    LlmAgentConfig,
    LoopAgentConfig,
    ParallelAgentConfig,
    SequentialAgentConfig,
)
from sojourn.builder.source import KeyPath

if TYPE_CHECKING:
    from sojourn.builder.models import Models
    from sojourn.builder.tools import Tools

CALLBACKS = ("before_model", "after_model", "before_tool", "after_tool")


class Agents:
    """The agents of one making.

    Args:
        making: The making.
        models: Their models; None if there is no agent that a model drives.
        tools: Their tools; None if there is no agent that a model drives.
    """

    def __init__(self, making: Making, models: Models | None, tools: Tools | None) -> None:
        self._making = making
        self._models = models
        self._tools = tools

    def named(self, name: str) -> Agent | None:
        """A new agent, with all below it; None if there are problems with any, which are noted."""
        return self._described(("agents", name), self._making.config.agents[name])

    def _described(self, path: KeyPath, agent: AgentConfig) -> Agent | None:
        children = [self._child((*path, "sub_agents", i), child) for i, child in enumerate(agent.sub_agents)]
        options = self._making.tried(path, lambda: self._options(path, agent))
        if options is None or None in children:
            return None
        options["sub_agents"] = children
        return self._making.tried(path, lambda: self._made(path, agent, options))

    def _child(self, path: KeyPath, child: str | AgentConfig) -> Agent | None:
        return self.named(child) if isinstance(child, str) else self._described(path, child)

    def _options(self, path: KeyPath, agent: AgentConfig) -> dict[str, Any]:
        """What all agents take, apart from their sub_agents."""
        options: dict[str, Any] = {"name": name_of(path, agent)}
        for callbacks in ("before_agent", "after_agent"):
            options[callbacks] = self._making.functions((*path, callbacks), getattr(agent, callbacks))
        for name in ("description", "disallow_transfer_to_parent", "disallow_transfer_to_peers"):
            if name in agent.model_fields_set and getattr(agent, name) is not None:
                options[name] = getattr(agent, name)
        return options

    def _made(self, path: KeyPath, agent: AgentConfig, options: dict[str, Any]) -> Agent:
        match agent:
            case LlmAgentConfig():
                return self._llm(path, agent, options)
            case FunctionAgentConfig():
                return self._function(path, agent, options)
            case SequentialAgentConfig():
                return SequentialAgent(**options)
            case ParallelAgentConfig():
                return ParallelAgent(**options)
            case LoopAgentConfig():
                return LoopAgent(max_iterations=agent.max_iterations, **options)
        raise AssertionError(f"the schema knows no {type(agent).__name__}")

    def _llm(self, path: KeyPath, agent: LlmAgentConfig, options: dict[str, Any]) -> Agent:
        from sojourn.agents.llm.agent import LlmAgent

        assert self._models is not None
        assert self._tools is not None
        making = self._making
        schema: Any = agent.output_schema
        if isinstance(schema, str):
            schema = making.loaded((*path, "output_schema"), schema)
        for callbacks in CALLBACKS:
            options[callbacks] = making.functions((*path, callbacks), getattr(agent, callbacks))
        for name in ("output_mode", "tool_timeout", "retries"):
            if getattr(agent, name) is not None:
                options[name] = getattr(agent, name)
        made = LlmAgent(
            instruction=self._instruction(path, agent),
            tools=[self._tools.named((*path, "tools", index), entry) for index, entry in enumerate(agent.tools)],
            output_schema=schema,
            output_key=agent.output_key,
            **self._models.options_of(agent),
            **options,
        )
        self._models.check(path, agent, made)
        return made

    def _instruction(self, path: KeyPath, agent: LlmAgentConfig) -> Any:
        if isinstance(agent.instruction, str):
            return agent.instruction
        return self._making.function((*path, "instruction", "function"), agent.instruction.function)

    def _function(self, path: KeyPath, agent: FunctionAgentConfig, options: dict[str, Any]) -> Agent:
        at = (*path, "function")
        value = self._making.loaded(at, agent.function)
        if isinstance(value, Agent):
            return _copied(value, **options)
        if isinstance(value, type) and issubclass(value, Agent):
            try:
                return value(**options)
            except TypeError as error:
                message = f"{agent.function} cannot be made of {', '.join(options)}: {error}; name an agent instead"
                raise self._making.config.source.error(at, message, code="config.wrong_kind") from error
        if not callable(value) or isinstance(value, type):
            raise self._making.wrong_kind(at, agent.function, value, "a function of the context, or an agent")
        return FunctionAgent(value, **options)


def _copied(agent: Agent, **options: Any) -> Agent:
    """An agent like another: a module has its agents once, and each making needs its own, which belong to no parent yet.

    Args:
        agent: The other; its sub-agents are copied, too.
        **options: As for `Agent`: in place of its own; callbacks and sub_agents in addition to its own.
    """
    made = copy.copy(agent)
    own: dict[str, Any] = {
        "name": agent.name,
        "description": agent.description,
        "disallow_transfer_to_parent": agent.disallow_transfer_to_parent,
        "disallow_transfer_to_peers": agent.disallow_transfer_to_peers,
    }
    added = {
        "sub_agents": [*map(_copied, agent.sub_agents), *options.get("sub_agents", ())],
        "before_agent": [*agent.before_agent, *options.get("before_agent", ())],
        "after_agent": [*agent.after_agent, *options.get("after_agent", ())],
    }
    Agent.__init__(made, **(own | options | added))
    return made

"""`sojourn check`: what a config says would run, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from sojourn.builder.files import SUFFIXES
from sojourn.builder.load import load_config
from sojourn.builder.problems import ConfigError
from sojourn.builder.references import root_of, walk
from sojourn.builder.schema import (
    AgentConfig,
    AppConfig,
    FunctionAgentConfig,
    LlmAgentConfig,
    LoopAgentConfig,
    McpServerConfig,
    ModelConfig,
    Section,
    ToolConfig,
)
from sojourn.builder.source import KeyPath
from sojourn.cli.failures import ExitCode
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.othermodel import OtherModel
from sojourn.cli.screen import Screen
from sojourn.cli.target import is_config, load_target
from sojourn.errors import InvalidInput


async def check_config(screen: Screen, ctrl_c: CtrlC, spec: str, other_model: OtherModel | None, *, verbose: bool) -> ExitCode:
    """Makes all that a config names, as `sojourn run` does, and prints it; or prints each problem.

    Raises:
        InvalidInput: `target.invalid` if it is no config; `model.no_key` and others for `other_model`.
    """
    if not is_config(spec):
        raise InvalidInput(f"{spec!r} is no config; the name of one ends with {', '.join(SUFFIXES)}", code="target.invalid")
    try:
        with ctrl_c.raises():
            target = load_target(spec, other_model)
    except ConfigError as error:
        if verbose and error.__cause__ is not None:
            screen.tell(error.details)
        for problem in error.problems:
            screen.error(f"{problem} [{problem.code}]")
        return ExitCode.FAILED
    async with target:
        for line in described(load_config(spec), other_model):
            screen.line(line)
    return ExitCode.OK


def described(app: AppConfig, other_model: OtherModel | None = None) -> Iterator[str]:
    """What would run, line by line. What came from the environment is shown as it is written, and keys not at all.

    Args:
        app: A config without problems.
        other_model: The model that is used in place of the config's.
    """
    told = _Told(app, other_model)
    yield f"app {told.shown(('app_name',), app.app_name)}" + (", with agents for each user" if app.per_user else "")
    for title, lines in (
        ("agents", told.agents()),
        ("models", told.models()),
        ("tools", told.tools()),
        ("mcp servers", told.mcp_servers()),
        ("services", told.services()),
        ("limits", told.settings("limits", app.limits)),
        ("retention", iter(()) if app.retention is None else told.settings("retention", app.retention)),
        ("run config", told.settings("run_config", app.run_config)),
        ("plugins", iter(app.plugins)),
    ):
        found = list(lines)
        if found:
            yield title
            yield from (f"  {app.source.redacted(line)}" for line in found)


class _Told:
    """The parts of a config, in words."""

    def __init__(self, app: AppConfig, other_model: OtherModel | None) -> None:
        self._app = app
        self._other_model = other_model
        self._driven = [agent for _, agent in walk(app) if isinstance(agent, LlmAgentConfig)]

    def shown(self, path: KeyPath, value: str) -> str:
        return self._app.source.shown(path, value)

    # -- agents -----------------------------------------------------------------------------------------------------

    def agents(self) -> Iterator[str]:
        root = root_of(self._app)
        yield from self._tree(("agents", root), root, self._app.agents[root])
        below = {child for _, agent in walk(self._app) for child in agent.sub_agents if isinstance(child, str)}
        for name in self._app.agents:
            if name != root and name not in below:
                yield f"{name} is used by no other agent"

    def _tree(self, path: KeyPath, name: str, agent: AgentConfig) -> Iterator[str]:
        yield f"{name} ({self._kind(path, agent)})" + (f": {agent.description}" if agent.description else "")
        if isinstance(agent, LlmAgentConfig) and agent.tools:
            yield f"  tools: {', '.join(self._tool(entry) for entry in agent.tools)}"
        for index, child in enumerate(agent.sub_agents):
            if isinstance(child, str):
                lines = self._tree(("agents", child), child, self._app.agents[child])
            else:
                lines = self._tree((*path, "sub_agents", index), child.name or "", child)
            yield from (f"  {line}" for line in lines)

    def _kind(self, path: KeyPath, agent: AgentConfig) -> str:
        match agent:
            case LlmAgentConfig() if self._other_model is not None:
                return f"llm, {self._other_model.name}"
            case LlmAgentConfig():
                return f"llm, {self.shown((*path, 'model'), agent.model)}"
            case FunctionAgentConfig():
                return f"function {agent.function}"
            case LoopAgentConfig() if agent.max_iterations is not None:
                return f"loop, at most {agent.max_iterations} times"
        return agent.kind

    def _tool(self, entry: str | ToolConfig) -> str:
        if isinstance(entry, ToolConfig):
            return f"{entry.function}{_approval(entry)}"
        tool = self._app.tools.get(entry)
        return entry if tool is None else f"{entry}{_approval(tool)}"

    # -- what they use ----------------------------------------------------------------------------------------------

    def models(self) -> Iterator[str]:
        if self._other_model is not None:
            yield f"{' '.join(self._other_model.words)}, in place of all others"
            return
        used = {agent.model for agent in self._driven}
        for name, model in self._app.models.items():
            yield f"{name}: {self._model(('models', name), model)}" + ("" if name in used else "; used by no agent")

    def _model(self, path: KeyPath, model: ModelConfig) -> str:
        told = self.shown((*path, "model"), model.model)
        if model.base_url is not None:
            told += f" at {self._address((*path, 'base_url'), model.base_url)}"
        return told + (", with a key" if model.api_key is not None else "")

    def tools(self) -> Iterator[str]:
        used = {entry for agent in self._driven for entry in agent.tools if isinstance(entry, str)}
        for name, tool in self._app.tools.items():
            yield f"{name}: {tool.function}{_approval(tool)}" + ("" if name in used else "; used by no agent")

    def mcp_servers(self) -> Iterator[str]:
        for name, server in self._app.mcp_servers.items():
            yield f"{name}: {self._server(('mcp_servers', name), server)}" + (
                " (asks for approval)" if server.require_approval else ""
            )

    def _server(self, path: KeyPath, server: McpServerConfig) -> str:
        if server.url is not None:
            return self._address((*path, "url"), server.url)
        # Without its arguments: they may hold keys.
        return f"starts {self.shown((*path, 'command'), server.command or '')}"

    def services(self) -> Iterator[str]:
        services = self._app.services
        for name in ("session", "artifacts", "memory"):
            if (place := getattr(services, name)) is not None:
                yield f"{name}: {self._address(('services', name), place)}"
        if (embedder := services.embedder) is not None:
            path = ("services", "embedder")
            at = "" if embedder.base_url is None else f" at {self._address((*path, 'base_url'), embedder.base_url)}"
            yield f"embedder: {self.shown((*path, 'model'), embedder.model)}{at}"

    def settings(self, key: str, section: Section) -> Iterator[str]:
        for name, value in section.model_dump(mode="json", exclude_unset=True).items():
            yield f"{name}: {'…' if isinstance(value, dict) else self.shown((key, name), str(value))}"

    def _address(self, path: KeyPath, address: str) -> str:
        """An address without user, password and query, unless it is shown as it is written."""
        if path in self._app.source.written:
            return self.shown(path, address)
        parts = urlsplit(address)
        if not parts.netloc:
            return self.shown(path, address)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _approval(tool: ToolConfig) -> str:
    match tool.require_approval:
        case True:
            return " (asks for approval)"
        case str() as when:
            return f" (asks for approval when {when} says so)"
    return ""

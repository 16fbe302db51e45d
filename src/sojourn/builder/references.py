"""What a config's parts name: that it is there, and that the agents make up a tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sojourn.builder.problems import ConfigError, Problem
from sojourn.builder.schema import AgentConfig, AppConfig, LlmAgentConfig
from sojourn.builder.source import KeyPath, nearest

BUILTIN_TOOLS = ("load_memory", "save_memory", "list_artifacts", "load_artifact", "save_artifact")
"""Tools that agents may name without more ado."""


def check_references(config: AppConfig) -> None:
    """Checks what names what.

    Raises:
        ConfigError: `config.unknown_reference`, `config.duplicate_name`, `config.cycle`, `config.shared_agent`,
            `config.missing_key`, `config.invalid`, for all of them at once.
    """
    problems = [
        *_names(config),
        *_shared_namespace(config),
        *_per_user(config),
        *(problem for path, agent in walk(config) for problem in _of_agent(config, path, agent)),
    ]
    problems = problems or _tree(config)
    if problems:
        raise ConfigError(problems)


def walk(config: AppConfig) -> Iterator[tuple[KeyPath, AgentConfig]]:
    """All agents of a config and where they are, those inside of others after these."""
    for key, agent in config.agents.items():
        yield from _walk(("agents", key), agent)


def _walk(path: KeyPath, agent: AgentConfig) -> Iterator[tuple[KeyPath, AgentConfig]]:
    yield path, agent
    for index, child in enumerate(agent.sub_agents):
        if isinstance(child, AgentConfig):
            yield from _walk((*path, "sub_agents", index), child)


def name_of(path: KeyPath, agent: AgentConfig) -> str:
    """An agent's name: its key, or what it says if it is inside of another."""
    return str(path[-1]) if len(path) == 2 else agent.name or ""


def root_of(config: AppConfig) -> str:
    """The name of the agent that is asked first."""
    return config.root or _roots(config)[0]


def is_model_string(model: str) -> bool:
    """Whether a model is named by its provider, not by a name of the config's `models`."""
    return ":" in model or model == "test"


# -- names --------------------------------------------------------------------------------------------------------------


def _names(config: AppConfig) -> Iterator[Problem]:
    seen: dict[str, KeyPath] = {}
    for path, agent in walk(config):
        name = name_of(path, agent)
        if not name and len(path) == 2:
            yield config.source.problem(path, "an agent's name must not be empty", code="config.invalid")
        elif not name:
            message = "it is missing; an agent inside of another needs one"
            yield config.source.problem((*path, "name"), message, code="config.missing_key")
        elif len(path) == 2 and agent.name not in (None, name):
            message = "the agent's key is its name; remove this"
            yield config.source.problem((*path, "name"), message, code="config.duplicate_name")
        elif name in seen:
            first = config.source.line(seen[name])
            where = f"in line {first}" if first else "before"
            message = f"there is an agent {name!r} {where}; rename one of them"
            yield config.source.problem(path, message, code="config.duplicate_name")
        else:
            seen[name] = path


def _shared_namespace(config: AppConfig) -> Iterator[Problem]:
    for name in config.mcp_servers:
        if name in config.tools:
            message = f"there is a tool {name!r}, too; rename one of them"
            yield config.source.problem(("mcp_servers", name), message, code="config.duplicate_name")


def _per_user(config: AppConfig) -> Iterator[Problem]:
    for name in ("per_user_idle", "per_user_max"):
        if name in config.model_fields_set and not config.per_user:
            message = "says something of agents for each user, and there are none; add per_user: true"
            yield config.source.problem((name,), message, code="config.invalid")


# -- references ---------------------------------------------------------------------------------------------------------


def _of_agent(config: AppConfig, path: KeyPath, agent: AgentConfig) -> Iterator[Problem]:
    for index, child in enumerate(agent.sub_agents):
        if isinstance(child, str) and child not in config.agents:
            yield _unknown(config, (*path, "sub_agents", index), "agent", child, list(config.agents))
    if isinstance(agent, LlmAgentConfig):
        if not is_model_string(agent.model) and agent.model not in config.models:
            yield _unknown(config, (*path, "model"), "model", agent.model, list(config.models), ", nor is it provider:name")
        known = [*config.tools, *config.mcp_servers, *BUILTIN_TOOLS]
        for index, tool in enumerate(agent.tools):
            if isinstance(tool, str) and tool not in known and ":" not in tool:
                yield _unknown(
                    config, (*path, "tools", index), "tool or MCP server", tool, known, ", nor is it package.module:function"
                )


def _unknown(config: AppConfig, path: KeyPath, what: str, name: str, known: Sequence[str], otherwise: str = "") -> Problem:
    shown = config.source.shown(path, name)
    message = f"there is no {what} {shown!r}{otherwise}{nearest(name, known)}"
    return config.source.problem(path, message, code="config.unknown_reference")


# -- the tree -----------------------------------------------------------------------------------------------------------


def _tree(config: AppConfig) -> list[Problem]:
    """What keeps the agents from being a tree; asked only if all names are right."""
    if cycle := _cycle(config):
        return [cycle]
    problems = list(_shared(config))
    if problems:
        return problems
    source, roots = config.source, _roots(config)
    if config.root is None and len(roots) > 1:
        message = f"it is missing, and several agents are no other's: {', '.join(roots)}; say which one is asked first"
        return [source.problem(("root",), message, code="config.missing_key")]
    if config.root is not None and config.root not in config.agents:
        return [_unknown(config, ("root",), "agent", config.root, list(config.agents))]
    if config.root is not None and config.root not in roots:
        message = f"{config.root!r} is a sub-agent of another one; name one that is not: {', '.join(roots)}"
        return [source.problem(("root",), message, code="config.invalid")]
    return []


def _references(agent: AgentConfig, path: KeyPath) -> Iterator[tuple[str, KeyPath]]:
    """The agents that an agent and those inside of it name, and where."""
    for inner_path, inner in _walk(path, agent):
        for index, child in enumerate(inner.sub_agents):
            if isinstance(child, str):
                yield child, (*inner_path, "sub_agents", index)


def _cycle(config: AppConfig) -> Problem | None:
    done: set[str] = set()

    def search(name: str, above: tuple[str, ...]) -> Problem | None:
        if name in done:
            return None
        for child, path in _references(config.agents[name], ("agents", name)):
            chain = (*above, name)
            if child in chain:
                way = " → ".join((*chain[chain.index(child) :], child))
                return config.source.problem(path, f"an agent is below itself: {way}; remove one of these", code="config.cycle")
            if (found := search(child, chain)) is not None:
                return found
        done.add(name)
        return None

    return next((found for name in config.agents if (found := search(name, ())) is not None), None)


def _shared(config: AppConfig) -> Iterator[Problem]:
    seen: dict[str, KeyPath] = {}
    for key, agent in config.agents.items():
        for child, path in _references(agent, ("agents", key)):
            if child in seen:
                first = config.source.line(seen[child])
                where = f"in line {first}" if first else "before"
                message = f"agent {child!r} has a parent already, {where}; make another agent, under another name"
                yield config.source.problem(path, message, code="config.shared_agent")
            seen.setdefault(child, path)


def _roots(config: AppConfig) -> list[str]:
    """The agents that are no other's."""
    named = {child for key, agent in config.agents.items() for child, _ in _references(agent, ("agents", key))}
    return [key for key in config.agents if key not in named]

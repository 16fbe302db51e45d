"""Tools that a config names."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from pydantic_ai import Tool as EngineTool
from pydantic_ai.toolsets import AbstractToolset

from sojourn.agents.base import Agent
from sojourn.agents.llm import builtin
from sojourn.agents.llm.tool import Tool, tool
from sojourn.builder.making import Making
from sojourn.builder.mcp import mcp_client, offered
from sojourn.builder.schema import ToolConfig
from sojourn.builder.source import KeyPath


class Tools:
    """The tools of one making; each is made once."""

    def __init__(self, making: Making) -> None:
        self._making = making
        self._made: dict[str, Any] = {}

    def make_all(self) -> None:
        """Makes what the config names, used or not, so that all of it is checked."""
        for name in self._making.config.tools:
            self._making.tried(("tools", name), partial(self.named, (), name))
        for name in self._making.config.mcp_servers:
            self._making.tried(("mcp_servers", name), partial(self.named, (), name))

    def named(self, path: KeyPath, entry: str | ToolConfig) -> Any:
        """What an agent is given for an entry of its tools: a name, a dotted name, or a tool.

        Args:
            path: Where the entry is.
            entry: The entry.

        Raises:
            ConfigError: `config.not_importable`, `config.wrong_kind`, `config.invalid`.
            InvalidInput: `tool.invalid`.
            Unsupported: `mcp.not_installed`.
        """
        if isinstance(entry, ToolConfig):
            return self._tool(path, entry, None)
        if entry not in self._made:
            self._made[entry] = self._make(path, entry)
        return self._made[entry]

    def _make(self, path: KeyPath, name: str) -> Any:
        config = self._making.config
        if name in config.tools:
            with self._making.at(("tools", name)):
                return self._tool(("tools", name), config.tools[name], name)
        if name in config.mcp_servers:
            with self._making.at(("mcp_servers", name)):
                server = config.mcp_servers[name]
                return offered(server, mcp_client(config.source, server, name))
        if ":" in name:
            return self._tool(path, ToolConfig(function=name), None)
        return getattr(builtin, name)

    def _tool(self, path: KeyPath, entry: ToolConfig, name: str | None) -> Any:
        """A tool, under its name in the config or, if it has none there, its own."""
        making = self._making
        at = (*path, "function")
        value = making.loaded(at, entry.function)
        options = entry.options
        if isinstance(options.get("require_approval"), str):
            options["require_approval"] = making.function((*path, "require_approval"), options["require_approval"])
        options = {key: option for key, option in options.items() if option is not None}
        if isinstance(value, EngineTool | AbstractToolset):
            if options:
                given = ", ".join(options)
                message = f"{entry.function} is one of pydantic-ai's, and takes no {given} here; set it in Python"
                raise making.config.source.error(path, message, code="config.invalid")
            return value
        if not callable(value) or isinstance(value, type | Agent):
            raise making.wrong_kind(at, entry.function, value, "a function, a tool or a toolset")
        if isinstance(value, Tool):
            own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "fn"}
            options, value = own | options, value.fn
        if name is not None:
            options["name"] = name
        return tool(**options)(value)

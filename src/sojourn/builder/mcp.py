"""MCP servers that a config names."""

from __future__ import annotations

from typing import Any

from pydantic_ai.toolsets import AbstractToolset

from sojourn.builder.schema import McpServerConfig
from sojourn.builder.source import Source
from sojourn.errors import Unsupported


def mcp_client(source: Source, server: McpServerConfig, name: str) -> Any:
    """The connection to a server, as a toolset that opens it when an agent first needs it.

    Raises:
        Unsupported: `mcp.not_installed`.
    """
    try:
        from fastmcp.client.transports import StdioTransport
        from pydantic_ai.mcp import MCPToolset
    except ImportError as error:
        message = "MCP servers need a package that is not installed: pip install 'sojourn[mcp]'"
        raise Unsupported(message, code="mcp.not_installed") from error
    options: dict[str, Any] = {"id": name, "init_timeout": server.connect_timeout, "read_timeout": server.timeout}
    if server.url is not None:
        headers = {key: value.get_secret_value() for key, value in server.headers.items()}
        return MCPToolset(server.url, headers=headers or None, **options)
    assert server.command is not None, "the schema asks for one of them"
    started = StdioTransport(
        server.command,
        server.args,
        env={key: value.get_secret_value() for key, value in server.env.items()} or None,
        cwd=str(source.directory / (server.cwd or "")),
    )
    return MCPToolset(started, **options)


def offered(server: McpServerConfig, client: AbstractToolset[Any]) -> AbstractToolset[Any]:
    """What of a server's tools agents are offered, and how."""
    toolset = client
    if server.tools is not None:
        wanted = frozenset(server.tools)
        toolset = toolset.filtered(lambda _, tool: tool.name in wanted)
    if server.prefix is not None:
        toolset = toolset.prefixed(server.prefix)
    return toolset.approval_required() if server.require_approval else toolset

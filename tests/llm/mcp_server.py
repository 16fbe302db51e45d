"""A small MCP server, for tests: over stdio, or over HTTP on the port that it is given."""

import os
import sys
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("weather")


@server.tool()
def forecast(city: str, days: int = 1) -> str:
    """Tells the weather."""
    return f"{city}: sun for {days} days"


@server.tool()
def process() -> str:
    """Tells which process this is."""
    return str(os.getpid())


@server.tool()
def fail(why: str) -> str:
    """Fails."""
    raise ValueError(why)


@server.tool()
def die(note: str) -> str:
    """Ends the server in the middle of the call, noting that it was called."""
    with Path(note).open("a", encoding="utf-8") as notes:
        notes.write("called\n")
    os._exit(1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run()

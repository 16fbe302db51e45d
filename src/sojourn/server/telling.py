"""What clients are told of errors."""

from __future__ import annotations

import re

from sojourn.errors import SojournError, Unavailable
from sojourn.run.types import RunError

_OF_STORES = re.compile(r"store\.\w+|(artifact|memory)\.unavailable")


def told(error: SojournError | RunError) -> str:
    """The message of an error, for its client.

    What stores say of themselves names files, hosts and what their drivers said: that is for operators, in the log.
    """
    if _OF_STORES.fullmatch(error.code):
        return "what the server keeps its data in does not answer; try again later, or see the server's log"
    return error.message


def internal_error() -> SojournError:
    """What is told of an error that nobody has foreseen."""
    return SojournError("the server failed; its log says why", code="internal")


def draining_error() -> Unavailable:
    """What those are told who come while a server ends."""
    return Unavailable("this server shuts down; ask another one", code="server.draining")

"""What clients are told of errors."""

from __future__ import annotations

import re

from sojourn.errors import SojournError
from sojourn.run.types import RunError

_OF_STORES = re.compile(r"store\.\w+|(artifact|memory)\.unavailable")


def told(error: SojournError | RunError) -> str:
    """The message of an error, for its client.

    What stores say of themselves names files, hosts and what their drivers said: that is for operators, in the log.
    """
    if _OF_STORES.fullmatch(error.code):
        return "what the server keeps its data in does not answer; try again later, or see the server's log"
    return error.message

"""Control flow inside an agent. These are not errors: `except Exception` in an agent's code lets them pass."""

from __future__ import annotations


class RunPaused(BaseException):
    """Unwinds an agent that asked a person; the run waits, and the agent runs again when there is an answer."""

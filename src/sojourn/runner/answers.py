"""Which event is a run's answer."""

from __future__ import annotations

from sojourn.event import USER, Event


def answers(event: Event) -> bool:
    """Whether the event is a final response that counts: the last such event is the run's result."""
    if event.superseded or event.interrupted or event.author == USER or event.long_running_tool_ids:
        return False
    return event.is_final_response() and (event.output is not None or event.said is not None)

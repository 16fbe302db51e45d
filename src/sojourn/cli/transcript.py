"""What was said in a session, for people."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime

from sojourn.cli.questions import prompt_text
from sojourn.cli.screen import Screen
from sojourn.cli.views import details
from sojourn.event import ASK_CALL, Event


def print_transcript(screen: Screen, events: Iterable[Event], *, times: bool) -> None:
    """Prints events: who, and below what they said and did.

    Args:
        screen: Where to print.
        events: Oldest first.
        times: Whether to print when each was written.
    """
    heading = ""
    for event in events:
        lines = said_lines(event)
        if not lines:
            continue
        when = f"[{clock_text(event.timestamp)}] " if times else ""
        before, heading = heading, f"{when}{event.author}{' (superseded)' if event.superseded else ''}"
        if heading != before:
            screen.line(heading, "bold")
        for line in lines:
            screen.line(line)


def said_lines(event: Event) -> list[str]:
    """What an event says and does, in lines for people."""
    lines = event.text.rstrip("\n").split("\n") if event.text else []
    if event.output is not None:
        lines.append(json.dumps(event.output, ensure_ascii=False))
    lines += [f"? {prompt_text(c.args.get('message', ''))}" for c in event.get_function_calls() if c.name == ASK_CALL]
    lines += [
        f"answered: {prompt_text(r.response.get('result', r.response))}"
        for r in event.get_function_responses()
        if r.name == ASK_CALL
    ]
    return lines + details(event)


def clock_text(timestamp: float) -> str:
    """A time in the local time zone."""
    return datetime.fromtimestamp(timestamp).strftime("%Y-%m-%d %H:%M:%S")


def duration_text(seconds: float) -> str:
    """A span of time."""
    if seconds < 60:
        return f"{max(0.0, seconds):.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

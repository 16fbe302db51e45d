"""Asking before something is removed for good."""

from __future__ import annotations

import sys

import typer

from sojourn.cli.interrupts import CtrlC
from sojourn.cli.readers import LineReader
from sojourn.cli.screen import Screen


def check_somebody_confirms(yes: bool) -> None:
    """Refuses a command that would have to ask where nobody is there to answer."""
    if not yes and not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to confirm; give it to go on without being asked", param_hint="--yes")


async def confirmed(screen: Screen, ctrl_c: CtrlC, question: str) -> bool:
    """Whether a person says yes to a question."""
    screen.tell(question)
    try:
        return (await LineReader(screen, ctrl_c).read("[y/N] ")).strip().lower() in ("y", "yes")
    except EOFError:
        return False

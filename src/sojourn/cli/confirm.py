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


async def confirmed(screen: Screen, ctrl_c: CtrlC, question: str, *, yes: bool, otherwise: str) -> bool:
    """Whether to go on: somebody has said so already, or says yes to a question.

    Args:
        screen: Where to ask.
        ctrl_c: Who listens to Ctrl-C.
        question: What is asked.
        yes: Whether somebody has said so already.
        otherwise: What to say if not: what did not happen.
    """
    if yes:
        return True
    screen.tell(question)
    try:
        said = await LineReader(screen, ctrl_c).read("[y/N] ")
    except EOFError:
        said = ""
    if said.strip().lower() in ("y", "yes"):
        return True
    screen.note(otherwise)
    return False

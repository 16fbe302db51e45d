"""The command line of a program that runs its own agent: `sojourn`'s `run` and `serve`, without a target."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import typer

from sojourn.cli import main, serve
from sojourn.cli.execute import Job
from sojourn.cli.target import Target


def job_of(target: Target, argv: Sequence[str], name: str) -> Job:
    """What a program is told to do.

    Args:
        target: The agent.
        argv: What stands behind the program's name: nothing for a chat, `run …` or `serve …`.
        name: How the program is called.

    Raises:
        SystemExit: Help was asked for and is printed; or the words make no sense, which is told.
    """
    chosen: list[Job] = []
    commands = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=main.app.rich_markup_mode,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Runs this program's agent: a chat without a command.",
        result_callback=lambda job, **_: chosen.append(job),
    )
    commands.command("run")(_without_target(main.run, target=target, reload=False))
    commands.command("serve")(_without_target(serve.serve, targets=[target]))
    try:
        commands(args=list(argv) or ["run"], prog_name=name)
    except SystemExit:
        if not chosen:
            raise
    return chosen[0]


def _without_target(command: Callable[..., Job], **given: Any) -> Callable[..., Job]:
    """A command with some of its parameters given."""
    signature = inspect.signature(command, eval_str=True)
    left = [parameter for parameter in signature.parameters.values() if parameter.name not in given]

    @functools.wraps(command)
    def bound(**options: Any) -> Job:
        return command(**given, **options)

    bound.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
    bound.__annotations__ = {parameter.name: parameter.annotation for parameter in left}
    return bound

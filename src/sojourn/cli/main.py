"""The `sojourn` command."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from sojourn.cli import data, keys, runs, serve, sessions
from sojourn.cli.chat import chat
from sojourn.cli.execute import Job, execute
from sojourn.cli.failures import ExitCode
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.options import (
    DEFAULT_DB,
    DEFAULT_USER,
    BaseUrlOption,
    JsonOption,
    ModelOption,
    RunDbOption,
    SpeakerOption,
    TargetAppOption,
    TargetArgument,
    VerboseOption,
)
from sojourn.cli.othermodel import OtherModel
from sojourn.cli.run import RunOptions, content_of, run_once
from sojourn.cli.screen import Screen, drop_output, open_missing_streams, use_utf8
from sojourn.cli.usage import usage


def _carry_out(job: Job | None, **_: object) -> None:
    """Does what a command has given back, if it has not done its work itself."""
    if job is not None:
        raise typer.Exit(job.carry_out())


app = typer.Typer(
    result_callback=_carry_out,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout is not None and sys.stdout.isatty() else None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Runs agents for people: sessions that remember, runs that can be watched, stopped and resumed.",
)
app.add_typer(sessions.commands, name="sessions")
app.add_typer(runs.commands, name="runs")
app.add_typer(keys.commands, name="keys")
app.add_typer(data.commands, name="data")
app.command()(usage)
app.command()(serve.serve)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sojourn {importlib.metadata.version('sojourn')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


@app.command()
def run(
    target: TargetArgument,
    message: Annotated[
        str | None, typer.Argument(metavar="MESSAGE", help="What to say; without it, a chat.", show_default=False)
    ] = None,
    user: SpeakerOption = DEFAULT_USER,
    session: Annotated[
        str | None,
        typer.Option(
            "--session", "-s", metavar="ID", help="The session; a new one, or `console` for a chat.", show_default=False
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", metavar="PATH", help="Attach a file; repeatable.", exists=True, dir_okay=False, show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    reload: Annotated[bool, typer.Option("--reload", help="In a chat, take over edits of the agent's source.")] = False,
    app: TargetAppOption = None,
    db: RunDbOption = None,
    verbose: VerboseOption = False,
) -> Job:
    """Run an agent: on a message, whose answer is streamed; or in a chat."""
    if message is None and (json or file):
        raise typer.BadParameter("it needs a message", param_hint="--json" if json else "--file")
    if message is not None and reload:
        raise typer.BadParameter("it is for a chat; leave the message out", param_hint="--reload")
    options = RunOptions(
        target,
        DEFAULT_DB if db is None else db,
        app,
        user,
        session,
        json=json,
        verbose=verbose,
        own_services=db is None,
        other_model=OtherModel.of(model, base_url),
    )

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        if message is None:
            return await chat(screen, ctrl_c, options, reload=reload)
        return await run_once(screen, ctrl_c, options, content_of(message, file or ()))

    return Job(work, verbose)


@app.command()
def check(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="An app.yaml or app.json.", show_default=False)],
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Check a config, and print what would run."""
    other_model = OtherModel.of(model, base_url)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        from sojourn.cli.check import check_config

        return await check_config(screen, ctrl_c, config, other_model, verbose=verbose)

    raise typer.Exit(execute(work, verbose=verbose))


def main() -> None:
    """Runs the command line; the entry point of `sojourn` and of `python -m sojourn`."""
    open_missing_streams()
    use_utf8()
    try:
        app(prog_name="sojourn")
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output()
            sys.exit(ExitCode.BROKEN_PIPE)
        except ValueError:
            pass  # An agent has closed it.

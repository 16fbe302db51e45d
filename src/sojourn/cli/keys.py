"""`sojourn keys`: who may use a server, by API keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from sojourn import platform
from sojourn.cli.execute import execute
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.options import DEFAULT_DB, DbOption, VerboseOption, keys_path, span_of
from sojourn.cli.screen import Screen
from sojourn.cli.transcript import clock_text
from sojourn.server.auth.keyfile import KEY, ApiKey, KeyFile

commands = typer.Typer(no_args_is_help=True, help="Make, list and remove API keys of `sojourn serve --auth keys`.")


@commands.command()
def add(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user whose requests come with it.", show_default=False)],
    admin: Annotated[bool, typer.Option("--admin", help="It may see and do what belongs to other users, too.")] = False,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="What you call it.", show_default=False)] = "",
    expires: Annotated[
        str | None,
        typer.Option(
            "--expires", metavar="WHEN", help="After 90m, 12h, 30d or 8w; or a date, like 2027-01-31.", show_default=False
        ),
    ] = None,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    expires_at = moment(expires) if expires is not None else None

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        path = keys_path(db, create=True)
        key, kept = KeyFile(path).add(user, admin=admin, name=name, expires_at=expires_at)
        screen.line(key)
        screen.note(f"key {kept.id} of user {user}, kept in {path}; it is not shown again")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command("ls")
def list_(db: DbOption = DEFAULT_DB, verbose: VerboseOption = False) -> None:
    """List keys, oldest first, without what is secret."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        keys = KeyFile(keys_path(db)).keys()
        screen.table(("KEY", "USER", "ADMIN", "NAME", "CREATED", "EXPIRES"), [_row(key) for key in keys.values()])
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def rm(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.", show_default=False)],
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Remove a key: no request with it is served any more, by running servers neither."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        whole = KEY.fullmatch(key)
        removed = KeyFile(keys_path(db)).remove(whole[1] if whole is not None else key)
        screen.note(f"removed key {removed.id} of user {removed.user_id}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


def moment(text: str) -> float:
    """When a key expires, in seconds since the epoch.

    Raises:
        typer.BadParameter: The text says no time to come.
    """
    span = span_of(text)
    at = platform.now() + span if span is not None else _time_of(text)
    if at <= platform.now():
        raise typer.BadParameter(f"{text!r} has passed", param_hint="--expires")
    return at


def _time_of(text: str) -> float:
    try:
        named = datetime.fromisoformat(text)
        return (named if named.tzinfo is not None else named.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(f"{text!r} is no time; say 12h, 30d, or 2027-01-31", param_hint="--expires") from None


def _row(key: ApiKey) -> list[str]:
    expires = clock_text(key.expires_at) if key.expires_at is not None else ""
    return [
        key.id,
        key.user_id,
        "admin" if key.admin else "",
        key.name,
        clock_text(key.created_at),
        f"{expires} (expired)" if key.has_expired() else expires,
    ]

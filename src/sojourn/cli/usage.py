"""`sojourn usage`: what a user has spent."""

from __future__ import annotations

import json as jsontext
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from sojourn import platform
from sojourn.cli.execute import execute
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.options import DEFAULT_DB, DbOption, JsonObjectOption, VerboseOption, open_stored, resolve_app, span_of
from sojourn.cli.screen import Screen
from sojourn.cli.transcript import clock_text
from sojourn.event import Usage
from sojourn.run.usage import UserUsage

_COLUMNS = ("HOUR", "TOKENS", "PROMPT", "ANSWER", "CACHED", "THOUGHTS")


def usage(
    user: Annotated[str, typer.Argument(metavar="USER", help="The user's id.", show_default=False)],
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="From this hour on: 90m, 24h, 7d, 8w, or a time like 2026-01-31T12:00.",
            show_default=False,
        ),
    ] = None,
    json: JsonObjectOption = False,
    app: Annotated[
        str | None,
        typer.Option(
            "--app",
            metavar="NAME",
            help="The app; needed if the database has several, or no session any more.",
            show_default=False,
        ),
    ] = None,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Print what a user has spent, by the hour and in total, deleted sessions included."""
    start = None if since is None else _time_of(since)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            # What was spent outlives the sessions, which alone tell what apps there are.
            app_name = app if app is not None else await resolve_app(storage.store, None)
            spent = await storage.store.user_usage(app_name, user, start)
        if json:
            screen.line(jsontext.dumps(_to_wire(app_name, user, spent), ensure_ascii=False))
        else:
            rows = [_row(clock_text(bucket.hour), bucket.usage) for bucket in spent.buckets]
            screen.table(_COLUMNS, [*rows, _row("total", spent.total)])
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


def _time_of(text: str) -> float:
    """A time as people give it: how long ago, or when."""
    if (span := span_of(text)) is not None:
        return platform.now() - span
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(
            f"{text!r} is no time; give 90m, 24h, 7d, 8w, or a time like 2026-01-31T12:00", param_hint="--since"
        ) from None


def _row(hour: str, usage: Usage) -> Sequence[str]:
    return (
        hour,
        str(usage.total_token_count),
        str(usage.prompt_token_count),
        str(usage.candidates_token_count),
        str(usage.cached_content_token_count),
        str(usage.thoughts_token_count),
    )


def _to_wire(app_name: str, user_id: str, spent: UserUsage) -> dict[str, Any]:
    return {
        "appName": app_name,
        "userId": user_id,
        "total": spent.total.model_dump(by_alias=True),
        "hours": [{"hour": bucket.hour, **bucket.usage.model_dump(by_alias=True)} for bucket in spent.buckets],
    }

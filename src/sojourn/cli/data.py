"""`sojourn data`: the care of what is stored, for whoever runs the machine."""

from __future__ import annotations

import json as jsontext
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from sojourn.cli.confirm import check_somebody_confirms, confirmed
from sojourn.cli.execute import execute
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.listing import listed
from sojourn.cli.options import (
    DEFAULT_DB,
    AppOption,
    ArtifactsOption,
    DbOption,
    JsonObjectOption,
    Storage,
    UserOption,
    VerboseOption,
    YesOption,
    database_path,
    is_postgres,
    open_stored,
    resolve_app,
    span_of,
    url_of,
)
from sojourn.cli.screen import Screen, counted
from sojourn.cli.transcript import clock_text
from sojourn.data import DataCare, Retention, SessionStorage, StorageReport, restore_backup
from sojourn.data.backup import unsupported
from sojourn.data.services import retaining
from sojourn.memory.database import DatabaseMemoryService
from sojourn.memory.service import MemoryService
from sojourn.memory.sqlite.schema import has_tables
from sojourn.newfile import partial_file, put_in_place
from sojourn.page import Page
from sojourn.run.store import Store

commands = typer.Typer(no_args_is_help=True, help="Prune, measure, export, erase, back up and restore what is stored.")

UserArgument = Annotated[str, typer.Argument(metavar="USER", help="The user's id.", show_default=False)]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="PATH|URL", help="Where memory is kept, if not in the same SQLite file.", show_default=False
    ),
]
AppsOption = Annotated[
    list[str] | None, typer.Option("--app", metavar="NAME", help="Only this app; repeatable.", show_default=False)
]


@commands.command()
def prune(
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", metavar="SPAN", help="Remove sessions unused for so long: 90m, 30d, 8w.", show_default=False),
    ] = None,
    max_events: Annotated[
        int | None,
        typer.Option("--max-events", metavar="N", min=0, help="Of each session, keep this many newest.", show_default=False),
    ] = None,
    max_age: Annotated[
        str | None, typer.Option("--max-age", metavar="SPAN", help="Remove runs that ended so long ago.", show_default=False)
    ] = None,
    user: UserOption = None,
    yes: YesOption = False,
    json: JsonObjectOption = False,
    app: AppOption = None,
    db: DbOption = DEFAULT_DB,
    artifacts: ArtifactsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Remove what has been kept long enough."""
    retention = Retention(ttl=_span(ttl, "--ttl"), max_events=max_events, max_age=_span(max_age, "--max-age"))
    if not retention.bounded:
        raise typer.BadParameter("say what has been kept long enough: --ttl, --max-events or --max-age")
    check_somebody_confirms(yes)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db, artifacts) as storage:
            app_name = await _app_to_prune(storage.store, app)
            whose = "" if user is None else f" of user {user}"
            question = f"Remove from app {app_name}{whose}: {_told(ttl, max_events, max_age)}?"
            if not await confirmed(screen, ctrl_c, question, yes=yes, otherwise="nothing was removed"):
                return 1
            pruned = await _care(storage).prune(app_name, retention, user_id=user)
        removed = {"sessions": pruned.sessions, "runs": pruned.runs, "events": pruned.events}
        _tell(screen, json, {"appName": app_name, **removed}, f"removed {_counted(removed)} of app {app_name}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def report(
    user: UserOption = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="At most so many, the largest; 0 for all.")] = 20,
    json: JsonObjectOption = False,
    app: Annotated[
        str | None, typer.Option("--app", metavar="NAME", help="Only this app; all by default.", show_default=False)
    ] = None,
    db: DbOption = DEFAULT_DB,
    artifacts: ArtifactsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Print how much each session takes up, the largest first."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db, artifacts) as storage:
            found, sessions = await _reported(_care(storage), app, user, limit)
        if json:
            screen.line(jsontext.dumps({"sessions": [_wire(one) for one in sessions], **_totals(found)}, ensure_ascii=False))
            return 0
        columns = ("SESSION", "APP", "USER", "BYTES", "EVENTS", "RUNS", "ARTIFACTS", "ARTIFACT BYTES", "UPDATED")
        screen.table(columns, [_row(one) for one in sessions])
        screen.note(
            _counted({"sessions": found.sessions, "runs": found.runs, "events": found.events, "bytes": found.bytes})
            + (f"; shown: the {len(sessions)} largest" if len(sessions) < found.sessions else "")
        )
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def export(
    user: UserArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The ZIP archive, instead of stdout.", show_default=False),
    ] = None,
    app: AppsOption = None,
    memory: MemoryOption = None,
    db: DbOption = DEFAULT_DB,
    artifacts: ArtifactsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Write all that is kept of a user to a ZIP archive."""
    if output is None and sys.stdout.isatty():
        raise typer.BadParameter("a terminal cannot show an archive; name a file", param_hint="--output")

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with (
            open_stored(db, artifacts) as storage,
            _remembering(db, memory) as memories,
        ):
            with _opened(output) as file:
                async for piece in _care(storage, memories).export(user, apps=app):
                    file.write(piece)
        if output is not None:
            screen.note(f"exported user {user} to {output}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def erase(
    user: UserArgument,
    no_scrub: Annotated[
        bool, typer.Option("--no-scrub", help="Do not rewrite the file: what was removed stays readable in its unused parts.")
    ] = False,
    yes: YesOption = False,
    json: JsonObjectOption = False,
    app: AppsOption = None,
    memory: MemoryOption = None,
    db: DbOption = DEFAULT_DB,
    artifacts: ArtifactsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Remove all that is kept of a user: sessions, state, artifacts, memory and what was spent."""
    check_somebody_confirms(yes)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db, artifacts) as storage:
            where = f"in the apps {', '.join(app)}" if app else "in all apps"
            question = f"Erase all that is kept of user {user} {where}, for good?"
            if not await confirmed(screen, ctrl_c, question, yes=yes, otherwise="nothing was erased"):
                return 1
            async with _remembering(db, memory) as memories:
                erased = await _care(storage, memories).erase(user, apps=app, scrub=not no_scrub)
        removed = {"sessions": erased.sessions, "runs": erased.runs, "events": erased.events}
        _tell(screen, json, {"userId": user, "apps": erased.apps, **removed}, f"erased user {user}: {_counted(removed)}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy.", show_default=False)],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    json: JsonObjectOption = False,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Copy the database to a file, while it is in use."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            made = await _care(storage).backup(file, overwrite=overwrite)
        _tell(screen, json, {"file": made.path, "bytes": made.size}, f"backed up to {made.path}: {counted(made.size, 'byte')}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.", show_default=False)],
    yes: YesOption = False,
    json: JsonObjectOption = False,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Put a backup in the place of what is in the database."""
    check_somebody_confirms(yes)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        if is_postgres(db):
            raise unsupported("PostgreSQL")
        path = database_path(db)
        question = f"Replace all that is in {path} by what is in {file}?"
        agreed = yes or not path.exists()
        if not await confirmed(screen, ctrl_c, question, yes=agreed, otherwise="nothing was restored"):
            return 1
        await restore_backup(file, path)
        _tell(screen, json, {"file": str(file), "database": str(path)}, f"restored {path} from {file}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def sweep(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where artifacts are: s3://bucket/prefix.", show_default=False)],
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="SPAN", help="Only what is so old: 1h, 7d. Saves must not take that long.")
    ] = "1h",
    json: JsonObjectOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove from a bucket what saves and deletions of artifacts that were cut off have left, while it is in use."""
    seconds = _span(older_than, "--older-than")

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        # It takes another library, and time to load.
        from sojourn.artifact.s3.service import S3ArtifactService

        removed = await S3ArtifactService(url).sweep(older_than=seconds or 0)
        where = url.partition("?")[0]
        _tell(screen, json, {"url": where, "objects": removed}, f"removed {counted(removed, 'object')} from {where}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


# -- parts ------------------------------------------------------------------------------------------------------------


async def _app_to_prune(store: Store, app: str | None) -> str:
    """The app: also one of which nothing is left but artifacts of sessions that an earlier call has removed."""
    if app is not None and await retaining(store).dropped_sessions(app, limit=1):
        return app
    return await resolve_app(store, app)


def _care(storage: Storage, memory: MemoryService | None = None) -> DataCare:
    return DataCare(storage.store, artifacts=storage.artifacts, memory=memory)


@asynccontextmanager
async def _remembering(db: str, memory: str | None) -> AsyncIterator[MemoryService | None]:
    """Opens the memory that belongs to a database, if there is any, and closes it at the end.

    Args:
        db: The database.
        memory: Where memory is; None for in the same SQLite file, if it is there.
    """
    if memory is None and not _has_memory(db):
        yield None
        return
    service = DatabaseMemoryService(url_of(db if memory is None else memory))
    try:
        yield service
    finally:
        # Not every memory service has anything to close.
        close = getattr(service, "close", None)
        if close is not None:
            await close()


def _has_memory(db: str) -> bool:
    """Whether a database is a SQLite file with memory in it."""
    if "://" in db and not db.lower().startswith("sqlite:"):
        return False
    return has_tables(os.fspath(database_path(db)))


def _span(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    seconds = span_of(text)
    if seconds is None:
        raise typer.BadParameter(f"{text!r} is no span of time; give 90m, 24h, 30d or 8w", param_hint=option)
    return float(seconds)


def _told(ttl: str | None, max_events: int | None, max_age: str | None) -> str:
    """What is to be removed, in words."""
    told = []
    if ttl is not None:
        told.append(f"sessions unused for {ttl}")
    if max_age is not None:
        told.append(f"runs that ended {max_age} ago or earlier")
    if max_events is not None:
        told.append(f"runs beyond the newest {max_events} events of a session")
    return ", ".join(told)


def _counted(found: dict[str, int]) -> str:
    return ", ".join(counted(count, names.removesuffix("s")) for names, count in found.items())


def _tell(screen: Screen, json: bool, wire: dict[str, Any], note: str) -> None:
    """Says what was done: to stdout as JSON, or else to stderr."""
    if json:
        screen.line(jsontext.dumps(wire, ensure_ascii=False))
    else:
        screen.note(note)


async def _reported(
    care: DataCare, app: str | None, user: str | None, limit: int
) -> tuple[StorageReport, list[SessionStorage]]:
    """A report with the totals, and the largest sessions."""
    pages: list[StorageReport] = []

    async def read(size: int, after: str | None) -> Page[SessionStorage]:
        pages.append(await care.report(app, user_id=user, limit=size, after=after))
        return pages[-1].page

    sessions = await listed(read, limit)
    return pages[-1], sessions


def _row(one: SessionStorage) -> Sequence[str]:
    size = one.size
    app_name, user_id, session_id = size.key
    numbers = (one.bytes, size.events, size.runs, one.artifacts, one.artifact_bytes)
    return (session_id, app_name, user_id, *(str(number) for number in numbers), clock_text(size.updated_at))


def _wire(one: SessionStorage) -> dict[str, Any]:
    size = one.size
    return {
        "appName": size.key.app_name,
        "userId": size.key.user_id,
        "id": size.key.session_id,
        "bytes": one.bytes,
        "events": size.events,
        "runs": size.runs,
        "artifacts": one.artifacts,
        "artifactBytes": one.artifact_bytes,
        "createdAt": size.created_at,
        "updatedAt": size.updated_at,
    }


def _totals(found: StorageReport) -> dict[str, Any]:
    return {"total": {"sessions": found.sessions, "runs": found.runs, "events": found.events, "bytes": found.bytes}}


@contextmanager
def _opened(output: Path | None) -> Iterator[BinaryIO]:
    """Where an archive goes: to stdout, to what is no file, such as a pipe, or to a file for its owner alone.

    The file is there once the block has succeeded, whole.
    """
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif output.exists() and not output.is_file():
        with output.open("wb") as file:
            yield file
    else:
        # What a link leads to is written, as by any other program.
        target = os.path.realpath(output)
        with partial_file(target) as partial:
            with open(partial, "wb") as file:
                yield file
            put_in_place(partial, target, overwrite=True)

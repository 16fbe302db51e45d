"""`sojourn sessions`: what is stored of sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sojourn.cli.confirm import check_somebody_confirms, confirmed
from sojourn.cli.execute import execute
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.listing import all_events, all_runs, all_sessions
from sojourn.cli.lookup import find_session
from sojourn.cli.options import (
    DEFAULT_DB,
    AppOption,
    ArtifactsOption,
    DbOption,
    LimitOption,
    OfAppOption,
    UserOption,
    VerboseOption,
    YesOption,
    open_stored,
    resolve_app,
)
from sojourn.cli.screen import Screen, counted
from sojourn.cli.transcript import clock_text, print_transcript
from sojourn.data.deleting import delete_session
from sojourn.run.store import Store
from sojourn.run.types import RunQuery
from sojourn.session.types import Session
from sojourn.wire import interrupt_to_wire, run_to_wire, session_to_wire, step_to_wire

commands = typer.Typer(no_args_is_help=True, help="List, show, export and delete sessions.")

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="The session's id.", show_default=False)]


@commands.command("ls")
def list_(
    app: AppOption = None,
    user: UserOption = None,
    limit: LimitOption = 100,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """List sessions, newest first."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            app_name = await resolve_app(storage.store, app)
            sessions = await all_sessions(storage.store, app_name, user, limit)
            columns = ("SESSION", "USER", "EVENTS", "ACTIVE AGENT", "CREATED", "UPDATED")
            screen.table(columns, [_row(session) for session in sessions])
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def show(
    session: SessionArgument,
    app: OfAppOption = None,
    user: UserOption = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Also what does not count any more.")] = False,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Print a session's conversation."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            found = await find_session(storage.store, session, app, user)
            heading = f"session {found.id} of user {found.user_id}, app {found.app_name}: {counted(found.event_count, 'event')}"
            screen.note(f"{heading}, created {clock_text(found.created_at)}")
            async for page in all_events(storage.store, found, superseded=superseded):
                print_transcript(screen, page, times=True)
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def export(
    session: SessionArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to a file instead of stdout.", show_default=False),
    ] = None,
    app: OfAppOption = None,
    user: UserOption = None,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Print a whole session as JSON: record, state, events with superseded ones, runs with steps and questions."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            found = await find_session(storage.store, session, app, user)
            text = json.dumps(await exported(storage.store, found), ensure_ascii=False, indent=2)
        if output is None:
            screen.line(text)
            return 0
        output.write_text(f"{text}\n", encoding="utf-8")
        screen.note(f"exported to {output}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def rm(
    session: SessionArgument,
    yes: YesOption = False,
    app: OfAppOption = None,
    user: UserOption = None,
    db: DbOption = DEFAULT_DB,
    artifacts: ArtifactsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Delete a session with its events, runs, state and artifacts."""
    check_somebody_confirms(yes)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db, artifacts) as storage:
            found = await find_session(storage.store, session, app, user)
            what = f"{counted(found.event_count, 'event')} and its artifacts"
            question = f"Delete session {found.id} of user {found.user_id} with its {what}?"
            if not await confirmed(screen, ctrl_c, question, yes=yes, otherwise="nothing was deleted"):
                return 1
            await delete_session(storage.store, storage.artifacts, found.key)
            screen.note(f"deleted session {found.id} of user {found.user_id}")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


async def exported(store: Store, session: Session) -> dict[str, object]:
    """All that is stored of a session but its artifacts, as JSON."""
    app_name, user_id, session_id = session.key
    full = await store.get_session(app_name=app_name, user_id=user_id, session_id=session_id)
    events = [event.to_wire() async for page in all_events(store, session, superseded=True) for event in page]
    runs = []
    for record in reversed(await all_runs(store, RunQuery(app_name, user_id, session_id))):
        asked = await store.list_interrupts(app_name, user_id=user_id, run_uid=record.uid, open_only=False)
        runs.append(
            {
                **run_to_wire(record),
                "steps": [step_to_wire(step) for step in await store.list_steps(record.uid)],
                "interrupts": [interrupt_to_wire(interrupt) for interrupt in asked],
            }
        )
    return {"session": session_to_wire(full), "state": full.state, "events": events, "runs": runs}


def _row(session: Session) -> list[str]:
    return [
        session.id,
        session.user_id,
        str(session.event_count),
        session.active_agent or "",
        clock_text(session.created_at),
        clock_text(session.updated_at),
    ]

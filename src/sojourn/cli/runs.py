"""`sojourn runs`: what is stored of runs, and what can be done about them from outside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import typer

from sojourn import platform
from sojourn.cli import timeline
from sojourn.cli.execute import execute
from sojourn.cli.hosting import drain, hosting
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.listing import all_runs, events_of_run
from sojourn.cli.lookup import find_run
from sojourn.cli.options import (
    DEFAULT_DB,
    AppOption,
    BaseUrlOption,
    DbOption,
    JsonOption,
    LimitOption,
    ModelOption,
    OfAppOption,
    TargetAppOption,
    TargetArgument,
    UserOption,
    VerboseOption,
    open_storage,
    open_stored,
    resolve_app,
)
from sojourn.cli.othermodel import OtherModel
from sojourn.cli.questions import AnswerCommand, parse_answer
from sojourn.cli.run import RunOptions, config_of, edited, one_shot_talk
from sojourn.cli.screen import Screen, one_line
from sojourn.cli.target import Target, load_target
from sojourn.cli.transcript import clock_text, duration_text
from sojourn.errors import Conflict, InvalidInput, NotFound
from sojourn.run.status import RunStatus
from sojourn.run.store import Store
from sojourn.run.types import Interrupt, RunQuery, RunRecord
from sojourn.runner.runner import Runner
from sojourn.runner.submitting.answering import give_answer
from sojourn.store.role import Role

commands = typer.Typer(no_args_is_help=True, help="List, show, cancel, answer and retry runs.")

MESSAGE_WIDTH = 40

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.", show_default=False)]


@commands.command("ls")
def list_(
    app: AppOption = None,
    user: UserOption = None,
    session: Annotated[
        str | None, typer.Option("--session", "-s", metavar="ID", help="Only this session's.", show_default=False)
    ] = None,
    status: Annotated[
        list[RunStatus] | None, typer.Option("--status", help="Only runs of this status; repeatable.", show_default=False)
    ] = None,
    limit: LimitOption = 100,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """List runs, newest first."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            app_name = await resolve_app(storage.store, app)
            runs = await all_runs(storage.store, RunQuery(app_name, user, session, tuple(status or ())), limit)
            screen.table(
                ("RUN", "STATUS", "USER", "SESSION", "SUBMITTED", "TOOK", "MESSAGE"), [_row(record) for record in runs]
            )
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def show(
    run: RunArgument,
    app: OfAppOption = None,
    user: UserOption = None,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Draw what happened in a run: events, steps, questions, attempts, how long they took, what they cost."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            store = storage.store
            record = await find_run(store, run, app, user)
            asked = await store.list_interrupts(record.app_name, user_id=record.user_id, run_uid=record.uid, open_only=False)
            story = timeline.RunStory(record, await events_of_run(store, record), await store.list_steps(record.uid), asked)
            screen.line(_heading(record), "bold")
            screen.table(("TIME", "WHAT", "TOOK", "TOKENS", ""), timeline.rows(timeline.timeline(story)))
            waiting = [i for i in asked if i.status == "open"]
            if waiting:
                AnswerCommand(db).show(screen, waiting)
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def cancel(
    run: RunArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept on the run.")] = "cancelled at the console",
    app: OfAppOption = None,
    user: UserOption = None,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Ask for a run's end: at once if it is queued or waiting; else its process stops it within about a second."""

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        async with open_stored(db) as storage:
            found = await find_run(storage.store, run, app, user)
            if found.status.terminal:
                screen.tell(f"run {run} is {found.status.value} already")
                return 0
            record = await storage.store.request_cancel(found.uid, reason)
            if record.status.terminal:
                screen.tell(f"run {run} is {record.status.value}")
            else:
                screen.tell(f"run {run} is asked to stop; the process that executes it does so")
        return 0

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def answer(
    run: RunArgument,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[QUESTION] VALUE",
            help="The question's id, if the run asks several; and the answer: JSON if it fits the question, else text.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="TARGET", help="The agent, to go on with the run here and stream it.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    app: OfAppOption = None,
    user: UserOption = None,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Answer a question of a waiting run, whichever process executes it."""
    if len(words) > 2:
        raise typer.BadParameter("give the answer as one word: quote it", param_hint="VALUE")
    if model is not None and target is None:
        raise typer.BadParameter("it is for the agents of a target; give --target, too", param_hint="--model")
    question_id, value = (None, words[0]) if len(words) == 1 else (words[0], words[1])
    other_model = OtherModel.of(model, base_url)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        with ctrl_c.raises():
            loaded = load_target(target, other_model) if target is not None else None
        async with loaded or nullcontext(), open_storage(db, create=False, role=_role(loaded)) as storage:
            store = storage.store
            record = await find_run(store, run, app, user)
            question = await _question(store, record, question_id)
            parsed = parse_answer(value, question)
            if loaded is None:
                answered = await give_answer(store, record, question.id, parsed)
                screen.tell(_told(answered.record, recorded=answered.recorded))
                return 0
            options = _options(loaded, db, record, json=json, verbose=verbose)
            runner = Runner(config_of(loaded, storage, options))
            try:
                async with hosting(runner):
                    handle = await runner.answer(record.id, question.id, parsed, user_id=record.user_id)
                    ending = await one_shot_talk(runner, screen, ctrl_c, options).follow(handle)
                    await drain(runner, screen, ctrl_c)
                    return ending.exit_code
            except Conflict as error:
                if error.code != "store.in_use":
                    raise
            # Another process executes it: it is answered all the same, and followed from here.
            handle = await runner.answer(record.id, question.id, parsed, user_id=record.user_id)
            return (await one_shot_talk(runner, screen, ctrl_c, options).follow(handle)).exit_code

    raise typer.Exit(execute(work, verbose=verbose))


@commands.command()
def retry(
    run: RunArgument,
    target: TargetArgument,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="Say this instead; what was attached stays.", show_default=False),
    ] = None,
    drop_later: Annotated[bool, typer.Option("--drop-later", help="Also if others came after it: they count no more.")] = False,
    json: JsonOption = False,
    model: ModelOption = None,
    base_url: BaseUrlOption = None,
    app: TargetAppOption = None,
    user: UserOption = None,
    db: DbOption = DEFAULT_DB,
    verbose: VerboseOption = False,
) -> None:
    """Run a finished run again in its place, and stream it: it and what came after it in its session count no more."""
    other_model = OtherModel.of(model, base_url)

    async def work(screen: Screen, ctrl_c: CtrlC) -> int:
        with ctrl_c.raises():
            loaded = load_target(target, other_model)
        async with loaded, open_storage(db, create=False, role="executor") as storage:
            record = await find_run(storage.store, run, app or loaded.config.app_name, user)
            options = _options(loaded, db, record, json=json, verbose=verbose)
            runner = Runner(config_of(loaded, storage, options))
            async with hosting(runner):
                said = None if message is None else edited(record.message.content, message)
                handle = await runner.retry(record.id, said, user_id=record.user_id, drop_later=drop_later)
                ending = await one_shot_talk(runner, screen, ctrl_c, options).follow(handle)
                await drain(runner, screen, ctrl_c)
                return ending.exit_code

    raise typer.Exit(execute(work, verbose=verbose))


async def _question(store: Store, record: RunRecord, question_id: str | None) -> Interrupt:
    """The question that an answer is for: the one named, or the only open one, or else the only one answered before."""
    asked = await store.list_interrupts(record.app_name, user_id=record.user_id, run_uid=record.uid, open_only=False)
    waiting = [i for i in asked if i.status == "open"]
    if question_id is None:
        waiting = waiting or [i for i in asked if i.status == "answered"]
        if len(waiting) == 1:
            return waiting[0]
        if not waiting:
            raise Conflict(f"run {record.id!r} is {record.status.value} and asks nothing", code="interrupt.closed")
        raise InvalidInput(
            f"run {record.id!r} asks several questions: {', '.join(i.id for i in waiting)}; say which",
            code="interrupt.ambiguous",
        )
    for interrupt in asked:
        if interrupt.id == question_id:
            return interrupt
    raise NotFound(
        f"run {record.id!r} has no interrupt {question_id!r}; open ones: {', '.join(i.id for i in waiting) or 'none'}",
        code="interrupt.not_found",
    )


def _told(record: RunRecord, *, recorded: bool) -> str:
    if not recorded:
        return f"run {record.id} has this answer already; it is {record.status.value}"
    return (
        f"answered; run {record.id} is {record.status.value}, and goes on in the process that executes runs of app "
        f"{record.app_name}, or with the next sojourn run"
    )


def _role(target: Target | None) -> Role:
    return "client" if target is None else "executor"


def _options(target: Target, db: str, record: RunRecord, *, json: bool, verbose: bool) -> RunOptions:
    return RunOptions(
        target.spec,
        db,
        record.app_name,
        record.user_id,
        record.session_id,
        json=json,
        verbose=verbose,
        own_services=False,
        other_model=target.other_model,
    )


def _heading(record: RunRecord) -> str:
    parts = [f"run {record.id} is {record.status.value}", f"session {record.session_id} of user {record.user_id}"]
    parts.append(f"app {record.app_name}")
    if record.agent:
        parts.append(f"agent {record.agent}")
    if record.attempt > 1:
        parts.append(f"{record.attempt} attempts")
    if tokens := record.usage.get("total_token_count"):
        parts.append(f"{tokens:,} tokens")
    if record.retry_of:
        parts.append(f"repeats {record.retry_of}")
    if record.superseded_by:
        parts.append(f"superseded by {record.superseded_by}")
    return ", ".join(parts)


def _row(record: RunRecord) -> Sequence[str]:
    took = ""
    if record.started_at is not None:
        took = duration_text((record.finished_at or platform.now()) - record.started_at)
    status = record.status.value + (f" [{record.error.code}]" if record.error is not None else "")
    message = one_line(record.message.text, MESSAGE_WIDTH)
    return record.id, status, record.user_id, record.session_id, clock_text(record.created_at), took, message

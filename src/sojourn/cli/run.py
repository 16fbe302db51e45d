"""`sojourn run TARGET "message"`: one run, streamed."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sojourn import platform
from sojourn.cli.hosting import drain, has_several_agents, hosting
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.options import Storage, open_storage
from sojourn.cli.othermodel import OtherModel
from sojourn.cli.questions import AnswerCommand
from sojourn.cli.readers import LineReader, Reader, open_reader
from sojourn.cli.screen import Screen
from sojourn.cli.talk import Talk
from sojourn.cli.target import Target, load_target
from sojourn.cli.views import JsonView, TextView, View
from sojourn.content import Content, Part
from sojourn.errors import InvalidInput
from sojourn.runner.config import RunnerConfig
from sojourn.runner.runner import Runner


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What `sojourn run` was told, and what `sojourn runs` shares with it.

    Attributes:
        target: The agent.
        db: The database.
        app_name: The app; the target's own if None.
        user_id: Who speaks.
        session_id: The session; None for a new one.
        json: Whether to print frames instead of text.
        verbose: Whether to print tracebacks.
        own_services: Whether the target's own services are used where it has some: nobody named a database.
        other_model: A model for the target's agents in place of their own.
    """

    target: str | Target
    db: str
    app_name: str | None
    user_id: str
    session_id: str | None
    json: bool
    verbose: bool
    own_services: bool
    other_model: OtherModel | None = None

    @property
    def answer_command(self) -> AnswerCommand:
        """How to answer a question of the run in another shell."""
        spec = self.target if isinstance(self.target, str) else self.target.spec
        return AnswerCommand(self.db, spec, self.other_model)


async def run_once(screen: Screen, ctrl_c: CtrlC, options: RunOptions, message: Content) -> int:
    """Runs a message and streams the answer."""
    with ctrl_c.raises():
        target = load_target(options.target, options.other_model)
    async with target, open_storage(options.db, create=True, role="executor") as storage:
        runner = Runner(config_of(target, storage, options))
        async with hosting(runner):
            session_id = options.session_id or platform.new_id()
            if options.session_id is None:
                screen.note(f"session {session_id}")
            talk = one_shot_talk(runner, screen, ctrl_c, options)
            run = await runner.start_attached(options.user_id, session_id, message)
            try:
                ending = await talk.follow(run)
            finally:
                await runner.leave(run)
            await drain(runner, screen, ctrl_c)
        return ending.exit_code


def config_of(target: Target, storage: Storage, options: RunOptions) -> RunnerConfig:
    """What the Runner of a target is made of."""
    return target.runner_config(storage.store, storage.artifacts, app_name=options.app_name, own_services=options.own_services)


def one_shot_talk(runner: Runner, screen: Screen, ctrl_c: CtrlC, options: RunOptions) -> Talk:
    """How a single run is followed: questions are asked if somebody sits there, programs are left to answer themselves."""
    view: View = JsonView(screen) if options.json else TextView(screen, names=has_several_agents(runner))
    reader: Reader | None = None if options.json else open_reader(screen, ctrl_c)
    if isinstance(reader, LineReader) and not reader.interactive:
        reader = None
    return Talk(runner, view, screen, ctrl_c, options.answer_command, reader=reader, verbose=options.verbose)


def content_of(text: str, files: Sequence[Path]) -> Content:
    """What a user says: a text, and files attached to it.

    Raises:
        InvalidInput: `message.invalid` if it is empty or not Unicode, or a file cannot be read.
    """
    if not _is_unicode(text):
        try:
            # In a locale that is not UTF-8, arguments come with their bytes escaped.
            text = os.fsencode(text).decode()
        except UnicodeError:
            raise InvalidInput("the message is not UTF-8", code="message.invalid") from None
    parts = [Part.from_text(text)] if text else []
    for path in files:
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"file {str(path)!r} cannot be read: {error.strerror}", code="message.invalid") from error
        parts.append(Part.from_bytes(data, kind, display_name=path.name))
    if not parts:
        raise InvalidInput("the message is empty", code="message.invalid")
    return Content("user", tuple(parts))


def edited(message: Content | None, text: str) -> Content:
    """A message with another text; what was attached to it stays.

    Raises:
        InvalidInput: `message.invalid` if the text is empty or not Unicode.
    """
    attached = [part for part in message.parts if part.text is None] if message is not None else []
    return Content("user", (*content_of(text, ()).parts, *attached))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

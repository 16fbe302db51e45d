"""`sojourn run TARGET`: a conversation at the console, one turn after the other."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from sojourn import platform
from sojourn.cli.execute import report
from sojourn.cli.failures import ExitCode
from sojourn.cli.hosting import drain, has_several_agents, hosting, title_of
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.options import Storage, open_storage
from sojourn.cli.readers import Reader, open_reader
from sojourn.cli.reload import Reloader
from sojourn.cli.run import RunOptions, config_of, content_of, edited
from sojourn.cli.screen import Screen
from sojourn.cli.talk import LATER, Talk
from sojourn.cli.target import Target, load_target
from sojourn.cli.transcript import print_transcript
from sojourn.cli.views import TextView
from sojourn.errors import NotFound, SojournError
from sojourn.event import USER
from sojourn.run.status import RunStatus
from sojourn.run.types import RunRecord
from sojourn.runner.config import RunnerConfig
from sojourn.runner.handle import Run
from sojourn.runner.runner import Runner
from sojourn.session.types import Session

DEFAULT_SESSION = "console"

HISTORY_EVENTS = 50
"""How many of a session's newest events are shown when it is taken up again."""

_UNFINISHED = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)

HELP = f"""\
Type a message. In place of one:
  /session   show which session this is
  /new       start a new session
  /state     show the session's state
  /retry     have the last message answered again
  /edit …    say this instead of the last message; /edit alone offers it for editing
  /exit      leave; so do Ctrl-D, and Ctrl-C pressed twice
  //…        a message that begins with a slash
Ctrl-C stops the agent while it speaks. {LATER} in place of an answer leaves a question open."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a person wants to be answered.

    Attributes:
        text: What is said; None for what the repeated run was told.
        repeats: The run whose place this turn takes; None if it comes after all others.
    """

    text: str | None
    repeats: RunRecord | None = None


async def chat(screen: Screen, ctrl_c: CtrlC, options: RunOptions, *, reload: bool) -> int:
    """Talks until the input ends or the user leaves."""
    with ctrl_c.raises():
        target = load_target(options.target, options.other_model)
    async with target, open_storage(options.db, create=True, role="executor") as storage:
        conversation = Chat(screen, ctrl_c, options, storage, Reloader(target) if reload else None)
        runner: Runner | None = conversation.runner_of(target)
        while runner is not None:
            async with hosting(runner):
                edited = await conversation.talk(runner)
                if edited is None:
                    await drain(runner, screen, ctrl_c)
            runner = edited
        return conversation.exit_code


class Chat:
    """A conversation with an agent, and with those that editing makes of it.

    Attributes:
        exit_code: What to tell the shell in the end. Turns that failed count if no person sat there to see it.
    """

    def __init__(self, screen: Screen, ctrl_c: CtrlC, options: RunOptions, storage: Storage, reloader: Reloader | None) -> None:
        self.exit_code = ExitCode.OK
        self._screen = screen
        self._ctrl_c = ctrl_c
        self._options = options
        self._storage = storage
        self._reloader = reloader
        self._session_id = options.session_id or DEFAULT_SESSION
        self._services: RunnerConfig | None = None
        self._reader: Reader | None = None
        self._unsent: Turn | None = None
        self._interrupted = False

    def runner_of(self, target: Target) -> Runner:
        """A Runner of a target; one of an edited target uses the services of the first.

        Raises:
            InvalidInput: What `Runner` raises.
        """
        config = config_of(target, self._storage, self._options)
        if self._services is not None:
            config = replace(
                config,
                session_service=self._services.session_service,
                artifact_service=self._services.artifact_service,
                memory_service=self._services.memory_service,
            )
        runner = Runner(config)
        self._services = config
        return runner

    async def talk(self, runner: Runner) -> Runner | None:
        """Takes turns.

        Returns:
            The Runner to go on with, if the agent was edited; None if the conversation is over.
        """
        if self._reader is None:
            self._reader = await self._open(runner)
        talk = self._talk(runner, self._reader)
        if not await self._finish_earlier(runner, talk):
            return None
        while (turn := await self._next_turn(runner, self._reader)) is not None:
            reloaded = self._reloaded()
            if reloaded is not None:
                self._unsent = turn
                return reloaded
            if not await self._take(runner, talk, turn):
                break
        return None

    def _talk(self, runner: Runner, reader: Reader) -> Talk:
        view = TextView(self._screen, names=has_several_agents(runner))
        return Talk(
            runner, view, self._screen, self._ctrl_c, self._options.answer_command, reader=reader, verbose=self._options.verbose
        )

    # -- turns ------------------------------------------------------------------------------------------------------

    async def _open(self, runner: Runner) -> Reader:
        """Shows what was said in the session before."""
        session = await self._session(runner, events=HISTORY_EVENTS)
        events = session.events if session is not None else ()
        reader = open_reader(self._screen, self._ctrl_c, said=[e.text for e in events if e.author == USER and e.text])
        if self._screen.fancy:
            if session is not None and session.event_count > len(events):
                self._screen.note(f"… sojourn sessions show {self._session_id} shows all of it")
            print_transcript(self._screen, events, times=False)
            self._screen.note(f"{title_of(runner)}, session {self._session_id}; /help tells what you can type")
        return reader

    async def _finish_earlier(self, runner: Runner, talk: Talk) -> bool:
        """Follows the session's unfinished runs, oldest first, and asks what they ask; False to leave."""
        runs = await runner.list_runs(user_id=self._options.user_id, session_id=self._session_id, status=_UNFINISHED)
        for record in reversed(runs.items):
            run = await runner.follow(record.id, user_id=record.user_id)
            run.start_pos = record.last_pos
            if not await self._follow(talk, run):
                return False
        return True

    async def _take(self, runner: Runner, talk: Talk, turn: Turn) -> bool:
        """Sends a message and shows the answer; False to leave."""
        try:
            run = await self._start(runner, turn)
            try:
                return await self._follow(talk, run)
            finally:
                await runner.leave(run)
        except SojournError as error:
            report(self._screen, error, verbose=self._options.verbose)
            self._failed(ExitCode.FAILED)
            return True

    async def _start(self, runner: Runner, turn: Turn) -> Run:
        user_id, repeats = self._options.user_id, turn.repeats
        if repeats is None:
            return await runner.start_attached(user_id, self._session_id, content_of(turn.text or "", ()))
        message = None if turn.text is None else edited(repeats.message.content, turn.text)
        return await runner.retry(repeats.id, message, user_id=user_id, attached=True)

    async def _follow(self, talk: Talk, run: Run) -> bool:
        ending = await talk.follow(run)
        self._interrupted = ending.interrupted
        if ending.exit_code is not ExitCode.OK:
            self._failed(ending.exit_code)
        return not ending.no_input and (self._is_person or not ending.interrupted)

    def _failed(self, code: ExitCode) -> None:
        if not self._is_person:
            self.exit_code = code

    @property
    def _is_person(self) -> bool:
        return self._reader is not None and self._reader.interactive

    # -- input ------------------------------------------------------------------------------------------------------

    async def _next_turn(self, runner: Runner, reader: Reader) -> Turn | None:
        """The next turn to take; None to leave."""
        unsent, self._unsent = self._unsent, None
        if unsent is not None:
            return unsent
        while True:
            try:
                text = (await reader.read("> ")).strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self._interrupted or not reader.interactive:
                    self.exit_code = ExitCode.INTERRUPTED
                    return None
                self._interrupted = True
                self._screen.note("Ctrl-C again, or Ctrl-D, leaves")
                continue
            self._interrupted = False
            if text == "/exit":
                return None
            if text.startswith("//"):
                return Turn(text.removeprefix("/"))
            name, _, words = text.partition(" ")
            if name in ("/retry", "/edit"):
                turn = await self._repeat(runner, reader, words.strip(), edits=name == "/edit")
                if turn is not None:
                    return turn
            elif text.startswith("/"):
                await self._command(runner, text)
            elif text:
                return Turn(text)

    async def _repeat(self, runner: Runner, reader: Reader, words: str, *, edits: bool) -> Turn | None:
        """The turn that takes the place of the session's last one; None if there is to be none."""
        runs = await runner.list_runs(user_id=self._options.user_id, session_id=self._session_id, limit=1)
        if not runs.items:
            self._screen.error("nothing was said in this session yet")
            return None
        last = runs.items[0]
        if not edits or words:
            return Turn(words if edits else None, last)
        if not reader.edits:
            self._screen.error("say what the last message is to be: /edit TEXT")
            return None
        try:
            text = (await reader.read("edit> ", last.message.text)).strip()
        except (EOFError, KeyboardInterrupt):
            text = ""
        if not text:
            self._screen.note("the last message stays as it was")
        return Turn(text, last) if text else None

    async def _command(self, runner: Runner, text: str) -> None:
        match text:
            case "/help":
                self._screen.line(HELP)
            case "/new":
                self._session_id = platform.new_id()
                self._screen.note(f"session {self._session_id}")
            case "/session":
                session = await self._session(runner)
                count = session.event_count if session is not None else 0
                self._screen.line(
                    f"session {self._session_id} of user {self._options.user_id}, app {runner.app_name}: {count} events"
                )
            case "/state":
                session = await self._session(runner)
                state = session.state if session is not None else {}
                self._screen.line(json.dumps(state, ensure_ascii=False, indent=2, sort_keys=True))
            case _:
                self._screen.error(f"there is no command {text.split(maxsplit=1)[0]}; /help shows those there are")

    async def _session(self, runner: Runner, *, events: int = 0) -> Session | None:
        try:
            return await runner.store.get_session(
                app_name=runner.app_name, user_id=self._options.user_id, session_id=self._session_id, events=events
            )
        except NotFound:
            return None

    # -- edits ------------------------------------------------------------------------------------------------------

    def _reloaded(self) -> Runner | None:
        """A Runner of the agent as it was edited; None if it was not, or is broken now."""
        if self._reloader is None or not self._reloader.changed():
            return None
        try:
            runner = self.runner_of(self._reloader.reload())
        except SojournError as error:
            report(self._screen, error, verbose=self._options.verbose)
            self._screen.note("the agent before this edit goes on")
            return None
        self._screen.note("reloaded")
        return runner

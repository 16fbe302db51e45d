"""Following a run at a console: shows what its agents say, asks what they ask, stops it on Ctrl-C and SIGTERM."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

from sojourn.cli.execute import report
from sojourn.cli.failures import ExitCode, full_traceback, message_of, user_traceback
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.questions import AnswerCommand, parse_answer, show_question
from sojourn.cli.readers import Reader
from sojourn.cli.screen import Screen
from sojourn.cli.views import View
from sojourn.errors import Conflict, InvalidInput, SojournError
from sojourn.run.status import RunStatus
from sojourn.run.types import Interrupt, RunRecord
from sojourn.runner.handle import Run
from sojourn.runner.runner import Runner

REASON = "stopped at the console"

LATER = "/later"
"""Typed in place of an answer: the question stays open."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How following a run came to its end.

    Attributes:
        run: The run.
        record: Its record then.
        interrupted: Whether Ctrl-C was pressed.
        no_input: Whether stdin ended at a question.
    """

    run: Run
    record: RunRecord
    interrupted: bool = False
    no_input: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """What to tell the shell of it."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        match self.record.status:
            case RunStatus.COMPLETED:
                return ExitCode.OK
            case RunStatus.WAITING:
                return ExitCode.WAITING
            case _:
                return ExitCode.FAILED


class Talk:
    """A console's side of the runs it follows.

    Args:
        runner: What drives them.
        view: What shows them.
        screen: Where everything else is written.
        ctrl_c: Who listens to Ctrl-C.
        command: How to answer questions in another shell.
        reader: Where answers come from; None to leave questions open.
        verbose: Whether to show whole tracebacks.
    """

    def __init__(
        self,
        runner: Runner,
        view: View,
        screen: Screen,
        ctrl_c: CtrlC,
        command: AnswerCommand,
        *,
        reader: Reader | None,
        verbose: bool,
    ) -> None:
        self.runner = runner
        self._view = view
        self._screen = screen
        self._ctrl_c = ctrl_c
        self._command = command
        self._reader = reader
        self._verbose = verbose
        self._stopping: asyncio.Task[RunRecord] | None = None

    async def follow(self, run: Run) -> Ending:
        """Follows a run until it ends, or waits for an answer that is not given here; tells how it ended.

        Raises:
            SojournError: The run cannot be followed: the store is away, its session was deleted.
        """
        ending = await self._follow(run)
        match ending.record.status:
            case RunStatus.CANCELLED if ending.interrupted:
                self._screen.note("stopped")
            case RunStatus.FAILED | RunStatus.CANCELLED:
                await self._tell_failure(ending.run)
            case RunStatus.WAITING:
                interrupts = await ending.run.interrupts()
                self._view.wait(ending.run.id, interrupts)
                self._command.show(self._screen, interrupts)
        return ending

    async def _follow(self, run: Run) -> Ending:
        after = run.start_pos
        while True:
            frames = run.frames(after, partials=self.runner.streams(run.record))
            with self._ctrl_c.calls(partial(self._stop, run)) as presses:
                async for frame in frames:
                    self._view.show(frame)
                self._view.end()
                if presses.pressed:
                    return Ending(run, await self._stopped(run), interrupted=True)
            record, after = frames.record, frames.pos
            if record.status is not RunStatus.WAITING or self._reader is None:
                return Ending(run, record)
            asked = await run.interrupts()
            if not asked:
                return Ending(run, await run.refresh())
            try:
                answer = await self._ask(self._reader, asked[0])
            except EOFError:
                return Ending(run, record, no_input=True)
            except KeyboardInterrupt:
                return Ending(run, await run.cancel(REASON), interrupted=True)
            if answer is LATER:
                return Ending(run, record)
            run = await self._answer(run, asked[0], answer)

    async def _ask(self, reader: Reader, question: Interrupt) -> Any:
        """Asks until the answer fits; `LATER` itself for none."""
        show_question(self._screen, question)
        while True:
            text = await reader.read("answer> ")
            if text.strip() == LATER:
                return LATER
            try:
                return parse_answer(text, question)
            except InvalidInput as error:
                self._screen.error(message_of(error))

    async def _answer(self, run: Run, question: Interrupt, value: Any) -> Run:
        try:
            return await self.runner.answer(run.id, question.id, value, user_id=run.user_id)
        except Conflict as error:
            # Somebody else was faster, or the question has expired: the run goes its way.
            report(self._screen, error, verbose=self._verbose)
            return await self.runner.follow(run.id, user_id=run.user_id)

    def _stop(self, run: Run) -> None:
        # First of all: what is written may find that its reader was stopped, too.
        self._stopping = asyncio.ensure_future(run.cancel(REASON))
        self._view.break_line()
        self._screen.note("stopping; Ctrl-C again leaves at once")

    async def _stopped(self, run: Run) -> RunRecord:
        """The run after Ctrl-C; it may have ended in another way, or have asked, before it could be stopped."""
        if self._stopping is not None:
            stopping, self._stopping = self._stopping, None
            await stopping
        return await run.refresh()

    async def _tell_failure(self, run: Run) -> None:
        try:
            await run.result()
        except SojournError as error:
            cause = error.__cause__
            if cause is not None and not isinstance(cause, SojournError):
                self._screen.tell(full_traceback(cause) if self._verbose else user_traceback(cause))
            self._screen.error(message_of(error))

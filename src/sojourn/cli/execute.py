"""Runs a command's coroutine: its event loop, its errors, its exit code."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sojourn.cli.failures import STOPPED, ExitCode, exit_code_of, full_traceback, leave_at_once, message_of
from sojourn.cli.interrupts import CtrlC
from sojourn.cli.screen import Screen, drop_output

Work = Callable[[Screen, CtrlC], Awaitable[int]]
"""What a command does, given where to write and who listens to Ctrl-C and its like; it returns the exit code."""

TIDY_SECONDS = 1.0
"""How long tasks that are left over at the end have to end."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a command line asks for.

    Attributes:
        work: What to do.
        verbose: Whether to print tracebacks and the log.
        loop_factory: Makes the event loop, if there is none yet.
    """

    work: Work
    verbose: bool
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None

    def carry_out(self) -> int:
        """Does it in an event loop of its own; returns the exit code of the process."""
        return execute(self.work, verbose=self.verbose, loop_factory=self.loop_factory)

    async def carry_out_here(self) -> int:
        """Does it in the running event loop, which goes on; returns the exit code of the process."""
        screen = Screen()
        with _log(screen, self.verbose):
            return await _guarded(self.work, screen, self.verbose)


def execute(work: Work, *, verbose: bool, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> int:
    """Runs the work of a command and returns the exit code of the process.

    Args:
        work: What to do.
        verbose: Whether to print tracebacks and the log.
        loop_factory: Makes the event loop; asyncio's own if omitted.
    """
    screen = Screen()
    try:
        with _log(screen, verbose), asyncio.Runner(loop_factory=loop_factory) as loop:
            code = loop.run(_guarded(work, screen, verbose))
            tidy = loop.run(_tidy())
            if not tidy or (code in STOPPED and _threads_left()):
                # Closing the loop, and the interpreter, would wait for an agent that does not end.
                leave_at_once(code)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code


async def _guarded(work: Work, screen: Screen, verbose: bool) -> int:
    ctrl_c = CtrlC()
    try:
        with ctrl_c:
            return await work(screen, ctrl_c)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return ctrl_c.exit_code
    except BrokenPipeError:
        drop_output()
        return ExitCode.BROKEN_PIPE
    except Exception as error:
        report(screen, error, verbose=verbose)
        return exit_code_of(error)


def report(screen: Screen, error: BaseException, *, verbose: bool) -> None:
    """Tells of an error in one line, after the traceback of a target that failed, or with `verbose` of anything."""
    details = full_traceback(error) if verbose else getattr(error, "details", "")
    if details:
        screen.tell(details)
    screen.error(message_of(error))


async def _tidy() -> bool:
    """Cancels what is left over; returns whether it has ended."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=TIDY_SECONDS)
    return all(task.done() for task in left)


def _threads_left() -> bool:
    return any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread())


class _ScreenHandler(logging.Handler):
    """Shows log records, unless the user's code has set up logging itself."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            self._screen.note(self.format(record))


@contextmanager
def _log(screen: Screen, verbose: bool) -> Iterator[None]:
    logger, handler = logging.getLogger("sojourn"), _ScreenHandler(screen)
    level = logger.level
    if verbose:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.setLevel(logging.INFO)
    else:
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        # What is logged with a traceback is an agent's failure, which the command that follows the run shows itself.
        handler.addFilter(lambda record: record.exc_info is None)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

"""Ctrl-C, SIGTERM and SIGHUP: a call while something can be stopped, the end of the process when that does not help."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sojourn.cli.failures import ExitCode, leave_at_once

_EXIT_CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.HUNG_UP,
}


class Presses:
    """Whether Ctrl-C was pressed, or the process told to end, while a block ran."""

    __slots__ = ("call", "pressed")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.pressed = False


class CtrlC:
    """Turns SIGINT, SIGTERM and SIGHUP into calls on the event loop while its block runs.

    The first Ctrl-C of each `calls` block makes the call; a second one before that block is left ends the process, also
    if an agent blocks the event loop. Outside of `calls` blocks, the first one cancels the task that entered.

    SIGTERM and SIGHUP do what the first Ctrl-C does, and then end what is around it, too: leaving a `calls` block after one
    raises `CancelledError`. Another signal after it ends the process.

    Attributes:
        exit_code: What to tell the shell of a command that was stopped.
    """

    def __init__(self) -> None:
        self.exit_code = ExitCode.INTERRUPTED
        self._now = Presses(_nothing)
        self._raises = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def _told_to_end(self) -> bool:
        return self.exit_code is not ExitCode.INTERRUPTED

    def __enter__(self) -> CtrlC:
        task = asyncio.current_task()
        assert task is not None
        self._loop = asyncio.get_running_loop()
        self._now = Presses(task.cancel)
        if threading.current_thread() is threading.main_thread():
            # Under nohup, a SIGHUP is not to be heard.
            heard = [n for n in _EXIT_CODES if n is signal.SIGINT or signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._on_signal) for number in heard}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, before in self._before.items():
            # None stands for a handler that Python did not set, and cannot set again.
            signal.signal(number, before if before is not None else signal.SIG_DFL)

    @contextmanager
    def calls(self, call: Callable[[], Any]) -> Iterator[Presses]:
        """Calls something at the first Ctrl-C while the block runs, or when the process is told to end.

        Returns:
            What tells, also after the block, whether there was one.

        Raises:
            CancelledError: At the end of the block, whatever happened in it, if the process was told to end.
        """
        around, self._now = self._now, Presses(call)
        try:
            yield self._now
        finally:
            self._now = around
            if self._told_to_end:
                raise asyncio.CancelledError

    @contextmanager
    def raises(self) -> Iterator[None]:
        """Lets any of the signals break into the block, which does not await.

        Raises:
            KeyboardInterrupt: In the block.
        """
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Not loop.add_signal_handler: its callbacks would wait for an agent that blocks the loop.
        if self._told_to_end or (self._now.pressed and number == signal.SIGINT):
            leave_at_once(self.exit_code)
        self.exit_code = _EXIT_CODES[signal.Signals(number)]
        if self._raises:
            raise KeyboardInterrupt
        if not self._now.pressed:
            self._now.pressed = True
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._now.call)


def _nothing() -> None:
    return None

"""Ctrl-C: a call while something can be stopped, the end of the process when that does not help."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sojourn.cli.failures import ExitCode, leave_at_once


class Presses:
    """Whether Ctrl-C was pressed while a block ran."""

    __slots__ = ("call", "pressed")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.pressed = False


class CtrlC:
    """Turns SIGINT into calls on the event loop while its block runs.

    The first Ctrl-C of each `calls` block makes the call; a second one before that block is left ends the process, also
    if an agent blocks the event loop. Outside of `calls` blocks, the first one cancels the task that entered.
    """

    def __init__(self) -> None:
        self._now = Presses(_nothing)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: Any = None

    def __enter__(self) -> CtrlC:
        task = asyncio.current_task()
        assert task is not None
        self._loop = asyncio.get_running_loop()
        self._now = Presses(task.cancel)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def calls(self, call: Callable[[], Any]) -> Iterator[Presses]:
        """Calls something at the first Ctrl-C while the block runs.

        Returns:
            What tells, also after the block, whether there was one.
        """
        around, self._now = self._now, Presses(call)
        try:
            yield self._now
        finally:
            self._now = around

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Not loop.add_signal_handler: its callbacks would wait for an agent that blocks the loop.
        if self._now.pressed:
            leave_at_once(ExitCode.INTERRUPTED)
        self._now.pressed = True
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._now.call)


def _nothing() -> None:
    return None

"""Where the console's lines come from: a terminal with editing, or any other stdin, line by line."""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import threading
from collections.abc import Sequence
from typing import Protocol

from sojourn.cli.interrupts import CtrlC
from sojourn.cli.screen import Screen

_BLOCK = 65_536


class Reader(Protocol):
    """Reads what a person types.

    Attributes:
        interactive: Whether a person sits there.
        edits: Whether it can offer a text to be changed.
    """

    interactive: bool
    edits: bool

    async def read(self, prompt: str, text: str = "") -> str:
        """Reads a line.

        Args:
            prompt: What to show a person before it.
            text: What the person may change and send; only for a reader that `edits`.

        Raises:
            EOFError: There is no more.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        ...


def open_reader(screen: Screen, ctrl_c: CtrlC, *, said: Sequence[str] = ()) -> Reader:
    """The reader that fits stdin and stdout.

    Args:
        screen: Where prompts go.
        ctrl_c: Who listens to Ctrl-C.
        said: Earlier lines, oldest first, that a person can call up again.
    """
    if sys.stdin.isatty() and screen.fancy:
        return PromptReader(said)
    return LineReader(screen, ctrl_c)


class PromptReader:
    """Reads from a terminal, with editing and history."""

    interactive = True
    edits = True

    def __init__(self, said: Sequence[str] = ()) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import InMemoryHistory

        self._session: PromptSession[str] = PromptSession(history=InMemoryHistory(list(said)))

    async def read(self, prompt: str, text: str = "") -> str:
        """Reads a line."""
        return await self._session.prompt_async(prompt, default=text)


class LineReader:
    """Reads lines from any stdin."""

    edits = False

    def __init__(self, screen: Screen, ctrl_c: CtrlC) -> None:
        self.interactive = sys.stdin.isatty()
        self._screen = screen
        self._ctrl_c = ctrl_c
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._ended = False
        self._reading: asyncio.Future[bytes] | None = None

    async def read(self, prompt: str, text: str = "") -> str:
        """Reads a line; the last one need not end in a line feed."""
        if self.interactive:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        while "\n" not in self._text and not self._ended:
            block = await self._block()
            self._ended = not block
            self._text += self._decoder.decode(block, final=self._ended)
        if not self._text:
            raise EOFError
        line, _, self._text = self._text.partition("\n")
        return line.removesuffix("\r")

    async def _block(self) -> bytes:
        """Reads what there is; waits until there is something."""
        loop = asyncio.get_running_loop()
        # A read that Ctrl-C has interrupted goes on: what it gets must not be lost.
        reading = self._reading = self._reading or _start_reading(loop)
        interrupted: asyncio.Future[None] = loop.create_future()
        with self._ctrl_c.calls(interrupted.cancel):
            await asyncio.wait((reading, interrupted), return_when=asyncio.FIRST_COMPLETED)
        if interrupted.cancelled():
            raise KeyboardInterrupt
        self._reading = None
        return reading.result()


def _start_reading(loop: asyncio.AbstractEventLoop) -> asyncio.Future[bytes]:
    future: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        try:
            block = os.read(0, _BLOCK)
        except OSError:
            block = b""
        try:
            loop.call_soon_threadsafe(future.set_result, block)
        except RuntimeError:
            pass  # The loop was closed while the thread waited.

    # A thread of its own, past sys.stdin: neither may keep the process from ending while it waits.
    threading.Thread(target=read, name="sojourn-stdin", daemon=True).start()
    return future

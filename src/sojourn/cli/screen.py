"""Where commands write: what was asked for to stdout, everything about it to stderr; dressed up only on a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# What an agent says may hold sequences that command a terminal: all control characters but line feed and tab.
_CONTROLS = {c: "\ufffd" for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"} | {0x0D: None}


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return text.translate(_CONTROLS)


def one_line(text: str, width: int = 0) -> str:
    """Text without line breaks, cut to a width if one is given."""
    line = " ".join(text.split())
    return line if not width or len(line) <= width else f"{line[: width - 1]}…"


def counted(count: int, noun: str) -> str:
    """How many there are of something: `1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def open_missing_streams() -> None:
    """Points standard streams that the process was started without at nothing.

    What is opened next would get their numbers, and whatever a library writes to them would end up in a database.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def use_utf8() -> None:
    """Makes the standard streams UTF-8, whatever the locale says; what is not UTF-8 on stdin is replaced."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors=errors)


def drop_output() -> None:
    """Points stdout at nothing: its reader has gone, and the interpreter would complain when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Screen:
    """Writes for people and for pipes.

    Attributes:
        fancy: Whether stdout is a terminal.
    """

    def __init__(self) -> None:
        self.fancy = sys.stdout.isatty()
        self._consoles: dict[TextIO, Console] = {}

    def write(self, text: str) -> None:
        """Writes to stdout as it is, at once."""
        sys.stdout.write(printable(text) if self.fancy else text)
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Writes a line to stdout.

        Args:
            text: The line.
            style: A rich style, for a terminal.
        """
        self._line(sys.stdout, text, style)

    def note(self, text: str) -> None:
        """Writes a line about what is going on to stderr, dimly."""
        self._line(sys.stderr, text, "dim")

    def tell(self, text: str) -> None:
        """Writes a line that must be seen to stderr."""
        self._line(sys.stderr, text, "")

    def error(self, text: str) -> None:
        """Writes what went wrong to stderr."""
        self._line(sys.stderr, f"error: {text}", "red")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Writes a table to stdout: aligned, with a heading, on a terminal; else tab-separated values without one."""
        if not self.fancy:
            for row in rows:
                self.line("\t".join(one_line(cell) for cell in row))
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in columns:
            # Ids are there to be copied.
            table.add_column(name, overflow="fold", no_wrap=name in ("RUN", "SESSION"))
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._console(sys.stdout).print(table)

    def _line(self, stream: TextIO, text: str, style: str) -> None:
        if not stream.isatty():
            stream.write(f"{text}\n")
        elif not style:
            stream.write(f"{printable(text)}\n")
        else:
            from rich.text import Text

            self._console(stream).print(Text(printable(text), style), soft_wrap=True)
        stream.flush()

    def _console(self, stream: TextIO) -> Console:
        from rich.console import Console

        if stream not in self._consoles:
            self._consoles[stream] = Console(file=stream, highlight=False)
        return self._consoles[stream]

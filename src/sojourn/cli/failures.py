"""How the command line tells what went wrong: one line, a traceback of the user's own frames, an exit code."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from enum import IntEnum
from pathlib import Path
from traceback import StackSummary, TracebackException

from sojourn.errors import InvalidInput, SojournError


class ExitCode(IntEnum):
    """What the shell is told."""

    OK = 0
    FAILED = 1
    USAGE = 2
    WAITING = 3
    HUNG_UP = 129
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    TERMINATED = 143


STOPPED = frozenset({ExitCode.HUNG_UP, ExitCode.INTERRUPTED, ExitCode.TERMINATED})
"""The exit codes of commands that a signal has stopped."""


_PACKAGE = Path(__file__).resolve().parent.parent
_LIBRARIES = tuple(
    os.path.realpath(path) + os.sep
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
    if (path := sysconfig.get_path(name))
)


def is_user_code(filename: str) -> bool:
    """Whether a source file is the user's own: neither Sojourn's, nor Python's, nor an installed package's."""
    if filename.startswith("<"):
        return False
    path = os.path.realpath(filename)
    return not (Path(path).is_relative_to(_PACKAGE) or path.startswith(_LIBRARIES) or f"{os.sep}site-packages{os.sep}" in path)


def user_traceback(error: BaseException) -> str:
    """The traceback of an error and what caused it, without the frames of others' code."""
    told = TracebackException.from_exception(error)
    _shorten(told, set())
    return "".join(told.format()).rstrip("\n")


def _shorten(told: TracebackException | None, seen: set[int]) -> None:
    if told is None or id(told) in seen:
        return
    seen.add(id(told))
    told.stack = StackSummary.from_list([frame for frame in told.stack if is_user_code(frame.filename)])
    _shorten(told.__cause__, seen)
    _shorten(told.__context__, seen)
    for inner in told.exceptions or ():
        _shorten(inner, seen)


def full_traceback(error: BaseException) -> str:
    """The traceback of an error, with all frames."""
    return "".join(traceback.format_exception(error)).rstrip("\n")


def message_of(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, SojournError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"internal error: {type(error).__name__}: {' '.join(str(error).split())} (--verbose shows where)"


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a command that ends with an error."""
    return ExitCode.USAGE if isinstance(error, InvalidInput) else ExitCode.FAILED


def leave_at_once(code: int) -> None:
    """Ends the process without waiting for anything: for code that does not end when it is asked to.

    What was stored is safe: the store recovers from the death of its process at any point.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, RuntimeError, ValueError):
            continue  # Its reader has gone, or the signal came in the middle of a write.
    os._exit(code)

"""A config's values before they are checked, and where each of them is written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sojourn.builder.problems import ConfigError, Problem

KeyPath = tuple[str | int, ...]
"""A place in a config: keys of mappings, and indexes of lists."""

SHORTEST_SECRET = 4
"""Values with fewer characters are not looked for in texts: they are in any text."""


@dataclass(slots=True)
class Node:
    """A value of a file.

    Attributes:
        value: A text, number, true, false or null; a list of nodes; or nodes by key.
        line: Where it is: the line of its key, or of the item of a list. None if it is in no file.
    """

    value: Any
    line: int | None


class SyntaxProblem(Exception):
    """A text that is not in its format.

    Attributes:
        message: What is wrong.
        line: Where.
    """

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass(slots=True, repr=False)
class Source:
    """Where a config came from.

    Attributes:
        file: The file, as it was named; empty if the config was given as a mapping.
        directory: What paths and modules in it are relative to.
        data: The values, with those of the environment put in.
        lines: The line of each value.
        written: Values that came from the environment, as they are written in the file.
        secrets: What must not be shown, and what is shown in its place.
    """

    file: str
    directory: Path
    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Source({self.file!r})"

    def problem(self, path: KeyPath, message: str, *, code: str) -> Problem:
        """A problem with what is at a place, or would be."""
        return Problem(self.redacted(message), code, self.file, self.line(path), key_text(path))

    def error(self, path: KeyPath, message: str, *, code: str) -> ConfigError:
        """An error of one problem."""
        return ConfigError([self.problem(path, message, code=code)])

    def line(self, path: KeyPath) -> int | None:
        """The line of a place, or of the nearest one around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)

    def shown(self, path: KeyPath, value: str) -> str:
        """A value as it may be shown: what came from the environment as it is written in the file."""
        return self.written.get(path) or self.redacted(value)

    def keep_secret(self, value: str, shown: str) -> None:
        """Remembers something that must not be shown."""
        if len(value) >= SHORTEST_SECRET:
            self.secrets.setdefault(value, shown)

    def redacted(self, text: str) -> str:
        """A text without secrets."""
        # The longest first: one secret may be a part of another.
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, self.secrets[secret])
        return text


def key_text(path: KeyPath) -> str:
    """A place as it is written: `agents.desk.tools[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def node_of(value: Any) -> Node:
    """The nodes of a plain value, which are in no file.

    Raises:
        TypeError: A key is not text.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not text")
        return Node({key: node_of(inner) for key, inner in value.items()}, None)
    if isinstance(value, list | tuple):
        return Node([node_of(inner) for inner in value], None)
    return Node(value, None)


def meant(name: str, among: Iterable[str]) -> str:
    """What may have been meant, as the end of a sentence; empty if nothing is near."""
    near = difflib.get_close_matches(name, list(among), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def nearest(name: str, among: Iterable[str]) -> str:
    """What may have been meant, as the end of a sentence; else what there is."""
    known = list(among)
    return meant(name, known) or (f"; there is: {', '.join(known)}" if known else "")

"""JSON as nodes with their lines."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from sojourn.builder.source import Node, SyntaxProblem

_SPACE = re.compile(r"[ \t\r\n]*")


def parse_json(text: str) -> Node:
    """The nodes of a JSON text.

    Raises:
        SyntaxProblem: It is not JSON, or has a key twice.
    """
    try:
        # What is not JSON is found by who knows it best; what is left to do is to find the lines.
        json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise SyntaxProblem(f"this is not JSON: {error.msg}", error.lineno) from None
    except ValueError as error:
        raise SyntaxProblem(f"this is not JSON: {error}", None) from None
    return _Scanner(text).node(0, None)[0]


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


class _Scanner:
    """Goes through a text that is known to be JSON."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._scalar = json.JSONDecoder().raw_decode

    def node(self, at: int, line: int | None) -> tuple[Node, int]:
        """The value at a position, and where it ends.

        Args:
            at: The position.
            line: Its line; that of the position if None.
        """
        at = self._skip(at)
        line = line or self._line(at)
        if self._text[at] == "{":
            return self._mapping(at + 1, line)
        if self._text[at] == "[":
            return self._list(at + 1, line)
        value, end = self._scalar(self._text, at)
        return Node(value, line), end

    def _mapping(self, at: int, line: int) -> tuple[Node, int]:
        found: dict[str, Node] = {}
        while self._text[at := self._skip(at)] != "}":
            key_line = self._line(at)
            key, at = self._scalar(self._text, at)
            if key in found:
                raise SyntaxProblem(f"the key {key!r} is there twice, first in line {found[key].line}; remove one", key_line)
            found[key], at = self.node(self._skip(at) + 1, key_line)
            at = self._after_comma(at)
        return Node(found, line), at + 1

    def _list(self, at: int, line: int) -> tuple[Node, int]:
        items: list[Node] = []
        while self._text[at := self._skip(at)] != "]":
            item, at = self.node(at, None)
            items.append(item)
            at = self._after_comma(at)
        return Node(items, line), at + 1

    def _after_comma(self, at: int) -> int:
        at = self._skip(at)
        return at + 1 if self._text[at] == "," else at

    def _skip(self, at: int) -> int:
        space = _SPACE.match(self._text, at)
        assert space is not None
        return space.end()

    def _line(self, at: int) -> int:
        return self._text.count("\n", 0, at) + 1

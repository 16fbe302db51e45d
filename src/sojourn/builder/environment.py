"""`${NAME}` in a config: values that come from the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sojourn.builder.problems import ConfigError, Problem
from sojourn.builder.source import KeyPath, Node, Source

_FIELD = re.compile(r"\$(?:(\$)(?=\{)|\{([^}]*)\})")
_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def take_up(source: Source, root: Node, environ: Mapping[str, str]) -> None:
    """Fills a source with the values of its nodes, and puts in those of the environment.

    In any text, `${NAME}` stands for a variable, `${NAME:-default}` for one that may be missing or empty, and `$${` for `${`.

    Args:
        source: What to fill.
        root: The nodes.
        environ: The variables.

    Raises:
        ConfigError: `config.missing_variable`, `config.invalid_variable`, for all of them at once.
    """
    problems: list[Problem] = []
    source.data = _Taking(source, environ, problems).value((), root)
    if problems:
        raise ConfigError(problems)


class _Taking:
    def __init__(self, source: Source, environ: Mapping[str, str], problems: list[Problem]) -> None:
        self._source = source
        self._environ = environ
        self._problems = problems
        self._taken = False

    def value(self, path: KeyPath, node: Node) -> Any:
        if node.line is not None:
            self._source.lines[path] = node.line
        if isinstance(node.value, dict):
            return {key: self.value((*path, key), inner) for key, inner in node.value.items()}
        if isinstance(node.value, list):
            return [self.value((*path, index), inner) for index, inner in enumerate(node.value)]
        return self._filled(path, node.value) if isinstance(node.value, str) else node.value

    def _filled(self, path: KeyPath, text: str) -> str:
        if "${" not in text:
            return text
        self._taken = False
        filled = _FIELD.sub(lambda match: self._variable(path, match), text)
        if self._taken:
            self._source.written[path] = text
            self._source.keep_secret(filled, text)
        return filled

    def _variable(self, path: KeyPath, match: re.Match[str]) -> str:
        if match[1] is not None:
            return "$"
        field = _NAME.fullmatch(match[2])
        if field is None:
            self._report(
                path,
                f"{match[0]} names no variable; write ${{NAME}} or ${{NAME:-default}}, and $${{ for a text that has ${{ in it",
                code="config.invalid_variable",
            )
            return ""
        name, default = field.groups()
        value = self._environ.get(name)
        if default is not None and not value:
            return default
        if value is None:
            self._report(
                path,
                f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}",
                code="config.missing_variable",
            )
            return ""
        self._taken = True
        self._source.keep_secret(value, f"${{{name}}}")
        return value

    def _report(self, path: KeyPath, message: str, *, code: str) -> None:
        self._problems.append(self._source.problem(path, message, code=code))

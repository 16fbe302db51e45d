"""A config's file: found, read, and parsed by its name's ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sojourn.builder.jsontext import parse_json
from sojourn.builder.source import Node, Source, SyntaxProblem, nearest
from sojourn.errors import Unsupported

YAML = (".yaml", ".yml")
SUFFIXES = (*YAML, ".json")
"""The endings of names of config files."""


def parse_file(source: Source, path: Path) -> Node:
    """The nodes of a config's file.

    Args:
        source: Where it is; messages name the file as this does.
        path: The file.

    Raises:
        ConfigError: `config.not_found`, `config.unreadable`, `config.syntax`.
        Unsupported: `config.no_yaml` if PyYAML is not installed.
    """
    text = _text(source, path)
    try:
        if path.suffix in YAML:
            return _parser_of_yaml()(text)
        return parse_json(text)
    except SyntaxProblem as error:
        if error.line is not None:
            source.lines[()] = error.line
        raise source.error((), error.message, code="config.syntax") from None
    except RecursionError:
        raise source.error((), "it is nested too deep; make it flatter", code="config.syntax") from None


def _text(source: Source, path: Path) -> str:
    if path.suffix not in SUFFIXES:
        message = f"this is no config; the name of one ends with {', '.join(SUFFIXES)}"
        raise source.error((), message, code="config.unreadable")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = [p.name for p in path.parent.glob("*") if p.suffix in SUFFIXES]
        raise source.error((), f"there is no such file{nearest(path.name, there)}", code="config.not_found") from None
    except UnicodeDecodeError as error:
        raise source.error((), f"it is not UTF-8: {error.reason}; save it as such", code="config.unreadable") from None
    except OSError as error:
        raise source.error((), f"it cannot be read: {error.strerror}", code="config.unreadable") from error


def _parser_of_yaml() -> Callable[[str], Node]:
    try:
        from sojourn.builder.yamltext import parse_yaml
    except ImportError as error:
        if error.name != "yaml":
            raise
        message = "a config in YAML needs PyYAML: pip install 'sojourn[yaml]'; one in JSON needs nothing"
        raise Unsupported(message, code="config.no_yaml") from error
    return parse_yaml

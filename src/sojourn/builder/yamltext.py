"""YAML as nodes with their lines."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml import MappingNode, ScalarNode, SequenceNode

from sojourn.builder.source import Node, SyntaxProblem

_TAG = "tag:yaml.org,2002:"

# The scalars of YAML 1.2: `no`, `off` and `12:30` are texts.
_SCALARS = {
    "null": r"(?:~|null|Null|NULL|)\Z",
    "bool": r"(?:true|True|TRUE|false|False|FALSE)\Z",
    "int": r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z",
    "float": r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes; values are made of them here."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


for _name, _form in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_form), None)


def parse_yaml(text: str) -> Node:
    """The nodes of a YAML text.

    Raises:
        SyntaxProblem: It is not one YAML document of plain values, or has a key twice.
    """
    try:
        documents = list(yaml.compose_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        raise SyntaxProblem(f"this is not YAML: {why}", mark.line + 1 if mark is not None else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SyntaxProblem(f"this is not YAML: {error.reason}", line) from None
    if len(documents) > 1:
        line = documents[1].start_mark.line + 1
        raise SyntaxProblem("a second document begins here; a config is one document: remove the '---'", line)
    return _node(documents[0], documents[0].start_mark.line + 1, []) if documents else Node(None, 1)


def _node(composed: yaml.Node, line: int, around: list[yaml.Node]) -> Node:
    if any(composed is outer for outer in around):
        raise SyntaxProblem("an alias stands inside of what it stands for; write it out", line)
    match composed:
        case ScalarNode():
            return Node(_scalar(composed, line), line)
        case SequenceNode() if composed.tag == f"{_TAG}seq":
            items = [_node(item, item.start_mark.line + 1, [*around, composed]) for item in composed.value]
            return Node(items, line)
        case MappingNode() if composed.tag == f"{_TAG}map":
            return Node(_mapping(composed, around), line)
    raise _unknown_tag(composed, line)


def _mapping(composed: MappingNode, around: list[yaml.Node]) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for key_node, value in composed.value:
        line = key_node.start_mark.line + 1
        key = _scalar(key_node, line) if isinstance(key_node, ScalarNode) else None
        if not isinstance(key, str):
            raise SyntaxProblem("a key is not text; put it in quotes", line)
        if key in found:
            raise SyntaxProblem(f"the key {key!r} is there twice, first in line {found[key].line}; remove one", line)
        found[key] = _node(value, line, [*around, composed])
    return found


def _scalar(node: ScalarNode, line: int) -> Any:
    text = node.value
    kind = node.tag.removeprefix(_TAG)
    if kind == "str":
        return text
    if kind not in _SCALARS:
        raise _unknown_tag(node, line)
    if re.match(_SCALARS[kind], text) is None:
        # Only a tag of the author's own gets here.
        raise SyntaxProblem(f"what is tagged !!{kind} is none", line)
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return _integer(text, line)
        case _:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _integer(text: str, line: int) -> int:
    try:
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    except ValueError:
        raise SyntaxProblem("the number has too many digits; put it in quotes if it is a text", line) from None


def _unknown_tag(node: yaml.Node, line: int) -> SyntaxProblem:
    return SyntaxProblem(f"the tag {node.tag.replace(_TAG, '!!')} is not known here; write a plain value", line)

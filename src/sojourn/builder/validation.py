"""Values to an `AppConfig`; what does not fit, in words that help."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails

from sojourn.builder.problems import ConfigError, Problem
from sojourn.builder.schema import FORMS, KINDS, TAG, AppConfig, KeysSeen
from sojourn.builder.source import KeyPath, Source, nearest

_MISSING = object()

_WANTED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}
"""What is wanted, by the first word of pydantic's name of the error."""

_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def validated(source: Source) -> AppConfig:
    """The config that a source's values make up.

    Raises:
        ConfigError: `config.invalid`, `config.unknown_key`, `config.missing_key`, for all that does not fit at once.
    """
    if source.data is None:
        message = "there is nothing in it; it needs at least app_name and agents, see docs/config.md"
        raise source.error((), message, code="config.missing_key")
    keys = KeysSeen()
    try:
        config = AppConfig.model_validate(source.data, context=keys)
    except ValidationError as error:
        problems = _problems(source, keys, error.errors(include_url=False, include_input=False))
    else:
        _keep_keys(source, config)
        return config.with_source(source)
    # Not inside of the except block: pydantic's error knows the values.
    raise ConfigError(problems)


def _problems(source: Source, keys: KeysSeen, errors: list[ErrorDetails]) -> list[Problem]:
    found: dict[KeyPath, list[tuple[str, str]]] = {}
    for error in errors:
        path, value = _place(source.data, error["loc"])
        if error["type"] == "missing":
            name = str(error["loc"][-1])
            found.setdefault((*path, name), []).append(("it is missing; add it", "missing"))
        else:
            found.setdefault(path, []).append((_message(source, keys, error, path, value), error["type"]))
    return [_problem(source, path, told) for path, told in found.items()]


def _problem(source: Source, path: KeyPath, told: list[tuple[str, str]]) -> Problem:
    # A value that may be of several kinds, and is of none, has an error for each.
    *others, (last, _) = told
    message = "".join(f"{other.partition(', not ')[0]}, or " for other, _ in others) + last
    message = message.replace(", or must be ", ", or ")
    if path in source.written:
        message += f"; here it is {source.written[path]}"
    match told[0][1]:
        case "missing":
            return source.problem(path, message, code="config.missing_key")
        case "extra_forbidden":
            return source.problem(path, message, code="config.unknown_key")
        case _:
            return source.problem(path, message, code="config.invalid")


def _place(data: Any, loc: tuple[str | int, ...]) -> tuple[KeyPath, Any]:
    """The place in the config that pydantic means, and what is there: its own places name branches of unions, too."""
    path: list[str | int] = []
    for part in loc:
        inner = _inside(data, part)
        if inner is not _MISSING:
            path.append(part)
            data = inner
    return tuple(path), data


def _inside(data: Any, part: str | int) -> Any:
    if isinstance(data, dict):
        return data.get(part, _MISSING)
    if isinstance(data, list) and isinstance(part, int):
        return data[part]
    return _MISSING


def _message(source: Source, keys: KeysSeen, error: ErrorDetails, path: KeyPath, value: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        around: Any = source.data
        for part in path[:-1]:
            around = around[part]
        return f"there is no such key here{nearest(str(path[-1]), keys.get(id(around), ()))}"
    if kind == "string_pattern_mismatch":
        return FORMS.get(context["pattern"], "does not have the form it should")
    if kind == "union_tag_not_found":
        return f"must be an agent: a mapping, or in sub_agents a name; it is {_kind_of(value)}"
    if kind == "union_tag_invalid":
        name = source.shown((*path, "kind"), str(context["tag"]).removeprefix(TAG))
        return f"there is no kind of agent {name!r}{nearest(name, KINDS)}"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {context[bound]:g}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    if kind.partition("_")[2] in ("type", "parsing", "from_float", "attributes_type"):
        return _wanted(kind.partition("_")[0], value)
    return error["msg"].removeprefix("Value error, ")


def _wanted(wanted: str, value: Any) -> str:
    quotes = "; put it in quotes" if wanted == "string" and isinstance(value, bool | int | float) else ""
    return f"must be {_WANTED.get(wanted, wanted)}, not {_kind_of(value)}{quotes}"


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return f"a {type(value).__name__}"


def _keep_keys(source: Source, value: Any) -> None:
    """Remembers all keys in a config, so that no message shows them."""
    if isinstance(value, SecretStr):
        source.keep_secret(value.get_secret_value(), str(value))
    elif isinstance(value, dict):
        for inner in value.values():
            _keep_keys(source, inner)
    elif isinstance(value, AppConfig) or hasattr(type(value), "model_fields"):
        for name in value.model_fields_set:
            _keep_keys(source, getattr(value, name))

"""The JSON schema of configs, for editors."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sojourn.builder.schema import AppConfig
from sojourn.run.config import RunConfig

SCHEMA_KEY = "$schema"
"""A key of configs that is for editors alone."""

_VARIABLE = {"type": "string", "pattern": r"\$\{"}
"""A text with a variable in it may stand for any value."""


def editor_schema() -> dict[str, Any]:
    """The JSON schema of an `app.yaml` or `app.json`."""
    schema: dict[str, Any] = _for_editors(AppConfig.model_json_schema())
    for name, told in _told_of_run_config().items():
        schema["$defs"]["RunSettings"]["properties"][name].setdefault("description", told)
    schema["properties"] = {SCHEMA_KEY: {"type": "string", "description": "Where this schema is."}, **schema["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Sojourn app",
        "description": "An app of Sojourn: its agents, and what they use.",
        **{key: value for key, value in schema.items() if key not in ("title", "description")},
    }


def _told_of_run_config() -> dict[str, str]:
    """What the fields of `RunConfig` are, from its docstring."""
    _, _, attributes = (inspect.getdoc(RunConfig) or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", attributes, re.MULTILINE | re.DOTALL)
    return {name: " ".join(told.split()) for name, told in found}


def _for_editors(value: Any) -> Any:
    """A schema without the titles that repeat names, and with variables where numbers and the like are wanted."""
    if isinstance(value, list):
        return [_for_editors(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if "properties" in value and isinstance(value["properties"], dict):
        properties = {name: _for_editors(inner) for name, inner in value["properties"].items()}
        rest = {key: _for_editors(inner) for key, inner in value.items() if key not in ("properties", "title")}
        return {**rest, "properties": properties}
    made = {key: inner if key in ("default", "enum") else _for_editors(inner) for key, inner in value.items() if key != "title"}
    if "patternProperties" in made:
        made["additionalProperties"] = False
    if made.get("type") in ("integer", "number", "boolean") or "enum" in made or "pattern" in made:
        told = {key: made.pop(key) for key in ("default", "description") if key in made}
        return {"anyOf": [made, _VARIABLE], **told}
    return made

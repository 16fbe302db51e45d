"""Reads configs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sojourn.builder.editor import SCHEMA_KEY
from sojourn.builder.environment import take_up
from sojourn.builder.files import parse_file
from sojourn.builder.references import check_references
from sojourn.builder.schema import AppConfig
from sojourn.builder.source import Source, node_of
from sojourn.builder.validation import validated
from sojourn.errors import InvalidInput

ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | AppConfig
"""A config: the path of its file, its values, or itself."""


def load_config(config: ConfigLike, *, environ: Mapping[str, str] | None = None) -> AppConfig:
    """Reads and checks a config. No code is imported, and nothing is opened.

    Args:
        config: The path of an `app.yaml` or `app.json`, or a mapping of the same values, in which paths and modules are
            relative to the working directory. An `AppConfig` is only checked.
        environ: Where `${NAME}` is looked up; `os.environ` if omitted.

    Raises:
        ConfigError: Whatever is wrong with it; an `InvalidInput` with `problems` that name file, line and remedy.
        Unsupported: `config.no_yaml`.
    """
    if not isinstance(config, AppConfig):
        config = validated(_read(config, os.environ if environ is None else environ))
    check_references(config)
    return config


def _read(config: Any, environ: Mapping[str, str]) -> Source:
    if isinstance(config, Mapping):
        source = Source("", Path.cwd())
        try:
            root = node_of(config)
        except TypeError as error:
            raise source.error((), str(error), code="config.invalid") from None
    elif isinstance(config, str | os.PathLike):
        path = Path(os.fspath(config))
        source = Source(str(path), Path(os.path.abspath(path)).parent)
        root = parse_file(source, path)
    else:
        raise InvalidInput(
            f"a config is the path of a file, a mapping or an AppConfig, not a {type(config).__name__}", code="config.invalid"
        )
    if isinstance(root.value, dict):
        root.value.pop(SCHEMA_KEY, None)
    take_up(source, root, environ)
    return source

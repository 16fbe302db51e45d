"""Dotted names: what `package.module:name` in a config stands for."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from sojourn.builder.source import KeyPath, Source, meant, nearest


def load_dotted(source: Source, path: KeyPath, dotted: str) -> Any:
    """Imports what a dotted name stands for.

    The config's directory is put on `sys.path`. A module that lies in it is taken from there, or not at all.

    Args:
        source: The config.
        path: Where the name is written.
        dotted: `package.module:name`; the name may have further dots.

    Raises:
        ConfigError: `config.not_importable`; what the module raised is its cause.
    """
    module_name, _, names = dotted.partition(":")
    value: Any = _module(source, path, module_name)
    for name in names.split("."):
        if not hasattr(value, name):
            message = f"{dotted}: {module_name} has no {name!r}{meant(name, dir(value))}"
            raise source.error(path, message, code="config.not_importable")
        value = getattr(value, name)
    return value


def _module(source: Source, path: KeyPath, name: str) -> ModuleType:
    directory = str(source.directory)
    if directory not in sys.path:
        sys.path.insert(0, directory)
        importlib.invalidate_caches()
    top = name.partition(".")[0]
    own = _own_file(source.directory, top)
    known = sys.modules.get(top)
    if own is not None and known is not None and not _is_from(known, own):
        there = getattr(known, "__file__", None) or "Python itself"
        message = f"module {top!r} is {there} in this process, not the one beside the config; rename {own.name}"
        raise source.error(path, message, code="config.not_importable")
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            near = nearest(top, sorted(_modules_in(source.directory))) if missing == top else ""
            raise source.error(path, f"there is no module {missing!r}{near}", code="config.not_importable") from None
        raise source.error(path, _failed(name, error), code="config.not_importable") from error
    except BaseException as error:
        raise source.error(path, _failed(name, error), code="config.not_importable") from error


def _failed(name: str, error: BaseException) -> str:
    return f"module {name!r} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}; mend it"


def _own_file(directory: Path, top: str) -> Path | None:
    """What a top-level module of the config's directory is: a file, or a package's directory."""
    for place in (directory / top, directory / f"{top}.py"):
        if place.is_file() or (place / "__init__.py").is_file():
            return place
    return None


def _is_from(module: ModuleType, place: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(place.resolve())


def _modules_in(directory: Path) -> set[str]:
    return {p.stem for p in directory.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}

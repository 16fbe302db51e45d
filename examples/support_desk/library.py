"""The tools of the desk: what the docstrings of this Python's standard library say, and what their examples do."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from sojourn import ToolContext
from sojourn.errors import NotFound

MODULES = (
    "argparse", "base64", "bisect", "calendar", "collections", "contextlib", "copy", "csv", "dataclasses",
    "datetime", "decimal", "difflib", "enum", "fractions", "functools", "glob", "hashlib", "heapq", "itertools",
    "json", "logging", "math", "operator", "os.path", "pathlib", "pprint", "random", "re", "shutil", "sqlite3",
    "statistics", "string", "subprocess", "tempfile", "textwrap", "threading", "time", "urllib.parse", "uuid",
    "zipfile",
)  # fmt: skip
"""What is on the shelves."""

READING_LIST = "reading-list.md"

SECONDS_PER_EXAMPLE = 10


def search(words: str, limit: int = 5) -> list[dict[str, str]]:
    """Finds what the standard library has on something.

    Args:
        words: What it is about, in a few words, for example 'parse json'.
        limit: How many to find at most.
    """
    wanted = set(re.findall(r"[a-z]+", words.lower()))
    ranked = sorted(_catalogue(), key=lambda name: (-_fit(name, wanted), len(name), name))
    return [{"name": name, "about": _summary(name)} for name in ranked[: max(1, min(limit, 20))] if _fit(name, wanted)]


def read(name: str) -> str:
    """Reads the docstring of a module, class or function.

    Args:
        name: Its dotted name, for example 'json' or 'json.dumps'.
    """
    thing = _thing(name)
    try:
        heading = f"{name}{inspect.signature(thing)}" if callable(thing) else f"module {name}"
    except ValueError:  # Some of what is written in C does not say how it is called.
        heading = name
    return f"{heading}\n\n{inspect.getdoc(thing)}"


def run_example(name: str) -> str:
    """Runs the first example in a docstring, and shows what it prints.

    Args:
        name: The dotted name of what the docstring is of, for example 'textwrap.shorten'.
    """
    source: list[str] = []
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(_thing(name)) or ""):
        source.append(example.source)
        if example.want:
            break
    else:
        return f"{name} has no example"
    module = name if name in MODULES else name.rpartition(".")[0]
    lines = [f"import {module}", f"from {module} import *", *source]
    # In single mode, as at the prompt: the values of expressions are printed.
    program = "import sys\nfor line in sys.argv[1:]:\n    exec(compile(line, 'example', 'single'))"
    ran = subprocess.run(
        [sys.executable, "-c", program, *lines], capture_output=True, text=True, timeout=SECONDS_PER_EXAMPLE, check=False
    )
    return "".join(f">>> {line}" for line in source) + (ran.stdout or ran.stderr)


async def note(name: str, context: ToolContext) -> str:
    """Adds something to the user's reading list.

    Args:
        name: The dotted name of a module, class or function.
        context: The call's context.
    """
    line = f"- **{name}**: {_summary(name)}\n"
    try:
        text = (await context.artifacts.load(READING_LIST)).text or ""
    except NotFound:
        text = "# Reading list\n\n"
    if line not in text:
        await context.artifacts.save(READING_LIST, text + line, mime_type="text/markdown")
    return f"{name} is on the reading list"


# -- the shelves --------------------------------------------------------------------------------------------------------


@cache
def _catalogue() -> dict[str, Any]:
    """What has a docstring, by name."""
    return {name: thing for name, thing in _things() if inspect.getdoc(thing)}


def _things() -> Iterator[tuple[str, Any]]:
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        yield module_name, module
        for name in getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]:
            thing = getattr(module, name, None)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield f"{module_name}.{name}", thing


def _thing(name: str) -> Any:
    thing = _catalogue().get(name)
    if thing is None:
        raise NotFound(f"there is no {name!r} on the shelves; search for it")
    return thing


def _summary(name: str) -> str:
    return " ".join((inspect.getdoc(_thing(name)) or "").partition("\n\n")[0].split())


def _fit(name: str, wanted: set[str]) -> int:
    """How well something fits: what its name says counts more than what its summary does."""
    own = set(re.findall(r"[a-z]+", name.lower()))
    told = set(re.findall(r"[a-z]+", _summary(name).lower()))
    return 3 * len(own & wanted) + len(told & wanted)

"""The package's root: every public name, loaded when it is first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sojourn

HEAVY = (
    "fastapi",
    "typer",
    "rich",
    "prompt_toolkit",
    "numpy",
    "asyncpg",
    "obstore",
    "jsonschema",
    "opentelemetry",
    "hypothesis",
    "pydantic_ai",
    "pytest",
    "yaml",
)


@pytest.mark.parametrize("name", sojourn.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(sojourn, name).__module__.startswith("sojourn.") or name == "agent"


def test_what_type_checkers_see_is_what_is_loaded():
    tree = ast.parse(Path(sojourn.__file__).read_text())
    [seen] = [node for node in tree.body if isinstance(node, ast.If)]
    homes = {name.name: node.module for node in seen.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert homes == sojourn._HOME_OF
    assert set(sojourn.__all__) <= homes.keys()


@pytest.mark.parametrize("name", ["CallDelta", "Content", "Event", "Question", "Thought", "Whole"])
def test_what_an_agent_gives_is_at_the_root(name):
    assert name in sojourn.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Runer'"):
        _ = sojourn.Runer


def _loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import sojourn", "from sojourn import *", "from sojourn import Runner, SessionManager"])
def test_importing_loads_nothing_optional(statement):
    assert not _loaded_by(statement) & set(HEAVY)


def test_importing_the_package_alone_does_not_load_the_runtime():
    assert "sojourn.runner.runner" not in _loaded_by("import sojourn")
    assert "sojourn.store.sqlite" not in _loaded_by("from sojourn import Runner")

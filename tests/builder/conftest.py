"""What the tests of configs share."""

import importlib
import sys

import pytest

from sojourn.builder.load import load_config
from sojourn.builder.problems import ConfigError
from sojourn.builder.workflow import WorkflowBuilder


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A working directory whose modules leave no traces in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - set(before):
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path.parent)):
            del sys.modules[name]


@pytest.fixture
def write(home):
    """Writes files; the first one is the config, and its name is returned."""

    def write(text, name="app.yaml", **modules):
        (home / name).write_text(text, encoding="utf-8")
        for module, source in modules.items():
            (home / f"{module}.py").write_text(source, encoding="utf-8")
        return name

    return write


@pytest.fixture
def problems(write):
    """What is wrong with a config, as it is printed, each with its code."""

    def problems(text, name="app.yaml", *, environ=None, make=False, **modules):
        write(text, name, **modules)
        with pytest.raises(ConfigError) as caught:
            if make:
                WorkflowBuilder(environ=environ or {}).build(name)
            else:
                load_config(name, environ=environ or {})
        error = caught.value
        assert error.code == error.problems[0].code
        assert str(error.problems[0]) in error.message
        return [f"{problem} [{problem.code}]" for problem in error.problems]

    return problems

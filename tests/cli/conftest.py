"""What the tests of the command line share."""

import sys

import pytest

from tests.cli.shell import write_agents


@pytest.fixture
def home(tmp_path):
    """A working directory with a file of agents."""
    write_agents(tmp_path)
    return tmp_path


@pytest.fixture
def imports(monkeypatch, tmp_path):
    """Importing in an empty working directory, which leaves no traces in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)

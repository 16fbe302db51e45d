"""What the tests of the command line share."""

import signal
import sys

import pytest

from tests.cli.shell import write_agents


@pytest.fixture(scope="package", autouse=True)
def heeded_signals():
    """Commands heed their signals, also if the tests were started so as to ignore them: by nohup, or in the background."""
    ways = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    ignored = [number for number in ways if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, ways[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


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

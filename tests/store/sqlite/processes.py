"""Starting other processes on a database file."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).parents[3]


@contextmanager
def other(role, path, *arguments):
    """A process with a role of `tests.store.sqlite.other`; it is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.store.sqlite.other", role, str(path), *map(str, arguments)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said_by(role, path, *arguments):
    """The lines that a process says until it ends."""
    with other(role, path, *arguments) as process:
        return process.communicate(timeout=30)[0].splitlines()

"""Servers in processes of their own, to be loaded from another one."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bench.stores import directory


class Usage(NamedTuple):
    """What a process has used.

    Attributes:
        cpu: CPU seconds of all of its threads, system time included.
        resident: Bytes of RAM that it has.
    """

    cpu: float
    resident: int


class Served:
    """A server in a process of its own.

    Attributes:
        port: Where it listens on loopback.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._line())

    def usage(self) -> Usage:
        """What it has used up to now; what it does not need any more is freed before."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Usage(**json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server has ended with {self._process.wait()}")
        return line


@contextmanager
def serving(server: str, agent: str = "returns") -> Iterator[Served]:
    """Starts a server, and ends it with its files.

    Args:
        server: One of `bench.servers.SERVERS`.
        agent: One of `bench.servers.AGENTS`.
    """
    with directory() as path:
        command = [sys.executable, "-m", "bench.servers", server, agent, str(path)]
        root = Path(__file__).parent.parent
        pipe = subprocess.PIPE
        with (
            open(path / "log", "w", encoding="utf-8") as log,
            subprocess.Popen(command, cwd=root, text=True, stdin=pipe, stdout=pipe, stderr=log) as process,
        ):
            try:
                yield Served(process)
            except RuntimeError as error:
                error.add_note((path / "log").read_text(encoding="utf-8"))
                raise
            finally:
                process.kill()


def allow_connections() -> None:
    """Lets this process have as many open files as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, as `sojourn serve` has it, if it is installed."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop

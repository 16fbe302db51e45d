"""Real processes at work on artifacts, as a test sees them."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from sojourn.artifact.file import FileArtifactService
from sojourn.errors import NotFound
from sojourn.testing.artifact_conformance import names_of, versions_of
from tests.artifact.worker import NAME, SCOPE, payload

PROJECT = Path(__file__).parent.parent.parent


@contextmanager
def worker(module="tests.artifact.worker"):
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    with process:
        try:
            yield Worker(process)
        finally:
            process.stdin.close()


class Worker:
    def __init__(self, process):
        self._process = process

    def start(self, *command):
        self._process.stdin.write(" ".join(map(str, command)) + "\n")
        self._process.stdin.flush()

    def report(self):
        """The lines of the current child, up to its exit."""
        for line in self._process.stdout:
            yield line.split()
            if line.startswith("exit"):
                return

    def run(self, *command):
        self.start(*command)
        return list(self.report())


def saved(report):
    """Version and tag of each save that a child was told to have succeeded."""
    return {int(line[1]): line[2] for line in report if line[0] == "saved"}


async def stored(root):
    """Tag by version of what is there; fails unless all of it is whole."""
    service = FileArtifactService(root)
    try:
        versions = await versions_of(service, SCOPE, NAME)
    except NotFound:
        assert await names_of(service, SCOPE) == []
        return {}
    assert [v.version for v in versions] == list(range(len(versions)))
    for info in versions:
        part = await service.load_artifact(SCOPE, NAME, info.version)
        assert part.inline_data.data == b"".join(payload(info.custom_metadata["tag"]))
    return {v.version: v.custom_metadata["tag"] for v in versions}


def leftovers(root):
    return sorted(path.name for path in (root / ".tmp").iterdir())

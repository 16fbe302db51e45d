"""A process that forks children at work on artifacts, to be killed.

Forking one interpreter many times is quicker than starting many. Each line on stdin is a command and the directory
to work in; a child carries it out and reports on it. The last line of a report is `exit <status>`.
"""

import asyncio
import os
import signal
import sys

from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.testing.loop import simulate
from tests.artifact.syscalls import at_call

SCOPE = ArtifactScope("app", "alice", "session", "uid")
NAME = "reports/july.pdf"
PIECES = 3


DELETIONS = {
    "artifact": lambda service: service.delete_artifact(SCOPE, NAME),
    "session": lambda service: service.delete_session_artifacts(SCOPE),
    "user": lambda service: service.delete_user_artifacts(SCOPE.app_name, SCOPE.user_id),
}


def payload(tag):
    """What a save called `tag` saves: anybody can tell whether it is whole, and whose it is."""
    return [f"{tag}|{piece}|".encode() * 30_000 for piece in range(PIECES)]


def say(line):
    os.write(1, f"{line}\n".encode())


async def save(service, tag, *, loud=False):
    async def pieces():
        for piece in payload(tag):
            if loud:
                say(f"piece {tag}")
            yield piece

    version = await service.save_artifact(SCOPE, NAME, pieces(), custom_metadata={"tag": tag})
    say(f"saved {version} {tag}")


async def save_many(service, tag, count):
    for number in range(int(count)):
        await save(service, f"{tag}-{number}", loud=True)


def dying(moment, at, call):
    def die(name):
        say(f"died {moment} {name}")
        os.kill(os.getpid(), signal.SIGKILL)

    with at_call(int(at), die, after=moment == "after"):
        # In a simulation blocking calls run one after the other, so the same number is the same call each time.
        simulate(call, seed=0)


def child(command, root, *args):
    service = FileArtifactService(root)
    match command:
        case "save-many":
            asyncio.run(save_many(service, *args))
        case "die-saving":
            moment, at, tag = args
            dying(moment, at, lambda: save(service, tag))
        case "die-deleting":
            what, moment, at = args
            dying(moment, at, lambda: DELETIONS[what](service))


def main():
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            say(f"pid {os.getpid()}")
            try:
                child(*line.split())
            except BaseException as error:
                say(f"error {error!r}")
                os._exit(1)
            os._exit(0)
        say(f"exit {os.waitpid(pid, 0)[1]}")


if __name__ == "__main__":
    main()

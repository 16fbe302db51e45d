"""A process that forks children at work on artifacts in a bucket, to be killed.

Forking one interpreter many times is quicker than starting many. Each line on stdin is an address, a prefix, what to do and a
tag; the line after it lets the child begin. The last line of a report is `exit <status>`.
"""

import asyncio
import os
import sys

from sojourn.artifact.types import ArtifactScope
from tests.artifact.s3_servers import service_at
from tests.artifact.worker import say

SCOPE = ArtifactScope("app", "alice", "session", "uid")
NAME = "reports/july.pdf"
LARGE_PIECES = 10


def pieces_of(tag, large):
    """What a save called `tag` saves: anybody can tell whether it is whole, and whose it is."""
    return [f"{tag}|{piece}|".encode() * (120_000 if large else 10) for piece in range(LARGE_PIECES)]


async def save(service, tag, *, large=False):
    async def pieces():
        for piece in pieces_of(tag, large):
            yield piece

    version = await service.save_artifact(SCOPE, NAME, pieces(), custom_metadata={"tag": tag, "large": large})
    say(f"saved {version} {tag}")


async def work(address, prefix, what, tag):
    service = service_at(address, prefix)
    if what == "large":
        await save(service, tag, large=True)
        return
    await save(service, f"{tag}-1")
    await save(service, f"{tag}-2")
    await service.delete_artifact(SCOPE, NAME)
    say("deleted")
    await save(service, f"{tag}-3")


async def save_many(address, prefix, tag, count):
    service = service_at(address, prefix)
    for number in range(count):
        await save(service, f"{tag}-{number}")


def child(address, prefix, what, tag):
    asyncio.run(save_many(address, prefix, tag, 10) if what == "many" else work(address, prefix, what, tag))


def main():
    for line in sys.stdin:
        may_begin, let_begin = os.pipe()
        pid = os.fork()
        if not pid:
            os.read(may_begin, 1)
            try:
                child(*line.split())
            except BaseException as error:
                say(f"error {error!r}")
                os._exit(1)
            os._exit(0)
        say(f"pid {pid}")
        sys.stdin.readline()
        os.write(let_begin, b"!")
        say(f"exit {os.waitpid(pid, 0)[1]}")
        os.close(may_begin)
        os.close(let_begin)


if __name__ == "__main__":
    main()

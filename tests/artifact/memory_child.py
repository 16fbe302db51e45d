"""Saves and loads a stream in a process of its own, and prints how much its memory grew at most, in bytes."""

import asyncio
import hashlib
import resource
import sys

from sojourn.artifact.place import artifact_service_at
from sojourn.artifact.types import ArtifactScope

SCOPE = ArtifactScope("app", "alice", "session", "uid")
PIECE = bytes(range(256)) * 4096


async def pieces(count):
    for _ in range(count):
        yield PIECE


async def there_and_back(service, name, size):
    count = size // len(PIECE)
    await service.save_artifact(SCOPE, name, pieces(count))
    digest = hashlib.sha256()
    opened = await service.open_artifact(SCOPE, name)
    async for chunk in opened.chunks:
        digest.update(chunk)
    expected = hashlib.sha256()
    for _ in range(count):
        expected.update(PIECE)
    assert digest.digest() == expected.digest()


def peak():
    """The most memory that this process has had so far, in bytes; kilobytes are Linux's unit."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def main(place, warm_up, size):
    service = artifact_service_at(place)
    # Twice, so that what is kept for good, such as threads, connections and buffers, is there before it counts.
    for number in range(2):
        await there_and_back(service, f"warm-up-{number}", warm_up)
    before = peak()
    await there_and_back(service, "large", size)
    print(peak() - before)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

"""Processes that write to a memory until they are killed."""

from __future__ import annotations

import asyncio
import multiprocessing

from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.memory.qdrant.service import QdrantMemoryService
from sojourn.memory.types import Memory
from sojourn.testing.memory_conformance import ALICE, APP, SESSION, everything, said, texts

OPENED = {
    "qdrant": lambda place: QdrantMemoryService(place, synchronous="normal"),
    "postgres": lambda place: PostgresMemoryService(place, schema="memory_killed"),
}
EVENTS = 3


def _write(kind, place, first, pipe):
    async def main():
        service = OPENED[kind](place)
        for n in range(first, first + 100_000):
            # A session that is replaced as a whole, an entry that is replaced, and one that is forgotten.
            await service.add_session(APP, ALICE, SESSION, [said(f"{n} {m}", f"round {n}") for m in range(EVENTS)])
            await service.add(APP, ALICE, [Memory(f"note {n}", id="note"), Memory(f"more {n}", id=f"more {n % 2}")])
            await service.forget(APP, ALICE, ids=[f"more {(n + 1) % 2}"])
            pipe.send(n)

    asyncio.run(main())


async def kill_again_and_again(kind, place, rounds, look):
    """Kills a writer in each round, and calls `look` with the number of the last write that it has acknowledged."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.memory.writers"])
    last = -1
    for number in range(rounds):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_write, args=(kind, place, last + 1, sending), daemon=True)
        process.start()
        sending.close()
        for _ in range(1 + number % 3):
            last = await asyncio.to_thread(receiving.recv)
        process.kill()
        await asyncio.to_thread(process.join)
        while receiving.poll():
            try:
                last = receiving.recv()
            except EOFError:
                break
        receiving.close()
        process.close()
        await look(last)


async def check(service, last):
    """Fails unless the memory has what write `last` has left, or some of what the next one does, each entry whole."""
    entries = await everything(service, limit=100)
    found = texts(entries)
    assert len(found) == len({entry.id for entry in entries})
    of_session = [text for text in found if text.startswith("round")]
    assert set(of_session) <= {f"round {last}", f"round {last + 1}"}
    assert of_session.count(f"round {last}") == EVENTS or of_session.count(f"round {last + 1}") == EVENTS
    assert [text for text in found if text.startswith("note")] in ([f"note {last}"], [f"note {last + 1}"])
    assert {f"more {last}", f"more {last + 1}"} & set(found)
    wanted = of_session[0]
    assert wanted in texts(await service.search(APP, ALICE, wanted, limit=10))

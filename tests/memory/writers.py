"""Processes that write to a memory until they are killed."""

from __future__ import annotations

import asyncio
import multiprocessing
import select
from collections import Counter, defaultdict

from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.memory.qdrant.service import QdrantMemoryService
from sojourn.memory.types import Memory
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.memory_conformance import ALICE, APP, SESSION, everything, said, texts

OPENED = {
    "qdrant": lambda place: QdrantMemoryService(place, synchronous="normal"),
    "postgres": lambda place: PostgresMemoryService(place, schema="memory_killed"),
}
EVENTS = 3
REPLACES, ADDS, FORGETS = STEPS = range(3)
"""What a writer does, again and again: replaces a session, replaces an entry and adds one, forgets one."""

SEED = 20260103


def _write(kind, place, first, pipe):
    async def main():
        service = OPENED[kind](place)
        for n in range(first, first + 100_000):
            # Each message says what begins now: what is before it has been acknowledged.
            pipe.send((n, REPLACES))
            await service.add_session(APP, ALICE, SESSION, [said(f"{n} {m}", f"round {n}") for m in range(EVENTS)])
            pipe.send((n, ADDS))
            await service.add(APP, ALICE, [Memory(f"note {n}", id="note"), Memory(f"more {n}", id=f"more {n % 2}")])
            pipe.send((n, FORGETS))
            await service.forget(APP, ALICE, ids=[f"more {(n + 1) % 2}"])

    asyncio.run(main())


async def kill_again_and_again(kind, place, rounds, look):
    """Kills a writer in each round, in one of its steps after the other, and calls `look` with the number and step that it was at.

    Each writer begins with all that the one before it was at, and is killed later than that.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.memory.writers"])
    chance, longest, killed = ManualPlatform(seed=SEED), defaultdict(lambda: 0.002), Counter()
    last = 0
    for number in range(rounds):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_write, args=(kind, place, last, sending), daemon=True)
        process.start()
        sending.close()
        target = last + 1 + number % 2, STEPS[number % len(STEPS)]
        while (at := await asyncio.to_thread(receiving.recv)) != target:
            pass
        seconds = longest[target[1]] * chance.random()
        done = await asyncio.to_thread(lambda pipe=receiving, seconds=seconds: select.select([pipe], [], [], seconds)[0])
        process.kill()
        await asyncio.to_thread(process.join)
        while receiving.poll():
            try:
                at = receiving.recv()
            except EOFError:
                break
        receiving.close()
        process.close()
        # As long as they are killed in the step that is meant, they may live a little longer.
        longest[target[1]] *= 0.8 if done else 1.1
        last, step = at
        killed[step] += 1
        await look(last, step)
    assert min(killed[step] for step in STEPS) > rounds / 6, "too few were killed in one of the steps to tell"


async def check(service, at, step):
    """Fails unless the memory has what was acknowledged before a step, and of that step some, each entry whole."""
    entries = await everything(service, limit=100)
    found = texts(entries)
    assert len(found) == len({entry.id for entry in entries})
    of_session = Counter(text for text in found if text.startswith("round"))
    rounds = (f"round {at - 1}", f"round {at}") if step == REPLACES else (f"round {at}",)
    assert of_session.keys() <= set(rounds)
    assert EVENTS in of_session.values()
    notes = [text for text in found if text.startswith("note")]
    assert notes in [[f"note {n}"] for n in ((at - 1,), (at - 1, at), (at,))[step]]
    more = {text for text in found if text.startswith("more")}
    old, new = {f"more {at - 1}"}, {f"more {at}"}
    assert more in ((old,), (old, old | new), (old | new, new))[step]
    wanted = next(iter(of_session))
    assert wanted in texts(await service.search(APP, ALICE, wanted, limit=10))

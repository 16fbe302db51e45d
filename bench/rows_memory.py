"""How much memory an open session takes, and a run that waits for a person."""

from __future__ import annotations

import asyncio
import gc
import os
from contextlib import AsyncExitStack

from bench import agents
from bench.measure import Measure, Row, Sample, Scale
from bench.stores import Opener, in_memory, on_sqlite
from sojourn import Runner, RunStatus, SessionManager
from sojourn.run.store import Store
from sojourn.run.types import RunQuery


def resident() -> int:
    """Bytes of RAM that this process has."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _open_sessions(scale: Scale) -> list[Sample]:
    count = scale.of(10_000, 100)
    manager = SessionManager(agent=agents.returns, max_concurrency=0)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(manager.session("warm-up"))
        before = resident()
        for n in range(count):
            await stack.enter_async_context(manager.session(f"user-{n}"))
        return [Sample(f"each of {count:,} open sessions (SessionManager.session)", (resident() - before) / count, "B")]


async def _waiting_runs(opener: Opener, where: str, scale: Scale) -> list[Sample]:
    count = scale.of(10_000, 100)
    async with opener() as opened:
        runner = Runner(app_name="bench", agent=agents.asks, session_service=opened.store, max_concurrency=0)

        async def ask(first: int, last: int) -> None:
            for n in range(first, last):
                run = await runner.start(f"user-{n % 100}", f"s{n}", "hi")
                await run.wait()
                assert run.status is RunStatus.WAITING

        async def ask_at_once(first: int, last: int) -> None:
            step = max(1, count // 100)
            await asyncio.gather(*(ask(n, min(n + step, last)) for n in range(first, last, step)))

        # First come so many that every cache that has a bound is full.
        before_them = count // 2
        await ask_at_once(0, before_them)
        before = resident()
        await ask_at_once(before_them, before_them + count)
        used = resident() - before
        assert await count_of(opened.store, RunStatus.WAITING) == before_them + count
        await runner.close()
        return [Sample(f"each of {count:,} waiting runs, {where}", used / count, "B")]


async def count_of(store: Store, status: RunStatus) -> int:
    """How many runs of the app have a status."""
    found, after = 0, None
    while True:
        page = await store.list_runs(RunQuery("bench", status=(status,)), limit=1000, after=after)
        found += len(page.items)
        if page.next is None:
            return found
        after = page.next


def _waiting(where: str, opener: Opener) -> Measure:
    return lambda scale: asyncio.run(_waiting_runs(opener, where, scale))


ROWS = (
    Row(
        "memory",
        "memory that a process needs",
        (
            lambda scale: asyncio.run(_open_sessions(scale)),
            _waiting("in memory", in_memory),
            _waiting("on SQLite", on_sqlite("normal")),
        ),
        repeats=1,
    ),
)

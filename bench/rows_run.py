"""What a run of an agent that does nothing costs, in memory and on SQLite."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import agents, floors
from bench.measure import Budget, Cost, Row, Sample, Scale, Stopwatch, cpu_sample
from sojourn import Agent, InMemorySessionService, Runner
from sojourn.run.store import Store
from sojourn.store.database import DatabaseSessionService
from sojourn.store.sqlite.connection import Synchronous, connect

WARM_UP = 20
"""Runs before the clock starts: what is built at first use is not a cost per run."""

AT_ONCE = 100
"""Sessions that have a run at the same time."""

ROUNDS = 3
"""How often a process measures a floor and a run in turn."""


# -- the run --------------------------------------------------------------------------------------------------------


async def read(runner: Runner, session: str, runs: int) -> None:
    """Runs of one session, one after the other, each read to its end."""
    for _ in range(runs):
        async for _ in runner.run("user", session, "hi"):
            pass


async def follow(runner: Runner, session: str, runs: int) -> None:
    """The same with a detached run and its result."""
    for _ in range(runs):
        run = await runner.start("user", session, "hi")
        assert await run.result() == "ok"


async def cost_of_runs(agent: Agent, store: Store, runs: int, *, drive: object = read, sessions: int = 1) -> Cost:
    """The cost of a run, of so many in so many sessions at once."""
    del drive
    runner = Runner(app_name="bench", agent=agent, session_service=store, max_concurrency=0)
    await asyncio.gather(*(read(runner, f"s{n + 1}", max(1, WARM_UP // sessions)) for n in range(sessions)))
    with Stopwatch() as watch:
        await asyncio.gather(*(read(runner, f"s{n + 1}", runs // sessions) for n in range(sessions)))
    return watch.per(runs)

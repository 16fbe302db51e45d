"""What a run of an agent that does nothing costs, in memory and on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from bench import agents, floors
from bench.measure import Budget, Cost, Measure, Row, Sample, Scale, Stopwatch, cpu_sample
from bench.stores import Opener, in_memory, on_sqlite
from sojourn import Agent, Runner
from sojourn.sqlite.connection import Synchronous

WARM_UP = 20
"""Runs before the clock starts: what is built at first use is no cost of a run."""

AT_ONCE = 100
"""Sessions that have a run at the same time."""

Drive = Callable[[Runner, str], Awaitable[None]]


async def read(runner: Runner, session: str) -> None:
    """A run that is read to its end."""
    async for _ in runner.run("user", session, "hi"):
        pass


async def follow(runner: Runner, session: str) -> None:
    """A detached run and its result."""
    run = await runner.start("user", session, "hi")
    assert await run.result() == "ok"


async def cost_of_runs(agent: Agent, opener: Opener, runs: int, *, sessions: int = 1, drive: Drive = read) -> Cost:
    """What one run costs, of so many in so many sessions at once."""
    async with opener() as opened:
        runner = Runner(app_name="bench", agent=agent, session_service=opened.store, max_concurrency=0)
        each = runs // sessions
        extra = max(1, WARM_UP // sessions)

        async def drive_session(n: int, count: int) -> None:
            for _ in range(count):
                await drive(runner, f"s{n}")

        await asyncio.gather(*(drive_session(n, extra) for n in range(sessions)))
        with Stopwatch() as watch:
            await asyncio.gather(*(drive_session(n, each) for n in range(sessions)))
        await runner.close()
        if opened.path is not None:
            found, expected = opened.rows(), (each + extra) * sessions
            assert found == (sessions, expected, expected * 2), found
        return watch.per(each * sessions)


# -- in memory ------------------------------------------------------------------------------------------------------


def _in_memory(what: str, agent: Agent, *, sessions: int = 1, drive: Drive = read) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        runs = scale.of(2000, AT_ONCE)
        floor = await floors.two_events(runs)
        return [cpu_sample(what, await cost_of_runs(agent, in_memory, runs, sessions=sessions, drive=drive), floor)]

    return lambda scale: asyncio.run(measure(scale))


# -- on SQLite ------------------------------------------------------------------------------------------------------


def _on_sqlite(what: str, synchronous: Synchronous, agent: Agent, *, sessions: int = 1) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        runs = scale.of(300, 10) if sessions == 1 else scale.of(2000, sessions)
        floor = floors.sqlite_rows(synchronous, runs, sessions)
        return [cpu_sample(what, await cost_of_runs(agent, on_sqlite(synchronous), runs, sessions=sessions), floor)]

    return lambda scale: asyncio.run(measure(scale))


def _sqlite_row(synchronous: Synchronous) -> Row:
    many, alone = f"{AT_ONCE} sessions at once", "one alone"
    return Row(
        f"run-sqlite-{synchronous}",
        f"run of an agent that does nothing, on SQLite, synchronous={synchronous.upper()}",
        (
            _on_sqlite(many, synchronous, agents.returns, sessions=AT_ONCE),
            _on_sqlite(alone, synchronous, agents.returns),
            _on_sqlite("one alone, that yields a chunk", synchronous, agents.yields),
        ),
        floor="bare transactions that write the same rows: of 100 runs each, or of one",
        budgets={many: (Budget(300), Budget(3000, "rate")), alone: (Budget(600),)},
    )


ROWS = (
    Row(
        "run-memory",
        "run of an agent that does nothing, sessions in memory",
        (
            _in_memory("returned value", agents.returns),
            _in_memory("one yielded chunk", agents.yields),
            _in_memory("start() and result()", agents.returns, drive=follow),
            _in_memory(f"{AT_ONCE} sessions at once", agents.returns, sessions=AT_ONCE),
        ),
        floor="two events, one task, one wake-up",
        repeats=5,
        budgets={"returned value": (Budget(2, "ratio"),), "one yielded chunk": (Budget(2, "ratio"),)},
    ),
    _sqlite_row("full"),
    _sqlite_row("normal"),
)

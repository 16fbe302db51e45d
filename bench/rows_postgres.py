"""What runs and appends cost on PostgreSQL, beside the driver alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg

from bench import agents
from bench.measure import Budget, Cost, Measure, Row, Sample, Scale, Stopwatch, cpu_sample
from bench.rows_history import history_row
from bench.rows_run import AT_ONCE, cost_of_runs
from bench.stores import Opened
from sojourn import Agent, platform
from sojourn.content import Content
from sojourn.event import Event
from sojourn.postgres.migrations import in_schema
from sojourn.run.store import Batch, Fence, NewRun
from sojourn.session.types import SessionKey
from sojourn.store.postgres import fast
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.store.prepared import prepare
from sojourn.testing.postgresql import Server

CONNECTIONS = 8
"""Sessions that append at once, and connections that they have."""


@asynccontextmanager
async def on_postgres() -> AsyncIterator[Opened]:
    """A store on a server of its own, in the temporary directory, that waits for the disk at each commit."""
    server = Server({"fsync": "on", "full_page_writes": "on"})
    server.start()
    try:
        store = PostgresSessionService(server.url())
        try:
            yield Opened(store)
        finally:
            await store.close()
    finally:
        server.delete()


# -- runs -----------------------------------------------------------------------------------------------------------------


async def _two_statements(runs: int, sessions: int) -> Cost:
    """What it costs the driver alone to run two statements, with the texts of a run, in place of each run."""
    server = Server({"fsync": "on", "full_page_writes": "on"})
    server.start()
    try:
        async with asyncpg.create_pool(server.url(), min_size=0, max_size=10, reset=_nothing) as pool:
            await pool.execute(
                "CREATE TABLE rows (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text, b text, c bigint)"
            )
            insert = "INSERT INTO rows (a, b, c) VALUES ($1, $2, $3) RETURNING n"

            async def session(count: int) -> None:
                for n in range(count * 2):
                    await pool.fetchrow(insert, "x" * 300, "y" * 30, n)

            await asyncio.gather(*(session(2) for _ in range(sessions)))
            with Stopwatch() as watch:
                await asyncio.gather(*(session(runs // sessions) for _ in range(sessions)))
            return watch.per(runs // sessions * sessions)
    finally:
        server.delete()


async def _nothing(connection: object) -> None:
    """A pool that resets its connections asks the server once more for each statement."""


def _runs(what: str, agent: Agent, *, sessions: int = 1) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        runs = scale.of(300, 10) if sessions == 1 else scale.of(2000, sessions)
        floor = await _two_statements(runs, sessions)
        return [cpu_sample(what, await cost_of_runs(agent, on_postgres, runs, sessions=sessions), floor)]

    return lambda scale: asyncio.run(measure(scale))


# -- appends --------------------------------------------------------------------------------------------------------------


def _batch(run_id: str, n: int) -> Batch:
    content = Content.of(f"A line of the kind that a conversation is made of, number {n}.", "model")
    event = Event(
        id=platform.new_id(), run_id=run_id, author="agent", timestamp=platform.now(), content=content, ordinal=n, attempt=1
    )
    return Batch([event])


async def _new_run(store: PostgresSessionService, name: str) -> tuple[str, int]:
    message = Event(id=platform.new_id(), run_id=name, author="user", timestamp=platform.now(), content=Content.of("hi"))
    submitted = await store.submit(NewRun(name, SessionKey("bench", "user", name), message), begin=True)
    return name, submitted.record.uid


async def _appends(scale: Scale) -> list[Sample]:
    each = scale.of(400, 5)
    async with on_postgres() as opened:
        store = opened.store
        assert isinstance(store, PostgresSessionService)
        runs = [await _new_run(store, f"r{n}") for n in range(CONNECTIONS)]

        async def append(run_id: str, uid: int, first: int, count: int) -> None:
            for n in range(first, first + count):
                await store.append(Fence(uid, 1), _batch(run_id, n))

        async def alone(conn: asyncpg.Connection, run_id: str, uid: int, first: int, count: int) -> None:
            """The same statements with the same values, made beforehand."""
            known = store._heads.get(uid)
            assert known is not None
            head, values = known.head, []
            for n in range(first, first + count):
                statement = fast.statement_of(head, Fence(uid, 1), prepare(_batch(run_id, n)))
                assert statement is not None
                values.append(statement.args)
                head = head._replace(version=head.version + 1, top=n)
            started.append((time.process_time(), platform.monotonic()))
            for args in values:
                await conn.fetchrow(text, *args)

        text = in_schema(fast.APPEND, store.schema)
        started: list[tuple[float, float]] = []
        await asyncio.gather(*(append(*run, 1, 10) for run in runs))
        with Stopwatch() as watch:
            await asyncio.gather(*(append(*run, 100, each) for run in runs))
        ours = watch.per(each * CONNECTIONS)
        url = store._database._url
        connections = [await asyncpg.connect(url, server_settings={"jit": "off"}) for _ in runs]
        # All values are made before the first of them is sent: no task waits for anything until then.
        await asyncio.gather(*(alone(conn, *run, 10_000, each) for conn, run in zip(connections, runs, strict=True)))
        cpu, wall = started[-1]
        drivers = Cost((time.process_time() - cpu) / len(runs) / each, (platform.monotonic() - wall) / len(runs) / each)
        for conn in connections:
            await conn.close()
    by_clock = Sample(_BY_CLOCK, ours.wall * 1e6, "µs", drivers.wall * 1e6, rate=ours.rate)
    return [cpu_sample("CPU of the process", ours, drivers), by_clock]


_BY_CLOCK = "by the clock"


ROWS = (
    Row(
        "run-postgres",
        "run of an agent that does nothing, on PostgreSQL; the server's CPU is its own",
        (
            _runs(f"{AT_ONCE} sessions at once", agents.returns, sessions=AT_ONCE),
            _runs("one alone", agents.returns),
            _runs("one alone, that yields a chunk", agents.yields),
        ),
        floor="the driver alone, two inserts for each run",
        budgets={f"{AT_ONCE} sessions at once": (Budget(800),), "one alone": (Budget(800),)},
    ),
    Row(
        "append-postgres",
        f"append of one event, in {CONNECTIONS} sessions at once, on PostgreSQL",
        (lambda scale: asyncio.run(_appends(scale)),),
        floor="the driver alone, the same statements with values made beforehand",
        budgets={_BY_CLOCK: (Budget(2, "ratio"),)},
    ),
    history_row("history-postgres", "on PostgreSQL", on_postgres),
)

"""What runs cost that wait for others: for their session's turn, or for a slot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench import agents, floors
from bench.measure import Cost, Measure, Row, Sample, Scale, Stopwatch, cpu_sample
from bench.stores import Opened, Opener, in_memory, on_sqlite
from sojourn import Runner

ONE_SESSION_RUNS = 50

# -- one session ----------------------------------------------------------------------------------------------------


async def _one_session(opener: Opener, where: str, scale: Scale) -> list[Sample]:
    samples: list[Sample] = []
    runs = ONE_SESSION_RUNS
    for n in range(scale.of(10, 1)):
        async with opener() as opened:
            runner = Runner(app_name="bench", agent=agents.returns, session_service=opened.store)
            with Stopwatch() as watch:
                started = await asyncio.gather(*(runner.start("user", "s", f"hi {i}") for i in range(runs)))
                results = await asyncio.gather(*(run.result() for run in started))
            note = await _what_is_missing(opened, [run.id for run in started], results)
            await runner.close()
        if n or scale.quick:
            floor = await floors.two_events(runs) if opened.path is None else floors.sqlite_rows("full", runs, 1)
            samples.append(cpu_sample(f"{runs} runs, {where}", watch.per(runs), floor, note))
    return samples


async def _what_is_missing(opened: Opened, run_ids: list[str], results: list[str]) -> str:
    """Checks that each run has its two events, next to each other and in order."""
    events = await opened.store.list_events(app_name="bench", user_id="user", session_id="s", limit=1000)
    said = [(e.run_id, e.author, e.text) for e in events]
    expected = [e for i, id_ in enumerate(run_ids) for e in ((id_, "user", f"hi {i}"), (id_, "returns", "ok"))]
    numbers = [e.seq for e in events]
    assert results == ["ok"] * len(run_ids)
    assert numbers == list(range(1, len(expected) + 1)), numbers
    assert said == expected, said
    return f"{len(events)} events, none lost, in order"


def _one_session_row(name: str, where: str, opener: Opener, floor: str) -> Row:
    return Row(
        name,
        f"{ONE_SESSION_RUNS} runs on one session at once, {where}",
        (lambda scale: asyncio.run(_one_session(opener, where, scale)),),
        floor=floor,
        repeats=2,
    )


# -- a long queue ---------------------------------------------------------------------------------------------------


async def _cost_of_queue(runs: int, sessions: int) -> Cost:
    """What one run costs of so many that all wait before the first of them may go on."""
    gate = asyncio.Event()
    runner = Runner(app_name="bench", agent=agents.held_back(gate), max_concurrency=10, max_queue=runs)
    with Stopwatch() as watch:
        started = [await runner.start(f"user-{n % min(100, sessions)}", f"s{n % sessions}", "hi") for n in range(runs)]
        gate.set()
        for run in started:
            assert await run.result() == "ok"
    await runner.close()
    return watch.per(runs)


def _queue(what: str, sessions: tuple[int, int]) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        few, many, lanes = scale.of(1_000, 50), scale.of(10_000, 100), scale.of(*sessions)
        await _cost_of_queue(50, min(50, lanes))
        floor = await _cost_of_queue(few, min(few, lanes))
        return [cpu_sample(what.format(many), await _cost_of_queue(many, lanes), floor)]

    return lambda scale: asyncio.run(measure(scale))


ROWS = (
    _one_session_row("one-session-memory", "in memory", in_memory, "two events, one task, one wake-up"),
    _one_session_row("one-session-sqlite", "on SQLite", on_sqlite("full"), "bare transactions that write the same rows"),
    Row(
        "queue",
        "a run that waits in a long queue, in memory",
        (
            _queue("{:,} runs of as many sessions", (10_000, 100)),
            _queue("{:,} runs of one session", (1, 1)),
        ),
        floor="a run of a queue of 1,000",
        repeats=2,
    ),
)

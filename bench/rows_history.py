"""What a run that reads its window of the history costs in sessions of all lengths."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench import agents
from bench.measure import Budget, Cost, Row, Sample, Scale, Stopwatch, cpu_sample
from bench.stores import Opener, in_memory, on_sqlite
from sojourn import Content, Event, Runner, SessionKey, platform
from sojourn.run.status import Move
from sojourn.run.store import Batch, Fence, NewRun, Store

WINDOW = 200
LENGTHS = (WINDOW, 1_000, 10_000, 100_000)
QUICK_LENGTHS = (WINDOW, 400)
EVENTS_PER_APPEND = 1_000
KEY = SessionKey("bench", "user", "s")

TEXT = "A line of the kind that a conversation is made of, neither long nor short, number {}."


async def fill(store: Store, events: int) -> None:
    """Gives a session so many events, by one run that says a lot."""
    run_id = platform.new_id()
    message = Event(id=platform.new_id(), run_id=run_id, author="user", timestamp=platform.now(), content=Content.of("hi"))
    submitted = await store.submit(NewRun(run_id, KEY, message), begin=True)
    fence = Fence(submitted.record.uid, 1)
    for first in range(1, events, EVENTS_PER_APPEND):
        numbers = range(first, min(first + EVENTS_PER_APPEND, events))
        await store.append(fence, Batch([_event(run_id, n) for n in numbers]))
    await store.append(fence, Batch(move=Move.COMPLETE))


def _event(run_id: str, n: int) -> Event:
    content = Content.of(TEXT.format(n), "model")
    return Event(id=platform.new_id(), run_id=run_id, author="agent", timestamp=platform.now(), content=content, ordinal=n)


async def cost_of_runs(opener: Opener, events: int, runs: int) -> Cost:
    """What one run costs that reads its window in a session of so many events."""
    async with opener() as opened:
        await fill(opened.store, events)
        runner = Runner(app_name="bench", agent=agents.reads_history, session_service=opened.store)

        async def read(count: int) -> None:
            for _ in range(count):
                run = await runner.start(KEY.user_id, KEY.session_id, "hi")
                assert await run.result() == str(WINDOW)

        await read(5)
        session = await runner.get_session(KEY.user_id, KEY.session_id)
        assert session.event_count == events + 10
        with Stopwatch() as watch:
            await read(runs)
        return watch.per(runs)


async def _measure(opener: Opener, scale: Scale) -> list[Sample]:
    samples: list[Sample] = []
    smallest: Cost | None = None
    for events in QUICK_LENGTHS if scale.quick else LENGTHS:
        cost = await cost_of_runs(opener, events, scale.of(60, 5))
        smallest = smallest or cost
        samples.append(cpu_sample(f"{events:,} events stored", cost, smallest))
    return samples


def history_row(name: str, where: str, opener: Opener) -> Row:
    """A row of runs that read their window, in stores of one kind."""

    def measure(scale: Scale) -> Sequence[Sample]:
        return asyncio.run(_measure(opener, scale))

    return Row(
        name,
        f"run of an agent that reads its window of {WINDOW} events, {where}",
        (measure,),
        floor=f"the same run where only {WINDOW} events are stored",
        repeats=3,
        budgets={f"{events:,} events stored": (Budget(1.2, "ratio"),) for events in LENGTHS[1:]},
    )


ROWS = (
    history_row("history-memory", "sessions in memory", in_memory),
    history_row("history-sqlite", "on SQLite", on_sqlite("full")),
)

"""What pruning costs, and how long those who write wait for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench.measure import Row, Sample, Scale, Stopwatch, cpu_sample
from bench.stores import on_sqlite
from sojourn import Content, Event, SessionKey, platform
from sojourn.data import DataCare, Pruned, Retention
from sojourn.run.status import Move
from sojourn.run.store import Batch, Fence, NewRun, Store

APP = "bench"
EVENTS_PER_RUN = 10
SESSIONS = 20
KEPT = 100
TEXT = "A line of the kind that a conversation is made of, neither long nor short, number {}."


def _event(run_id: str, n: int) -> Event:
    content = Content.of(TEXT.format(n), "model")
    return Event(id=platform.new_id(), run_id=run_id, author="agent", timestamp=platform.now(), content=content, ordinal=n)


async def begin(store: Store, key: SessionKey) -> tuple[str, Fence]:
    """Begins a run."""
    run_id = platform.new_id()
    message = Event(id=platform.new_id(), run_id=run_id, author="user", timestamp=platform.now(), content=Content.of("hi"))
    submitted = await store.submit(NewRun(run_id, key, message), begin=True)
    return run_id, Fence(submitted.record.uid, 1)


async def fill(store: Store, events: int) -> None:
    """Gives each of some sessions its part of so many events, in runs of a few."""

    async def talk(key: SessionKey) -> None:
        for _ in range(events // SESSIONS // EVENTS_PER_RUN):
            run_id, fence = await begin(store, key)
            said = [_event(run_id, n) for n in range(1, EVENTS_PER_RUN)]
            await store.append(fence, Batch(said, move=Move.COMPLETE))

    await asyncio.gather(*(talk(SessionKey(APP, "user", f"s{n}")) for n in range(SESSIONS)))


async def longest_pause(store: Store, more: Callable[[int], bool]) -> float:
    """The longest time, in seconds, that an append took, of one after the other for as long as `more` says of their number."""
    run_id, fence = await begin(store, SessionKey(APP, "writer", "s"))
    longest, ordinal = 0.0, 0
    while more(ordinal):
        ordinal += 1
        began = platform.monotonic()
        await store.append(fence, Batch([_event(run_id, ordinal)]))
        longest = max(longest, platform.monotonic() - began)
    await store.append(fence, Batch(move=Move.COMPLETE))
    return longest


async def prune(store: Store) -> Pruned:
    """Prunes all sessions."""
    return await DataCare(store).prune(APP, Retention(max_events=KEPT))


async def prune_elsewhere(path: Path) -> None:
    """Prunes in another process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sojourn", "data", "prune", "--db", str(path), "--app", APP, "--max-events", str(KEPT), "--yes",
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0


@asynccontextmanager
async def _filled(events: int) -> AsyncIterator[tuple[Store, Path]]:
    """A SQLite store with so many events, opened anew: synchronous=FULL."""
    async with on_sqlite("normal")() as opened:
        await fill(opened.store, events)
        await opened.store.close()
        assert opened.path is not None
        store = type(opened.store)(opened.path)  # type: ignore[call-arg]
        try:
            yield store, opened.path
        finally:
            await store.close()


async def _pause(scale: Scale, elsewhere: bool) -> list[Sample]:
    events, undisturbed = scale.of(1_000_000, 4_000), scale.of(10_000, 20)
    async with _filled(events) as (store, path):
        quiet = await longest_pause(store, lambda ordinal: ordinal < undisturbed)
        pruning = asyncio.ensure_future(prune_elsewhere(path) if elsewhere else prune(store))
        pause = await longest_pause(store, lambda _: not pruning.done())
        await pruning
        sizes = await DataCare(store).report(APP, user_id="user")
        assert sizes.events == SESSIONS * KEPT
    what = f"{events:,} events, pruned {'by another process' if elsewhere else 'in the same process'}"
    return [Sample(f"longest pause of an append, {what}", pause * 1e3, "ms", quiet * 1e3)]


async def _cost(scale: Scale) -> list[Sample]:
    async with _filled(scale.of(100_000, 4_000)) as (store, _):
        with Stopwatch() as watch:
            pruned = await prune(store)
    return [cpu_sample("an event that is removed", watch.per(pruned.events))]


def _here(scale: Scale) -> Sequence[Sample]:
    return asyncio.run(_pause(scale, False))


def _elsewhere(scale: Scale) -> Sequence[Sample]:
    return asyncio.run(_pause(scale, True))


def _alone(scale: Scale) -> Sequence[Sample]:
    return asyncio.run(_cost(scale))


ROWS = (
    Row(
        "prune",
        "pruning a SQLite store while a run goes on, synchronous=FULL",
        (_here, _elsewhere, _alone),
        floor="the longest pause of 10,000 appends without pruning",
        repeats=1,
    ),
)

"""How much disk a run takes."""

from __future__ import annotations

import asyncio

from bench import agents, floors
from bench.measure import Row, Sample, Scale
from bench.stores import on_sqlite
from sojourn import Runner


async def _disk(scale: Scale) -> list[Sample]:
    runs = scale.of(2_000, 100)
    opener = on_sqlite("normal")

    async def size_of(runs: int) -> int:
        async with opener() as opened:
            runner = Runner(app_name="bench", agent=agents.returns, session_service=opened.store)
            for n in range(runs):
                run = await runner.start("user", f"s{n % 50}", "hi")
                assert await run.result() == "ok"
            await runner.close()
            await opened.store.close()
            assert opened.path is not None
            return sum(f.stat().st_size for f in opened.path.parent.glob("bench.db*"))

    used = await size_of(runs) - await size_of(1)
    payload = sum(len(floors.said(author, "hi").to_json()) for author in ("user", "returns"))
    return [Sample(f"{runs:,} runs of two events", used / (runs - 1), "B", payload)]


ROWS = (
    Row(
        "disk",
        "disk that a run takes on SQLite, after a checkpoint",
        (lambda scale: asyncio.run(_disk(scale)),),
        floor="its two events as JSON",
        repeats=1,
    ),
)

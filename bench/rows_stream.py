"""What it costs to hand a piece of a message from the agent to its reader."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bench import agents, floors
from bench.measure import Budget, Cost, Measure, Row, Sample, Scale, Stopwatch, cpu_sample
from sojourn import Runner


async def cost_of_pieces(pieces: int, *, paced: bool) -> Cost:
    """What one of so many pieces costs."""
    runner = Runner(app_name="bench", agent=agents.writes(pieces, paced=paced))
    text, partials = "", 0
    with Stopwatch() as watch:
        async for item in runner.run("user", "s", "hi"):
            text += item.delta
            partials += item.partial
    assert text == "tok " * pieces
    assert partials == pieces, "pieces were joined on the way: that is another measurement"
    return watch.per(pieces)


def _measured(what: str, *, paced: bool, at_once: int) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        pieces = scale.of(30_000, 200)
        await cost_of_pieces(100, paced=paced)
        floor = await floors.hand_over(pieces, at_once=at_once)
        return [cpu_sample(what, await cost_of_pieces(pieces, paced=paced), floor)]

    return lambda scale: asyncio.run(measure(scale))


ROWS = (
    Row(
        "partials",
        "a streamed piece of a message, from the agent to its reader",
        (
            _measured("in a burst", paced=False, at_once=floors.PIECES_PER_TURN),
            _measured("one at a time", paced=True, at_once=1),
        ),
        floor="a task hands the text to one that waits for it",
        repeats=7,
        budgets={"in a burst": (Budget(3),), "one at a time": (Budget(15),)},
    ),
)

"""What an agent that a model drives costs, if the extra that it needs is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.util import find_spec

from bench.measure import Budget, Row, Sample, Scale


def on_top(scale: Scale) -> Sequence[Sample]:
    """What the runtime adds to a run and to a piece of an answer."""
    from bench import llm

    return asyncio.run(llm.on_top(scale))


ROWS = (
    Row(
        "llm",
        "an agent driven by a scripted model, sessions in memory",
        (on_top,),
        floor="pydantic-ai alone, its events read",
        budgets={"of a run on top": (Budget(1000),), "of a chunk on top": (Budget(15),)},
    ),
) if find_spec("pydantic_ai") is not None else ()  # fmt: skip

"""What `import sojourn` costs, and what it must not bring along."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from bench.measure import Budget, Measure, Row, Sample, Scale

HEAVY = ("fastapi", "typer", "rich", "numpy", "asyncpg", "opentelemetry")
"""What the core must never load: it is for the command line, the server, or one backend."""

_PROGRAM = """
import time, sys, json
started = time.process_time()
{statement}
print(json.dumps([time.process_time() - started, sorted(m for m in sys.modules if "." not in m)]))
"""


def in_fresh_process(statement: str) -> tuple[float, list[str]]:
    """Executes an import.

    Returns:
        CPU milliseconds, and the names of all top-level modules that are loaded then.
    """
    program = _PROGRAM.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, loaded = json.loads(done.stdout)
    return seconds * 1e3, loaded


def _measured(statement: str, floor: str) -> Measure:
    def measure(scale: Scale) -> Sequence[Sample]:
        in_fresh_process(statement)  # Writes the bytecode, if that has not happened yet.
        samples: list[Sample] = []
        for _ in range(scale.of(15, 1)):
            least, _ = in_fresh_process(floor)
            cost, loaded = in_fresh_process(statement)
            heavy = [name for name in HEAVY if name in loaded]
            note = f"LOADS {', '.join(heavy)}" if heavy else f"loads none of {', '.join(HEAVY)}"
            samples.append(Sample(statement, cost, "ms", least, note=note))
        return samples

    return measure


ROWS = (
    Row(
        "import",
        "import into a fresh process",
        (
            _measured("import sojourn", "import asyncio, pydantic"),
            # The first pydantic model of a program loads pydantic.main.
            _measured("from sojourn import Runner, agent", "import asyncio, pydantic.main"),
        ),
        floor="import asyncio, pydantic; for what has models, pydantic.main too",
        repeats=1,
        budgets={"import sojourn": (Budget(1.3, "ratio"),)},
    ),
)

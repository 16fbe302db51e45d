"""What `import sojourn` costs, and what it must not bring along."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from bench.measure import Budget, Row, Sample, Scale

HEAVY = ("fastapi", "typer", "rich", "numpy", "asyncpg", "opentelemetry")
"""What the core must never load: it is for the command line, the server, or one backend."""

_PROGRAM = """
import time, sys, json
started = time.process_time()
import {modules}
print(json.dumps([time.process_time() - started, sorted(m for m in sys.modules if "." not in m)]))
"""


def import_in_fresh_process(modules: str) -> tuple[float, list[str]]:
    """Imports modules.

    Returns:
        CPU milliseconds, and the names of all top-level modules that are loaded then.
    """
    program = _PROGRAM.format(modules=modules)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, loaded = json.loads(done.stdout)
    return seconds * 1e3, loaded


def _measure(scale: Scale) -> Sequence[Sample]:
    import_in_fresh_process("sojourn")  # Writes the bytecode, if that has not happened yet.
    samples: list[Sample] = []
    for _ in range(scale.of(15, 1)):
        floor, _ = import_in_fresh_process("asyncio, pydantic")
        whole, _ = import_in_fresh_process("asyncio, pydantic, pydantic.main")
        cost, loaded = import_in_fresh_process("sojourn")
        heavy = [name for name in HEAVY if name in loaded]
        note = f"loads {', '.join(heavy)}!" if heavy else f"loads none of {', '.join(HEAVY)}"
        samples.append(Sample("import sojourn", cost, "ms", floor, note=note))
        samples.append(Sample("import sojourn, where pydantic.main counts as floor", cost, "ms", whole))
    return samples


ROWS = (
    Row(
        "import",
        "import sojourn",
        (_measure,),
        floor="import asyncio, pydantic",
        repeats=1,
        budgets={"import sojourn": (Budget(1.3, "ratio"),)},
    ),
)

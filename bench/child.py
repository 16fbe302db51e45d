"""Measures a part of a row in a process that has done nothing before, and prints the samples as JSON.

`python -m bench.child ROW N` is what `python -m bench` starts once per repeat.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from bench.measure import Row, Sample, Scale


def in_fresh_process(row: Row, part: int) -> list[Sample]:
    """Samples of one of the measures of a row, from a process of its own.

    Raises:
        RuntimeError: The measurement failed.
    """
    command = [sys.executable, "-m", "bench.child", row.name, str(part)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(f"row {row.name} cannot be measured; {' '.join(command)} says:\n{done.stderr}")
    return [Sample(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def main(name: str, part: int) -> None:
    """Measures."""
    from bench.catalogue import ROWS

    row = next(row for row in ROWS if row.name == name)
    print(json.dumps([asdict(sample) for sample in row.measures[part](Scale(quick=False))]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""The benchmarks run and print each row. What the numbers are is not tested: machines are noisy."""

import json
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from bench import catalogue, report
from bench.child import in_fresh_process
from bench.measure import Budget, Row, Sample

ROOT = Path(__file__).parent.parent.parent


def _bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *args], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_each_row_is_printed_with_its_quantities():
    done = _bench("--quick")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for row in catalogue.ROWS:
        first = lines.index(report.heading(row)) + 1
        quantities = list(takewhile(lambda line: line.startswith("  "), lines[first:]))
        assert quantities, row.name
        for what in row.budgets:
            # The quick history is shorter than those that have a budget.
            assert row.name.startswith("history-") or any(what in line and re.search("[≤≥]", line) for line in quantities), what


def test_json_has_value_floor_and_ratio():
    done = _bench("--quick", "--json", "one-session-*")
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    assert [line["row"] for line in lines] == ["one-session-memory", "one-session-sqlite"]
    for line in lines:
        assert line["value"]["median"] == pytest.approx(line["ratio"]["median"] * line["floor"]["median"])
        assert line["note"] == "100 events, none lost, in order"


def test_a_measure_runs_in_a_process_of_its_own():
    row = next(row for row in catalogue.ROWS if row.name == "one-session-memory")
    samples = in_fresh_process(row, 0)
    assert len(samples) > 1
    assert all(s.value > 0 and s.floor is not None and s.floor > 0 for s in samples)


def test_a_row_that_is_not_there():
    done = _bench("no-such-row")
    assert done.returncode == 2
    assert "run-memory" in done.stderr


def test_a_line_is_the_median_of_its_readings_and_says_which_budgets_were_kept():
    budgets = {"thing": (Budget(3), Budget(3, "ratio"), Budget(500, "rate"))}
    row = Row("row", "title", (), budgets=budgets)
    samples = [Sample("thing", 2.0, floor=1.0, rate=300.0), Sample("thing", 9.0, floor=2.0, rate=100.0),
               Sample("thing", 4.0, floor=2.0, rate=900.0)]  # fmt: skip
    (line,) = report.lines_of(row, samples)
    assert (line.value.median, line.value.low, line.value.high) == (4.0, 2.0, 9.0)
    assert line.ratio is not None
    assert (line.ratio.median, line.ratio.low, line.ratio.high) == (2.0, 2.0, 4.5)
    assert line.verdicts == [("≤ 3 µs", False), ("≤ 3×", True), ("≥ 500/s", False)]
    shown = report.shown(line, judged=True)
    assert "4.00 µs (2.00–9.00)" in shown
    assert "≤ 3× kept" in shown
    assert "≤ 3 µs MISSED" in shown

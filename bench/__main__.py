"""`python -m bench [ROW…]`: prints what things cost, beside the least that they could cost."""

from __future__ import annotations

import argparse
import json
import sys

from bench import catalogue, report
from bench.child import in_fresh_process
from bench.measure import Row, Sample, Scale


def main(argv: list[str]) -> int:
    """Measures and prints.

    Returns:
        The exit code: 1 if a measurement failed. A budget that is missed is no failure: machines differ.
    """
    options = _options(argv)
    if not options.json:
        print(report.HEADER)
    lines = []
    for row in options.rows:
        try:
            of_row = report.lines_of(row, _samples(row, options.quick))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        lines += of_row
        if not options.json:
            print(report.heading(row))
            for line in of_row:
                print(report.shown(line, judged=not options.quick))
            sys.stdout.flush()
    if options.json:
        print(json.dumps([line.as_json() for line in lines], indent=2, ensure_ascii=False))
    return 0


def _samples(row: Row, quick: bool) -> list[Sample]:
    if quick:
        return [sample for measure in row.measures for sample in measure(Scale(quick=True))]
    return [s for _ in range(row.repeats) for part in range(len(row.measures)) for s in in_fresh_process(row, part)]


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("row", nargs="*", help="a row, or a pattern like 'run-*'; all rows if omitted")
    parser.add_argument("--quick", action="store_true", help="goes through the motions; the numbers mean nothing")
    parser.add_argument("--json", action="store_true", help="prints JSON")
    parser.add_argument("--list", action="store_true", help="prints the names of the rows")
    options = parser.parse_args(argv)
    try:
        options.rows = catalogue.chosen(options.row)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for row in options.rows:
            print(f"{row.name:20} {row.title}")
        parser.exit()
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

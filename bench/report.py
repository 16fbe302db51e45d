"""From samples to lines of the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.measure import Row, Sample


@dataclass(slots=True, frozen=True)
class Spread:
    """The readings of one quantity: their median, and between which they lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, readings: Sequence[float]) -> Spread:
        """Of at least one reading."""
        return cls(median(readings), min(readings), max(readings))


@dataclass(slots=True, frozen=True)
class Line:
    """One quantity of a row, as it is printed."""

    row: Row
    what: str
    unit: str
    readings: int
    value: Spread
    floor: Spread | None
    ratio: Spread | None
    rate: Spread | None
    note: str

    @property
    def verdicts(self) -> list[tuple[str, bool]]:
        """Its budgets, each with whether it is kept."""
        ratio, rate = (None if s is None else s.median for s in (self.ratio, self.rate))
        kept = [(b, b.kept(self.value.median, ratio, rate)) for b in self.row.budgets.get(self.what, ())]
        return [(budget.shown(self.unit), is_kept) for budget, is_kept in kept if is_kept is not None]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "row": self.row.name,
            "what": self.what,
            "unit": self.unit,
            "readings": self.readings,
            **{name: _as_json(getattr(self, name)) for name in ("value", "floor", "ratio", "rate")},
            "floor_is": self.row.floor,
            "budgets": [{"budget": budget, "kept": kept} for budget, kept in self.verdicts],
            "note": self.note,
        }


def lines_of(row: Row, samples: Sequence[Sample]) -> list[Line]:
    """The lines of a row, in the order in which their quantities were first read."""
    by_quantity: dict[str, list[Sample]] = {}
    for sample in samples:
        by_quantity.setdefault(sample.what, []).append(sample)
    return [_line(row, what, of_quantity) for what, of_quantity in by_quantity.items()]


def _line(row: Row, what: str, samples: Sequence[Sample]) -> Line:
    floors = [s.floor for s in samples if s.floor is not None]
    rates = [s.rate for s in samples if s.rate is not None]
    return Line(
        row,
        what,
        samples[0].unit,
        len(samples),
        Spread.of([s.value for s in samples]),
        Spread.of(floors) if floors else None,
        Spread.of([s.value / s.floor for s in samples if s.floor]) if floors else None,
        Spread.of(rates) if rates else None,
        samples[-1].note,
    )


HEADER = f"{'':58} {'CPU (or as said)':>26}  {'floor':>9}  {'ratio':>20}  {'per second':>11}  budget"


def heading(row: Row) -> str:
    """What stands above the lines of a row."""
    return f"{row.name}: {row.title}" + (f" (floor: {row.floor})" if row.floor else "")


def shown(line: Line, *, judged: bool) -> str:
    """A line of the table; `judged` says whether its budgets were kept."""
    value = f"{_number(line.value.median)} {line.unit} {_range(line.value)}"
    floor = "" if line.floor is None else _number(line.floor.median)
    ratio = "" if line.ratio is None else f"{line.ratio.median:.2f}× {_range(line.ratio, '.2f')}"
    rate = "" if line.rate is None else f"{line.rate.median:,.0f}/s"
    budget = ", ".join(text + judged * (" kept" if kept else " MISSED") for text, kept in line.verdicts)
    remarks = "; ".join(filter(None, (budget, line.note)))
    return f"  {line.what:56} {value:>26}  {floor:>9}  {ratio:>20}  {rate:>11}  {remarks}".rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _range(spread: Spread, form: str = "") -> str:
    if spread.low == spread.high:
        return ""
    return "(" + "–".join(format(v, form) if form else _number(v) for v in (spread.low, spread.high)) + ")"


def _as_json(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else {"median": spread.median, "min": spread.low, "max": spread.high}

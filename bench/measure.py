"""What is measured and how: costs per unit, samples of them, and the rows they belong to."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from sojourn import platform


class Cost(NamedTuple):
    """What one unit cost.

    Attributes:
        cpu: CPU seconds, of all threads of the process, system time included.
        wall: Seconds by the clock.
    """

    cpu: float
    wall: float

    @property
    def micros(self) -> float:
        """CPU microseconds."""
        return self.cpu * 1e6

    @property
    def rate(self) -> float:
        """Units per second, by the clock."""
        return 1 / self.wall


class Stopwatch:
    """Times a block, after the garbage of what came before is gone."""

    def __enter__(self) -> Stopwatch:
        gc.collect()
        self._wall = platform.monotonic()
        self._cpu = time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        self._cpu = time.process_time() - self._cpu
        self._wall = platform.monotonic() - self._wall

    def per(self, units: int) -> Cost:
        """The cost of one of so many units."""
        return Cost(self._cpu / units, self._wall / units)


@dataclass(slots=True, frozen=True)
class Sample:
    """One reading of one quantity.

    Attributes:
        what: The quantity: samples of a row that have it in common are readings of the same.
        value: The reading.
        unit: Its unit.
        floor: The least it could be, read right beside it.
        rate: Units per second by the clock, where the value is CPU per unit.
        note: What a reader should know of this reading.
    """

    what: str
    value: float
    unit: str = "µs"
    floor: float | None = None
    rate: float | None = None
    note: str = ""


def cpu_sample(what: str, cost: Cost, floor: float | Cost | None = None, note: str = "") -> Sample:
    """A sample of CPU per unit."""
    return Sample(what, cost.micros, "µs", floor.micros if isinstance(floor, Cost) else floor, cost.rate, note)


class Budget(NamedTuple):
    """What a quantity may be at most, or a rate at least."""

    limit: float
    of: Literal["value", "ratio", "rate"] = "value"

    def kept(self, value: float, ratio: float | None, rate: float | None) -> bool | None:
        """Whether it is kept; None if that was not measured."""
        actual = {"value": value, "ratio": ratio, "rate": rate}[self.of]
        if actual is None:
            return None
        return actual >= self.limit if self.of == "rate" else actual <= self.limit

    def shown(self, unit: str) -> str:
        """As text."""
        if self.of == "rate":
            return f"≥ {self.limit:,.0f}/s"
        return f"≤ {self.limit:g}×" if self.of == "ratio" else f"≤ {self.limit:g} {unit}"


class Scale(NamedTuple):
    """How much is measured."""

    quick: bool

    def of(self, full: int, quick: int) -> int:
        """So many units, or so many where only the way counts and not the numbers."""
        return quick if self.quick else full


Measure = Callable[[Scale], Sequence[Sample]]
"""Reads one or more quantities, any number of times each."""


@dataclass(slots=True, frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: Names it on the command line.
        title: What it is about.
        measures: Read its quantities, each in a process of its own: what one leaves in memory costs the others nothing.
        floor: What the floor is; empty for none.
        repeats: How often that is done.
        budgets: By quantity.
    """

    name: str
    title: str
    measures: Sequence[Measure]
    floor: str = ""
    repeats: int = 5
    budgets: Mapping[str, tuple[Budget, ...]] = field(default_factory=dict)

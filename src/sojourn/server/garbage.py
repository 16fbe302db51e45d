"""How often a process that serves looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECTS = 10_000
"""How many more objects are made than dropped before the collector looks at the new ones."""

ROUNDS = 20
"""How many times it looks at the new ones before it looks at older ones, too."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Keeps the garbage collector from looking through all of a server again and again, while the block runs.

    What many requests have in flight outlives Python's own thresholds, which then has everything looked through that was ever
    imported: a quarter of a server's CPU time, in pauses of 80 ms for all of its clients. So what is there when the block is
    entered is left out, and more comes together between two rounds. Little is lost by that: what a request leaves is freed
    without the collector, but for a few objects.

    A program that has set larger thresholds, or has switched the collector off, keeps what it has.
    """
    before = gc.get_threshold()
    if not gc.isenabled() or not 0 < before[0] < YOUNG_OBJECTS:
        yield
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, max(before[1], ROUNDS), *before[2:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

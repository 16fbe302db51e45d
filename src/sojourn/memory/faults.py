"""The errors of a database as those of the memory in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sojourn.errors import Unavailable


@contextmanager
def told_as_memory() -> Iterator[None]:
    """Raises `memory.unavailable` in place of `store.unavailable`, and `memory.closed` in place of `store.closed`."""
    try:
        yield
    except Unavailable as error:
        if error.code == "store.unavailable":
            raise Unavailable(error.message, code="memory.unavailable", retry_after=error.retry_after) from error.__cause__
        if error.code == "store.closed":
            raise Unavailable(error.message, code="memory.closed", retryable=False) from None
        raise

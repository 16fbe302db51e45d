"""All rows, in the order in which they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from bench import (
    rows_artifacts,
    rows_data,
    rows_disk,
    rows_history,
    rows_import,
    rows_llm,
    rows_memory,
    rows_memory_servers,
    rows_peers,
    rows_postgres,
    rows_queue,
    rows_retrieval,
    rows_run,
    rows_server,
    rows_stream,
)
from bench.measure import Row

ROWS: tuple[Row, ...] = (
    *rows_run.ROWS,
    *rows_postgres.ROWS,
    *rows_peers.ROWS,
    *rows_stream.ROWS,
    *rows_llm.ROWS,
    *rows_history.ROWS,
    *rows_import.ROWS,
    *rows_memory.ROWS,
    *rows_queue.ROWS,
    *rows_disk.ROWS,
    *rows_artifacts.ROWS,
    *rows_data.ROWS,
    *rows_retrieval.ROWS,
    *rows_memory_servers.ROWS,
    *rows_server.ROWS,
)


def chosen(patterns: Sequence[str]) -> list[Row]:
    """The rows that one of the patterns names; all of them if there is no pattern.

    Raises:
        ValueError: A pattern names no row.
    """
    for pattern in patterns:
        if not any(fnmatchcase(row.name, pattern) for row in ROWS):
            raise ValueError(f"there is no row {pattern!r}; rows are {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if not patterns or any(fnmatchcase(row.name, p) for p in patterns)]

"""What a search of memory takes."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import Budget, Row, Sample, Scale
from sojourn import Memory, platform
from sojourn.memory.service import MemoryService
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.memory.words import words_of

RETRIEVAL_SET = Path(__file__).parent.parent / "tests" / "memory" / "retrieval"
DIMENSIONS = 384
ROUNDS = 3


class Anywhere:
    """An embedder that takes no time, and whose vectors point anywhere."""

    name = "anywhere"
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        import numpy as np

        self._chance = np.random.default_rng(1)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        drawn: list[list[float]] = self._chance.standard_normal((len(texts), DIMENSIONS)).tolist()
        return drawn


def _lines(pattern: str) -> list[str]:
    return [line for file in sorted(RETRIEVAL_SET.glob(pattern)) for line in file.read_text(encoding="utf-8").splitlines()]


def _said(user: int, entries: int) -> list[Memory]:
    """What a user's memory has: sentences of the retrieval set, none of them twice the same."""
    sentences = _lines("sentences/*.txt")
    return [
        Memory(f"{sentences[(7 * user + n) % len(sentences)]} That was on day {n}.", timestamp=float(n + 1))
        for n in range(entries)
    ]


async def _searched(scale: Scale) -> list[Sample]:
    entries, users = scale.of(10_000, 300), scale.of(10, 2)
    questions = [line.split("\t")[1] for line in _lines("*.tsv")][:: 1 if not scale.quick else 20]
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as directory:
        embedder = Anywhere()
        path = Path(directory, "memory.db")
        fused = SqliteMemoryService(path, embedder=embedder, synchronous="normal")
        for user in range(users):
            said = _said(user, entries)
            for start in range(0, entries, 1000):
                await fused.add("bench", f"u{user}", said[start : start + 1000])
        words = SqliteMemoryService(path)
        by_fts5, by_numpy = _bare(_said(1, entries), await embedder.embed([""] * entries))
        vectors = [array("f", vector) for vector in await embedder.embed(questions)]
        for _ in range(ROUNDS):
            floor = await _p50([_awaited(by_fts5, question) for question in questions])
            scan = await _p50([_awaited(by_numpy, vector) for vector in vectors])
            for what, service, least in (("words and vectors", fused, floor + scan), ("words", words, floor)):
                value = await _p50([_search(service, question) for question in questions])
                samples.append(Sample(f"by {what}, p50", value, "ms", least))
        await fused.close()
        await words.close()
    return samples


def _bare(entries: Sequence[Memory], vectors: Sequence[Sequence[float]]) -> tuple[Callable[[str], Any], Callable[[Any], Any]]:
    """One user's entries alone in a table, searched by FTS5's own ranking; and in an array, searched by a product."""
    import numpy as np

    conn = sqlite3.connect(":memory:")
    conn.execute("CREATE VIRTUAL TABLE entries USING fts5 (words)")
    conn.executemany("INSERT INTO entries VALUES (?)", [(" ".join(words_of(entry.text)),) for entry in entries])
    matrix = np.array(vectors, dtype=np.float32)

    def by_fts5(question: str) -> object:
        match = " OR ".join(f'"{word}"' for word in words_of(question))
        return conn.execute("SELECT words FROM entries WHERE entries MATCH ? ORDER BY rank LIMIT 5", (match,)).fetchall()

    def by_numpy(vector: array[float]) -> object:
        scores = np.vecdot(matrix, np.asarray(vector))
        return np.argpartition(-scores, 5)[:5]

    return by_fts5, by_numpy


def _search(service: MemoryService, question: str) -> Callable[[], Awaitable[object]]:
    return lambda: service.search("bench", "u1", question)


def _awaited(call: Callable[[Any], object], argument: object) -> Callable[[], Awaitable[object]]:
    async def run() -> object:
        return call(argument)

    return run


async def _p50(calls: Sequence[Callable[[], Awaitable[object]]]) -> float:
    """The median of what the calls take, in milliseconds by the clock, after one round that warms up."""
    for call in calls:
        await call()
    taken = []
    for call in calls:
        began = platform.monotonic()
        await call()
        taken.append((platform.monotonic() - began) * 1e3)
    return median(taken)


ROWS = (
    Row(
        "memory-search",
        "a search among 10,000 entries of one user, of 100,000 in the file, warm, without the embedding's own time",
        (lambda scale: asyncio.run(_searched(scale)),),
        floor="the user's entries alone: FTS5's own ranking, and a numpy scan",
        repeats=1,
        budgets={"by words and vectors, p50": (Budget(10),), "by words, p50": (Budget(10),)},
    ),
)

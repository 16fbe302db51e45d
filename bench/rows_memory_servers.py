"""What a search of memory takes in PostgreSQL and in Qdrant's embedded engine."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.measure import Budget, Row, Sample, Scale
from bench.rows_retrieval import DIMENSIONS, Anywhere, _lines, _p50, _said, _search
from sojourn.memory.service import MemoryService

ROUNDS = 3
BATCH = 1000


async def _filled(service: MemoryService, scale: Scale) -> None:
    entries, users = scale.of(10_000, 200), scale.of(10, 2)
    for user in range(users):
        said = _said(user, entries)
        for start in range(0, entries, BATCH):
            await service.add("bench", f"u{user}", said[start : start + BATCH])


def _questions(scale: Scale) -> list[str]:
    return [line.split("\t")[1] for line in _lines("*.tsv")][:: 2 if not scale.quick else 20]


async def _in_postgres(scale: Scale) -> list[Sample]:
    import asyncpg

    from sojourn.memory.postgres.service import PostgresMemoryService
    from sojourn.testing.postgresql import Server

    server = Server({"shared_buffers": "512MB"})
    try:
        server.start()
        fused = PostgresMemoryService(server.url(), embedder=Anywhere())
        words = PostgresMemoryService(server.url())
        await _filled(fused, scale)
        conn = await asyncpg.connect(server.url(), server_settings={"jit": "off"})
        await conn.execute("VACUUM ANALYZE")
        (vector,) = await Anywhere().embed([""])
        scope = await conn.fetchval("SELECT scope FROM sojourn.memory_scopes WHERE user_id = 'u1'")

        async def bare() -> object:
            return await conn.fetch(_NEAREST, scope, vector)

        samples = await _compared(fused, words, scale, bare)
        await conn.close()
        await fused.close()
        await words.close()
        return samples
    finally:
        server.delete()


_NEAREST = """
    SELECT entry FROM sojourn.memory_vectors
    WHERE scope = $1
    ORDER BY vector <#> (SELECT $2::real[]::halfvec) LIMIT 5
"""


async def _in_qdrant(scale: Scale) -> list[Sample]:
    import qdrant_edge as qdrant

    from sojourn.memory.qdrant.points import Owner
    from sojourn.memory.qdrant.service import QdrantMemoryService

    with tempfile.TemporaryDirectory() as directory:
        fused = QdrantMemoryService(Path(directory, "both"), embedder=Anywhere(), synchronous="normal")
        await _filled(fused, scale)
        words = QdrantMemoryService(Path(directory, "words"), synchronous="normal")
        await _filled(words, scale)
        engine: Any = fused._engine
        mine = qdrant.FieldCondition("owner", match=qdrant.MatchValue(Owner("bench", "u1").key))
        request = qdrant.QueryRequest(
            limit=5,
            query=qdrant.Query.Nearest([0.1] * DIMENSIONS, using="meaning"),
            filter=qdrant.Filter(must=[mine]),
            params=qdrant.SearchParams(exact=True),
        )

        async def bare() -> object:
            return engine._shard.query(request)

        samples = await _compared(fused, words, scale, bare)
        await fused.close()
        await words.close()
        return samples


async def _compared(
    fused: MemoryService, words: MemoryService, scale: Scale, bare: Callable[[], Awaitable[object]]
) -> list[Sample]:
    questions = _questions(scale)
    samples: list[Sample] = []
    for _ in range(ROUNDS):
        floor = await _p50([bare] * len(questions))
        for what, service in (("words and vectors", fused), ("words", words)):
            value = await _p50([_search(service, question) for question in questions])
            samples.append(Sample(f"by {what}, p50", value, "ms", floor))
    return samples


ROWS = tuple(
    Row(
        f"memory-search-{name}",
        f"a search among 10,000 entries of one user, of 100,000 {where}, warm, without the embedding's own time",
        (lambda scale, run=run: asyncio.run(run(scale)),),
        floor="the driver's own question for the nearest vectors of the user, alone",
        repeats=1,
        budgets={"by words and vectors, p50": (Budget(10),), "by words, p50": (Budget(10),)},
    )
    for name, where, run in (
        ("postgres", "in PostgreSQL", _in_postgres),
        ("qdrant", "in a directory of Qdrant's embedded engine", _in_qdrant),
    )
)

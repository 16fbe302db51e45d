from collections import Counter

import asyncpg
import pytest

from sojourn.memory.postgres import rows
from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.memory.types import Memory
from sojourn.testing.memory_conformance import MemoryServiceConformance
from tests.memory.comparison import compare_on_one, nearly

pytestmark = pytest.mark.anyio

SCHEMA = "memory_wiped"


@pytest.fixture
async def wiped(postgres):
    """The name of a schema whose tables, if they are there, are empty."""
    conn = await asyncpg.connect(postgres.url())
    if await conn.fetchval(f"SELECT to_regclass('{SCHEMA}.memory_words')") is not None:
        await conn.execute(f"TRUNCATE {SCHEMA}.memory_scopes, {SCHEMA}.memory_entries, {SCHEMA}.memory_words CASCADE")
    await conn.close()
    return SCHEMA


class TestByWords(MemoryServiceConformance):
    @pytest.fixture
    async def service(self, postgres, wiped):
        service = PostgresMemoryService(postgres.url(), schema=wiped)
        yield service
        await service.close()

    @pytest.fixture
    async def failing_service(self, tmp_path):
        service = PostgresMemoryService(f"postgresql://sojourn@/nowhere?host={tmp_path}&port=1")
        yield service
        await service.close()


def test_it_does_and_finds_what_the_one_in_memory_does_and_finds(postgres, schema):
    async def open_service():
        return PostgresMemoryService(postgres.url(), schema=schema)

    compare_on_one(open_service, nearly, max_examples=40)


class Totalled(Counter):
    """Counts of words that note how often they are summed up."""

    times = 0

    def total(self):
        Totalled.times += 1
        return super().total()


async def test_the_words_of_a_long_text_are_summed_up_once(postgres, wiped, monkeypatch):
    count = rows.counts_of
    monkeypatch.setattr(rows, "counts_of", lambda text: Totalled(count(text)))
    service = PostgresMemoryService(postgres.url(), schema=wiped)
    words = [f"word{n}" for n in range(3000)]
    await service.add("app", "ann", [Memory(" ".join(words)), Memory("short")])
    assert Totalled.times == 2
    assert len(await service.search("app", "ann", words[-1])) == 1
    await service.close()

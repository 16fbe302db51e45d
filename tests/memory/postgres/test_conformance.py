import asyncpg
import pytest

from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.testing.memory_conformance import MemoryServiceConformance

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

import asyncio

import asyncpg
import pytest

from sojourn.errors import InvalidInput, ModelError, Unavailable, Unsupported
from sojourn.memory import kept, pending, tally
from sojourn.memory.database import DatabaseMemoryService
from sojourn.memory.embedder import embed, packed
from sojourn.memory.fusion import fused
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.postgres import computing, ranking, rows
from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.postgres.tables import Tables
from sojourn.store.postgres.service import PostgresSessionService
from sojourn.testing.memory_conformance import FACTS, MemoryServiceConformance, everything, said, texts
from sojourn.testing.postgresql import Server
from tests.memory.embedders import WordEmbedder
from tests.memory.writers import check, kill_again_and_again

pytestmark = pytest.mark.anyio

APP, ALICE = "app", "alice"
SCHEMA = "memory_vectors_wiped"


@pytest.fixture
async def wiped(postgres):
    """The name of a schema whose tables, if they are there, are empty."""
    conn = await asyncpg.connect(postgres.url())
    if await conn.fetchval(f"SELECT to_regclass('{SCHEMA}.memory_vectors')") is not None:
        tables = ("memory_scopes", "memory_entries", "memory_words", "memory_vectors", "memory_models")
        await conn.execute("TRUNCATE " + ", ".join(f"{SCHEMA}.{table}" for table in tables))
    await conn.close()
    return SCHEMA


@pytest.fixture
async def opened(postgres, wiped):
    """Opens the schema again and again: a function; each call gives another object, as another process would have one."""
    services = []

    def open_service(embedder=None, **options):
        services.append(PostgresMemoryService(postgres.url(), embedder=embedder, **{"schema": wiped, **options}))
        return services[-1]

    yield open_service
    for service in services:
        await service.close()


async def settled(service):
    """Waits until nothing is without a vector that can have one."""
    while (task := service._pending._task) is not None and not task.done():
        await asyncio.wait([task])


class TestWithAnEmbedder(MemoryServiceConformance):
    @pytest.fixture
    def service(self, opened):
        return opened(WordEmbedder(dimensions=256))

    @pytest.fixture
    async def failing_service(self, tmp_path):
        service = PostgresMemoryService(f"postgresql://sojourn@/nowhere?host={tmp_path}&port=1", embedder=WordEmbedder())
        yield service
        await service.close()


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("few", [0, 3])
async def test_the_best_of_all_are_found(opened, monkeypatch, few, in_thread):
    """Against what scoring each entry gives, with so few words counted at first that more have to be."""
    monkeypatch.setattr(ranking, "_COMMON", 0.5)
    monkeypatch.setattr(tally, "FEW", few)
    if in_thread:
        monkeypatch.setattr(computing, "_LITTLE", 0)
    embedder = WordEmbedder()
    words = ["tea", "brew", "dog", "hound", "red", "lamp", "the", "of", "and", "cats"]
    entries = [
        Memory(" ".join(words[(n * k) % 10] for k in (1, 3, 7, 9)[: 1 + n % 4]), id=f"{n:03}", timestamp=1.0, author=str(n % 3))
        for n in range(120)
    ]
    ram = InMemoryMemoryService()
    await ram.add(APP, ALICE, entries)
    service = opened(embedder)
    await service.add(APP, ALICE, entries)
    for query in ("tea", "a hound and the lamp", "the", "cats of the red zebra", "nothing"):
        in_words = {entry.id: entry.score for entry in await ram.search(APP, ALICE, query, limit=1000)}
        for limit in (1, 5, 200):
            for author in (None, "1"):
                scored = {
                    entry.id: fused(in_words.get(entry.id, 0.0), embedder.cosine(query, entry.text))
                    for entry in entries
                    if author in (None, entry.author)
                }
                wanted = None if author is None else MemoryFilter(author=author)
                found = await service.search(APP, ALICE, query, limit=limit, filter=wanted)
                expected = sorted((score for score in scored.values() if score > 1e-3), reverse=True)[:limit]
                got = [entry.score for entry in found if entry.score > 1e-3]
                # Vectors are kept in half precision.
                assert got == pytest.approx(expected, abs=1e-3)
                assert [scored[entry.id] for entry in found] == pytest.approx([entry.score for entry in found], abs=1e-3)


async def test_what_is_best_only_by_both_is_found(opened, monkeypatch):
    """It is the third by words and the third by meaning."""
    monkeypatch.setattr(tally, "FEW", 0)
    near = {
        "lamp red": [1.0, 0.0],
        "red lamp": [0.0, 1.0],
        "blue": [0.7, 0.51**0.5],
        "red lamp by the door": [0.65, 0.76],
    }
    embedder = WordEmbedder(dimensions=2)
    embedder.vector = near.get
    service = opened(embedder)
    await service.add(APP, ALICE, [Memory(text) for text in ("red lamp", "red lamp", "blue", "blue", "red lamp by the door")])
    everyone = await service.search(APP, ALICE, "lamp red", limit=100)
    assert texts(everyone)[0] == "red lamp by the door"
    assert await service.search(APP, ALICE, "lamp red", limit=1) == everyone[:1]


async def test_what_is_added_again_while_it_is_embedded_in_the_background(opened, monkeypatch):
    """Both give the entry its vector: the task in the background has made one, and waits for the addition's end."""
    away, service = WordEmbedder(), opened(WordEmbedder())
    background = []
    away.is_away = True
    without = opened(away)
    await without.add(APP, ALICE, [Memory("a hound", id="1", timestamp=1.0)])
    column = Tables.column

    async def column_before_the_other(db, sql, *args):
        found = await column(db, sql, *args)
        if sql is rows._WITH_VECTOR:
            [(entry, text)] = (await service._read_pending(0, 10)).texts
            [vector] = await embed(WordEmbedder(), [text])
            background.append(asyncio.ensure_future(service._write_pending({entry: packed(vector)})))
            while not await db.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "column", column_before_the_other)
        await service.add(APP, ALICE, [Memory("a hound", id="1", timestamp=1.0)])
    await asyncio.gather(*background)
    assert len(background) == 1
    assert texts(await service.search(APP, ALICE, "dog")) == ["a hound"]


async def test_by_words_it_finds_what_is_found_in_ram_with_the_same_scores(opened, monkeypatch):
    monkeypatch.setattr(ranking, "_FIRST", 1)
    monkeypatch.setattr(ranking, "_MORE", 2)
    ram, service = InMemoryMemoryService(), opened()
    words = ["tea", "red", "lamp", "cats", "the", "of"]
    entries = [
        Memory(" ".join(words[(n * k) % 6] for k in range(1, 2 + n % 5)), id=str(n), timestamp=1.0 + n % 4, author=str(n % 2))
        for n in range(60)
    ]
    for one in (ram, service):
        await one.add(APP, ALICE, entries)
        await one.add(APP, ALICE, [Memory("tea tea of cats", id="7", timestamp=9.0)])
        await one.forget(APP, ALICE, ids=["3", "4"])
    for query in ("tea", "the red lamp", "of the", "cats and tea", "nothing", "the the tea"):
        for limit in (1, 3, 10, 100):
            for author in (None, "1"):
                wanted = None if author is None else MemoryFilter(author=author)
                found = await service.search(APP, ALICE, query, limit=limit, filter=wanted)
                expected = await ram.search(APP, ALICE, query, limit=limit, filter=wanted)
                assert [entry.score for entry in found] == pytest.approx([entry.score for entry in expected])
                assert [entry.id for entry in found] == [entry.id for entry in expected]


@pytest.mark.parametrize("by_vector", [False, True])
async def test_who_has_only_the_most_common_word_is_found_too(opened, by_vector):
    """It is left out at first, since it decides next to nothing; and such entries may have no vector either."""
    rare, common = [Memory("a zebra", id="zebra")], [Memory(f"pan {n}", id=f"{n:02}", timestamp=1.0) for n in range(40)]
    embedder = WordEmbedder()
    embedder.vector = lambda text: [0.0] * embedder.dimensions
    ram, service = InMemoryMemoryService(), opened(embedder if by_vector else None)
    await service.add(APP, ALICE, rare)
    if by_vector:
        await settled(service)
    await opened().add(APP, ALICE, common)
    await ram.add(APP, ALICE, rare + common)
    for limit in (1, 2, 5, 100):
        found = await service.search(APP, ALICE, "zebra pan", limit=limit)
        assert texts(found) == texts(await ram.search(APP, ALICE, "zebra pan", limit=limit))


async def test_what_means_the_same_is_found(opened):
    service = opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory("my hound"), Memory("my kettle"), Memory("an automobile")])
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
    assert texts(await service.search(APP, ALICE, "car", limit=1)) == ["an automobile"]


async def test_what_is_added_again_is_not_embedded_again(opened):
    embedder = WordEmbedder()
    service = opened(embedder)
    events = [said("1", "tea"), said("2", "cats"), said("3", "tea")]
    await service.add_session(APP, ALICE, "s", events)
    assert embedder.given == [["tea", "cats"]]
    await service.add_session(APP, ALICE, "s", [*events, said("4", "dogs")])
    await service.add_events(APP, ALICE, "s", events)
    assert embedder.given == [["tea", "cats"], ["dogs"]]


async def test_what_cannot_be_embedded_is_stored_and_embedded_later(opened, monkeypatch, caplog):
    monkeypatch.setattr(pending, "_FIRST_DELAY", 0.001)
    embedder = WordEmbedder()
    embedder.errors = [Unavailable("away", code="embedding.unavailable") for _ in range(4)]
    service = opened(embedder)
    await service.add(APP, ALICE, [Memory("a hound", id="1"), Memory("a kettle", id="2")])
    assert "added without vectors" in caplog.text
    await settled(service)
    assert embedder.errors == []
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]


async def test_if_a_query_cannot_be_embedded_it_finds_by_words_and_says_so(opened, caplog):
    embedder, ram = WordEmbedder(), InMemoryMemoryService()
    service = opened(embedder)
    facts = [Memory(text, id=text, timestamp=1.0) for text in FACTS]
    await ram.add(APP, ALICE, facts)
    await service.add(APP, ALICE, facts)
    embedder.is_away = True
    found = await service.search(APP, ALICE, "the red lamp")
    assert texts(found) == texts(await ram.search(APP, ALICE, "the red lamp"))
    assert "searched by words alone" in caplog.text


@pytest.mark.parametrize("vectors", [[[1.0] * 15], [], [[float("nan")] * 16]])
async def test_vectors_that_cannot_be_are_errors_and_nothing_is_written(opened, vectors):
    embedder = WordEmbedder()
    service = opened(embedder)

    async def embed(texts):
        return vectors

    embedder.embed = embed
    for call in (service.add(APP, ALICE, [Memory("tea")]), service.search(APP, ALICE, "tea")):
        with pytest.raises(ModelError) as caught:
            await call
        assert caught.value.code in ("embedding.wrong_size", "embedding.invalid")
    assert await everything(service) == []


@pytest.mark.parametrize("window", [10, 5000])
async def test_a_model_with_another_name_embeds_everything_again(opened, monkeypatch, window):
    monkeypatch.setattr(rows, "WINDOW", window)
    service = opened(WordEmbedder("one"))
    await service.add(APP, ALICE, [Memory(f"hound {n}", id=str(n)) for n in range(pending.BATCH + 5)])
    other = WordEmbedder("two", dimensions=8)
    service = opened(other)
    assert await service.search(APP, ALICE, "dog") == []
    await settled(service)
    assert len(await service.search(APP, ALICE, "dog", limit=100)) == pending.BATCH + 5
    assert sum(len(given) for given in other.given) == pending.BATCH + 7


async def test_a_model_with_the_same_name_and_other_dimensions_is_refused(opened):
    await opened(WordEmbedder()).add(APP, ALICE, [Memory("tea")])
    service = opened(WordEmbedder(dimensions=8))
    for call in (service.add(APP, ALICE, [Memory("cats")]), service.search(APP, ALICE, "tea")):
        with pytest.raises(InvalidInput) as caught:
            await call
        assert caught.value.code == "memory.wrong_dimensions"
    assert texts(await opened().search(APP, ALICE, "tea cats")) == ["tea"]


async def test_a_vector_of_any_usual_size_is_kept(opened):
    embedder = WordEmbedder("large", dimensions=3072)
    service = opened(embedder)
    await service.add(APP, ALICE, [Memory("a hound")])
    assert texts(await service.search(APP, ALICE, "dog")) == ["a hound"]


async def test_forgetting_a_user_leaves_no_row(opened, postgres, wiped):
    service = opened(WordEmbedder())
    await service.add_session(APP, ALICE, "s", [said("1", "tea of cats"), said("2", "dogs")])
    await service.add(APP, ALICE, [Memory("tea", id="1"), Memory("red tea", id="1")])
    await service.forget(APP, ALICE, ids=["1"])
    await service.forget(APP, ALICE)
    conn = await asyncpg.connect(postgres.url())
    for table in ("memory_scopes", "memory_entries", "memory_words", "memory_vectors"):
        assert await conn.fetchval(f"SELECT count(*) FROM {wiped}.{table}") == 0
    await conn.close()


async def test_what_is_counted_is_what_is_there(opened, postgres, wiped):
    service = opened()
    await service.add_session(APP, ALICE, "s", [said("1", "tea of cats"), said("2", "dogs")])
    await service.add_session(APP, ALICE, "s", [said("1", "tea of red cats"), said("3", "birds sing")])
    await service.add(APP, ALICE, [Memory("a note", id="n"), Memory("another note now", id="n")])
    await service.forget(APP, ALICE, session_id="s", ids=["unknown"])
    conn = await asyncpg.connect(postgres.url())
    assert tuple(await conn.fetchrow(f"SELECT entries, length FROM {wiped}.memory_scopes")) == (3, 9)
    there = await conn.fetchval(f"SELECT count(*) FROM {wiped}.memory_words")
    assert there == await conn.fetchval(f"SELECT sum(cardinality(words)) FROM {wiped}.memory_entries")
    await conn.close()


async def test_a_pool_that_is_given_is_not_closed(postgres, wiped):
    async with asyncpg.create_pool(postgres.url(), min_size=1, max_size=2) as pool:
        service = PostgresMemoryService(pool, schema=wiped)
        await service.add(APP, ALICE, [Memory("tea")])
        await service.close()
        assert await pool.fetchval("SELECT 1") == 1
        with pytest.raises(Unavailable) as caught:
            await service.search(APP, ALICE, "tea")
        assert caught.value.code == "memory.closed"


async def test_without_pgvector_it_says_what_to_do(postgres, schema):
    """A user who may not create extensions, in a database without any."""
    postgres.psql(f'CREATE ROLE "{schema}" LOGIN', f'CREATE DATABASE "{schema}"')
    postgres.psql(f'CREATE SCHEMA sojourn AUTHORIZATION "{schema}"', database=schema)
    url = postgres.url(schema).replace("sojourn@", f"{schema}@", 1)
    service = PostgresMemoryService(url, embedder=WordEmbedder())
    with pytest.raises(Unsupported) as caught:
        await service.add(APP, ALICE, [Memory("tea")])
    assert caught.value.code == "memory.no_pgvector"
    await service.close()
    service = PostgresMemoryService(url)
    await service.add(APP, ALICE, [Memory("tea")])
    assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]
    await service.close()


async def test_vectors_need_numpy(postgres, monkeypatch):
    monkeypatch.setattr(kept, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"sojourn\[embed\]") as caught:
        PostgresMemoryService(postgres.url(), embedder=WordEmbedder())
    assert caught.value.code == "embedding.not_installed"


async def test_by_url(postgres, wiped):
    service = DatabaseMemoryService(postgres.url())
    assert isinstance(service, PostgresMemoryService)
    await service.close()


async def test_beside_the_sessions(postgres, schema):
    """In one schema, whoever comes first, with one pool."""
    async with asyncpg.create_pool(postgres.url(), min_size=1, max_size=4) as pool:
        memory = PostgresMemoryService(pool, schema=schema, embedder=WordEmbedder())
        await memory.add(APP, ALICE, [Memory("a hound")])
        store = PostgresSessionService(pool, schema=schema)
        await store.create_session(app_name=APP, user_id=ALICE, session_id="s")
        later = PostgresMemoryService(pool, schema=schema, embedder=WordEmbedder())
        assert texts(await later.search(APP, ALICE, "dog")) == ["a hound"]
        for service in (memory, store, later):
            await service.close()


async def test_connections_that_are_cut_are_replaced(opened, postgres):
    service = opened()
    await service.add(APP, ALICE, [Memory("tea")])
    postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sojourn'")
    assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_the_server_is_stopped_and_started(mode):
    server = Server({"synchronous_commit": "on"})
    try:
        await asyncio.to_thread(server.start)
        embedder = WordEmbedder()
        service = PostgresMemoryService(server.url(), embedder=embedder)
        await service.add(APP, ALICE, [Memory("a hound", id="1")])
        await asyncio.to_thread(server.stop, mode)
        for call in (
            service.add(APP, ALICE, [Memory("lost")]),
            service.search(APP, ALICE, "dog"),
            service.forget(APP, ALICE),
        ):
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.code == "memory.unavailable"
            assert caught.value.__cause__ is not None
        await asyncio.to_thread(server.start)
        await service.add(APP, ALICE, [Memory("a kettle", id="2")])
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]
        assert sorted(texts(await everything(service))) == ["a hound", "a kettle"]
        await service.close()
    finally:
        await asyncio.to_thread(server.delete)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_process_that_is_killed_loses_nothing(postgres):
    """What was acknowledged is there, what was not is there as a whole or not at all, and the counts are right."""
    service = PostgresMemoryService(postgres.url(), schema="memory_killed")
    conn = await asyncpg.connect(postgres.url())

    async def look(at, step):
        await check(service, at, step)
        counted = await conn.fetchrow("SELECT entries, length FROM memory_killed.memory_scopes")
        real = await conn.fetchrow("SELECT count(*), sum(length) FROM memory_killed.memory_entries")
        assert tuple(counted) == tuple(real)
        there = await conn.fetchval("SELECT count(*) FROM memory_killed.memory_words")
        assert there == await conn.fetchval("SELECT sum(cardinality(words)) FROM memory_killed.memory_entries")

    await kill_again_and_again("postgres", postgres.url(), 50, look)
    await service.close()
    await conn.close()

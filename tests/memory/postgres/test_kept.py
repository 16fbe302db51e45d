"""Vectors that are kept in RAM: never other than what the database has, and read no more often than needed."""

import asyncio
import random  # noqa: TID251 - seeded
import shutil
import subprocess
import threading

import pytest

from sojourn.errors import ModelError, Unavailable
from sojourn.memory.kept import Kept
from sojourn.memory.postgres import kept, meaning, rows
from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.postgres.tables import Tables
from sojourn.testing.memory_conformance import said, texts
from sojourn.testing.postgresql import Server
from tests.memory.embedders import WordEmbedder

pytestmark = pytest.mark.anyio

APP, ALICE = "app", "alice"


@pytest.fixture
async def opened(postgres, schema):
    """Opens the schema again and again: a function; each call gives another object, as another process would have one."""
    services = []

    def open_service(embedder=None, **options):
        services.append(PostgresMemoryService(postgres.url(), embedder=embedder, **{"schema": schema, **options}))
        return services[-1]

    yield open_service
    for service in services:
        await service.close()


@pytest.fixture
def read(monkeypatch):
    """The numbers of the entries whose vectors were read, a list for each statement."""
    asked = []
    one = Tables.one

    def noted(self, sql, *args):
        if sql is kept._VECTORS:
            asked.append(args[2])
        return one(self, sql, *args)

    monkeypatch.setattr(Tables, "one", noted)
    return asked


class Held:
    """Holds who reads vectors, after they have looked what is there, until they may go on.

    Attributes:
        come: Set when somebody has come.
        going: Lets all go on.
    """

    def __init__(self, monkeypatch, before=None):
        self.come, self.going = asyncio.Event(), asyncio.Event()
        self.count = 0
        real = kept.KeptVectors._read

        async def reading(*args):
            self.count += 1
            self.come.set()
            await self.going.wait()
            if before is not None:
                await before(args[1])
            return await real(*args)

        monkeypatch.setattr(kept.KeptVectors, "_read", reading)


async def settled(service):
    """Waits until nothing is without a vector that can have one."""
    while (task := service._pending._task) is not None and not task.done():
        await asyncio.wait([task])


# -- what others do is seen at once -------------------------------------------------------------------------------------


async def test_whatever_others_do_is_seen_by_the_next_search(opened):
    """It finds what one finds that has kept nothing; vectors, too, that somebody else adds by and by."""
    chance = random.Random(7)
    words = ["tea", "brew", "dog", "hound", "red", "lamp", "cats"]
    embedder = WordEmbedder()
    watching, without = opened(embedder), opened()

    def some(count):
        return [Memory(" ".join(chance.choices(words, k=3)), id=str(chance.randrange(30)), timestamp=1.0) for _ in range(count)]

    for step in range(60):
        other = opened(embedder, pool_size=1)
        match step % 5:
            case 0:
                await other.add(APP, ALICE, some(5))
            case 1:
                await other.forget(APP, ALICE, ids=[str(chance.randrange(30)) for _ in range(3)])
            case 2:
                await other.add_session(APP, ALICE, "s", [said(str(n), one.text) for n, one in enumerate(some(4))])
            case 3:
                await without.add(APP, ALICE, some(3))
            case 4 if step % 4 == 2:
                await other.forget(APP, ALICE)
        await watching.search(APP, ALICE, "hound by the lamp")
        other._pending.start()
        await settled(other)
        for wanted in (None, MemoryFilter(session_id="s")):
            found = await watching.search(APP, ALICE, "hound by the lamp", filter=wanted, limit=10)
            assert found == await other.search(APP, ALICE, "hound by the lamp", filter=wanted, limit=10)
        await other.close()


async def test_vectors_that_come_later_are_seen_by_who_has_searched_before(opened):
    embedder = WordEmbedder()
    service, other = opened(embedder), opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory("a kettle")])
    await settled(service)
    embedder.errors = [ModelError("no", code="embedding.unauthorized") for _ in range(2)]
    await service.add(APP, ALICE, [Memory("my hound")])
    await settled(service)
    assert "my hound" not in texts(await service.search(APP, ALICE, "dog"))
    other._pending.start()
    await settled(other)
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]


async def test_a_user_who_was_forgotten_and_is_new_is_another_one(opened):
    service, other = opened(WordEmbedder()), opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory("my hound"), Memory("red lamps")])
    assert len(await service.search(APP, ALICE, "dog lamps")) == 2
    await other.forget(APP, ALICE)
    assert await service.search(APP, ALICE, "dog lamps") == []
    await other.add(APP, ALICE, [Memory("my kettle"), Memory("some brew")])
    assert texts(await service.search(APP, ALICE, "tea", limit=1)) == ["some brew"]


async def test_what_was_forgotten_while_it_was_being_embedded_stays_forgotten(opened):
    embedder = WordEmbedder()
    service, other = opened(embedder), opened()
    embedder.is_away = True
    await service.add(APP, ALICE, [Memory("a hound", id="1"), Memory("a kettle", id="2")])
    await service.add(APP, "bob", [Memory("a hound")])
    await service._pending.stop()
    embedder.is_away = False
    come, going = embedder.hold()
    service._pending.start()
    await come.wait()
    await other.forget(APP, ALICE, ids=["1"])
    await other.forget(APP, "bob")
    going.set()
    await settled(service)
    assert texts(await service.search(APP, ALICE, "dog kettle")) == ["a kettle"]
    assert await service.search(APP, "bob", "dog") == []


async def test_a_search_sees_the_state_that_it_began_with(opened, monkeypatch):
    """What is replaced meanwhile is neither missing nor found with the score of something else."""
    service, other = opened(WordEmbedder()), opened(WordEmbedder())
    await other.add(APP, ALICE, [Memory("my hound", id="1"), Memory("red lamps", id="2")])
    with monkeypatch.context() as patch:
        held = Held(patch)
        search = asyncio.ensure_future(service.search(APP, ALICE, "dog", limit=1))
        await held.come.wait()
        await other.add(APP, ALICE, [Memory("my dog", id="1"), Memory("dog", id="3")])
        await other.forget(APP, ALICE, ids=["2"])
        held.going.set()
        assert texts(await search) == ["my hound"]
    assert texts(await service.search(APP, ALICE, "dog", limit=5)) == ["dog", "my dog"]


@pytest.mark.slow
async def test_a_server_that_was_restored_numbers_anew(monkeypatch):
    """The same user, entry and change have the same numbers as others had before, and other vectors."""
    server = Server()
    try:
        await asyncio.to_thread(server.start)
        service, other = (PostgresMemoryService(server.url(), embedder=WordEmbedder()) for _ in range(2))
        await other.add(APP, "bob", [Memory("nothing")])
        await asyncio.to_thread(server.stop)
        copy = server.directory / "copy"
        await asyncio.to_thread(subprocess.run, ["cp", "-a", str(server._data), str(copy)], check=True)
        await asyncio.to_thread(server.start)
        await other.add(APP, ALICE, [Memory("my hound"), Memory("a kettle")])
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
        await asyncio.to_thread(server.stop, "immediate")
        shutil.rmtree(server._data)
        copy.rename(server._data)
        await asyncio.to_thread(server.start)
        await other.add(APP, ALICE, [Memory("a kettle"), Memory("my hound")])
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
        await service.close()
        await other.close()
    finally:
        await asyncio.to_thread(server.delete)


async def test_tables_that_were_made_anew_number_anew(opened, postgres, schema):
    service = opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory("my hound"), Memory("a kettle")])
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
    await asyncio.to_thread(postgres.psql, f"DROP SCHEMA {schema} CASCADE")
    await opened(WordEmbedder()).add(APP, ALICE, [Memory("a kettle"), Memory("my hound")])
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]


# -- nothing is read twice ----------------------------------------------------------------------------------------------


async def test_only_what_is_new_is_read(opened, read):
    service = opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory(f"tea {n}", id=str(n)) for n in range(20)])
    for _ in range(2):
        assert len(await service.search(APP, ALICE, "tea", limit=100)) == 20
    await service.add(APP, ALICE, [Memory("tea of 3", id="3"), Memory("more tea")])
    await service.forget(APP, ALICE, ids=["5"])
    await service.add(APP, "bob", [Memory("tea")])
    for _ in range(2):
        assert len(await service.search(APP, ALICE, "tea", limit=100)) == 20
    assert [len(numbers) for numbers in read] == [20, 2]


async def test_many_vectors_are_read_some_at_a_time(opened, read, monkeypatch):
    monkeypatch.setattr(kept, "_BATCH", 3 * 2 * 16)
    service = opened(WordEmbedder(dimensions=16))
    await service.add(APP, ALICE, [Memory(f"kettle {n}") for n in range(7)] + [Memory("my hound")])
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
    assert [len(numbers) for numbers in read] == [3, 3, 2]


async def test_searches_at_once_read_the_vectors_of_their_user_once(opened, read):
    service = opened(WordEmbedder())
    for user in (ALICE, "bob"):
        await service.add(APP, user, [Memory("my hound"), Memory("a kettle")])
    searches = [service.search(APP, user, "dog", limit=1) for _ in range(10) for user in (ALICE, "bob")]
    assert [texts(found) for found in await asyncio.gather(*searches)] == [["my hound"]] * 20
    assert len(read) == 2


async def test_who_waits_for_vectors_that_another_reads_needs_no_connection(opened, monkeypatch):
    service = opened(WordEmbedder(), pool_size=2, acquire_timeout=10.0)
    await service.add(APP, ALICE, [Memory("my hound")])
    held = Held(monkeypatch)
    searches = [asyncio.ensure_future(service.search(APP, ALICE, "dog")) for _ in range(5)]
    await held.come.wait()
    assert len((await service.list_memories(APP, ALICE)).items) == 1
    held.going.set()
    assert [texts(found) for found in await asyncio.gather(*searches)] == [["my hound"]] * 5
    assert held.count == 1


async def test_users_beyond_what_is_kept_are_read_again(opened, read):
    service = opened(WordEmbedder())
    service._meaning._kept._kept = Kept(max_kept=700)
    for user in ("a", "b", "c"):
        await service.add(APP, user, [Memory(f"tea of {user} {n}") for n in range(4)])
    for _ in range(2):
        for user in ("a", "b", "c"):
            assert len(await service.search(APP, user, "tea")) == 4
    assert len(service._meaning._kept._kept._of) == 1
    assert len(read) == 6


async def test_what_is_kept_counts_once_for_each_user(opened):
    service = opened(WordEmbedder())
    for n in range(5):
        await service.add(APP, ALICE, [Memory(f"tea {n}")])
        await service.search(APP, ALICE, "tea")
    store = service._meaning._kept._kept
    (vectors,) = store._of.values()
    assert store._size == vectors.size >= vectors.matrix.nbytes


# -- what breaks off ----------------------------------------------------------------------------------------------------


async def test_cancelled_searches_keep_nobody_waiting(opened, monkeypatch):
    service = opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory("my hound")])
    held = Held(monkeypatch)
    reading = asyncio.ensure_future(service.search(APP, ALICE, "dog"))
    await held.come.wait()
    waiting = [asyncio.ensure_future(service.search(APP, ALICE, "dog")) for _ in range(3)]
    # Once this has its connection, the others have looked.
    await asyncio.gather(*(service.list_memories(APP, ALICE) for _ in range(10)))
    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    reading.cancel()
    held.going.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert [texts(found) for found in await asyncio.gather(*waiting[1:])] == [["my hound"]] * 2
    assert held.count == 1
    assert not service._meaning._kept._reading


async def test_a_connection_that_is_cut_while_vectors_are_read_is_replaced(opened, postgres, monkeypatch):
    service = opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory("my hound"), Memory("a kettle")])
    cut = []

    async def cut_once(db):
        if not cut:
            cut.append(await db.value("SELECT pg_backend_pid()"))
            await asyncio.to_thread(postgres.psql, f"SELECT pg_terminate_backend({cut[0]}, 5000)")

    held = Held(monkeypatch, cut_once)
    held.going.set()
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
    assert held.count == 2
    assert not service._meaning._kept._reading


async def test_if_reading_fails_who_waits_reads(opened, monkeypatch):
    service = opened(WordEmbedder())
    await service.add(APP, ALICE, [Memory("my hound")])
    failed = []

    async def fail_once(db):
        if not failed:
            failed.append(db)
            raise Unavailable("away", code="store.unavailable")

    held = Held(monkeypatch, fail_once)
    searches = [asyncio.ensure_future(service.search(APP, ALICE, "dog")) for _ in range(3)]
    await held.come.wait()
    held.going.set()
    done = await asyncio.gather(*searches, return_exceptions=True)
    assert [found.code for found in done if isinstance(found, Exception)] == ["memory.unavailable"]
    assert [texts(found) for found in done if not isinstance(found, Exception)] == [["my hound"]] * 2


def test_two_event_loops(postgres, schema):
    """At once, each with connections of its own, and the same vectors."""
    service = PostgresMemoryService(postgres.url(), embedder=WordEmbedder(), schema=schema)
    entries = [Memory("my hound"), *(Memory(f"kettle {n}") for n in range(50))]
    start, found = threading.Barrier(2, timeout=60), []

    async def disconnect():
        await settled(service)
        await service._database._connections[asyncio.get_running_loop()].close()

    async def fill():
        await service.add(APP, ALICE, entries)
        await disconnect()

    async def search(number):
        start.wait()
        for n in range(10):
            found.append(texts(await service.search(APP, ALICE, "dog", limit=1)))
            await service.add(APP, ALICE, [Memory(f"pan {number} {n}")])
        await disconnect()

    asyncio.run(fill())
    threads = [threading.Thread(target=lambda n=n: asyncio.run(search(n))) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["my hound"]] * 20
    asyncio.run(service.close())


# -- statements ---------------------------------------------------------------------------------------------------------


def plan_of(postgres, schema, sql, *without):
    """How a statement is done without some ways to do it."""
    off = "".join(f"SET enable_{way} = off; " for way in without)
    return postgres.psql(f"{off}EXPLAIN (GENERIC_PLAN, COSTS OFF) {sql.replace('{schema}', schema)}")


@pytest.mark.parametrize(
    ("sql", "scans", "conditions"),
    [
        (meaning._HAVING, "Index Only Scan using memory_words_pkey", ["scope = $1", "word = asked.word"]),
        (kept._ENTRIES, "Index Only Scan using memory_entries_pkey", ["scope = $1"]),
        (kept._ENTRIES, "Index Only Scan using memory_vectors_pkey", ["scope = $1", "model = $2"]),
        (kept._VECTORS, "Index Scan using memory_vectors_pkey", ["scope = $1", "entry = ANY ($3)", "model = $2"]),
    ],
)
async def test_statements_read_what_is_asked_for_and_no_more(opened, postgres, schema, sql, scans, conditions):
    await opened(WordEmbedder()).add(APP, ALICE, [Memory("tea")])
    plan = plan_of(postgres, schema, sql, "seqscan", "bitmapscan").splitlines()
    (at,) = [n for n, line in enumerate(plan) if scans in line]
    assert "Index Cond" in plan[at + 1]
    assert all(condition in plan[at + 1] for condition in conditions)
    assert "Filter" not in "".join(plan)


async def test_users_are_held_in_the_order_of_their_numbers(opened, postgres, schema):
    """Otherwise two processes that add vectors for the same users would wait for each other."""
    await opened(WordEmbedder()).add(APP, ALICE, [Memory("tea")])
    plan = plan_of(postgres, schema, rows._HOLD_ALL, "indexscan", "indexonlyscan", "mergejoin").splitlines()
    assert [line.strip(" ->") for line in plan[:3]] == ["LockRows", "Sort", "Sort Key: memory_scopes.scope"]

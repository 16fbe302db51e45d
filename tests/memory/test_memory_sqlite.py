import asyncio
import contextlib
import sqlite3
import sys
import tempfile
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.errors import InvalidInput, ModelError, Unavailable, Unsupported
from sojourn.memory import kept, pending, tally
from sojourn.memory.database import DatabaseMemoryService
from sojourn.memory.fusion import fused
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.sqlite import ranking, rows, schema
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.sqlite.schema import Migration
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.memory_conformance import FACTS, MemoryServiceConformance, everything, said, texts
from tests.memory.comparison import CALLS, QUERIES, compare
from tests.memory.embedders import WordEmbedder

pytestmark = pytest.mark.anyio

APP, ALICE = "app", "alice"


@asynccontextmanager
async def opened(path, **options):
    service = SqliteMemoryService(path, synchronous="normal", **options)
    try:
        yield service
    finally:
        await service.close()


async def settled(service):
    """Waits until nothing is without a vector that can have one."""
    while (task := service._pending._task) is not None and not task.done():
        await asyncio.wait([task])


class Suite(MemoryServiceConformance):
    @pytest.fixture
    async def failing_service(self, tmp_path):
        async with opened(tmp_path / "nowhere" / "memory.db") as service:
            yield service


class TestWithoutEmbedder(Suite):
    @pytest.fixture
    async def service(self, tmp_path):
        async with opened(tmp_path / "memory.db") as service:
            yield service


class TestWithEmbedder(Suite):
    @pytest.fixture
    async def service(self, tmp_path):
        async with opened(tmp_path / "memory.db", embedder=WordEmbedder(dimensions=512)) as service:
            yield service


@pytest.mark.parametrize("memory_first", [True, False])
async def test_it_may_be_in_the_file_of_the_sessions(tmp_path, memory_first):
    url = f"sqlite:///{tmp_path / 'app.db'}"
    for _ in range(2):
        store, service = DatabaseSessionService(url), DatabaseMemoryService(url)
        calls = [
            lambda service=service: service.add(APP, ALICE, [Memory("tea", id="1")]),
            lambda store=store: store.create_session(app_name=APP, user_id=ALICE),
        ]
        for call in calls if memory_first else calls[::-1]:
            await call()
        assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]
        await service.close()
        await store.close()
    store = DatabaseSessionService(url)
    assert len((await store.list_sessions(app_name=APP, user_id=ALICE)).items) == 2
    await store.close()


# -- the same as in RAM -------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(CALLS, QUERIES, st.sampled_from([0, 3, 128]))
def test_it_does_and_finds_what_the_one_in_memory_does_and_finds(calls, queries, few):
    async def run(path):
        async with opened(path) as service:
            await compare(service, calls, queries)

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "FEW", few)
        asyncio.run(run(Path(directory, "memory.db")))


@pytest.mark.parametrize("few", [0, 3])
async def test_with_an_embedder_the_best_of_all_are_found(tmp_path, monkeypatch, few):
    """Against what scoring each entry gives."""
    monkeypatch.setattr(tally, "FEW", few)
    embedder = WordEmbedder()
    words = ["tea", "brew", "dog", "hound", "red", "lamp", "the", "of", "and", "cats"]
    entries = [
        Memory(
            " ".join(words[(n * k) % 10] for k in (1, 3, 7, 9)[: 1 + n % 4]),
            id=f"{n:03}",
            timestamp=1 + n % 5.0,
            author=str(n % 3),
        )
        for n in range(300)
    ]
    ram = InMemoryMemoryService()
    await ram.add(APP, ALICE, entries)
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        await service.add(APP, ALICE, entries)
        for query in ("tea", "a hound and the lamp", "the", "brew of dogs", "cats of the red zebra", "nothing"):
            in_words = {entry.id: entry.score for entry in await ram.search(APP, ALICE, query, limit=1000)}
            for limit in (1, 5, 20, 400):
                for author in (None, "1"):
                    scored = {
                        entry.id: fused(in_words.get(entry.id, 0.0), round(embedder.cosine(query, entry.text), 5))
                        for entry in entries
                        if author in (None, entry.author)
                    }
                    by_id = {entry.id: entry for entry in entries}
                    wanted = None if author is None else MemoryFilter(author=author)
                    found = await service.search(APP, ALICE, query, limit=limit, filter=wanted)
                    expected = sorted((s for s in scored.values() if s > 0), reverse=True)[:limit]
                    assert [entry.score for entry in found] == pytest.approx(expected, abs=2e-5)
                    assert [scored[entry.id] for entry in found] == pytest.approx([entry.score for entry in found], abs=2e-5)
                    assert all(by_id[entry.id].text == entry.text for entry in found)


async def test_a_common_word_may_decide_between_those_that_have_the_rare_ones(tmp_path):
    entries = [
        Memory("zebra okapi", id="short"),
        Memory("zebra okapi pan", id="common"),
        *(Memory(f"{'pan' if n < 12 else 'pot'} number {n}", id=str(n)) for n in range(40)),
    ]
    ram = InMemoryMemoryService()
    await ram.add(APP, ALICE, entries)
    async with opened(tmp_path / "memory.db") as service:
        await service.add(APP, ALICE, entries)
        for query in ("zebra okapi", "zebra okapi pan", "pan zebra"):
            for limit in (1, 2, 3):
                found = await service.search(APP, ALICE, query, limit=limit)
                expected = await ram.search(APP, ALICE, query, limit=limit)
                assert [(entry.id, entry.score) for entry in found] == [(entry.id, entry.score) for entry in expected]


# -- embedders ----------------------------------------------------------------------------------------------------------


async def test_what_means_the_same_is_found(tmp_path):
    async with opened(tmp_path / "memory.db", embedder=WordEmbedder()) as service:
        await service.add(APP, ALICE, [Memory("my hound"), Memory("my kettle"), Memory("an automobile")])
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]
        assert texts(await service.search(APP, ALICE, "car", limit=1)) == ["an automobile"]


async def test_what_is_added_again_is_not_embedded_again(tmp_path):
    embedder = WordEmbedder()
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        events = [said("1", "tea"), said("2", "cats"), said("3", "tea")]
        await service.add_session(APP, ALICE, "s", events)
        assert embedder.given == [["tea", "cats"]]
        await service.add_session(APP, ALICE, "s", [*events, said("4", "dogs")])
        await service.add_events(APP, ALICE, "s", events)
        assert embedder.given == [["tea", "cats"], ["dogs"]]


async def test_what_cannot_be_embedded_is_stored_and_embedded_later(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pending, "_FIRST_DELAY", 0.001)
    embedder = WordEmbedder()
    embedder.errors = [Unavailable("away", code="embedding.unavailable") for _ in range(4)]
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        await service.add(APP, ALICE, [Memory("a hound", id="1"), Memory("a kettle", id="2")])
        assert "added without vectors" in caplog.text
        await settled(service)
        assert embedder.errors == []
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]


async def test_the_time_that_an_embedder_asks_for_is_waited(tmp_path, monkeypatch):
    waits = []

    async def sleep(seconds, real=asyncio.sleep):
        waits.append(seconds)
        await real(0)

    embedder = WordEmbedder()
    embedder.errors = [Unavailable("away", code="embedding.unavailable", retry_after=after) for after in (None, 7.0, 0.5, None)]
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        with monkeypatch.context() as patch:
            patch.setattr(pending.asyncio, "sleep", sleep)
            await service.add(APP, ALICE, [Memory("a hound")])
            await settled(service)
    assert [wait for wait in waits if wait] == [7.0, 2.0, 4.0]


async def test_what_an_embedder_refuses_for_good_waits_for_the_next_addition(tmp_path):
    embedder = WordEmbedder()
    embedder.errors = [ModelError("no", code="embedding.unauthorized") for _ in range(2)]
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        await service.add(APP, ALICE, [Memory("a hound")])
        await settled(service)
        assert embedder.given == [["a hound"]] * 2
        embedder.is_away = True
        embedder.errors = [ModelError("no", code="embedding.unauthorized") for _ in range(2)]
        await service.add(APP, ALICE, [Memory("a kettle")])
        await settled(service)
        embedder.is_away, embedder.errors = False, []
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        await service.search(APP, ALICE, "car")
        await settled(service)
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]
        assert texts(await service.search(APP, ALICE, "kettle", limit=1)) == ["a kettle"]


async def test_a_text_that_is_rejected_keeps_no_other_from_its_vector(tmp_path, caplog):
    class Picky(WordEmbedder):
        async def embed(self, texts):
            if any("forbidden" in text for text in texts):
                raise ModelError("not that", code="embedding.rejected")
            return await super().embed(texts)

    async with opened(tmp_path / "memory.db", embedder=Picky()) as service:
        entries = [Memory(f"kettle {n}", id=str(n)) for n in range(pending.BATCH + 5)]
        await service.add(APP, ALICE, [*entries[:3], Memory("a forbidden word"), *entries[3:], Memory("a hound")])
        await settled(service)
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]
        assert "a forbidden word" in texts(await service.search(APP, ALICE, "word", limit=100))
        assert caplog.text.count("stays without a vector") == 1
    with closing(sqlite3.connect(tmp_path / "memory.db")) as conn:
        assert conn.execute("SELECT count(*) FROM memory_vectors").fetchone() == (pending.BATCH + 6,)


async def test_if_a_query_cannot_be_embedded_it_finds_by_words_and_says_so(tmp_path, caplog):
    embedder = WordEmbedder()
    ram = InMemoryMemoryService()
    await ram.add(APP, ALICE, [Memory(text, id=text, timestamp=1.0) for text in FACTS])
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        await service.add(APP, ALICE, [Memory(text, id=text, timestamp=1.0) for text in FACTS])
        embedder.is_away = True
        found = await service.search(APP, ALICE, "the red lamp")
        assert found == await ram.search(APP, ALICE, "the red lamp")
        assert "searched by words alone" in caplog.text
        embedder.is_away = False
        assert await service.search(APP, ALICE, "the red lamp") != found


@pytest.mark.parametrize(
    ("vectors", "code"),
    [
        ([[1.0] * 15], "embedding.wrong_size"),
        ([[1.0] * 17], "embedding.wrong_size"),
        ([], "embedding.wrong_size"),
        ([[1.0] * 16] * 2, "embedding.wrong_size"),
        ([[float("nan")] * 16], "embedding.invalid"),
        ([["x"] * 16], "embedding.invalid"),
        ([7], "embedding.invalid"),
        ([None], "embedding.invalid"),
        (None, "embedding.invalid"),
        (iter([[1.0] * 16]), "embedding.invalid"),
    ],
)
async def test_vectors_that_cannot_be_are_errors_and_nothing_is_written(tmp_path, vectors, code):
    embedder = WordEmbedder()
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:

        async def embed(texts):
            return vectors

        embedder.embed = embed
        with pytest.raises(ModelError) as caught:
            await service.add(APP, ALICE, [Memory("tea")])
        assert caught.value.code == code
        with pytest.raises(ModelError) as caught:
            await service.search(APP, ALICE, "tea")
        assert caught.value.code == code
        assert await everything(service) == []


async def test_another_error_of_an_embedder_counts_as_away(tmp_path):
    embedder = WordEmbedder()
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        embedder.errors = [RuntimeError("broken"), RuntimeError("broken")]
        await service.add(APP, ALICE, [Memory("tea")])
        assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]


@pytest.mark.parametrize("window", [10, 5000])
async def test_a_model_with_another_name_embeds_everything_again(tmp_path, monkeypatch, window):
    monkeypatch.setattr(rows, "WINDOW", window)
    path = tmp_path / "memory.db"
    async with opened(path, embedder=WordEmbedder("one")) as service:
        await service.add(APP, ALICE, [Memory(f"hound {n}", id=str(n)) for n in range(pending.BATCH + 5)])
    other = WordEmbedder("two", dimensions=8)
    async with opened(path, embedder=other) as service:
        assert await service.search(APP, ALICE, "dog") == []
        await settled(service)
        assert len(await service.search(APP, ALICE, "dog", limit=100)) == pending.BATCH + 5
        assert sum(len(texts) for texts in other.given) == pending.BATCH + 7
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*), min(length(vector)), max(length(vector)) FROM memory_vectors").fetchall() == [
            (pending.BATCH + 5, 32, 32)
        ]


async def test_a_model_with_the_same_name_and_other_dimensions_is_refused(tmp_path):
    path = tmp_path / "memory.db"
    async with opened(path, embedder=WordEmbedder()) as service:
        await service.add(APP, ALICE, [Memory("tea")])
    async with opened(path, embedder=WordEmbedder(dimensions=8)) as service:
        for call in (service.add(APP, ALICE, [Memory("cats")]), service.search(APP, ALICE, "tea")):
            with pytest.raises(InvalidInput) as caught:
                await call
            assert caught.value.code == "memory.wrong_dimensions"
    async with opened(path) as service:
        assert texts(await service.search(APP, ALICE, "tea cats")) == ["tea"]


async def test_entries_of_before_there_was_an_embedder_get_vectors(tmp_path):
    path = tmp_path / "memory.db"
    async with opened(path) as service:
        await service.add(APP, ALICE, [Memory("a hound"), Memory("a kettle")])
    async with opened(path, embedder=WordEmbedder()) as service:
        await service.search(APP, ALICE, "dog")
        await settled(service)
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]


async def test_what_was_forgotten_while_it_was_being_embedded_stays_forgotten(tmp_path):
    embedder = WordEmbedder()
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        embedder.is_away = True
        await service.add(APP, ALICE, [Memory("a hound", id="1"), Memory("a kettle", id="2")])
        await service._pending.stop()
        embedder.is_away = False
        come, going = embedder.hold()
        service._pending.start()
        await come.wait()
        await service.forget(APP, ALICE, ids=["1"])
        going.set()
        await settled(service)
        assert texts(await service.search(APP, ALICE, "dog kettle")) == ["a kettle"]
    with closing(sqlite3.connect(tmp_path / "memory.db")) as conn:
        assert conn.execute("SELECT count(*) FROM memory_vectors").fetchone() == (1,)


async def test_vectors_that_come_later_are_seen_by_who_has_searched_before(tmp_path):
    embedder = WordEmbedder()
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        await service.add(APP, ALICE, [Memory("a kettle")])
        embedder.errors = [ModelError("no", code="embedding.unauthorized") for _ in range(2)]
        await service.add(APP, ALICE, [Memory("my hound")])
        await settled(service)
        assert "my hound" not in texts(await service.search(APP, ALICE, "dog"))
        service._pending.start()
        await settled(service)
        assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["my hound"]


async def test_vectors_need_numpy(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"sojourn\[embed\]") as caught:
        SqliteMemoryService(tmp_path / "memory.db", embedder=WordEmbedder())
    assert caught.value.code == "embedding.not_installed"


async def test_without_an_embedder_numpy_is_not_imported(tmp_path):
    code = f"""
import asyncio, sys
from sojourn import DatabaseMemoryService, Memory

async def main():
    service = DatabaseMemoryService("sqlite:///{tmp_path / "memory.db"}")
    await service.add("app", "alice", [Memory("tea")])
    assert await service.search("app", "alice", "tea")
    await service.close()

asyncio.run(main())
assert "numpy" not in sys.modules and "tokenizers" not in sys.modules and "httpx2" not in sys.modules
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0


# -- what is kept in RAM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedder", [None, WordEmbedder()])
async def test_users_beyond_what_is_kept_are_read_again(tmp_path, monkeypatch, embedder):
    async with opened(tmp_path / "memory.db", embedder=embedder) as service:
        service._kept = kept.Kept(max_kept=500)
        for user in ("a", "b", "c"):
            await service.add(APP, user, [Memory(f"tea of {user} {n}") for n in range(4)])
        for _ in range(2):
            for user in ("a", "b", "c"):
                assert len(await service.search(APP, user, "tea")) == 4
        assert len(service._kept._of) == 1
        await service.forget(APP, "b")
        assert await service.search(APP, "b", "tea") == []
        await service.add(APP, "b", [Memory("more tea")])
        assert texts(await service.search(APP, "b", "tea")) == ["more tea"]


# -- files --------------------------------------------------------------------------------------------------------------


async def test_it_is_there_after_a_restart(tmp_path):
    path = tmp_path / "memory.db"
    async with opened(path, embedder=WordEmbedder()) as service:
        stored = await service.add(APP, ALICE, [Memory(text) for text in FACTS])
        before = await service.search(APP, ALICE, "red lamp", limit=10)
    async with opened(path, embedder=WordEmbedder()) as service:
        assert sorted(texts(await everything(service))) == sorted(texts(stored))
        assert await service.search(APP, ALICE, "red lamp", limit=10) == before


@pytest.mark.parametrize("embedder", [None, WordEmbedder()], ids=["words", "vectors"])
async def test_two_services_on_one_file_see_what_the_other_does(tmp_path, embedder):
    path = tmp_path / "memory.db"
    async with opened(path, embedder=embedder) as one, opened(path, embedder=embedder) as two:
        for n in range(20):
            await one.add(APP, ALICE, [Memory(f"tea {n}", id=str(n))])
            assert len(await two.search(APP, ALICE, "tea", limit=100)) == n + 1
        await two.forget(APP, ALICE, ids=["3"])
        assert len(await one.search(APP, ALICE, "tea", limit=100)) == 19
        await asyncio.gather(*(service.add(APP, f"user {n}", [Memory("cats")]) for n in range(50) for service in (one, two)))
        assert all([len(await one.search(APP, f"user {n}", "cats")) == 2 for n in range(50)])


async def test_after_close_calls_say_so(tmp_path):
    service = SqliteMemoryService(tmp_path / "memory.db")
    await service.add(APP, ALICE, [Memory("tea")])
    await service.close()
    await service.close()
    with pytest.raises(Unavailable) as caught:
        await service.search(APP, ALICE, "tea")
    assert caught.value.code == "memory.closed"


async def test_the_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE notes (text)")
    async with opened(path) as service:
        with pytest.raises(Unsupported) as caught:
            await service.add(APP, ALICE, [Memory("tea")])
        assert caught.value.code == "store.foreign"


async def test_the_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "memory.db"
    async with opened(path) as service:
        await service.add(APP, ALICE, [Memory("tea")])
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("UPDATE memory_schema SET version = 99")
    async with opened(path) as service:
        with pytest.raises(Unsupported) as caught:
            await service.search(APP, ALICE, "tea")
        assert caught.value.code == "store.schema_newer"
    store = DatabaseSessionService(f"sqlite:///{path}")
    await store.create_session(app_name=APP, user_id=ALICE)
    await store.close()


async def test_a_migration_happens_once_and_whole(tmp_path, monkeypatch):
    path = tmp_path / "memory.db"
    async with opened(path) as service:
        await service.add(APP, ALICE, [Memory("tea")])
    steps = (*schema.MIGRATIONS, Migration(2, "a test", ("CREATE TABLE memory_more (x) STRICT",)))
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    async with opened(path) as service:
        with pytest.raises(Unavailable):
            await service.search(APP, ALICE, "tea")
    steps = (*schema.MIGRATIONS[:1], Migration(2, "a test", ("CREATE TABLE memory_more (x INTEGER) STRICT",)))
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    for _ in range(2):
        async with opened(path) as service:
            assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]


async def test_a_full_disk_is_unavailable_and_nothing_is_half(tmp_path):
    async with opened(tmp_path / "memory.db") as service:
        await service.add(APP, ALICE, [Memory("tea")])

        def limit(conn):
            (pages,) = conn.execute("PRAGMA page_count").fetchone()
            conn.execute(f"PRAGMA max_page_count = {pages + 2}")

        await service._writer.call(limit)
        with pytest.raises(Unavailable) as caught:
            await service.add(APP, ALICE, [Memory(f"cats {n} " + "x" * 1000) for n in range(100)])
        assert caught.value.code == "memory.unavailable"
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert texts(await everything(service)) == ["tea"]
        assert await service.search(APP, ALICE, "cats") == []


async def test_who_is_cancelled_waits_for_the_outcome(tmp_path):
    entries = [Memory(f"tea {n}", id=str(n)) for n in range(50)]
    async with opened(tmp_path / "memory.db") as service:
        await service.search(APP, ALICE, "tea")
        whole = 0
        for steps in range(6):
            task = asyncio.ensure_future(service.add(APP, f"user {steps}", entries))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            there = len(await everything(service, APP, f"user {steps}", limit=100))
            assert there in (0, 50)
            whole += there
            assert len(await service.add(APP, f"user {steps}", entries)) == 50
            assert len(await everything(service, APP, f"user {steps}", limit=100)) == 50
        assert whole


async def test_nothing_is_left_in_any_table_of_who_is_forgotten(tmp_path):
    path = tmp_path / "memory.db"
    async with opened(path, embedder=WordEmbedder()) as service:
        await service.add(APP, ALICE, [Memory(text) for text in FACTS])
        await service.add_session(APP, ALICE, "s", [said("1", "tea")])
        await service.forget(APP, ALICE)
    with closing(sqlite3.connect(path)) as conn:
        for table in ("memory_entries", "memory_vectors", "memory_scopes"):
            assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        conn.execute("CREATE VIRTUAL TABLE temp.v USING fts5vocab (main, memory_words, row)")
        assert conn.execute("SELECT count(*) FROM temp.v").fetchone() == (0,)


async def test_a_word_of_any_length_is_found(tmp_path):
    async with opened(tmp_path / "memory.db") as service:
        await service.add(APP, ALICE, [Memory("x" * 100_000), Memory("x" * 100_001)])
        assert [len(entry.text) for entry in await service.search(APP, ALICE, "x" * 100_001)] == [100_001]


@pytest.mark.parametrize("path", ["", ":memory:", "a\0b", 7])
async def test_paths_that_cannot_be_are_refused(path):
    with pytest.raises((InvalidInput, TypeError)):
        SqliteMemoryService(path)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("memory.db", "memory.invalid_url"),
        ("sqlite://host/x", "memory.invalid_url"),
        ("sqlite:///", "memory.invalid_url"),
        ("sqlite:///:memory:", "memory.invalid_url"),
        ("sqlite:///a.db?x=1", "memory.invalid_url"),
        ("redis://user:secret@host", "memory.unsupported_url"),
        (None, "memory.invalid_url"),
    ],
)
async def test_urls_that_cannot_be_are_refused(url, code):
    with pytest.raises((InvalidInput, Unsupported)) as caught:
        DatabaseMemoryService(url)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)

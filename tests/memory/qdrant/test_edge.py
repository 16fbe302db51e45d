import asyncio
import math
import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from sojourn.errors import InvalidInput, ModelError, Unavailable
from sojourn.memory.bm25 import rarity
from sojourn.memory.fusion import fused
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.lexical import weights_of
from sojourn.memory.qdrant import edge, search
from sojourn.memory.qdrant.engine import Where
from sojourn.memory.qdrant.points import Owner
from sojourn.memory.qdrant.service import QdrantMemoryService
from sojourn.memory.types import Memory, MemoryFilter
from sojourn.memory.words import words_of
from sojourn.testing.memory_conformance import FACTS, MemoryServiceConformance, everything, said, texts
from tests.memory.comparison import compare_on_one, which
from tests.memory.embedders import WordEmbedder
from tests.memory.qdrant.under_way import forget_and_replace
from tests.memory.writers import check, kill_again_and_again

pytestmark = pytest.mark.anyio

APP, ALICE = "app", "alice"


@pytest.fixture(scope="session")
def empty(tmp_path_factory):
    """Gives a directory with an empty collection, which is made once for each size of vectors: that takes long."""
    made = {}

    async def directory(dimensions, path):
        if dimensions not in made:
            made[dimensions] = tmp_path_factory.mktemp("qdrant") / "template"
            embedder = None if dimensions is None else WordEmbedder(dimensions=dimensions)
            service = QdrantMemoryService(made[dimensions], embedder=embedder)
            await service.forget(APP, ALICE)
            await service.close()
        # Its files are mostly holes.
        copying = await asyncio.create_subprocess_exec("cp", "-r", "--sparse=always", made[dimensions], path)
        assert await copying.wait() == 0
        return path

    return directory


@pytest.fixture
async def opened(tmp_path, empty):
    """Opens the directory again and again: a coroutine function, which closes what was opened before."""
    path, services = tmp_path / "qdrant", []

    async def open_service(embedder=None, **options):
        if services:
            await services[-1].close()
        elif options.pop("made", True):
            await empty(None if embedder is None else embedder.dimensions, path)
        services.append(QdrantMemoryService(path, embedder=embedder, **{"synchronous": "normal", **options}))
        return services[-1]

    yield open_service
    for service in services:
        await service.close()


class Suite(MemoryServiceConformance):
    @pytest.fixture
    async def failing_service(self, tmp_path):
        (tmp_path / "file").write_text("not a directory")
        service = QdrantMemoryService(tmp_path / "file")
        yield service
        await service.close()


class TestByWords(Suite):
    @pytest.fixture
    async def service(self, opened):
        return await opened()


class TestWithAnEmbedder(Suite):
    @pytest.fixture
    async def service(self, opened):
        return await opened(WordEmbedder(dimensions=512))


async def refused(call, error, code):
    with pytest.raises(error) as caught:
        await call
    assert caught.value.code == code
    return caught.value


def test_it_does_what_the_one_in_memory_does_and_finds_the_same_entries(tmp_path):
    async def open_service():
        return QdrantMemoryService(tmp_path / "qdrant", synchronous="normal")

    compare_on_one(open_service, which, max_examples=25)


# -- searching ----------------------------------------------------------------------------------------------------------


def _many(count):
    words = ["tea", "brew", "dog", "hound", "red", "lamp", "the", "of", "and", "cats"]
    return [
        Memory(" ".join(words[(n * k) % 10] for k in (1, 3, 7, 9)[: 1 + n % 4]), id=f"{n:03}", timestamp=1.0, author=str(n % 3))
        for n in range(count)
    ]


async def test_the_best_of_all_are_found(opened, monkeypatch):
    """Against what scoring each entry gives, with so few asked for at first that more have to be."""
    embedder, entries = WordEmbedder(), _many(150)
    service = await opened(embedder)
    await service.add(APP, ALICE, entries)
    for query in ("tea", "a hound and the lamp", "the", "cats of the red zebra", "nothing"):
        everyone = await service.search(APP, ALICE, query, limit=1000)
        asked = words_of(query)
        rarities = {word: rarity(sum(word in words_of(entry.text) for entry in entries), len(entries)) for word in asked}
        for entry in everyone:
            weights = weights_of(entry.text)
            share = sum(rarities[word] * weights.get(word, 0) for word in rarities) / sum(rarities.values())
            assert entry.score == pytest.approx(fused(share, embedder.cosine(query, entry.text)), abs=2e-5)
        with monkeypatch.context() as patch:
            patch.setattr(search, "_FIRST", 1)
            patch.setattr(search, "_MORE", 2)
            for limit in (1, 5, 30):
                found = await service.search(APP, ALICE, query, limit=limit)
                assert found == everyone[:limit]
                mine = await service.search(APP, ALICE, query, limit=limit, filter=MemoryFilter(author="1"))
                assert mine == [entry for entry in everyone if entry.author == "1"][:limit]
                least = everyone[min(limit, len(everyone) - 1)].score
                good = await service.search(APP, ALICE, query, limit=1000, min_score=least)
                assert good == [entry for entry in everyone if entry.score >= least]


async def test_words_alone_are_weighed_as_in_ram(opened):
    """Texts of 16 words are as long as a usual one: here the average is the same."""
    ram, service = InMemoryMemoryService(), await opened()
    words = ["tea", "red", "lamp", "cats", "the", "of", "and", "house"]
    entries = [Memory(" ".join(words[(n * k + k) % 8] for k in range(16)), id=str(n), timestamp=1.0) for n in range(30)]
    for one in (ram, service):
        await one.add(APP, ALICE, entries)
        await one.add(APP, "bob", entries[:3])
    for query in ("tea", "red lamp", "the zebra of the house"):
        found = await service.search(APP, ALICE, query, limit=100)
        expected = await ram.search(APP, ALICE, query, limit=100)
        assert [entry.score for entry in found] == pytest.approx([entry.score for entry in expected])
        assert {entry.id for entry in found} == {entry.id for entry in expected}


async def test_a_query_of_very_many_words(opened):
    service = await opened()
    await service.add(APP, ALICE, [Memory("tea"), Memory("word7 word8")])
    query = " ".join(f"word{n}" for n in range(1000)) + " tea"
    assert texts(await service.search(APP, ALICE, query)) == ["word7 word8"]


async def test_times_that_differ_by_less_than_a_microsecond(opened):
    times = [1795290841.1192377, 1795290841.119238, 1795290841.1192374, 1795290841.119237]
    service = await opened()
    await service.add(APP, ALICE, [Memory("tea", id=str(n), timestamp=time) for n, time in enumerate(times)])
    order = sorted(range(4), key=lambda n: -times[n])
    for limit in (1, 2, 3):
        assert [entry.id for entry in await everything(service, limit=limit)] == [str(n) for n in order]
    for time in times:
        since = await service.search(APP, ALICE, "tea", filter=MemoryFilter(since=time))
        assert {entry.id for entry in since} == {str(m) for m in range(4) if times[m] >= time}
        until = await service.search(APP, ALICE, "tea", filter=MemoryFilter(until=time), limit=1)
        assert len(until) == any(other < time for other in times)


@pytest.mark.parametrize("time", [1.0, 1795290841.1192374])
async def test_those_that_a_filter_misses_by_less_than_a_microsecond_take_no_places(opened, time):
    service = await opened()
    late = [Memory("tea", id=f"late {n}", timestamp=time) for n in range(20)]
    early = [Memory("tea " + "and cake " * n, id=f"early {n}", timestamp=math.nextafter(time, 0)) for n in range(1, 4)]
    await service.add(APP, ALICE, late + early)
    for limit in (1, 2, 10):
        found = await service.search(APP, ALICE, "tea", limit=limit, filter=MemoryFilter(until=time))
        assert [entry.id for entry in found] == ["early 1", "early 2", "early 3"][:limit]


async def test_many_entries_of_one_time_are_listed(opened, monkeypatch):
    monkeypatch.setattr("sojourn.memory.qdrant.service._MAX_SCROLL", 4)
    service = await opened()
    await service.add(APP, ALICE, [Memory("x", id=f"{n:02}", timestamp=5.0) for n in range(25)])
    assert [entry.id for entry in await everything(service, limit=4)] == [f"{n:02}" for n in range(25)]


# -- embedders ----------------------------------------------------------------------------------------------------------


async def test_what_cannot_be_embedded_is_stored_and_embedded_by_a_later_call(opened, caplog):
    embedder = WordEmbedder()
    service = await opened(embedder)
    embedder.is_away = True
    await service.add(APP, ALICE, [Memory("a hound", id="1"), Memory("a kettle", id="2")])
    assert "without vectors" in caplog.text
    assert texts(await service.search(APP, ALICE, "hound")) == ["a hound"]
    assert "searched by words alone" in caplog.text
    embedder.is_away = False
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]


async def test_a_text_that_is_rejected_keeps_no_other_from_its_vector(opened):
    embedder = WordEmbedder()
    embed = embedder.embed

    async def reject_some(texts):
        found = await embed(texts)
        if any("curse" in text for text in texts):
            raise ModelError("not that", code="embedding.rejected")
        return found

    embedder.embed = reject_some
    service = await opened(embedder)
    entries = [Memory(f"curse {n}" if n % 50 == 7 else f"hound {n}", id=str(n)) for n in range(200)]
    await service.add(APP, ALICE, entries)
    without = await service._engine.scroll(Where(Owner(APP, ALICE).key, except_model=embedder.name), 1000, ("id",))
    assert {payload["id"] for payload in without} == {"7", "57", "107", "157"}
    assert "curse 7" in texts(await service.search(APP, ALICE, "7", limit=5))
    asked = len(embedder.given)
    await service.search(APP, ALICE, "dog")
    assert len(embedder.given) == asked + 1


async def test_what_is_added_again_is_not_embedded_again(opened):
    embedder = WordEmbedder()
    service = await opened(embedder)
    events = [said("1", "tea"), said("2", "cats"), said("3", "tea")]
    await service.add_session(APP, ALICE, "s", events)
    await service.add_session(APP, ALICE, "s", [*events, said("4", "dogs")])
    await service.add_events(APP, ALICE, "s", events)
    assert embedder.given == [["tea", "cats"], ["dogs"]]


async def test_what_was_forgotten_or_replaced_while_it_was_being_embedded_stays_so(opened):
    embedder = WordEmbedder()
    await forget_and_replace(await opened(embedder), embedder)


async def test_what_is_written_while_the_last_is_being_embedded_is_embedded_too(opened):
    """Who has seen that nothing is without a vector must not say so of what was written without one since."""
    embedder = WordEmbedder()
    service = await opened(embedder)
    looked, written = asyncio.Event(), asyncio.Event()
    scroll, upsert = service._engine.scroll, service._engine.upsert

    async def scroll_before_the_write(*arguments):
        found = await scroll(*arguments)
        looked.set()
        await written.wait()
        return found

    async def upsert_until_nothing_is_looked_for(points):
        await upsert(points)
        written.set()
        await looking

    service._engine.scroll, service._engine.upsert = scroll_before_the_write, upsert_until_nothing_is_looked_for
    looking = asyncio.ensure_future(service._embed_the_rest(Owner(APP, ALICE)))
    await looked.wait()
    embedder.is_away = True
    await service.add(APP, ALICE, [Memory("a hound")])
    embedder.is_away = False
    assert texts(await service.search(APP, ALICE, "dog", limit=1)) == ["a hound"]


async def test_a_model_with_another_name_embeds_everything_again(opened):
    service = await opened(WordEmbedder("one"))
    await service.add(APP, ALICE, [Memory(f"hound {n}", id=str(n)) for n in range(200)])
    other = WordEmbedder("two")
    service = await opened(other)
    assert len(await service.search(APP, ALICE, "dog", limit=1000)) == 200
    assert sum(len(given) for given in other.given) == 201
    await service.search(APP, ALICE, "dog")
    assert sum(len(given) for given in other.given) == 202


@pytest.mark.parametrize("vectors", [[[1.0] * 15], [], [[float("nan")] * 16]])
async def test_vectors_that_cannot_be_are_errors_and_nothing_is_written(opened, vectors):
    embedder = WordEmbedder()
    service = await opened(embedder)

    async def embed(texts):
        return vectors

    embedder.embed = embed
    for call in (service.add(APP, ALICE, [Memory("tea")]), service.search(APP, ALICE, "tea")):
        with pytest.raises(ModelError):
            await call
    assert await everything(service) == []


async def test_vectors_of_another_size_are_refused(opened):
    await (await opened(WordEmbedder())).add(APP, ALICE, [Memory("tea")])
    service = await opened(WordEmbedder(dimensions=8))
    await refused(service.add(APP, ALICE, [Memory("cats")]), InvalidInput, "memory.wrong_dimensions")
    await refused(service.search(APP, ALICE, "tea"), InvalidInput, "memory.wrong_dimensions")
    service = await opened()
    assert texts(await service.search(APP, ALICE, "tea")) == ["tea"]


async def test_a_directory_without_vectors_is_refused_to_an_embedder(opened):
    await (await opened()).add(APP, ALICE, [Memory("tea")])
    service = await opened(WordEmbedder())
    await refused(service.search(APP, ALICE, "tea"), InvalidInput, "memory.wrong_dimensions")


# -- the directory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_what_was_written_is_there_when_it_is_opened_again(opened, synchronous):
    service = await opened(synchronous=synchronous)
    await service.add(APP, ALICE, [Memory(text, id=text, timestamp=1.0) for text in FACTS])
    found = await service.search(APP, ALICE, "red lamp")
    service = await opened(synchronous=synchronous)
    assert len(await everything(service)) == len(FACTS)
    assert await service.search(APP, ALICE, "red lamp") == found


async def test_it_is_for_one_service_at_a_time(opened, tmp_path):
    service = await opened()
    await service.add(APP, ALICE, [Memory("tea")])
    other = QdrantMemoryService(tmp_path / "qdrant")
    error = await refused(other.search(APP, ALICE, "tea"), Unavailable, "memory.in_use")
    assert not error.retryable
    await service.close()
    assert texts(await other.search(APP, ALICE, "tea")) == ["tea"]
    await other.close()
    await refused(other.search(APP, ALICE, "tea"), Unavailable, "memory.closed")
    await other.close()


async def test_what_a_process_left_unfinished_is_made_anew(tmp_path):
    directory = tmp_path / "qdrant" / "sojourn_memory"
    (directory / "unfinished" / "segments").mkdir(parents=True)
    (directory / "unfinished" / "wal").write_text("half")
    (directory / "collection.json").write_text("half")
    service = QdrantMemoryService(tmp_path / "qdrant", synchronous="normal")
    await service.add(APP, ALICE, [Memory("tea")])
    assert texts(await everything(service)) == ["tea"]
    await service.close()


async def test_a_directory_survives_a_loss_of_power_once_it_was_written_to(tmp_path, monkeypatch):
    done, fsync, rename = [], os.fsync, os.rename

    def noted_fsync(fd):
        fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        done.append((path, set(os.listdir(path)) if path.is_dir() else path.read_text()))

    def noted_rename(source, target):
        rename(source, target)
        done.append((Path(target), None))

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    service = QdrantMemoryService(tmp_path / "new" / "qdrant")
    await service.add(APP, ALICE, [Memory("tea")])
    await service.close()
    directory = tmp_path / "new" / "qdrant" / "sojourn_memory"
    shown = done.index((directory / "shard", None))
    before, after = done[:shown], done[shown:]
    assert any('"version"' in names for path, names in before if path.name.startswith("collection.json"))
    assert any("collection.json" in names for path, names in before if path == directory)
    assert any("shard" in names for path, names in after if path == directory and names)
    assert {path for path, _ in after} >= {tmp_path, tmp_path / "new", tmp_path / "new" / "qdrant"}


async def test_the_segments_are_merged_now_and_then(opened, monkeypatch):
    monkeypatch.setattr(edge, "_TIDY_AFTER", 20)
    service = await opened()
    for n in range(10):
        await service.add_session(APP, ALICE, "s", [said(str(m), f"tea {m} {n}") for m in range(10)])
    assert len(await everything(service)) == 10


async def test_scores_are_of_the_entries_that_there_are_now(opened):
    async def scores(service):
        return [(entry.id, entry.score) for entry in await service.search(APP, ALICE, "tea lamp", limit=100)]

    service = await opened()
    await service.add(APP, ALICE, [Memory("tea", id="tea"), Memory("a lamp", id="lamp"), Memory("tea and a lamp", id="both")])
    known = await scores(service)
    changes = [
        lambda: service.add(APP, ALICE, [Memory(f"lamp {n}", id=f"lamp {n}") for n in range(9)]),
        lambda: service.forget(APP, ALICE, ids=["lamp 3", "tea"]),
        lambda: service.add_session(APP, ALICE, "s", [said("1", "cake"), said("2", "a tea cake")]),
    ]
    for change in changes:
        await change()
        before, known = known, await scores(service)
        assert known != before
        await service.close()
        service = await opened()
        assert await scores(service) == known


async def test_several_loops_may_call_it(opened):
    service = await opened()
    await service.add(APP, ALICE, [Memory("tea")])
    found = await asyncio.to_thread(lambda: asyncio.run(service.search(APP, ALICE, "tea")))
    assert texts(found) == ["tea"]


FILLING = """
import asyncio, os, resource, sys
from sojourn.errors import Unavailable
from sojourn.memory.qdrant.service import QdrantMemoryService
from sojourn.memory.types import Memory
from sojourn.testing.memory_conformance import everything

def bound(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def add(service, name):
    # Nothing to compress, so that the files have to grow.
    await service.add("app", "alice", [Memory(os.urandom(500_000).hex(), id=name)])

async def main():
    service = QdrantMemoryService(sys.argv[1], synchronous="normal")
    await add(service, "0")
    bound(20_000_000)
    told = ["0"]
    try:
        for n in range(1, 100):
            await add(service, str(n))
            told.append(str(n))
    except Unavailable as error:
        print(error.code)
    refused = str(len(told))
    bound(resource.RLIM_INFINITY)
    for name in ("again", refused):
        await add(service, name)
    found = [entry.id for entry in await everything(service, "app", "alice", limit=200)]
    assert sorted(found) == sorted([*told, "again", refused]), found
    await service.close()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_disk_that_is_full_loses_nothing_and_it_goes_on_once_there_is_room(tmp_path):
    """No file may grow beyond a bound, as on a full disk; that holds for a whole process."""
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(tmp_path / "qdrant")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "memory.unavailable\n", "")


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_process_that_is_killed_loses_nothing(opened, tmp_path):
    """What was acknowledged is there, each entry whole; what was not is there or not."""
    await (await opened()).close()
    rounds = count(1)

    async def look(at, step):
        # Opening takes long. The writer of the next round opens it, too, and writes on what it finds.
        if next(rounds) % 5:
            return
        service = await opened()
        await check(service, at, step)
        await service.close()

    await kill_again_and_again("qdrant", tmp_path / "qdrant", 50, look)

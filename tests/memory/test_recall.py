"""How well the retrieval set is found. The numbers are in docs/memory.md."""

import re
from pathlib import Path

import pytest

from sojourn.memory.minilm import MiniLmEmbedder
from sojourn.memory.postgres.service import PostgresMemoryService
from sojourn.memory.qdrant.service import QdrantMemoryService
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.memory.words import words_of
from tests.memory.retrieval_set import HALVES, entries, questions, recall, sentences, stopwords

pytestmark = pytest.mark.anyio

APP, ALICE = "app", "alice"
PUBLISHED = Path(__file__).parents[2] / "docs" / "memory.md"


def test_the_set_is_as_large_and_varied_as_it_says():
    there = sentences()
    assert len(there) >= 1500
    assert len(set(there.values())) == len(there)
    sizes = [len(questions(half)) for half in HALVES]
    assert sum(sizes) >= 150
    assert max(sizes) <= 1.1 * min(sizes)


@pytest.mark.parametrize("half", HALVES)
def test_questions_share_content_words_with_their_sentence_or_not(half):
    there, common = sentences(), stopwords()
    for question in questions(half):
        assert question.right <= there.keys()
        asked = set(words_of(question.text)) - common
        for right in question.right:
            shared = asked & set(words_of(there[right]))
            assert bool(shared) == (half == "keywords"), question


class ByMeaning:
    """The vectors of a service, without the words."""

    def __init__(self, service, embedder):
        self._service = service
        self._embedder = embedder
        self._by_id = {entry.id: entry for entry in entries()}

    async def search(self, app_name, user_id, query, *, limit):
        import numpy as np

        (asked,) = await self._embedder.embed([query])
        (kept,) = self._service._kept._of.values()
        ids = dict(await self._service._read(lambda conn: conn.execute("SELECT key, id FROM memory_entries").fetchall()))
        best = np.argsort(-(kept.matrix @ np.asarray(asked, dtype=np.float32)), kind="stable")[:limit]
        return [self._by_id[ids[int(kept.keys[place])]] for place in best]


class Remembers:
    """An embedder that embeds each text once."""

    def __init__(self, embedder):
        self._embedder = embedder
        self.name, self.dimensions = embedder.name, embedder.dimensions
        self._known = {}

    async def embed(self, texts):
        new = [text for text in texts if text not in self._known]
        if new:
            self._known.update(zip(new, await self._embedder.embed(new), strict=True))
        return [self._known[text] for text in texts]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_fused_recall_is_at_least_that_of_words_and_that_of_meaning(tmp_path, postgres, schema):
    embedder = Remembers(MiniLmEmbedder())
    both = SqliteMemoryService(tmp_path / "memory.db", embedder=embedder, synchronous="normal")
    words = SqliteMemoryService(tmp_path / "memory.db")
    vectors = ByMeaning(both, embedder)
    await both.add(APP, ALICE, entries())
    measured = {}
    for half in HALVES:
        fused = await recall(both, half, APP, ALICE)
        by_words = await recall(words, half, APP, ALICE)
        by_meaning = await recall(vectors, half, APP, ALICE)
        assert fused >= max(by_words, by_meaning)
        measured[half] = [by_words, by_meaning, fused]
    await both.close()
    await words.close()
    for other in (
        PostgresMemoryService(postgres.url(), schema=schema, embedder=embedder),
        QdrantMemoryService(tmp_path / "qdrant", embedder=embedder, synchronous="normal"),
    ):
        await other.add(APP, ALICE, entries())
        for half in HALVES:
            assert await recall(other, half, APP, ALICE) >= max(measured[half][:2])
        await other.close()
    rows = re.findall(r"^\| (keywords|paraphrases) \|(.+)\|$", PUBLISHED.read_text(), re.MULTILINE)
    assert {half: [float(cell) for cell in cells.split("|")] for half, cells in rows} == {
        half: [round(number, 2) for number in numbers] for half, numbers in measured.items()
    }

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.memory.bm25 import Bm25Index
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.memory.words import words_of
from sojourn.testing.memory_conformance import MemoryServiceConformance, texts

pytestmark = pytest.mark.anyio


class TestInMemoryMemoryService(MemoryServiceConformance):
    @pytest.fixture
    def service(self):
        return InMemoryMemoryService()

    async def test_what_shares_no_word_is_not_found(self, service):
        await service.add("app", "alice", [Memory("tea"), Memory("cats")])
        assert texts(await service.search("app", "alice", "dog tea")) == ["tea"]
        assert await service.search("app", "alice", "router") == []

    async def test_a_small_overlap_scores_low(self, service):
        await service.add("app", "alice", [Memory("tea is in the red box")])
        (good,) = await service.search("app", "alice", "red box")
        (bad,) = await service.search("app", "alice", "which planet is the largest of our system")
        assert good.score > 3 * bad.score

    async def test_a_rare_word_weighs_more(self, service):
        await service.add("app", "alice", [Memory(f"the weather of the day {n}") for n in range(20)] + [Memory("the zebra")])
        assert texts(await service.search("app", "alice", "weather zebra", limit=1)) == ["the zebra"]

    async def test_a_short_text_is_a_better_match_than_a_long_one(self, service):
        await service.add(
            "app", "alice", [Memory("tea " + "and other things " * 20, timestamp=2.0), Memory("tea", timestamp=1.0)]
        )
        assert texts(await service.search("app", "alice", "tea", limit=1)) == ["tea"]


class TestMemory:
    def test_text_is_short_for_content(self):
        entry = Memory("tea", session_id="s")
        assert entry == Memory(text="tea", session_id="s")
        assert entry.text == "tea"
        assert Memory.model_validate_json(entry.to_json()) == entry
        assert entry.to_wire() == {"content": {"parts": [{"text": "tea"}]}, "sessionId": "s"}


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", []),
            ("Red lamps, RED lamp!", ["red", "lamp", "red", "lamp"]),
            ("cats boxes dishes berries glasses houses", ["cat", "box", "dish", "berry", "glass", "house"]),
            ("is his bus gas ties glass analysis", ["is", "his", "bus", "gas", "tie", "glass", "analysis"]),
            ("user_name x-ray 3.14 it's", ["user", "name", "x", "ray", "3", "14", "it", "s"]),
            ("Café CAFE\u0301 naïve", ["cafe", "cafe", "naive"]),
            ("Straße STRASSE ﬁnes", ["strasse", "strasse", "fine"]),
            ("ＦＵＬＬ width", ["full", "width"]),
            ("Москва́ ёлка", ["москва", "елка"]),
            ("東京都", ["東", "京", "都", "東京", "京都"]),
            ("iPhoneは東", ["iphone", "は", "東", "は東"]),
            ("서울", ["서", "울", "서울"]),
            ("😀 …", []),
        ],
    )
    def test_words(self, text, words):
        assert words_of(text) == words

    @given(st.text())
    def test_case_makes_no_difference(self, text):
        assert words_of(text.casefold()) == words_of(text)

    @given(st.text())
    def test_words_are_made_of_letters_and_digits(self, text):
        for word in words_of(text):
            assert word
            assert not any(character.isspace() for character in word)

    @given(st.text(st.characters(max_codepoint=127)))
    def test_ascii_has_the_same_words_beside_other_text(self, text):
        assert words_of(f"{text} é")[:-1] == words_of(text)


WORDS = st.lists(st.sampled_from("abcde"), max_size=6)


class TestIndex:
    @given(st.lists(st.tuples(st.sampled_from("123"), WORDS | st.none()), max_size=20), WORDS)
    def test_it_depends_only_on_what_is_in_it(self, changes, query):
        index, texts = Bm25Index(), {}
        for key, words in changes:
            if words is None:
                index.remove(key)
                texts.pop(key, None)
            else:
                index.add(key, words)
                texts[key] = words
        anew = Bm25Index()
        for key, words in texts.items():
            anew.add(key, words)
        scores = index.scores(query)
        assert scores == anew.scores(query)
        assert set(scores) == {key for key, words in texts.items() if set(words) & set(query)}
        assert all(0 < score < 1 for score in scores.values())
        assert index._occurrences == anew._occurrences
        assert index._total_length == anew._total_length

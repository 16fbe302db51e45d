"""What every memory service must do.

    class TestMyMemoryService(MemoryServiceConformance):
        @pytest.fixture
        def service(self):
            return MyMemoryService()

The cases run under anyio's pytest plugin. Each needs a service without any entries. Queries share words with what they are
to find, so that services that compare words and services that compare meanings both can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from pydantic import ValidationError

from sojourn.content import Content, Part
from sojourn.errors import InvalidInput, SojournError, Unavailable
from sojourn.event import Event
from sojourn.memory.service import MemoryService
from sojourn.memory.types import Memory, MemoryFilter

APP = "app"
ALICE = "alice"
BOB = "bob"
SESSION = "session"

FACTS = [
    "Alice lives in Oslo with her two cats",
    "The router in the basement has a red lamp",
    "Her favourite tea is jasmine",
    "The invoice from March is still unpaid",
    "Birthday of her brother: 12 October",
    "Flight to Lisbon leaves on Tuesday morning",
    "She is allergic to peanuts",
    "The garage door code was changed",
]


def said(id: str, text: str, *, author: str = "user", timestamp: float = 1.0) -> Event:
    """An event with a text."""
    role = "user" if author == "user" else "model"
    return Event(id=id, author=author, timestamp=timestamp, content=Content(role, (Part(text=text),)))


def texts(entries: Iterable[Memory]) -> list[str]:
    """The texts of the entries, in their order."""
    return [entry.text for entry in entries]


async def everything(service: MemoryService, app_name: str = APP, user_id: str = ALICE, *, limit: int = 3) -> list[Memory]:
    """All entries of a user, page by page."""
    entries: list[Memory] = []
    after: str | None = None
    while True:
        page = await service.list_memories(app_name, user_id, limit=limit, after=after)
        assert len(page.items) <= limit
        entries += page.items
        after = page.next
        if after is None:
            return entries
        assert page.items


async def assert_refused(code: str, *calls: Callable[[], Awaitable[object]], error: type[SojournError] = InvalidInput) -> None:
    """Fails unless each call raises the error with the code."""
    for call in calls:
        with pytest.raises(error) as caught:
            await call()
        assert caught.value.code == code


class MemoryServiceConformance:
    """Subclass it and give a `service`; give a `failing_service` too where the store can fail."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def service(self) -> MemoryService:
        """A service without entries."""
        raise NotImplementedError("override the fixture 'service'")

    @pytest.fixture
    def failing_service(self) -> MemoryService:
        """A service whose store fails at every call."""
        pytest.skip("this service has no store that could fail")

    async def test_is_a_memory_service(self, service: MemoryService) -> None:
        assert isinstance(service, MemoryService)

    # Searching

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("Which lamp of the router is red?", 1),
            ("favourite tea", 2),
            ("invoice March unpaid", 3),
            ("When does the flight to Lisbon leave?", 5),
            ("allergic peanuts", 6),
        ],
    )
    async def test_the_best_match_comes_first(self, service: MemoryService, query: str, found: int) -> None:
        await service.add(APP, ALICE, [Memory(text) for text in FACTS])
        entries = await service.search(APP, ALICE, query)
        assert entries[0].text == FACTS[found]

    async def test_more_shared_words_are_a_better_match(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory("green tea"), Memory("green tea from Kyoto"), Memory("a house in Bergen")])
        assert texts(await service.search(APP, ALICE, "green tea from Kyoto"))[:2] == ["green tea from Kyoto", "green tea"]

    async def test_scores_are_from_0_to_1_and_fall(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory(text) for text in FACTS])
        scores = [entry.score for entry in await service.search(APP, ALICE, "the red lamp of her cats", limit=10)]
        assert len(scores) > 1
        assert all(score is not None and 0 < score <= 1 for score in scores)
        assert scores == sorted(scores, key=lambda score: -(score or 0))

    async def test_equally_good_ones_come_newest_first_then_by_id(self, service: MemoryService) -> None:
        entries = [
            Memory("equal words", id=id, timestamp=timestamp) for id, timestamp in (("c", 5), ("b", 5), ("a", 1), ("d", 9))
        ]
        await service.add(APP, ALICE, entries)
        assert [entry.id for entry in await service.search(APP, ALICE, "equal words")] == ["d", "b", "c", "a"]
        assert [entry.id for entry in await service.search(APP, ALICE, "equal words", limit=2)] == ["d", "b"]

    async def test_limit(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory(f"tea number {n}") for n in range(20)])
        assert len(await service.search(APP, ALICE, "tea")) == 5
        assert len(await service.search(APP, ALICE, "tea", limit=1)) == 1
        all_of_them = await service.search(APP, ALICE, "tea", limit=1000)
        assert len(all_of_them) == 20
        assert await service.search(APP, ALICE, "tea", limit=7) == all_of_them[:7]

    async def test_min_score(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory(text) for text in FACTS])
        query = "the red lamp of the router and her cats"
        entries = await service.search(APP, ALICE, query, limit=10)
        scores = [entry.score or 0 for entry in entries]
        assert scores[0] > scores[-1]
        assert await service.search(APP, ALICE, query, limit=10, min_score=0) == entries
        good = await service.search(APP, ALICE, query, limit=10, min_score=scores[0])
        assert texts(good) == [entry.text for entry in entries if (entry.score or 0) >= scores[0]]
        assert await service.search(APP, ALICE, query, limit=10, min_score=1.01) == []

    @pytest.mark.parametrize("query", ["", " ", "\n\t", "?!", "…", "😀", "\x00"])
    async def test_a_query_without_words_finds_nothing(self, service: MemoryService, query: str) -> None:
        await service.add(APP, ALICE, [Memory("tea?! … 😀")])
        assert await service.search(APP, ALICE, query) == []

    async def test_a_user_without_entries_finds_nothing(self, service: MemoryService) -> None:
        assert await service.search(APP, ALICE, "tea") == []
        assert await everything(service) == []

    @pytest.mark.parametrize("query", [None, 7, b"tea", "\ud800"])
    async def test_queries_that_cannot_be_are_refused(self, service: MemoryService, query: Any) -> None:
        await assert_refused("memory.invalid_query", lambda: service.search(APP, ALICE, query))

    @pytest.mark.parametrize("limit", [0, -1, 1001, 1.5, "5", None, True])
    async def test_limits_that_cannot_be_are_refused(self, service: MemoryService, limit: Any) -> None:
        await assert_refused("memory.invalid_query", lambda: service.search(APP, ALICE, "tea", limit=limit))
        await assert_refused("page.invalid", lambda: service.list_memories(APP, ALICE, limit=limit))

    @pytest.mark.parametrize("min_score", [float("nan"), float("inf"), "0.5"])
    async def test_scores_that_cannot_be_are_refused(self, service: MemoryService, min_score: Any) -> None:
        await assert_refused("memory.invalid_query", lambda: service.search(APP, ALICE, "tea", min_score=min_score))

    @pytest.mark.parametrize(
        "query", ["*", "tea OR 1=1", '"', "'; DROP TABLE memories; --", "tea*", "NEAR(a b)", "a:b", "(", "%", "_"]
    )
    async def test_no_query_is_a_command(self, service: MemoryService, query: str) -> None:
        await service.add(APP, ALICE, [Memory("tea a")])
        await service.add(APP, BOB, [Memory("tea a bob's")])
        assert set(texts(await service.search(APP, ALICE, query))) <= {"tea a"}
        assert texts(await everything(service)) == ["tea a"]

    # Filters

    async def fill_for_filters(self, service: MemoryService) -> None:
        """Entries "tea 1" to "tea 6" that differ in what a filter looks at; 6 is of another session by `add_session`."""
        entries = [
            Memory("tea 1", id="1", timestamp=1.0, author="user", session_id="a", metadata={"kind": "fact", "n": 1}),
            Memory("tea 2", id="2", timestamp=2.5, author="user", session_id="b", metadata={"kind": "fact", "n": 2}),
            Memory("tea 3", id="3", timestamp=3.0, author="helper", session_id="a", metadata={"kind": "event", "n": 1.0}),
            Memory("tea 4", id="4", timestamp=4.0, metadata={"kind": None, "n": True, "deep": {"a": [1, "x"], "b": "\x00"}}),
            Memory("tea 5", id="5", timestamp=5.0, author="user"),
        ]
        await service.add(APP, ALICE, entries)
        await service.add_session(APP, ALICE, "c", [said("1", "tea 6", timestamp=6.0)])
        await service.add(APP, BOB, [Memory("tea of bob", id="1", timestamp=1.0, author="user", session_id="a")])

    @pytest.mark.parametrize(
        ("filter", "found"),
        [
            (MemoryFilter(), "123456"),
            (MemoryFilter(author="user"), "1256"),
            (MemoryFilter(author="helper"), "3"),
            (MemoryFilter(author="nobody"), ""),
            (MemoryFilter(author="' OR 1=1; --"), ""),
            (MemoryFilter(session_id="a"), "13"),
            (MemoryFilter(session_id="c"), "6"),
            (MemoryFilter(session_id="unknown"), ""),
            (MemoryFilter(since=3.0), "3456"),
            (MemoryFilter(until=3.0), "12"),
            (MemoryFilter(since=2.5, until=5), "234"),
            (MemoryFilter(since=5, until=5), ""),
            (MemoryFilter(since=6, until=1), ""),
            (MemoryFilter(metadata={"kind": "fact"}), "12"),
            (MemoryFilter(metadata={"n": 1}), "13"),
            (MemoryFilter(metadata={"n": 1.0}), "13"),
            (MemoryFilter(metadata={"n": True}), "4"),
            (MemoryFilter(metadata={"n": "1"}), ""),
            (MemoryFilter(metadata={"kind": None}), "4"),
            (MemoryFilter(metadata={"unknown": None}), ""),
            (MemoryFilter(metadata={"deep": {"b": "\x00", "a": [1.0, "x"]}}), "4"),
            (MemoryFilter(metadata={"deep": {"a": ["x", 1], "b": "\x00"}}), ""),
            (MemoryFilter(metadata={"deep": {"a": [1, "x"]}}), ""),
            (MemoryFilter(metadata={"kind": "fact", "n": 2}), "2"),
            (MemoryFilter(metadata={"kind": "event", "n": 2}), ""),
            (MemoryFilter(author="user", session_id="a", since=1, until=2, metadata={"n": 1}), "1"),
            (MemoryFilter(author="user", session_id="a", since=2), ""),
        ],
        ids=str,
    )
    async def test_a_filter(self, service: MemoryService, filter: MemoryFilter, found: str) -> None:
        await self.fill_for_filters(service)
        entries = await service.search(APP, ALICE, "tea", limit=10, filter=filter)
        assert "".join(sorted(entry.text[-1] for entry in entries)) == found

    async def test_what_does_not_meet_a_filter_does_not_count_for_the_limit(self, service: MemoryService) -> None:
        wanted = [Memory("a long text in which somewhere there is tea", id=f"w{n}", author="wanted") for n in range(3)]
        await service.add(APP, ALICE, [*(Memory("tea", author="other") for _ in range(50)), *wanted])
        found = await service.search(APP, ALICE, "tea", limit=2, filter=MemoryFilter(author="wanted"))
        assert [(entry.author, entry.text) for entry in found] == [("wanted", wanted[0].text)] * 2

    async def test_a_filter_changes_no_score(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory(text, author="even" if n % 2 else "odd") for n, text in enumerate(FACTS)])
        query = "the red lamp of the router and her cats"
        unfiltered = await service.search(APP, ALICE, query, limit=10)
        found = await service.search(APP, ALICE, query, limit=10, filter=MemoryFilter(author="odd"))
        assert found
        assert found == [entry for entry in unfiltered if entry.author == "odd"]
        good = found[0].score
        assert await service.search(APP, ALICE, query, limit=10, min_score=good, filter=MemoryFilter(author="odd")) == [
            entry for entry in found if entry.score == good
        ]

    @pytest.mark.parametrize("filter", [{"author": "user"}, "author", 7])
    async def test_filters_that_are_none_are_refused(self, service: MemoryService, filter: Any) -> None:
        await assert_refused("memory.invalid_query", lambda: service.search(APP, ALICE, "tea", filter=filter))

    @pytest.mark.parametrize("session_id", ["", "a\x00b", "x" * 257])
    async def test_sessions_of_a_filter_that_cannot_be_are_refused(self, service: MemoryService, session_id: str) -> None:
        given = MemoryFilter(session_id=session_id)
        await assert_refused("id.invalid", lambda: service.search(APP, ALICE, "tea", filter=given))

    @pytest.mark.parametrize(
        "wrong", [{"auther": "user"}, {"since": float("nan")}, {"until": float("inf")}, {"metadata": {"a": float("nan")}}]
    )
    def test_filters_that_cannot_be_are_not_made(self, wrong: dict[str, Any]) -> None:
        with pytest.raises((ValidationError, SojournError)):
            MemoryFilter(**wrong)

    # Unicode

    @pytest.mark.parametrize(
        ("text", "query"),
        [
            ("München ist schön", "MÜNCHEN"),
            ("ΑΘΗΝΑ είναι όμορφη", "αθηνα"),
            ("Она живёт в Москве", "москве"),
            ("彼女は東京に住んでいます", "東京"),
            ("她住在北京", "北京"),
            ("그녀는 서울에 살아요", "서울"),
            ("नमस्ते दिल्ली", "दिल्ली"),
            ("تعيش في القاهرة", "القاهرة"),
            ("flat number 42b", "42b"),
        ],
    )
    async def test_any_script_can_be_searched(self, service: MemoryService, text: str, query: str) -> None:
        await service.add(APP, ALICE, [Memory("something else"), Memory(text), Memory("nothing to see here")])
        assert texts(await service.search(APP, ALICE, query, limit=1)) == [text]

    async def test_any_text_round_trips(self, service: MemoryService) -> None:
        entry = Memory(
            "NUL \x00, é, e\u0301, 😀, \r\n tea",
            id="é 😀",
            author="agent\x00",
            metadata={"nul": "\x00", "big": 2**80, "deep": [{"": None, "π": 2.5}]},
        )
        (stored,) = await service.add(APP, ALICE, [entry])
        assert stored == entry.model_copy(update={"timestamp": stored.timestamp})
        assert await everything(service) == [stored]
        (found,) = await service.search(APP, ALICE, "tea")
        assert found.model_copy(update={"score": None}) == stored

    # Adding

    async def test_add_returns_what_is_stored(self, service: MemoryService) -> None:
        given = [Memory("tea"), Memory("cats", id="mine", timestamp=5.0, author="agent", session_id=SESSION, score=0.5)]
        stored = await service.add(APP, ALICE, given)
        assert texts(stored) == ["tea", "cats"]
        assert stored[0].id
        assert stored[0].timestamp > 0
        assert stored[1] == given[1].model_copy(update={"score": None})
        assert sorted(await everything(service), key=lambda m: m.id) == sorted(stored, key=lambda m: m.id)

    async def test_made_ids_are_unique(self, service: MemoryService) -> None:
        stored = await service.add(APP, ALICE, [Memory("same") for _ in range(10)])
        stored += await service.add(APP, ALICE, [Memory("same") for _ in range(10)])
        assert len({entry.id for entry in stored}) == 20
        assert len(await everything(service)) == 20

    async def test_an_entry_takes_the_place_of_one_with_its_id(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory("old tea", id="1", session_id="old"), Memory("other", id="2")])
        await service.add(APP, ALICE, [Memory("new cats", id="1", session_id="new")])
        assert sorted(texts(await everything(service))) == ["new cats", "other"]
        assert "old tea" not in texts(await service.search(APP, ALICE, "old tea"))
        await service.forget(APP, ALICE, session_id="old")
        assert sorted(texts(await everything(service))) == ["new cats", "other"]
        await service.forget(APP, ALICE, session_id="new")
        assert texts(await everything(service)) == ["other"]

    async def test_of_entries_with_the_same_id_in_one_call_the_last_stays(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory("first", id="1"), Memory("last", id="1")])
        assert texts(await everything(service)) == ["last"]

    async def test_content_of_any_kind_with_text(self, service: MemoryService) -> None:
        parts = (Part(text="the photo "), Part.from_bytes(b"\x00\xff", "image/png"), Part(text="of the garage"))
        content = Content("user", (*parts, Part.from_uri("artifact:photo.png?version=0")))
        await service.add(APP, ALICE, [Memory(content=content)])
        (found,) = await service.search(APP, ALICE, "garage photo")
        assert found.content == content
        assert found.text == "the photo of the garage"

    @pytest.mark.parametrize(
        ("bad", "code"),
        [
            (Memory(""), "memory.empty"),
            (Memory(" \n"), "memory.empty"),
            (Memory(content=Content("user")), "memory.empty"),
            (Memory(content=Content("user", (Part.from_bytes(b"x"),))), "memory.empty"),
            (Memory("x", id="a\nb"), "id.invalid"),
            (Memory("x", id="x" * 257), "id.invalid"),
            (Memory("x", session_id=""), "id.invalid"),
        ],
        ids=["no-text", "blank", "no-parts", "bytes", "bad-id", "long-id", "bad-session"],
    )
    async def test_of_entries_with_a_bad_one_none_is_added(self, service: MemoryService, bad: Memory, code: str) -> None:
        await assert_refused(code, lambda: service.add(APP, ALICE, [Memory("tea"), bad]))
        assert await everything(service) == []

    async def test_adding_nothing(self, service: MemoryService) -> None:
        assert await service.add(APP, ALICE, []) == []
        await service.add_session(APP, ALICE, SESSION, [])
        assert await everything(service) == []

    async def test_what_goes_in_and_out_is_a_copy(self, service: MemoryService) -> None:
        given = Memory("tea", id="1", metadata={"list": [1]})
        part = Part.from_function_call("brew", {"list": [1]})
        called = Memory(content=Content("model", (Part(text="tea"), part)), id="2")
        stored = await service.add(APP, ALICE, [given, called])
        found = await service.search(APP, ALICE, "tea")
        listed = await everything(service)
        for entry in (given, called, *stored, *found, *listed):
            if entry.id == "1":
                entry.metadata["list"].append(2)
            else:
                (call,) = entry.content.get_function_calls()
                call.args["list"].append(2)
            with pytest.raises(ValidationError):
                entry.id = "other"  # type: ignore[misc]
        for entry in (*await everything(service), *await service.search(APP, ALICE, "tea")):
            call_args = [call.args for call in entry.content.get_function_calls()]
            assert entry.metadata == {"list": [1]} or call_args == [{"list": [1]}]

    # Sessions

    async def test_a_session_becomes_entries(self, service: MemoryService) -> None:
        await service.add_session(
            APP,
            ALICE,
            SESSION,
            [said("1", "My router has a red lamp", timestamp=10.0), said("2", "Unplug it", author="helper", timestamp=11.0)],
        )
        newest, oldest = await everything(service)
        assert (oldest.text, oldest.author, oldest.timestamp) == ("My router has a red lamp", "user", 10.0)
        assert (newest.text, newest.author, newest.timestamp) == ("Unplug it", "helper", 11.0)
        assert (oldest.content.role, newest.content.role) == ("user", "model")
        assert {oldest.session_id, newest.session_id} == {SESSION}
        (found,) = await service.search(APP, ALICE, "router lamp", limit=1)
        assert found.text == "My router has a red lamp"

    async def test_only_text_that_counts_is_remembered(self, service: MemoryService) -> None:
        thought = Content("model", (Part(text="secret thought", thought=True), Part(text="the answer"), Part.from_bytes(b"x")))
        events = [
            Event(id="1", author="a", content=thought),
            Event(id="2", author="a", content=Content("model", (Part(text="only thought", thought=True),))),
            Event(id="3", author="a", content=Content("model", (Part.from_function_call("f", {"x": "argument"}),))),
            Event(id="4", author="a", content=Content("model", (Part.from_function_response("f", {"x": "result"}),))),
            Event(id="5", author="a"),
            said("6", "  "),
            said("7", "partial").evolve(partial=True),
            said("8", "superseded").evolve(superseded=True),
        ]
        await service.add_session(APP, ALICE, SESSION, events)
        (entry,) = await everything(service)
        assert entry.text == "the answer"
        assert entry.content == Content("model", (Part(text="the answer"),))
        assert "thought" not in " ".join(texts(await service.search(APP, ALICE, "secret thought")))

    async def test_adding_a_session_again_replaces_what_was_added(self, service: MemoryService) -> None:
        await service.add_session(APP, ALICE, SESSION, [said("1", "tea"), said("2", "cats")])
        await service.add_session(APP, ALICE, "other", [said("1", "tea elsewhere")])
        before = {entry.text: entry.id for entry in await everything(service)}
        await service.add_session(APP, ALICE, SESSION, [said("2", "cats"), said("3", "dogs")])
        after = {entry.text: entry.id for entry in await everything(service)}
        assert set(after) == {"cats", "dogs", "tea elsewhere"}
        assert after["cats"] == before["cats"]
        assert after["tea elsewhere"] == before["tea elsewhere"]
        assert len(set(before.values()) | set(after.values())) == 4
        assert texts(await service.search(APP, ALICE, "tea"))[:1] == ["tea elsewhere"]
        assert "tea" not in texts(await service.search(APP, ALICE, "tea"))
        await service.add_session(APP, ALICE, SESSION, [])
        assert texts(await everything(service)) == ["tea elsewhere"]

    async def test_adding_a_session_twice_adds_it_once(self, service: MemoryService) -> None:
        events = [said("1", "tea"), said("2", "tea"), said("", "cats"), said("", "cats")]
        await service.add_session(APP, ALICE, SESSION, events)
        before = await everything(service)
        assert len(before) == 4
        await service.add_session(APP, ALICE, SESSION, events)
        assert [(entry.id, entry.text) for entry in await everything(service)] == [(entry.id, entry.text) for entry in before]

    # Adding single events

    async def test_events_are_added_beside_the_others_of_their_session(self, service: MemoryService) -> None:
        await service.add_session(APP, ALICE, SESSION, [said("1", "tea"), said("2", "cats")])
        await service.add_events(APP, ALICE, SESSION, [said("3", "dogs", author="helper", timestamp=7.0)])
        await service.add_events(APP, ALICE, "other", [said("1", "tea elsewhere")])
        entries = await everything(service)
        assert sorted(texts(entries)) == ["cats", "dogs", "tea", "tea elsewhere"]
        dogs = next(entry for entry in entries if entry.text == "dogs")
        assert (dogs.author, dogs.timestamp, dogs.session_id, dogs.content.role) == ("helper", 7.0, SESSION, "model")
        assert texts(await service.search(APP, ALICE, "dogs", limit=1)) == ["dogs"]
        await service.add_events(APP, ALICE, SESSION, [])
        assert await everything(service) == entries
        await service.forget(APP, ALICE, session_id=SESSION)
        assert texts(await everything(service)) == ["tea elsewhere"]

    async def test_an_event_is_one_entry_however_it_was_added(self, service: MemoryService) -> None:
        one, two, three = said("1", "tea"), said("2", "cats"), said("3", "dogs")
        await service.add_events(APP, ALICE, SESSION, [two, one])
        before = {entry.text: entry.id for entry in await everything(service)}
        await service.add_session(APP, ALICE, SESSION, [one, two])
        await service.add_events(APP, ALICE, SESSION, [one, three, two])
        await service.add_events(APP, ALICE, SESSION, [one])
        after = {entry.text: entry.id for entry in await everything(service)}
        assert len(await everything(service)) == 3
        assert {text: after[text] for text in before} == before
        await service.add_session(APP, ALICE, SESSION, [one])
        assert texts(await everything(service)) == ["tea"]

    async def test_adding_an_event_again_replaces_it(self, service: MemoryService) -> None:
        await service.add_session(APP, ALICE, SESSION, [said("1", "tea"), said("2", "cats")])
        await service.add_events(APP, ALICE, SESSION, [said("1", "a mistake"), said("1", "coffee")])
        assert sorted(texts(await everything(service))) == ["cats", "coffee"]
        assert "tea" not in texts(await service.search(APP, ALICE, "tea"))

    async def test_what_was_added_of_an_event_that_counts_no_more_is_removed(self, service: MemoryService) -> None:
        events = [said("1", "tea"), said("2", "cats"), said("3", "dogs"), said("4", "birds")]
        await service.add_session(APP, ALICE, SESSION, events)
        await service.add_events(APP, ALICE, "other", events)
        await service.add(APP, ALICE, [Memory("a note", id="note", session_id=SESSION)])
        gone = [events[0].evolve(superseded=True), events[1].evolve(content=None), events[2].evolve(partial=True)]
        for _ in range(2):
            await service.add_events(APP, ALICE, SESSION, [*gone, said("5", "unknown").evolve(superseded=True)])
            entries = await everything(service)
            assert sorted(texts(e for e in entries if e.session_id == SESSION)) == ["a note", "birds"]
            assert sorted(texts(e for e in entries if e.session_id == "other")) == ["birds", "cats", "dogs", "tea"]
        found = await service.search(APP, ALICE, "tea")
        assert [e.session_id for e in found if e.text == "tea"] == ["other"]

    async def test_events_with_one_that_has_no_id_are_refused(self, service: MemoryService) -> None:
        await service.add_session(APP, ALICE, SESSION, [said("1", "tea")])
        bad = [said("2", "cats"), said("1", "tea").evolve(superseded=True), said("", "dogs")]
        await assert_refused("id.invalid", lambda: service.add_events(APP, ALICE, SESSION, bad))
        assert texts(await everything(service)) == ["tea"]

    # What was added by hand

    async def test_what_was_added_by_hand_stays_when_its_session_is_added(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory("a note", id="note", session_id=SESSION), Memory("a fact")])
        for _ in range(2):
            await service.add_session(APP, ALICE, SESSION, [said("1", "tea")])
        assert sorted(texts(await everything(service))) == ["a fact", "a note", "tea"]
        await service.add_session(APP, ALICE, SESSION, [])
        assert sorted(texts(await everything(service))) == ["a fact", "a note"]

    async def test_the_same_event_in_two_sessions_is_two_entries(self, service: MemoryService) -> None:
        for session_id in ("a", "b"):
            await service.add_session(APP, ALICE, session_id, [said("1", f"tea in {session_id}")])
        assert sorted(texts(await everything(service))) == ["tea in a", "tea in b"]

    async def test_what_is_in_both_sets_is_never_missing(self, service: MemoryService) -> None:
        await service.add_session(APP, ALICE, SESSION, [said("1", "tea")])
        done = False

        async def reads() -> None:
            while not done:
                assert texts(await service.search(APP, ALICE, "tea", limit=1)) == ["tea"]
                await asyncio.sleep(0)

        async def writes() -> None:
            nonlocal done
            for number in range(10):
                await service.add_session(APP, ALICE, SESSION, [said(f"other {number}", "cats"), said("1", "tea")])
                await service.add_events(APP, ALICE, SESSION, [said("1", "tea"), said(f"more {number}", "dogs")])
            done = True

        await asyncio.gather(reads(), writes())

    # Whose it is

    async def test_nobody_elses_entries_are_found_or_listed(self, service: MemoryService) -> None:
        owners = [
            (APP, ALICE),
            (APP, BOB),
            ("other app", ALICE),
            ("other app", BOB),
            (ALICE, APP),
            (APP + ALICE, "x"),
            (APP, "A"),
        ]
        for app_name, user_id in owners:
            await service.add(app_name, user_id, [Memory(f"tea of {app_name} {user_id}", id="same id")])
            await service.add_session(app_name, user_id, SESSION, [said("1", f"cats of {app_name} {user_id}")])
            await service.add_events(app_name, user_id, SESSION, [said("2", f"dogs of {app_name} {user_id}")])
        for app_name, user_id in owners:
            mine = {f"{what} of {app_name} {user_id}" for what in ("tea", "cats", "dogs")}
            assert set(texts(await everything(service, app_name, user_id))) == mine
            assert set(texts(await service.search(app_name, user_id, "tea of cats and dogs", limit=100))) == mine
        assert await service.search(APP, "nobody", "tea of cats") == []
        assert await everything(service, APP, "a") == []

    async def test_nobody_elses_entries_are_changed(self, service: MemoryService) -> None:
        for user_id in (ALICE, BOB):
            await service.add(APP, user_id, [Memory(f"tea of {user_id}", id="1")])
            await service.add_session(APP, user_id, SESSION, [said("1", f"cats of {user_id}")])
        (theirs,) = [entry.id for entry in await everything(service, APP, BOB) if entry.id != "1"]
        await service.add(APP, ALICE, [Memory("overwritten", id="1"), Memory("overwritten", id=theirs)])
        await service.add_events(APP, ALICE, SESSION, [said("1", "cats").evolve(superseded=True)])
        await service.add_session(APP, ALICE, SESSION, [])
        await service.forget(APP, ALICE, session_id=SESSION)
        await service.forget(APP, ALICE, ids=["1", theirs])
        await service.forget(APP, ALICE)
        assert sorted(texts(await everything(service, APP, BOB))) == ["cats of bob", "tea of bob"]
        assert sorted(texts(await service.search(APP, BOB, "tea cats"))) == ["cats of bob", "tea of bob"]

    async def test_others_do_not_change_a_score(self, service: MemoryService) -> None:
        await service.add(APP, ALICE, [Memory(text, id=text) for text in FACTS])
        before = await service.search(APP, ALICE, "red lamp of the router", limit=10)
        await service.add(APP, BOB, [Memory(f"the red lamp {number}") for number in range(50)])
        assert [(m.id, m.score) for m in await service.search(APP, ALICE, "red lamp of the router", limit=10)] == [
            (m.id, m.score) for m in before
        ]

    @pytest.mark.parametrize("bad", ["", "a\x00b", "x" * 257, "\ud800", None, 7])
    async def test_ids_that_are_none_are_refused(self, service: MemoryService, bad: Any) -> None:
        await assert_refused(
            "id.invalid",
            lambda: service.add_session(bad, ALICE, SESSION, []),
            lambda: service.add_session(APP, bad, SESSION, []),
            lambda: service.add_session(APP, ALICE, bad, []),
            lambda: service.add_events(bad, ALICE, SESSION, []),
            lambda: service.add_events(APP, bad, SESSION, []),
            lambda: service.add_events(APP, ALICE, bad, []),
            lambda: service.add(bad, ALICE, [Memory("x")]),
            lambda: service.add(APP, bad, [Memory("x")]),
            lambda: service.search(bad, ALICE, "x"),
            lambda: service.search(APP, bad, "x"),
            lambda: service.list_memories(bad, ALICE),
            lambda: service.list_memories(APP, bad),
            lambda: service.forget(bad, ALICE),
            lambda: service.forget(APP, bad),
            lambda: service.forget(APP, ALICE, ids=["good", bad]),
        )
        if bad is not None:
            await assert_refused("id.invalid", lambda: service.forget(APP, ALICE, session_id=bad))

    # Listing

    async def test_entries_are_listed_newest_first_then_by_id(self, service: MemoryService) -> None:
        order = [("b", 9.5), ("a", 3.0), ("é", 3.0), ("c", 1e9), ("~", 3.0), ("B", 3.0), ("d", 0.25)]
        await service.add(APP, ALICE, [Memory("x", id=id, timestamp=timestamp) for id, timestamp in order])
        expected = ["c", "b", "B", "a", "~", "é", "d"]
        for limit in (1, 2, 3, 7, 1000):
            assert [entry.id for entry in await everything(service, limit=limit)] == expected
        page = await service.list_memories(APP, ALICE)
        assert ([entry.id for entry in page.items], page.next) == (expected, None)
        assert all(entry.score is None for entry in page.items)

    async def test_a_listing_goes_on_where_it_was(self, service: MemoryService) -> None:
        entries = [Memory("x", id=f"{number:02}", timestamp=float(number // 3 + 1)) for number in range(12)]
        await service.add(APP, ALICE, entries)
        expected = [entry.id for entry in await everything(service)]
        first = await service.list_memories(APP, ALICE, limit=5)
        assert first.next is not None
        await service.add(APP, ALICE, [Memory("x", id=id, timestamp=99.0) for id in ("newer", "newest")])
        await service.forget(APP, ALICE, ids=[first.items[-1].id, expected[7]])
        rest = await service.list_memories(APP, ALICE, limit=100, after=first.next)
        assert [entry.id for entry in rest.items] == [*expected[5:7], *expected[8:]]

    @pytest.mark.parametrize("after", ["", "x", "~", "x~1", "nan~1", "'; --"])
    async def test_tokens_that_are_none_are_refused(self, service: MemoryService, after: str) -> None:
        await assert_refused("page.invalid", lambda: service.list_memories(APP, ALICE, after=after))

    # Forgetting

    async def fill(self, service: MemoryService) -> None:
        """Entries of two sessions and of none."""
        await service.add_session(APP, ALICE, "a", [said("1", "tea"), said("2", "cats")])
        await service.add_session(APP, ALICE, "b", [said("1", "dogs")])
        await service.add(APP, ALICE, [Memory("note", id="note", session_id="a"), Memory("fact", id="fact")])

    async def test_forgetting_a_user_removes_everything(self, service: MemoryService) -> None:
        await self.fill(service)
        await service.forget(APP, ALICE)
        assert await everything(service) == []
        assert await service.search(APP, ALICE, "tea cats dogs note fact") == []
        await service.forget(APP, ALICE)
        await service.add_session(APP, ALICE, "a", [said("1", "tea")])
        assert texts(await everything(service)) == ["tea"]

    async def test_forgetting_a_session(self, service: MemoryService) -> None:
        await self.fill(service)
        for _ in range(2):
            await service.forget(APP, ALICE, session_id="a")
            assert sorted(texts(await everything(service))) == ["dogs", "fact"]
            found = await service.search(APP, ALICE, "tea cats dogs note fact")
            assert sorted(texts(found)) == ["dogs", "fact"]
        await service.forget(APP, ALICE, session_id="unknown")
        assert sorted(texts(await everything(service))) == ["dogs", "fact"]

    async def test_forgetting_by_id(self, service: MemoryService) -> None:
        await self.fill(service)
        tea = next(entry.id for entry in await everything(service) if entry.text == "tea")
        for _ in range(2):
            await service.forget(APP, ALICE, ids=[tea, "fact", "unknown"])
            assert sorted(texts(await everything(service))) == ["cats", "dogs", "note"]
        await service.add_session(APP, ALICE, "a", [said("1", "tea"), said("2", "cats")])
        assert sorted(texts(await everything(service))) == ["cats", "dogs", "note", "tea"]

    async def test_forgetting_no_ids_forgets_nothing(self, service: MemoryService) -> None:
        await self.fill(service)
        await service.forget(APP, ALICE, ids=[])
        await service.forget(APP, ALICE, session_id="a", ids=[])
        assert len(await everything(service)) == 5

    async def test_forgetting_by_session_and_id(self, service: MemoryService) -> None:
        await self.fill(service)
        await service.forget(APP, ALICE, session_id="a", ids=["note", "fact"])
        assert sorted(texts(await everything(service))) == ["cats", "dogs", "fact", "tea"]

    # Many at once

    async def test_concurrent_adds_are_all_there(self, service: MemoryService) -> None:
        async def add(number: int) -> None:
            await service.add(APP, ALICE, [Memory(f"tea {number}"), Memory(f"cats {number}")])
            await service.add_session(APP, ALICE, f"session {number}", [said("1", f"dogs {number}")])
            await service.add_events(APP, ALICE, "one session", [said(f"{number}", f"birds {number}")])

        await asyncio.gather(*(add(number) for number in range(30)))
        expected = {f"{what} {number}" for what in ("tea", "cats", "dogs", "birds") for number in range(30)}
        assert set(texts(await everything(service, limit=1000))) == expected
        assert set(texts(await service.search(APP, ALICE, "tea cats dogs birds", limit=1000))) == expected

    async def test_a_long_session(self, service: MemoryService) -> None:
        events = [said(f"{number}", f"message number {number}", timestamp=float(number + 1)) for number in range(500)]
        await service.add_session(APP, ALICE, SESSION, events)
        await service.add_session(APP, ALICE, SESSION, events[250:])
        entries = await everything(service, limit=100)
        assert texts(entries) == [f"message number {number}" for number in range(499, 249, -1)]
        assert texts(await service.search(APP, ALICE, "number 333", limit=1)) == ["message number 333"]

    # A failing store

    async def test_a_failing_store_is_unavailable(self, failing_service: MemoryService) -> None:
        await assert_refused(
            "memory.unavailable",
            lambda: failing_service.add_session(APP, ALICE, SESSION, [said("1", "tea")]),
            lambda: failing_service.add_events(APP, ALICE, SESSION, [said("1", "tea")]),
            lambda: failing_service.add(APP, ALICE, [Memory("tea")]),
            lambda: failing_service.search(APP, ALICE, "tea"),
            lambda: failing_service.list_memories(APP, ALICE),
            lambda: failing_service.forget(APP, ALICE),
            lambda: failing_service.forget(APP, ALICE, ids=["1"]),
            error=Unavailable,
        )
        with pytest.raises(Unavailable) as caught:
            await failing_service.search(APP, ALICE, "tea")
        assert caught.value.__cause__ is not None

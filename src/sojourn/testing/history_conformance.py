"""The cases on reading a session's log: `list_events`, `get_session(events=n)` and the windows of `history`."""

# A case is told by its name.

from __future__ import annotations

import pytest

from sojourn.errors import InvalidInput
from sojourn.event import Event
from sojourn.run.status import Move
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.session.types import History
from sojourn.testing.builders import (
    ask,
    event,
    finished,
    next_attempt,
    reply,
    session_key,
    start,
    write,
)
from sojourn.testing.suite import StoreSuite, raises, unchanged


class HistoryConformance(StoreSuite):
    """What of a session's log is read, and what of it counts."""

    # -- list_events and get_session --------------------------------------------------------------------------------

    async def test_events_are_listed_in_order_of_seq(self, store: Store) -> None:
        run = await _log(store, 5)
        assert [e.text for e in await _events(store)] == ["Hello", "1", "2", "3", "4", "5"]
        assert [e.seq for e in await _events(store)] == [1, 2, 3, 4, 5, 6]
        assert [e.seq for e in await _events(store, after=4)] == [5, 6]
        assert [e.seq for e in await _events(store, limit=2)] == [1, 2]
        assert [e.seq for e in await _events(store, after=2, limit=2)] == [3, 4]
        assert await _events(store, after=6) == []
        assert [e.seq for e in await _events(store, after=-3, limit=1)] == [1]
        assert all(e.run_id == run.id for e in await _events(store))

    async def test_superseded_events_are_listed_on_request_only(self, store: Store) -> None:
        await _diverged(store)
        assert [e.text for e in await _events(store)] == ["Hello", "1", "other"]
        every = await _events(store, superseded=True)
        assert [(e.text, e.superseded) for e in every] == [
            ("Hello", False), ("1", False), ("2", True), ("3", True), ("other", False),
        ]  # fmt: skip
        assert [e.seq for e in every] == [1, 2, 3, 4, 5]
        assert [e.text for e in await _events(store, limit=3)] == ["Hello", "1", "other"]
        assert [e.text for e in await _events(store, after=2, limit=1)] == ["other"]

    async def test_get_session_gives_the_newest_events_that_count(self, store: Store) -> None:
        await _diverged(store)
        for count, texts in ((0, []), (1, ["other"]), (2, ["1", "other"]), (9, ["Hello", "1", "other"])):
            session = await store.get_session(app_name="shop", user_id="alice", session_id="s1", events=count)
            assert [e.text for e in session.events] == texts
            assert session.event_count == 5

    async def test_get_session_sees_beyond_a_summary(self, store: Store) -> None:
        run = await _log(store, 2)
        await write(store, run, event(run, 3, "in short", summary_until=3))
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1", events=9)
        assert [e.text for e in session.events] == ["Hello", "1", "2", "in short"]

    async def test_negative_windows_are_refused(self, store: Store) -> None:
        await _log(store, 1)
        with raises(InvalidInput, "page.invalid"):
            await store.history(session_key(), -1)
        with raises(InvalidInput, "page.invalid"):
            await store.get_session(app_name="shop", user_id="alice", session_id="s1", events=-1)

    async def test_stored_events_come_back_whole(self, store: Store) -> None:
        run = await start(store)
        given = event(
            run, 1, "a\x00b 👩‍🚀", calls=["c1"], branch="left.😀", state={"k\u00e9": [2**70, 1.0, None]}, deleted=["gone"],
            increments={"n": 1.5}, output={"deep": [{"x": -0.5}]}, interrupted=True, error_code="x.y", error_message="\x00",
            custom_metadata={"m": [1]}, turn_complete=True, long_running_tool_ids=("c1",),
        )  # fmt: skip
        [stored] = (await write(store, run, given)).events
        assert stored is not None
        expected = given.model_dump() | {"seq": 2, "pos": 2}
        assert stored.model_dump() == expected
        assert (await _events(store))[1].model_dump() == expected
        assert (await store.history(session_key(), 1)).events[0].model_dump() == expected
        assert (await store.run_events(run.uid))[0].model_dump() == expected

    async def test_events_read_are_copies(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c1"], output={"list": [1]}))
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1", events=1)
        history = await store.history(session_key(), 1)
        for read in (*await _events(store, after=1), *history.events, *session.events, *await store.run_events(run.uid)):
            read.output["list"].append("leak")
            read.get_function_calls()[0].args["leak"] = 1
        [kept] = await _events(store, after=1)
        assert kept.output == {"list": [1]}
        assert kept.get_function_calls()[0].args == {"about": "c1"}

    async def test_append_does_not_retain_callers_event(self, store: Store) -> None:
        run = await start(store)
        given = event(run, 1, calls=["c1"], output={"list": [1]}, state={"k": [1]})
        [stored] = (await write(store, run, given)).events
        assert stored is not None
        for one in (given, stored):
            one.output["list"].append("leak")
            one.get_function_calls()[0].args["leak"] = 1
            one.actions.state_delta["k"].append("leak")
        [kept] = await _events(store, after=1)
        assert kept.output == {"list": [1]}
        assert kept.get_function_calls()[0].args == {"about": "c1"}
        assert kept.actions.state_delta == {"k": [1]}
        assert (await store.get_session(app_name="shop", user_id="alice", session_id="s1")).state == {"k": [1]}

    # -- windows ----------------------------------------------------------------------------------------------------

    async def test_history_of_an_empty_session(self, store: Store) -> None:
        await store.create_session(app_name="shop", user_id="alice", session_id="s1")
        for limit in (0, 1, None):
            assert await store.history(session_key(), limit) == ([], [])

    async def test_history_is_the_newest_events(self, store: Store) -> None:
        await _log(store, 4)
        whole = ["Hello", "1", "2", "3", "4"]
        for limit in (1, 2, 4, 5, 6, 1000):
            assert await _window(store, limit) == (whole[-limit:], [])
        assert await _window(store, None) == (whole, [])

    async def test_history_of_none_is_empty(self, store: Store) -> None:
        await _log(store, 4)
        assert await _window(store, 0) == ([], [])

    async def test_history_spans_runs(self, store: Store) -> None:
        await finished(store, "r1", None, "a")
        await finished(store, "r2", None, "b")
        assert await _window(store, 3) == (["a", "Hello", "b"], [])

    async def test_history_skips_superseded_events(self, store: Store) -> None:
        await _diverged(store)
        assert await _window(store, 2) == (["1", "other"], [])
        assert await _window(store, None) == (["Hello", "1", "other"], [])

    async def test_history_is_of_this_session_only(self, store: Store) -> None:
        run = await start(store, "r1", session_key("s2"))
        await write(store, run, event(run, 1, calls=["c1"]), event(run, 2, "sum", summary_until=2))
        bobs = await start(store, "r1", session_key("s1", user_id="bob"))
        await write(store, bobs, event(bobs, 1, "bob's", calls=["c1"]))
        await _log(store, 1, run_id="r9")
        assert await _window(store, None) == (["Hello", "1"], [])

    async def test_reading_history_changes_nothing(self, store: Store) -> None:
        run = await _log(store, 3)
        await write(store, run, event(run, 4, calls=["c1"]), event(run, 5, "sum", summary_until=2))
        async with unchanged(store):
            for limit in (0, 1, 2, None):
                await store.history(session_key(), limit)

    # -- pairs ------------------------------------------------------------------------------------------------------

    async def test_call_of_a_response_in_the_window_is_pinned(self, store: Store) -> None:
        run = await start(store)
        await write(
            store,
            run,
            event(run, 1, calls=["c1"]),
            event(run, 2, "between"),
            event(run, 3, responses=["c1"]),
            event(run, 4, "x"),
        )
        assert await _seqs(store, 1) == ([5], [])
        assert await _seqs(store, 2) == ([4, 5], [2])
        assert await _seqs(store, 3) == ([3, 4, 5], [2])
        assert await _seqs(store, 4) == ([2, 3, 4, 5], [])

    async def test_parallel_calls_are_not_split_from_their_responses(self, store: Store) -> None:
        run = await start(store)
        await write(
            store, run, event(run, 1, calls=["c1", "c2", "c3"]), event(run, 2, responses=["c1"]),
            event(run, 3, responses=["c2"]), event(run, 4, responses=["c3"]), event(run, 5, "x"),
        )  # fmt: skip
        assert await _seqs(store, 1) == ([6], [])
        assert await _seqs(store, 2) == ([5, 6], [2, 3, 4])
        assert await _seqs(store, 3) == ([4, 5, 6], [2, 3])

    async def test_pairs_that_hang_together_are_pinned_together(self, store: Store) -> None:
        run = await start(store)
        await write(
            store, run, event(run, 1, calls=["a", "b"]), event(run, 2, responses=["a"], calls=["c", "d"]),
            event(run, 3, responses=["b"]), event(run, 4, responses=["c"]), event(run, 5, "x"), event(run, 6, responses=["d"]),
        )  # fmt: skip
        assert await _seqs(store, 1) == ([7], [2, 3, 4, 5])

    async def test_open_calls_are_pinned(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c1"]), event(run, 2, calls=["c2"]), event(run, 3, responses=["c2"]))
        await write(store, run, *(event(run, n, "x") for n in range(4, 8)))
        assert await _seqs(store, 2) == ([7, 8], [2])
        assert await _seqs(store, 0) == ([], [2])
        await write(store, run, event(run, 8, responses=["c1"]))
        assert await _seqs(store, 0) == ([], [])
        assert await _seqs(store, 1) == ([9], [2])

    async def test_half_answered_call_is_pinned_with_its_answered_half(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c1", "c2"]), event(run, 2, responses=["c2"]), event(run, 3, "x"))
        assert await _seqs(store, 1) == ([4], [2, 3])
        assert await _seqs(store, 0) == ([], [2, 3])

    async def test_open_call_survives_a_thousand_events(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c1"]))
        await write(store, run, *(event(run, n, str(n)) for n in range(2, 1002)))
        window, pinned = await _seqs(store, 200)
        assert window == list(range(803, 1003))
        assert pinned == [2]

    async def test_call_ids_used_again_pair_with_the_nearest(self, store: Store) -> None:
        run = await start(store)
        await write(
            store, run, event(run, 1, calls=["c"]), event(run, 2, responses=["c"]), event(run, 3, calls=["c"]),
            event(run, 4, "x"), event(run, 5, responses=["c"]),
        )  # fmt: skip
        assert await _seqs(store, 1) == ([6], [4])
        assert await _seqs(store, 0) == ([], [])
        await write(store, run, event(run, 6, calls=["c"]), event(run, 7, "x"))
        assert await _seqs(store, 1) == ([8], [7])

    async def test_a_call_may_have_two_responses(self, store: Store) -> None:
        run = await start(store)
        await write(
            store, run, event(run, 1, calls=["c"]), event(run, 2, responses=["c"]), event(run, 3, "x"),
            event(run, 4, responses=["c"]), event(run, 5, "y"),
        )  # fmt: skip
        assert await _seqs(store, 2) == ([5, 6], [2, 3])

    async def test_calls_without_id_belong_to_nothing(self, store: Store) -> None:
        run = await start(store)
        nameless = event(run, 1, calls=["c"])
        assert nameless.content is not None
        part = nameless.content.parts[0]
        assert part.function_call is not None
        bare = part.model_copy(update={"function_call": part.function_call.model_copy(update={"id": None})})
        content = nameless.content.model_copy(update={"parts": (bare,)})
        await write(store, run, nameless.evolve(content=content), event(run, 2, "x"))
        assert await _seqs(store, 1) == ([3], [])

    async def test_superseded_calls_are_not_pinned(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c1"]))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"), event(second, 2, "x"))
        assert await _seqs(store, 1) == ([4], [])
        assert await _seqs(store, 0) == ([], [])

    async def test_call_is_open_again_when_its_response_is_superseded(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c1"]), event(run, 2, responses=["c1"]))
        assert await _seqs(store, 0) == ([], [])
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, calls=["c1"]), event(second, 2, "other"), event(second, 3, "x"))
        assert await _seqs(store, 0) == ([], [2])
        assert await _seqs(store, 1) == ([5], [2])

    async def test_response_pairs_with_the_nearest_call_that_counts(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c"]), event(run, 2, "again", calls=["c"]))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, calls=["c"]), event(second, 2, "x"), event(second, 3, responses=["c"]))
        assert await _seqs(store, 1) == ([5], [2])

    async def test_a_question_is_pinned_until_answered(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)
        await _log(store, 2, run_id="r2")
        assert await _seqs(store, 1) == ([5], [2])
        await reply(store, run)
        assert await _seqs(store, 1) == ([6], [2])
        await _log(store, 1, run_id="r3")
        assert await _seqs(store, 1) == ([8], [])

    # -- summaries --------------------------------------------------------------------------------------------------

    async def test_history_starts_with_the_newest_summary(self, store: Store) -> None:
        run = await _log(store, 4)
        await write(store, run, event(run, 5, "in short", summary_until=4))
        await write(store, run, event(run, 6, "x"))
        assert await _seqs(store, None) == ([5, 6, 7], [])
        assert await _seqs(store, 2) == ([6, 7], [])
        assert await _seqs(store, 1) == ([7], [6])
        assert await _seqs(store, 0) == ([], [6])
        await write(store, run, event(run, 7, "shorter", summary_until=8), event(run, 8, "y"))
        assert await _seqs(store, None) == ([9], [8])

    async def test_open_calls_reach_beyond_a_summary(self, store: Store) -> None:
        run = await start(store)
        await write(
            store, run, event(run, 1, calls=["c1"]), event(run, 2, "x"), event(run, 3, calls=["c2"]),
            event(run, 4, "in short", summary_until=4), event(run, 5, responses=["c2"]),
        )  # fmt: skip
        assert await _seqs(store, None) == ([5, 6], [2, 4])

    async def test_superseded_summary_does_not_cut(self, store: Store) -> None:
        run = await _log(store, 2)
        await write(store, run, event(run, 3, "first", summary_until=2))
        await write(store, run, event(run, 4, "second", summary_until=4))
        assert await _seqs(store, None) == ([5], [])
        second = (await next_attempt(store, run)).record
        first_three = (event(second, 1, "1"), event(second, 2, "2"), event(second, 3, "first", summary_until=2))
        await write(store, second, *first_three, event(second, 4, "other"))
        assert await _seqs(store, None) == ([3, 4, 6], [])
        third = (await next_attempt(store, second)).record
        await write(store, third, event(third, 1, "1"), event(third, 2, "2"), event(third, 3, "no summary"))
        assert await _seqs(store, None) == ([1, 2, 3, 7], [])

    async def test_reopen_keeps_windows(self, store: Store) -> None:
        if not self.durable:
            pytest.skip("this store lives as long as its object")
        run = await start(store)
        await write(store, run, event(run, 1, calls=["c1", "c2"]), event(run, 2, responses=["c2"]))
        await write(store, run, event(run, 3, "sum", summary_until=1), event(run, 4, "x"))
        before = [await _seqs(store, limit) for limit in (0, 1, 2, None)]
        store = await self.reopen(store)
        assert [await _seqs(store, limit) for limit in (0, 1, 2, None)] == before


async def _log(store: Store, count: int, *, run_id: str = "r1") -> RunRecord:
    """A run under way that has said 1, 2, 3 … up to `count`."""
    run = await start(store, run_id)
    await write(store, run, *(event(run, n, str(n)) for n in range(1, count + 1)))
    return run


async def _diverged(store: Store) -> None:
    """A run whose second attempt says something else after the first event."""
    run = await _log(store, 3)
    second = (await next_attempt(store, run)).record
    await write(store, second, event(second, 1, "1"), event(second, 2, "other"), move=Move.COMPLETE)


async def _events(store: Store, *, after: int = 0, limit: int = 100, superseded: bool = False) -> list[Event]:
    return await store.list_events(
        app_name="shop", user_id="alice", session_id="s1", after=after, limit=limit, superseded=superseded
    )


async def _window(store: Store, limit: int | None) -> tuple[list[str], list[str]]:
    history: History = await store.history(session_key(), limit)
    return [e.text for e in history.events], [e.text for e in history.pinned]


async def _seqs(store: Store, limit: int | None) -> tuple[list[int], list[int]]:
    history = await store.history(session_key(), limit)
    return [e.seq or 0 for e in history.events], [e.seq or 0 for e in history.pinned]

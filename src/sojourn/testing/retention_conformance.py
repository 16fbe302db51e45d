"""The conformance suite of `SupportsRetention`: what every store that removes, measures and erases does, as tests.

A backend subclasses it as it does `StoreConformance`; its `store` is a store of sessions and runs that supports retention.
"""

# A case is told by its name.

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sojourn.data.services import RetainingStore
from sojourn.errors import Conflict, Fenced, Gone, InvalidInput, NotFound, Unavailable
from sojourn.event import Event, Usage
from sojourn.run.retention import Dropped, SupportsRetention, Trimmed
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Store
from sojourn.run.types import RunQuery, RunRecord
from sojourn.session.types import SessionKey
from sojourn.testing.builders import (
    APP_NAME,
    USER_ID,
    ask,
    event,
    finished,
    new_run,
    next_attempt,
    reply,
    session_key,
    start,
    step,
    write,
)
from sojourn.testing.suite import StoreSuite, manual_clock, raises, unchanged
from sojourn.testing.world import all_sessions

KEY = session_key()


class RetentionConformance(StoreSuite):
    """Trimming, dropping, measuring and erasing."""

    # -- trimming: by count -----------------------------------------------------------------------------------------

    async def test_the_oldest_runs_go(self, store: RetainingStore) -> None:
        runs = [await finished(store, f"r{n}", None, "a", "b") for n in range(1, 5)]
        assert await store.trim_session(KEY, keep_events=6) == Trimmed(2, 6, False)
        assert await _seqs(store) == [7, 8, 9, 10, 11, 12]
        assert [await _is_trimmed(store, run) for run in runs] == [True, True, False, False]

    async def test_at_least_so_many_events_stay(self, store: RetainingStore) -> None:
        await _runs(store, 4)
        for keep, left in ((8, 8), (5, 6), (3, 4), (1, 2), (0, 0)):
            await store.trim_session(KEY, keep_events=keep)
            assert len(await _seqs(store)) == left

    async def test_no_bound_removes_nothing(self, store: RetainingStore) -> None:
        await _runs(store, 3)
        async with unchanged(store):
            assert await store.trim_session(KEY) == Trimmed(0, 0, False)
            assert await store.trim_session(KEY, keep_events=6) == Trimmed(0, 0, False)
            assert await store.trim_session(KEY, keep_events=10**9, ended_before=0.0) == Trimmed(0, 0, False)

    async def test_nothing_is_trimmed_twice(self, store: RetainingStore) -> None:
        await _runs(store, 3)
        await store.trim_session(KEY, keep_events=2)
        async with unchanged(store):
            assert await store.trim_session(KEY, keep_events=2) == Trimmed(0, 0, False)

    async def test_an_absent_session_has_nothing_to_trim(self, store: RetainingStore) -> None:
        assert await store.trim_session(KEY, keep_events=0) == Trimmed(0, 0, False)
        assert await store.list_apps() == []

    async def test_runs_that_never_began_go_with_those_after_them(self, store: RetainingStore) -> None:
        first = await finished(store, "r1", None, "a")
        never = (await store.submit(new_run("r2"), begin=False)).record
        await store.request_cancel(never.uid, "enough")
        last = await finished(store, "r3", None, "a")
        await store.trim_session(KEY, keep_events=4)
        assert not await _is_trimmed(store, first)
        await store.trim_session(KEY, keep_events=2)
        assert [await _is_trimmed(store, run) for run in (first, never, last)] == [True, True, False]

    # -- trimming: by age -------------------------------------------------------------------------------------------

    async def test_runs_go_by_when_they_ended(self, store: RetainingStore) -> None:
        with manual_clock() as clock:
            long = await start(store, "r1")
            clock.advance(10)
            short = await finished(store, "r2", None, "a")
            clock.advance(10)
            at = clock.now()
            await write(store, long, event(long, 1, "a"), move=Move.COMPLETE)
        assert await store.trim_session(KEY, ended_before=at) == Trimmed(1, 2, False)
        assert [await _is_trimmed(store, run) for run in (long, short)] == [False, True]
        assert await _seqs(store) == [1, 4]
        assert await store.trim_session(KEY, ended_before=at + 0.001) == Trimmed(1, 2, False)

    async def test_either_bound_suffices(self, store: RetainingStore) -> None:
        with manual_clock() as clock:
            for n in range(4):
                await finished(store, f"r{n}", None, "a")
                clock.advance(10)
            await store.trim_session(KEY, keep_events=6, ended_before=clock.now() - 25)
            assert await _seqs(store) == [5, 6, 7, 8]

    # -- trimming: in batches ---------------------------------------------------------------------------------------

    async def test_a_batch_is_about_so_many_events(self, store: RetainingStore) -> None:
        await _runs(store, 5)
        assert await store.trim_session(KEY, keep_events=0, limit=3) == Trimmed(2, 4, True)
        assert await _seqs(store) == [5, 6, 7, 8, 9, 10]
        assert await store.trim_session(KEY, keep_events=0, limit=1) == Trimmed(1, 2, True)
        assert await store.trim_session(KEY, keep_events=0, limit=100) == Trimmed(2, 4, False)

    async def test_a_large_run_is_a_batch(self, store: RetainingStore) -> None:
        await finished(store, "r1", None, *("abcdefgh"))
        await finished(store, "r2", None, "a")
        assert await store.trim_session(KEY, keep_events=0, limit=1) == Trimmed(1, 9, True)

    # -- trimming: what stays ---------------------------------------------------------------------------------------

    async def test_unfinished_runs_stay(self, store: RetainingStore) -> None:
        waiting, running = await start(store, "r1"), await start(store, "r2")
        await ask(store, waiting, 1)
        await write(store, running, event(running, 1, "a"))
        queued = (await store.submit(new_run("r3"), begin=False)).record
        await finished(store, "r4", None, "a")
        assert await store.trim_session(KEY, keep_events=0, ended_before=1e12) == Trimmed(1, 2, False)
        assert await _seqs(store) == [1, 2, 3, 4]
        await reply(store, waiting)
        again = await store.begin(waiting.uid)
        assert again.record.message.text == "Hello"
        assert [(i.id, i.status) for i in again.interrupts] == [("q1", "answered")]
        await write(store, again.record, event(again.record, 2, "done"), move=Move.COMPLETE)
        assert (await store.begin(queued.uid)).record.message.text == "Hello"

    async def test_the_newest_summary_stays(self, store: RetainingStore) -> None:
        for n in (1, 2):
            run = await start(store, f"r{n}")
            await write(store, run, event(run, 1, "so far", summary_until=1), move=Move.COMPLETE)
        await _runs(store, 2, first=3)
        await store.trim_session(KEY, keep_events=0)
        assert await _seqs(store) == [3, 4]
        history = await store.history(KEY, 0)
        assert [e.seq for e in history.pinned] == [4]

    async def test_open_calls_stay(self, store: RetainingStore) -> None:
        run = await start(store, "r1")
        await write(store, run, event(run, 1, calls=["c1"]), move=Move.COMPLETE)
        await _runs(store, 2, first=2)
        await store.trim_session(KEY, keep_events=0)
        assert await _seqs(store) == [1, 2]
        assert [e.seq for e in (await store.history(KEY, 0)).pinned] == [2]

    async def test_calls_and_responses_are_never_split(self, store: RetainingStore) -> None:
        one, two = await start(store, "r1"), await start(store, "r2")
        await write(store, one, event(one, 1, calls=["c1"]), move=Move.COMPLETE)
        await _runs(store, 1, first=5)
        await write(store, two, event(two, 1, responses=["c1"]), move=Move.COMPLETE)
        await _runs(store, 1, first=6)
        await store.trim_session(KEY, keep_events=3)
        assert await _seqs(store) == [1, 2, 3, 6, 7, 8]
        history = await store.history(KEY, 3)
        assert ([e.seq for e in history.events], [e.seq for e in history.pinned]) == ([6, 7, 8], [3])
        assert await store.trim_session(KEY, keep_events=2, limit=1) == Trimmed(2, 4, False)
        assert await _seqs(store) == [7, 8]

    async def test_a_call_id_that_is_used_again_links_nothing(self, store: RetainingStore) -> None:
        for n in range(1, 4):
            run = await start(store, f"r{n}")
            await write(store, run, event(run, 1, calls=["c"]), event(run, 2, responses=["c"]), move=Move.COMPLETE)
        assert await store.trim_session(KEY, keep_events=3) == Trimmed(2, 6, False)
        assert [e.seq for e in (await store.history(KEY, None)).events] == [7, 8, 9]

    async def test_pairs_hold_on_to_each_other_along_a_chain(self, store: RetainingStore) -> None:
        runs = [await start(store, f"r{n}") for n in range(1, 4)]
        await write(store, runs[0], event(runs[0], 1, calls=["c1"]), move=Move.COMPLETE)
        await write(store, runs[1], event(runs[1], 1, responses=["c1"], calls=["c2"]), move=Move.COMPLETE)
        await write(store, runs[2], event(runs[2], 1, responses=["c2"]))
        await finished(store, "r4", None, "a")
        assert await store.trim_session(KEY, keep_events=0) == Trimmed(1, 2, False)
        await write(store, runs[2], move=Move.COMPLETE)
        assert await store.trim_session(KEY, keep_events=0, limit=1) == Trimmed(3, 6, False)

    async def test_state_and_usage_stay(self, store: RetainingStore) -> None:
        run = await start(store, "r1")
        spent = Usage(total_token_count=5)
        said = event(run, 1, "a", state={"a": 1, "user:b": 2, "app:c": 3}, usage_metadata=spent)
        await write(store, run, said, move=Move.COMPLETE)
        await store.trim_session(KEY, keep_events=0)
        session = await store.get_session(app_name=APP_NAME, user_id=USER_ID, session_id="s1", events=10)
        assert session.state == {"a": 1, "user:b": 2, "app:c": 3}
        assert session.events == ()
        assert (await store.user_usage(APP_NAME, USER_ID)).total == spent
        assert (await store.get_run(APP_NAME, "r1")).usage["total_token_count"] == 5

    async def test_other_sessions_stay(self, store: RetainingStore) -> None:
        others = [session_key("s2"), session_key(user_id="bob"), session_key(app_name="bank")]
        for key in others:
            await finished(store, "r1" if key != others[0] else "r2", key, "a")
        await _runs(store, 2, first=3)
        async with unchanged(store, "bank"):
            await store.trim_session(KEY, keep_events=0)
        for key in others:
            assert len(await store.list_events(**_named(key))) == 2

    # -- trimming: what is left -------------------------------------------------------------------------------------

    async def test_of_a_trimmed_run_the_record_is_left(self, store: RetainingStore) -> None:
        run = (await store.submit(new_run("r1", custom_metadata={"by": "secret"}), begin=True)).record
        await ask(store, run, 1)
        await reply(store, run)
        run = (await store.begin(run.uid)).record
        await write(store, run, event(run, 2, "a"), steps=[step("k", "secret")], move=Move.COMPLETE)
        before = await store.get_run(APP_NAME, "r1")
        await store.trim_session(KEY, keep_events=0)
        after = await store.get_run(APP_NAME, "r1")
        assert (after.message.content, after.message.id, after.custom_metadata) == (None, before.message.id, None)
        assert after.evolve(message=before.message, custom_metadata=before.custom_metadata, trimmed=False) == before
        assert after.trimmed
        assert await store.list_steps(run.uid) == []
        assert await store.list_interrupts(APP_NAME, open_only=False) == []
        assert [r.id for r in (await store.list_runs(RunQuery(APP_NAME))).items] == ["r1"]

    async def test_seq_goes_on(self, store: RetainingStore) -> None:
        await _runs(store, 3)
        await store.trim_session(KEY, keep_events=0)
        await finished(store, "r9", None, "a")
        assert await _seqs(store) == [7, 8]
        session = await store.get_session(**_named(KEY))
        assert (session.event_count, session.first_seq) == (8, 7)

    async def test_first_seq_is_remembered(self, store: RetainingStore) -> None:
        await _runs(store, 3)
        for keep, first in ((6, 1), (4, 3), (0, 7)):
            await store.trim_session(KEY, keep_events=keep)
            listed = (await store.list_sessions(app_name=APP_NAME)).items[0]
            read = await store.get_session(**_named(KEY))
            assert (listed.first_seq, read.first_seq) == (first, first)
        again = (await store.submit(new_run("r9"), begin=True)).begun
        assert again is not None
        assert again.session.first_seq == 7
        reopened = await self.reopen(store)
        assert (await reopened.get_session(**_named(KEY))).first_seq == 7

    async def test_a_trimmed_run_cannot_be_read(self, store: RetainingStore) -> None:
        run = await finished(store, "r1", None, "a", "b")
        await store.trim_session(KEY, keep_events=0)
        for after in (0, 1, 2):
            with raises(Gone, "cursor.trimmed"):
                await store.run_events(run.uid, after=after)
        for after in (3, 4, 10**6):
            assert await store.run_events(run.uid, after=after) == []

    async def test_zombie_of_a_trimmed_run_is_fenced(self, store: RetainingStore) -> None:
        run = await finished(store, "r1", None, "a")
        await store.trim_session(KEY, keep_events=0)
        with raises(Fenced, "run.fenced"):
            await write(store, run, event(run, 2, "late"))

    async def test_trimmed_positions_cannot_be_read(self, store: RetainingStore) -> None:
        await start(store, "r0")
        await _runs(store, 3)
        await store.trim_session(KEY, keep_events=2)
        assert await _seqs(store) == [1, 6, 7]
        for after in (2, 3, 4):
            with raises(Gone, "cursor.trimmed"):
                await store.list_events(**_named(KEY), after=after)
        for after, left in ((0, [1, 6, 7]), (-1, [1, 6, 7]), (1, [6, 7]), (5, [6, 7]), (6, [7]), (7, []), (99, [])):
            assert [e.seq for e in await store.list_events(**_named(KEY), after=after)] == left

    async def test_a_reader_in_the_middle_is_told(self, store: RetainingStore) -> None:
        run = await finished(store, "r1", None, "a", "b", "c")
        first = await store.run_events(run.uid, limit=2)
        await store.trim_session(KEY, keep_events=0)
        with raises(Gone, "cursor.trimmed"):
            await store.run_events(run.uid, after=first[-1].pos or 0, limit=2)

    async def test_a_window_holds_what_is_left(self, store: RetainingStore) -> None:
        await _runs(store, 4)
        await store.trim_session(KEY, keep_events=4)
        for limit, seqs in ((2, [7, 8]), (4, [5, 6, 7, 8]), (100, [5, 6, 7, 8]), (None, [5, 6, 7, 8])):
            history = await store.history(KEY, limit)
            assert ([e.seq for e in history.events], history.pinned) == (seqs, [])
        assert [e.seq for e in (await store.get_session(**_named(KEY), events=100)).events] == [5, 6, 7, 8]

    async def test_superseded_events_go_with_their_run(self, store: RetainingStore) -> None:
        run = await start(store, "r1")
        await write(store, run, event(run, 1, calls=["c1"]))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"), move=Move.COMPLETE)
        assert await store.trim_session(KEY, keep_events=0) == Trimmed(1, 3, False)
        assert await store.list_events(**_named(KEY), superseded=True) == []

    async def test_a_known_id_of_a_trimmed_run_is_known(self, store: RetainingStore) -> None:
        run = await finished(store, "r1", None, "a")
        await store.trim_session(KEY, keep_events=0)
        again = await store.submit(new_run("r1", text="whatever"), begin=True)
        assert (again.known, again.record.uid) == (True, run.uid)
        with raises(Conflict, "run.conflict"):
            await store.submit(new_run("r1", session_key("s2")), begin=True)

    async def test_a_trimmed_run_can_be_repeated(self, store: RetainingStore) -> None:
        first = await finished(store, "r1", None, "a")
        later = await finished(store, "r2", None, "b")
        await store.trim_session(KEY, keep_events=2)
        await finished(store, "r3", None)
        await store.submit(new_run("r4", text="again", retry_of="r1"), begin=True)
        assert [e.text for e in (await store.history(KEY, None)).events] == ["again"]
        for run in (first, later):
            assert (await store.get_run(APP_NAME, run.id)).superseded_by == "r4"

    async def test_a_run_that_waits_to_repeat_a_trimmed_one_takes_its_place(self, store: RetainingStore) -> None:
        await finished(store, "r1", None, "a")
        queued = (await store.submit(new_run("r2", text="again", retry_of="r1"), begin=False)).record
        await store.trim_session(KEY, keep_events=0)
        await store.begin(queued.uid)
        assert (await store.get_run(APP_NAME, "r1")).superseded_by == "r2"
        assert [e.text for e in (await store.history(KEY, None)).events] == ["again"]

    # -- trimming: meanwhile ----------------------------------------------------------------------------------------

    async def test_a_run_under_way_is_not_disturbed(self, store: RetainingStore) -> None:
        await _runs(store, 20)
        run = await start(store, "now")

        async def speak() -> None:
            for ordinal in range(1, 21):
                await write(store, run, event(run, ordinal, "a"))

        async def trim() -> None:
            while (await store.trim_session(KEY, keep_events=0, limit=2)).more:
                pass

        await asyncio.gather(speak(), trim())
        await store.trim_session(KEY, keep_events=0)
        events = await store.run_events(run.uid)
        assert [e.pos for e in events] == list(range(2, 22))
        assert await _seqs(store) == list(range(41, 62))

    async def test_several_trim_at_once(self, store: RetainingStore) -> None:
        await _runs(store, 30)
        totals = [0, 0]

        async def trim() -> None:
            while True:
                trimmed = await store.trim_session(KEY, keep_events=10, limit=3)
                totals[0] += trimmed.runs
                totals[1] += trimmed.events
                if not trimmed.more:
                    return

        await asyncio.gather(trim(), trim(), trim())
        assert totals == [25, 50]
        assert await _seqs(store) == list(range(51, 61))

    @pytest.mark.parametrize(
        "bounds", [{"keep_events": -1}, {"keep_events": True}, {"ended_before": float("nan")}, {"limit": 0}, {"limit": 10**9}]
    )
    async def test_bounds_are_checked(self, store: RetainingStore, bounds: dict[str, Any]) -> None:
        await _runs(store, 1)
        async with unchanged(store):
            with raises(InvalidInput, "retention.invalid"):
                await store.trim_session(KEY, **bounds)
            with raises(InvalidInput, "id.invalid"):
                await store.trim_session(SessionKey("shop", "", "s1"), keep_events=0)

    # -- dropping ---------------------------------------------------------------------------------------------------

    async def test_drop_removes_a_session(self, store: RetainingStore) -> None:
        run = await start(store, "r1")
        await write(store, run, event(run, 1, "a", state={"a": 1, "user:b": 2}), move=Move.COMPLETE)
        uid = (await store.get_session(**_named(KEY))).uid
        assert await store.drop_session(KEY) == Dropped("gone", 1, 2)
        with raises(NotFound, "session.not_found"):
            await store.get_session(**_named(KEY))
        with raises(NotFound, "run.not_found"):
            await store.get_run(APP_NAME, "r1")
        assert await store.list_apps() == []
        assert await store.user_state(APP_NAME, USER_ID) == {"user:b": 2}
        assert [(d.key, d.uid) for d in await store.dropped_sessions(APP_NAME)] == [(KEY, uid)]
        session = await store.create_session(app_name=APP_NAME, user_id=USER_ID, session_id="s1")
        assert (session.state, session.event_count, session.first_seq) == ({"user:b": 2}, 0, 1)

    async def test_drop_goes_on_until_nothing_is_left(self, store: RetainingStore) -> None:
        await _runs(store, 5)
        runs = events = 0
        while True:
            dropped = await store.drop_session(KEY, limit=2)
            runs, events = runs + dropped.runs, events + dropped.events
            if dropped.state == "gone":
                break
            assert dropped.state == "more"
        assert (runs, events) == (5, 10)
        assert await store.drop_session(KEY) == Dropped("gone")
        assert len(await store.dropped_sessions(APP_NAME)) == 1

    async def test_drop_fences_first(self, store: RetainingStore) -> None:
        await _runs(store, 3, first=5)
        run = await start(store, "r1")
        waiting = await start(store, "r2")
        await ask(store, waiting, 1)
        assert (await store.drop_session(KEY, limit=1)).unfinished == 2
        for one in (run, waiting):
            with raises(Fenced, "run.fenced"):
                await write(store, one, event(one, 2, "b"))
        assert await store.unfinished(APP_NAME) == []

    async def test_drop_of_idle_sessions_alone(self, store: RetainingStore) -> None:
        with manual_clock() as clock:
            await finished(store, "r1", None, "a")
            last = clock.now()
            async with unchanged(store):
                assert await store.drop_session(KEY, idle_since=last) == Dropped("kept")
            assert (await store.drop_session(KEY, idle_since=last + 0.001)).state == "gone"

    async def test_sessions_with_unfinished_runs_are_not_idle(self, store: RetainingStore) -> None:
        run = await start(store, "r1")
        await ask(store, run, 1)
        async with unchanged(store):
            assert await store.drop_session(KEY, idle_since=1e12) == Dropped("kept")

    async def test_a_session_that_is_used_again_is_kept(self, store: RetainingStore) -> None:
        with manual_clock() as clock:
            await _runs(store, 4)
            clock.advance(10)
            assert (await store.drop_session(KEY, idle_since=clock.now(), limit=2)).state in ("more", "gone")
            if await store.list_apps():
                await finished(store, "r9", None, "a")
                assert (await store.drop_session(KEY, idle_since=clock.now(), limit=2)).state == "kept"
                assert (await _seqs(store))[-2:] == [9, 10]

    async def test_dropped_sessions_are_settled(self, store: RetainingStore) -> None:
        for n, user in enumerate(("alice", "bob", "alice")):
            await store.create_session(app_name=APP_NAME, user_id=user, session_id=f"s{n}")
            await store.drop_session(session_key(f"s{n}", user_id=user))
        listed = await store.dropped_sessions(APP_NAME)
        assert [d.key.session_id for d in listed] == ["s0", "s1", "s2"]
        assert [d.key.session_id for d in await store.dropped_sessions(APP_NAME, user_id="alice", limit=1)] == ["s0"]
        for _ in range(2):
            await store.settle_dropped(listed[1].uid)
        reopened = await self.reopen(store)
        assert isinstance(reopened, SupportsRetention)
        assert [d.key.session_id for d in await reopened.dropped_sessions(APP_NAME)] == ["s0", "s2"]

    # -- measuring --------------------------------------------------------------------------------------------------

    async def test_sizes_are_told(self, store: RetainingStore) -> None:
        await _runs(store, 2)
        await finished(store, "r9", session_key("s2", user_id="bob"), "a" * 10_000)
        await store.create_session(app_name=APP_NAME, user_id=USER_ID, session_id="empty")
        page = await store.session_sizes(APP_NAME)
        sessions = await all_sessions(store, APP_NAME)
        assert [(s.key, s.uid, s.created_at, s.updated_at) for s in page.items] == [
            (s.key, s.uid, s.created_at, s.updated_at) for s in sessions
        ]
        assert [(s.key.session_id, s.events, s.runs) for s in page.items] == [("empty", 0, 0), ("s2", 2, 1), ("s1", 4, 2)]
        empty, large, small = (s.bytes for s in page.items)
        assert 0 <= empty < small < 5000
        assert 10_000 < large < 20_000
        assert [s.key.user_id for s in (await store.session_sizes(APP_NAME, user_id="bob")).items] == ["bob"]

    async def test_sizes_come_in_pages(self, store: RetainingStore) -> None:
        for n in range(5):
            await store.create_session(app_name=APP_NAME, user_id=USER_ID, session_id=f"s{n}")
        found, after = [], None
        while True:
            page = await store.session_sizes(APP_NAME, limit=2, after=after)
            found += [s.key.session_id for s in page.items]
            after = page.next
            if after is None:
                break
        assert found == ["s4", "s3", "s2", "s1", "s0"]

    async def test_trimming_makes_small(self, store: RetainingStore) -> None:
        run = await start(store, "r1", text="x" * 5000)
        await write(store, run, event(run, 1, "y" * 5000), steps=[step("k", "z" * 5000)], move=Move.COMPLETE)
        (before,) = (await store.session_sizes(APP_NAME)).items
        await store.trim_session(KEY, keep_events=0)
        (after,) = (await store.session_sizes(APP_NAME)).items
        assert before.bytes > 15_000
        assert (after.events, after.runs) == (0, 1)
        assert after.bytes < 1000

    # -- users ------------------------------------------------------------------------------------------------------

    async def test_apps_of_a_user(self, store: RetainingStore) -> None:
        await store.create_session(app_name="a", user_id="alice")
        await store.create_session(app_name="b", user_id="alice", session_id="s", state={"user:k": 1})
        await store.delete_session(app_name="b", user_id="alice", session_id="s")
        run = await start(store, "r1", session_key(app_name="c"))
        await write(store, run, event(run, 1, "a", usage_metadata=Usage(total_token_count=1)), move=Move.COMPLETE)
        await store.delete_session(**_named(session_key(app_name="c")))
        await store.create_session(app_name="d", user_id="alice", session_id="s")
        await store.drop_session(SessionKey("d", "alice", "s"))
        await store.create_session(app_name="e", user_id="bob", state={"app:k": 1, "user:k": 1})
        assert await store.apps_of_user("alice") == ["a", "b", "c", "d"]
        assert await store.apps_of_user("bob") == ["e"]
        assert await store.apps_of_user("ali") == []

    async def test_erasing_leaves_nothing_of_a_user(self, store: RetainingStore) -> None:
        for user in ("alice", "bob"):
            key = session_key(user_id=user)
            run = await start(store, "r1", key)
            said = event(run, 1, "a", state={"user:b": [1], "app:c": 3}, usage_metadata=Usage(total_token_count=5))
            await write(store, run, said, move=Move.COMPLETE)
        with raises(Conflict, "data.user_active"):
            await store.erase_user(APP_NAME, "alice")
        await store.drop_session(KEY)
        for _ in range(2):
            await store.erase_user(APP_NAME, "alice")
        assert await store.apps_of_user("alice") == []
        assert await store.user_state(APP_NAME, "alice") == {}
        assert (await store.user_usage(APP_NAME, "alice")).buckets == []
        assert await store.dropped_sessions(APP_NAME) == []
        assert await store.user_state(APP_NAME, "bob") == {"user:b": [1]}
        assert (await store.user_usage(APP_NAME, "bob")).total.total_token_count == 5
        session = await store.create_session(app_name=APP_NAME, user_id="alice")
        assert session.state == {"app:c": 3}

    async def test_user_state_is_a_copy(self, store: RetainingStore) -> None:
        await store.create_session(app_name=APP_NAME, user_id=USER_ID, state={"user:k": [1]})
        found = await store.user_state(APP_NAME, USER_ID)
        found["user:k"].append(2)
        assert await store.user_state(APP_NAME, USER_ID) == {"user:k": [1]}

    async def test_scrubbing_changes_nothing(self, store: RetainingStore) -> None:
        await _runs(store, 3)
        await store.trim_session(KEY, keep_events=2)
        async with unchanged(store):
            await store.scrub()
        await finished(store, "r9", None, "a")

    # -- failures ---------------------------------------------------------------------------------------------------

    async def test_a_store_that_fails_is_unavailable(self, store: RetainingStore) -> None:
        if not self.can_fail:
            pytest.skip("the store cannot be made to fail")
        await _runs(store, 2)
        async with unchanged(store), self.failing(store):
            for call in (
                store.trim_session(KEY, keep_events=0), store.drop_session(KEY), store.dropped_sessions(APP_NAME),
                store.settle_dropped("u"), store.session_sizes(APP_NAME), store.apps_of_user(USER_ID),
                store.user_state(APP_NAME, USER_ID), store.erase_user(APP_NAME, USER_ID),
            ):  # fmt: skip
                with raises(Unavailable, "store.unavailable"):
                    await call

    async def test_what_was_trimmed_is_durable(self, store: RetainingStore) -> None:
        if not self.durable:
            pytest.skip("the store keeps nothing")
        run = await finished(store, "r1", None, "a")
        await store.trim_session(KEY, keep_events=0)
        reopened = await self.reopen(store)
        with raises(Gone, "cursor.trimmed"):
            await reopened.run_events((await reopened.get_run(APP_NAME, run.id)).uid)


async def _runs(store: Store, count: int, *, first: int = 1) -> list[RunRecord]:
    """Completed runs of two events each."""
    return [await finished(store, f"r{n}", None, "a") for n in range(first, first + count)]


async def _seqs(store: Store, key: SessionKey = KEY) -> list[int]:
    found: list[Event] = await store.list_events(**_named(key), limit=1000, superseded=True)
    return [e.seq or 0 for e in found]


async def _is_trimmed(store: Store, run: RunRecord) -> bool:
    record = await store.get_run(run.app_name, run.id, run.user_id)
    assert record.status in (RunStatus.COMPLETED, RunStatus.CANCELLED)
    return record.trimmed


def _named(key: SessionKey) -> dict[str, Any]:
    return {"app_name": key.app_name, "user_id": key.user_id, "session_id": key.session_id}

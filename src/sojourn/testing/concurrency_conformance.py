"""The cases on many callers at once."""

# A case is told by its name.

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from sojourn.errors import AlreadyExists, Conflict, Fenced, SojournError
from sojourn.event import Event
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Store, Submitted
from sojourn.run.types import RunQuery, RunRecord
from sojourn.session.types import Session
from sojourn.testing.builders import ask, event, failure, new_run, next_attempt, reply, session_key, start, step, write
from sojourn.testing.suite import StoreSuite
from sojourn.testing.world import all_events, all_runs


class ConcurrencyConformance(StoreSuite):
    """Nothing is lost, doubled or mixed up when many tasks use a store."""

    async def test_fifty_runs_in_fifty_sessions(self, store: Store) -> None:
        async def whole(n: int) -> None:
            run = await start(store, f"r{n}", session_key(f"s{n}"), text=f"from {n}")
            for ordinal in range(1, 4):
                await write(store, run, event(run, ordinal, f"{n}/{ordinal}", state={"n": n}, increments={"user:total": 1}))
            await write(store, run, move=Move.COMPLETE)

        await asyncio.gather(*(whole(n) for n in range(50)))
        for n in range(50):
            session = await _session(store, f"s{n}", events=9)
            assert [e.text for e in session.events] == [f"from {n}", f"{n}/1", f"{n}/2", f"{n}/3"]
            assert session.state == {"n": n, "user:total": 150}
        assert Counter(r.status for r in await all_runs(store, RunQuery("shop"))) == {RunStatus.COMPLETED: 50}

    async def test_fifty_runs_in_one_session(self, store: Store) -> None:
        async def whole(n: int) -> None:
            run = await start(store, f"r{n}")
            await asyncio.gather(*(write(store, run, event(run, 1, f"{n}", branch=f"b{b}")) for b in range(3)))
            await write(store, run, move=Move.COMPLETE)

        await asyncio.gather(*(whole(n) for n in range(50)))
        events = await all_events(store, await _session(store))
        assert [e.seq for e in events] == list(range(1, 201))
        runs = await all_runs(store, RunQuery("shop"))
        assert sorted(r.no for r in runs) == list(range(1, 51))
        assert len({r.uid for r in runs}) == 50
        for run in runs:
            assert [e.pos for e in await store.run_events(run.uid)] == [2, 3, 4]
            assert run.last_pos == 5

    async def test_increment_is_atomic_across_sessions(self, store: Store) -> None:
        runs = [await start(store, f"r{n}", session_key(f"s{n}")) for n in range(10)]

        async def count(run: RunRecord, ordinal: int) -> None:
            await write(store, run, event(run, ordinal, branch=f"b{ordinal}", increments={"user:n": 1, "app:n": 2, "n": 1}))

        await asyncio.gather(*(count(run, ordinal) for run in runs for ordinal in range(1, 11)))
        assert (await _session(store, "s0")).state == {"user:n": 100, "app:n": 200, "n": 10}

    async def test_different_keys_written_at_once_never_overwrite(self, store: Store) -> None:
        runs = [await start(store, f"r{n}", session_key(f"s{n % 2}")) for n in range(20)]
        patches = [
            store.patch_session(app_name="shop", user_id="alice", session_id=f"s{n % 2}", state_delta={f"user:p{n}": n})
            for n in range(20)
        ]
        writes = [write(store, run, event(run, 1, state={f"user:w{n}": n, f"app:w{n}": n})) for n, run in enumerate(runs)]
        await asyncio.gather(*patches, *writes)
        expected = {f"{name}{n}": n for name in ("user:p", "user:w", "app:w") for n in range(20)}
        assert (await _session(store, "s0")).state == expected

    async def test_an_id_is_created_once(self, store: Store) -> None:
        async def create(n: int) -> bool:
            try:
                await store.create_session(app_name="shop", user_id="alice", session_id="s1", state={"n": n, f"user:{n}": n})
            except AlreadyExists:
                return False
            return True

        created = await asyncio.gather(*(create(n) for n in range(20)))
        winner = created.index(True)
        assert created.count(True) == 1
        assert (await _session(store)).state == {"n": winner, f"user:{winner}": winner}

    async def test_a_run_id_is_recorded_once(self, store: Store) -> None:
        results: list[Submitted] = await asyncio.gather(*(store.submit(new_run(), begin=True) for _ in range(20)))
        assert [r.known for r in results].count(False) == 1
        assert [r.begun is not None for r in results].count(True) == 1
        assert len({r.record.uid for r in results}) == 1
        assert (await _session(store)).event_count == 1

    async def test_one_of_many_is_not_busy(self, store: Store) -> None:
        async def submit(n: int) -> bool:
            try:
                await store.submit(new_run(f"r{n}", reject_if_busy=True), begin=True)
            except Conflict:
                return False
            return True

        assert (await asyncio.gather(*(submit(n) for n in range(20)))).count(True) == 1
        assert (await _session(store)).event_count == 1

    async def test_a_queued_run_is_begun_once(self, store: Store) -> None:
        queued = (await store.submit(new_run(), begin=False)).record
        results = await asyncio.gather(*(store.begin(queued.uid) for _ in range(10)), return_exceptions=True)
        refused = [r for r in results if isinstance(r, BaseException)]
        assert len(refused) == 9
        assert all(isinstance(r, Conflict) and r.code == "run.illegal_move" for r in refused)
        assert (await store.get_run("shop", "r1")).attempt == 1
        assert (await _session(store)).event_count == 1

    async def test_a_question_is_answered_once(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)

        async def answer(n: int) -> bool | str:
            try:
                return (await reply(store, run, "q1", n % 4)).recorded
            except Conflict as error:
                return error.code

        outcomes = Counter(await asyncio.gather(*(answer(n) for n in range(20))))
        assert outcomes == {True: 1, False: 4, "interrupt.conflict": 15}
        assert (await _session(store)).event_count == 3

    async def test_one_failed_append_undoes_only_itself(self, store: Store) -> None:
        runs = [await start(store, f"r{n}", session_key(f"s{n % 5}")) for n in range(20)]
        await store.patch_session(app_name="shop", user_id="alice", session_id="s0", state_delta={"user:text": "x"})

        def one(n: int, run: RunRecord) -> list[Event]:
            bad = {"user:text": 1} if n % 3 == 0 else {"user:n": 1}
            return [event(run, 1, f"{n}", increments={"user:n": 1}), event(run, 2, f"{n}", increments=bad)]

        results = await asyncio.gather(
            *(write(store, run, *one(n, run), steps=[step("k")]) for n, run in enumerate(runs)), return_exceptions=True
        )
        failed = {n for n, r in enumerate(results) if isinstance(r, SojournError) and r.code == "state.not_a_number"}
        assert failed == {n for n in range(20) if n % 3 == 0}
        assert (await _session(store, "s0")).state["user:n"] == 2 * (20 - len(failed))
        for n, run in enumerate(runs):
            assert len(await store.run_events(run.uid)) == (0 if n in failed else 2)
            assert len(await store.list_steps(run.uid)) == (0 if n in failed else 1)
        for n in range(5):
            events = await all_events(store, await _session(store, f"s{n}"))
            assert [e.seq for e in events] == list(range(1, len(events) + 1))

    async def test_one_fenced_append_undoes_only_itself(self, store: Store) -> None:
        runs = [await start(store, f"r{n}") for n in range(10)]
        alive = [run if n % 2 else (await next_attempt(store, run)).record for n, run in enumerate(runs)]
        writes = [write(store, run, event(run, 1, f"{n}", increments={"n": 1})) for n, run in enumerate(runs)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [isinstance(r, Fenced) for r in results] == [n % 2 == 0 for n in range(10)]
        assert (await _session(store)).state == {"n": 5}
        await asyncio.gather(*(write(store, run, event(run, 2, "more"), move=Move.COMPLETE) for run in alive))
        events = await all_events(store, await _session(store))
        assert [e.seq for e in events] == list(range(1, 26))

    async def test_deleting_under_writers_leaves_nothing(self, store: Store) -> None:
        run = await start(store)

        async def write_until_fenced() -> int:
            for ordinal in range(1, 1000):
                try:
                    await write(store, run, event(run, ordinal, "x", state={"a": 1}))
                except Fenced:
                    return ordinal
                await asyncio.sleep(0)
            raise AssertionError("never fenced")

        writer = asyncio.create_task(write_until_fenced())
        await asyncio.sleep(0)
        await store.delete_session(app_name="shop", user_id="alice", session_id="s1")
        await writer
        created = await store.create_session(app_name="shop", user_id="alice", session_id="s1")
        assert (created.event_count, created.state) == (0, {})
        assert await all_events(store, created) == []

    async def test_a_taken_over_run_is_closed_once(self, store: Store) -> None:
        run = await start(store)
        calls = [write(store, run, event(run, 1, "x"), move=Move.COMPLETE)]
        takers = [store.take_over(run.uid, failure(), move=Move.CANCEL) for _ in range(5)]
        [written, *_] = await asyncio.gather(*calls, *takers, return_exceptions=True)
        record = await store.get_run("shop", "r1")
        if isinstance(written, Fenced):
            assert (record.status, record.last_pos) == (RunStatus.CANCELLED, 2)
        else:
            assert (record.status, record.last_pos) == (RunStatus.COMPLETED, 3)

    @pytest.mark.parametrize("yields", range(6))
    async def test_a_cancelled_append_is_whole_or_nothing(self, store: Store, yields: int) -> None:
        run = await start(store)
        writing = asyncio.create_task(
            write(store, run, event(run, 1, "a", state={"n": 1}), event(run, 2, "b"), steps=[step("k")], move=Move.COMPLETE)
        )
        for _ in range(yields):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        # The call has ended, so the outcome is known: what is seen from here on does not change any more.
        record = await store.get_run("shop", "r1")
        written = record.status is RunStatus.COMPLETED
        for _ in range(3):
            session = await _session(store)
            assert await store.get_run("shop", "r1") == record
            assert (session.event_count, session.state) == ((3, {"n": 1}) if written else (1, {}))
            assert len(await store.list_steps(run.uid)) == (1 if written else 0)
            await start(store, f"other{_}", session_key("s2"))
        if not written:
            await write(store, run, event(run, 1, "a"))

    async def test_readers_see_whole_appends(self, store: Store) -> None:
        run = await start(store)
        done = asyncio.Event()

        async def read() -> None:
            while not done.is_set():
                session = await _session(store, events=1000)
                assert len(session.events) == session.event_count
                assert session.state.get("n", 0) == session.event_count - 1
                assert session.event_count % 2 == 1
                await asyncio.sleep(0)

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for n in range(30):
            events = [event(run, 2 * n + k, "x", increments={"n": 1}) for k in (1, 2)]
            await write(store, run, *events)
        done.set()
        await asyncio.gather(*readers)


async def _session(store: Store, session_id: str = "s1", *, events: int = 0) -> Session:
    return await store.get_session(app_name="shop", user_id="alice", session_id=session_id, events=events)

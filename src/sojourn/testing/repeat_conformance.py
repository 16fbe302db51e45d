"""The cases on runs that take the place of others: by pointer, in one append, from a place in the session on."""

# A case is told by its name.

from __future__ import annotations

from typing import Any

import pytest

from sojourn.errors import Conflict, InvalidInput, NotFound
from sojourn.event import Event
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.testing.builders import (
    ask,
    event,
    failure,
    finished,
    message,
    new_run,
    next_attempt,
    reply,
    session_key,
    start,
    step,
    write,
)
from sojourn.testing.suite import StoreSuite, raises, unchanged


class RepeatConformance(StoreSuite):
    """What ceases to count, when it does, and what stays."""

    # -- what ceases to count ---------------------------------------------------------------------------------------

    async def test_a_run_takes_the_place_of_the_one_it_repeats(self, store: Store) -> None:
        run = await start(store, "r1")
        await write(store, run, event(run, 1, "wrong", state={"n": 1}), move=Move.FAIL, error=failure())
        again = await store.submit(new_run("r2", retry_of="r1"), begin=True)
        assert (again.record.retry_of, again.record.superseded_by, again.record.message_seq) == ("r1", None, 3)
        assert again.begun is not None
        assert again.begun.session.state == {"n": 1}
        assert (await _record(store, "r1")).superseded_by == "r2"
        assert await _counting(store) == [("r2", "Hello")]
        assert [e.superseded for e in await _log(store)] == [True, True, False]

    async def test_a_completed_run_is_repeated_with_another_message(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        await finished(store, "r2", None, "two")
        again = await start(store, "r3", text="Edited", retry_of="r2")
        await write(store, again, event(again, 1, "other"), move=Move.COMPLETE)
        assert await _counting(store) == [("r1", "Hello"), ("r1", "one"), ("r3", "Edited"), ("r3", "other")]
        window = await store.history(session_key(), 2)
        assert [e.text for e in window.events] == ["Edited", "other"]

    async def test_all_runs_from_there_on_cease_to_count(self, store: Store) -> None:
        for n in range(1, 5):
            await finished(store, f"r{n}", None, f"answer {n}")
        before = await _log(store)
        await start(store, "r5", text="Edited", retry_of="r2")
        assert await _counting(store) == [("r1", "Hello"), ("r1", "answer 1"), ("r5", "Edited")]
        assert [(await _record(store, f"r{n}")).superseded_by for n in range(1, 6)] == [None, "r5", "r5", "r5", None]
        log = await _log(store)
        assert [(e.seq, e.id) for e in log[:-1]] == [(e.seq, e.id) for e in before], "nothing is copied or moved"

    async def test_other_sessions_are_left_alone(self, store: Store) -> None:
        await finished(store, "r1", None, "x")
        others = [session_key("s2"), session_key(user_id="bob"), session_key(app_name="other")]
        for n, key in enumerate(others):
            await finished(store, f"o{n}", key, "y")
        await start(store, "r2", retry_of="r1")
        for n, key in enumerate(others):
            assert [e.run_id for e in (await store.history(key, None)).events] == [f"o{n}", f"o{n}"]
            assert (await store.get_run(key.app_name, f"o{n}")).superseded_by is None

    async def test_what_an_earlier_run_says_later_stays(self, store: Store) -> None:
        asking = await start(store, "r1")
        await ask(store, asking, 1)
        await finished(store, "r2", None, "between")
        await reply(store, asking)
        asking = (await store.begin(asking.uid)).record
        await write(store, asking, event(asking, 2, "thanks"), move=Move.COMPLETE)
        await start(store, "r3", retry_of="r2")
        assert [e.seq for e in await store.list_events(**_NAMED)] == [1, 2, 5, 6, 7]
        assert (await _record(store, "r1")).superseded_by is None

    async def test_state_and_steps_stay(self, store: Store) -> None:
        run = await start(store, "r1")
        delta = event(run, 1, state={"a": 1, "user:b": 2}, increments={"n": 3})
        await write(store, run, delta, steps=[step("k", 7)], move=Move.COMPLETE)
        again = await store.submit(new_run("r2", retry_of="r1"), begin=True)
        assert again.begun is not None
        assert again.begun.session.state == {"a": 1, "user:b": 2, "n": 3}
        assert again.begun.steps == []
        assert [s.result for s in await store.list_steps(run.uid)] == [7]

    async def test_calls_of_the_old_branch_are_not_pinned(self, store: Store) -> None:
        before = await start(store, "r0")
        await write(store, before, event(before, 1, calls=["c0"]), move=Move.COMPLETE)
        run = await start(store, "r1")
        await write(store, run, event(run, 1, calls=["c1"], responses=["c0"], summary_until=3), move=Move.COMPLETE)
        assert [e.seq for e in (await store.history(session_key(), 0)).pinned] == [2, 4]
        await start(store, "r2", retry_of="r1")
        history = await store.history(session_key(), 1)
        assert [e.seq for e in history.events] == [5]
        assert [e.seq for e in history.pinned] == [2], "the call that only the old branch answered is open again"

    async def test_questions_of_the_old_branch_are_dropped(self, store: Store) -> None:
        answered = await start(store, "r1")
        await ask(store, answered, 1)
        await reply(store, answered)
        answered = (await store.begin(answered.uid)).record
        await write(store, answered, event(answered, 2, "thanks"), move=Move.COMPLETE)
        cancelled = await start(store, "r2")
        await ask(store, cancelled, 1)
        await store.request_cancel(cancelled.uid, "enough")
        again = (await store.submit(new_run("r3", retry_of="r1"), begin=True)).record
        assert await store.list_interrupts("shop") == []
        assert await _counting(store) == [("r3", "Hello")]
        with raises(Conflict, "interrupt.closed"):
            await reply(store, cancelled)
        async with unchanged(store):
            await reply(store, answered)
        await write(store, again, event(again, 1, "ok"), move=Move.COMPLETE)

    # -- what is still to be read -----------------------------------------------------------------------------------

    async def test_a_run_reads_as_it_did(self, store: Store) -> None:
        run = await start(store, "r1")
        await write(store, run, event(run, 1, "one"), event(run, 2, "two"))
        run = (await next_attempt(store, run)).record
        await write(store, run, event(run, 1, "one"), event(run, 2, "other"), move=Move.COMPLETE)
        before, record = await store.run_events(run.uid), await _record(store, "r1")
        assert [(e.text, e.superseded) for e in before] == [("one", False), ("two", True), ("other", False)]
        await start(store, "r2", retry_of="r1")
        assert await store.run_events(run.uid) == before
        assert await store.run_events(run.uid, after=2, limit=1) == before[1:2]
        assert await _record(store, "r1") == record.evolve(superseded_by="r2")
        assert [e.superseded for e in await _log(store)] == [True, True, True, True, False]

    async def test_a_retry_of_a_retry(self, store: Store) -> None:
        await finished(store, "r0", None, "before")
        for n in range(1, 4):
            run = await start(store, f"r{n}", retry_of=f"r{n - 1}" if n > 1 else None)
            await write(store, run, event(run, 1, f"try {n}"), move=Move.COMPLETE)
        assert await _counting(store) == [("r0", "Hello"), ("r0", "before"), ("r3", "Hello"), ("r3", "try 3")]
        assert [(await _record(store, f"r{n}")).superseded_by for n in range(4)] == [None, "r2", "r3", None]

    async def test_an_earlier_run_takes_repeats_with_it(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        await finished(store, "r2", None, "two")
        run = await start(store, "r3", retry_of="r2")
        await write(store, run, event(run, 1, "two again"), move=Move.COMPLETE)
        await start(store, "r4", retry_of="r1")
        assert await _counting(store) == [("r4", "Hello")]
        assert [(await _record(store, f"r{n}")).superseded_by for n in range(1, 4)] == ["r4", "r3", "r4"]

    # -- when ------------------------------------------------------------------------------------------------------

    async def test_a_queued_repeat_takes_the_place_once_it_begins(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        await finished(store, "r2", None, "two")
        counting = await _counting(store)
        queued = (await store.submit(new_run("r3", text="Edited", retry_of="r1"), begin=False)).record
        assert (queued.retry_of, queued.message_seq) == ("r1", None)
        assert await _counting(store) == counting
        assert (await _record(store, "r1")).superseded_by is None
        store = await self.reopen(store)
        await store.submit(new_run("r4"), begin=False)
        begun = await store.begin((await _record(store, "r3")).uid)
        assert (begun.record.message_seq, begun.session.event_count) == (5, 5)
        assert await _counting(store) == [("r3", "Edited")]
        assert [(await _record(store, f"r{n}")).superseded_by for n in (1, 2, 3, 4)] == ["r3", "r3", None, None]

    async def test_a_later_attempt_takes_no_place_again(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        run = await start(store, "r2", retry_of="r1")
        await write(store, run, event(run, 1, "half", state={"n": 1}))
        await start(store, "r3")
        begun = await next_attempt(store, run)
        assert begun.record.message_seq == 3
        assert await _counting(store) == [("r2", "Hello"), ("r2", "half"), ("r3", "Hello")]

    async def test_a_queued_repeat_that_never_begins_changes_nothing(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        counting = await _counting(store)
        queued = (await store.submit(new_run("r2", retry_of="r1"), begin=False)).record
        await store.request_cancel(queued.uid, "enough")
        assert await _counting(store) == counting
        assert (await _record(store, "r1")).superseded_by is None
        again = await start(store, "r3", retry_of="r2")
        assert again.retry_of == "r2"
        assert await _counting(store) == [("r3", "Hello")], "it stands where the one was to stand that never began"
        assert [(await _record(store, f"r{n}")).superseded_by for n in (1, 2)] == ["r3", "r3"]

    async def test_a_run_that_never_began_is_repeated_after_what_came_before_it(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        queued = (await store.submit(new_run("r2"), begin=False)).record
        await store.request_cancel(queued.uid, "enough")
        await start(store, "r3", retry_of="r2")
        assert await _counting(store) == [("r1", "Hello"), ("r1", "one"), ("r3", "Hello")]

    # -- what is refused --------------------------------------------------------------------------------------------

    async def test_only_runs_of_the_session_are_repeated(self, store: Store) -> None:
        await finished(store, "r2", session_key("s2"), "x")
        await finished(store, "r3", session_key(user_id="bob"), "x")
        await finished(store, "r4", session_key(app_name="other"), "x")
        await finished(store, "r5", None, "x")
        async with unchanged(store, "shop", "other"):
            for missing in ("r2", "r3", "r4", "r6", "r9"):
                for begin in (True, False):
                    with raises(NotFound, "run.not_found"):
                        await store.submit(new_run("r9", retry_of=missing), begin=begin)
            with raises(NotFound, "run.not_found"):
                await store.submit(new_run("r9", session_key("s8"), retry_of="r5"), begin=True)

    @pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING])
    async def test_a_run_that_goes_on_is_not_repeated(self, store: Store, status: RunStatus) -> None:
        await _under_way(store, "r1", status)
        async with unchanged(store):
            for begin in (True, False):
                with raises(Conflict, "run.not_finished"):
                    await store.submit(new_run("r9", retry_of="r1"), begin=begin)

    @pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING])
    async def test_nothing_is_repeated_while_a_later_run_goes_on(self, store: Store, status: RunStatus) -> None:
        await finished(store, "r1", None, "one")
        await finished(store, "r2", None, "two")
        later = await _under_way(store, "r3", status)
        await finished(store, "r4", None, "four")
        async with unchanged(store):
            for begin in (True, False):
                with pytest.raises(Conflict, match="'r3'") as caught:
                    await store.submit(new_run("r9", retry_of="r1"), begin=begin)
                assert caught.value.code == "run.not_finished"
        await store.submit(new_run("r5", retry_of="r4"), begin=False)
        await store.request_cancel((await _record(store, "r5")).uid, "enough")
        if status is RunStatus.RUNNING:
            await write(store, later, move=Move.CANCEL)
        await store.request_cancel(later.uid, "enough")
        assert not (await store.submit(new_run("r9", retry_of="r1"), begin=True)).known

    @pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING])
    async def test_an_earlier_run_may_go_on(self, store: Store, status: RunStatus) -> None:
        await _under_way(store, "r1", status)
        await finished(store, "r2", None, "two")
        counting = [e for e in await _counting(store) if e[0] == "r1"]
        await start(store, "r3", retry_of="r2")
        assert await _counting(store) == [*counting, ("r3", "Hello")]

    async def test_a_run_is_repeated_once(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        await finished(store, "r2", None, "two")
        run = await start(store, "r3", retry_of="r1")
        async with unchanged(store):
            with raises(Conflict, "run.not_finished"):
                await store.submit(new_run("r9", retry_of="r1"), begin=False)
        await write(store, run, move=Move.COMPLETE)
        for old in ("r1", "r2"):
            async with unchanged(store):
                for begin in (True, False):
                    with pytest.raises(Conflict, match="'r3'") as caught:
                        await store.submit(new_run("r9", retry_of=old), begin=begin)
                    assert caught.value.code == "run.superseded"

    async def test_submitting_a_repeat_again_changes_nothing(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        run = await start(store, "r2", retry_of="r1")
        await write(store, run, move=Move.COMPLETE)
        await finished(store, "r3", None, "three")
        for begin in (True, False):
            async with unchanged(store):
                assert (await store.submit(new_run("r2", retry_of="r1"), begin=begin)).known

    async def test_a_run_id_is_for_one_repeated_run(self, store: Store) -> None:
        await finished(store, "r1", None, "one")
        await finished(store, "r2", None, "two")
        await finished(store, "r3", None, "three")
        await start(store, "r4", retry_of="r3")
        async with unchanged(store):
            for other in ("r1", None):
                with raises(Conflict, "run.conflict"):
                    await store.submit(new_run("r4", retry_of=other), begin=True)
            with raises(Conflict, "run.conflict"):
                await store.submit(new_run("r1", retry_of="r2"), begin=True)

    async def test_a_repeat_that_is_refused_changes_nothing(self, store: Store) -> None:
        await store.create_session(app_name="shop", user_id="alice", session_id="s1", state={"n": "text"})
        earlier = await start(store, "r0")
        await finished(store, "r1", None, "one")
        bad = message("r2")
        bad = bad.evolve(actions=bad.actions.model_copy(update={"state_increments": {"n": 1}}))
        async with unchanged(store):
            with raises(InvalidInput, "state.not_a_number"):
                await store.submit(new_run("r2", message=bad, retry_of="r1"), begin=True)
            with raises(Conflict, "session.busy"):
                await store.submit(new_run("r3", retry_of="r1", reject_if_busy=True), begin=True)
        await write(store, earlier, move=Move.COMPLETE)
        queued = (await store.submit(new_run("r2", message=bad, retry_of="r1"), begin=False)).record
        async with unchanged(store):
            with raises(InvalidInput, "state.not_a_number"):
                await store.begin(queued.uid)

    # -- who starts -------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("begin", [True, False])
    async def test_it_starts_where_the_repeated_run_started(self, store: Store, begin: bool) -> None:
        run = await start(store, "r0")
        await write(store, run, event(run, 1, "over"), agent="sales", move=Move.COMPLETE)
        run = await start(store, "r1")
        assert (run.agent, run.start_agent) == ("sales", "sales")
        await write(store, run, event(run, 1, "over"), agent="billing")
        run = (await next_attempt(store, run)).record
        assert (run.agent, run.start_agent) == ("billing", "sales")
        await write(store, run, move=Move.COMPLETE)
        run = await start(store, "r2")
        assert (run.agent, run.start_agent) == ("billing", "billing")
        await write(store, run, event(run, 1, "over"), agent="support", move=Move.COMPLETE)
        again = (await store.submit(new_run("r3", retry_of="r1"), begin=begin)).begun
        if again is None:
            assert (await store.get_session(**_NAMED)).active_agent == "support"
            again = await store.begin((await _record(store, "r3")).uid)
        assert (again.record.agent, again.record.start_agent, again.record.transfers) == ("sales", "sales", 0)
        assert again.session.active_agent == "sales"
        await write(store, again.record, move=Move.COMPLETE)
        assert (await start(store, "r4")).agent == "sales", "the hand-overs of the old branch do not count"

    async def test_it_starts_at_the_root_where_the_repeated_run_did(self, store: Store) -> None:
        run = await start(store, "r1")
        await write(store, run, event(run, 1, "over"), agent="billing", move=Move.COMPLETE)
        again = await start(store, "r2", retry_of="r1")
        assert (again.agent, again.start_agent) == (None, None)
        assert (await store.get_session(**_NAMED)).active_agent is None

    async def test_a_run_that_never_began_says_nothing_of_who_starts(self, store: Store) -> None:
        run = await start(store, "r0")
        await write(store, run, event(run, 1, "over"), agent="sales", move=Move.COMPLETE)
        queued = (await store.submit(new_run("r1"), begin=False)).record
        await store.request_cancel(queued.uid, "enough")
        again = await start(store, "r2", retry_of="r1")
        assert (again.agent, again.start_agent) == ("sales", "sales")
        assert (await store.get_session(**_NAMED)).active_agent == "sales"


_NAMED: dict[str, Any] = {"app_name": "shop", "user_id": "alice", "session_id": "s1"}


async def _record(store: Store, run_id: str) -> RunRecord:
    return await store.get_run("shop", run_id, "alice")


async def _log(store: Store) -> list[Event]:
    return await store.list_events(**_NAMED, superseded=True, limit=1000)


async def _counting(store: Store) -> list[tuple[str, str]]:
    """Run and text of the events that count, which the history and the listing agree on."""
    listed = await store.list_events(**_NAMED)
    assert (await store.history(session_key(), None)).events == listed
    assert (await store.get_session(**_NAMED, events=1000)).events == tuple(listed)
    return [(e.run_id, e.text) for e in listed]


async def _under_way(store: Store, run_id: str, status: RunStatus) -> RunRecord:
    """A run of this status."""
    record = (await store.submit(new_run(run_id), begin=status is not RunStatus.QUEUED)).record
    if status is RunStatus.WAITING:
        await ask(store, record, 1)
    return record

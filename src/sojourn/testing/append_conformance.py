"""The cases on `append`: numbers, atomicity, identity, hand-over; and what a terminal append closes."""

# A case is told by its name.

from __future__ import annotations

from typing import Any

import pytest

from sojourn.errors import Conflict, Fenced, InvalidInput
from sojourn.event import Event, EventActions, Usage
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Store
from sojourn.run.types import RunError, RunRecord
from sojourn.session.state import StateDelta
from sojourn.testing.builders import (
    ask,
    attempt,
    event,
    failure,
    new_run,
    next_attempt,
    question,
    question_event,
    reply,
    session_key,
    start,
    step,
    write,
)
from sojourn.testing.suite import StoreSuite, manual_clock, raises, unchanged


class AppendConformance(StoreSuite):
    """One append: all of it or nothing, once, by the newest attempt only."""

    # -- numbers ----------------------------------------------------------------------------------------------------

    async def test_events_get_their_numbers(self, store: Store) -> None:
        run, other = await start(store, "r1"), await start(store, "r2")
        first = await write(store, run, event(run, 1, "a"), event(run, 2, "b"))
        await write(store, other, event(other, 1, "x"))
        second = await write(store, run, event(run, 3, "c"))
        assert [_numbers(e) for e in (*first.events, *second.events)] == [(3, 2), (4, 3), (6, 4)]
        assert (first.record.last_pos, second.record.last_pos) == (3, 4)
        assert await store.get_run("shop", "r1") == second.record
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert session.event_count == 6

    async def test_an_empty_append_changes_nothing_but_the_time(self, store: Store) -> None:
        with manual_clock() as clock:
            run = await start(store)
            async with unchanged(store):
                assert (await write(store, run)).events == []
            clock.advance(2)
            await write(store, run)
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert session.updated_at == session.created_at + 2

    @pytest.mark.parametrize("by", [Move.COMPLETE, Move.FAIL, Move.CANCEL])
    async def test_terminal_frame_takes_the_next_pos(self, store: Store, by: Move) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "a"))
        error = None if by is Move.COMPLETE else failure()
        with manual_clock() as clock:
            record = (await write(store, run, event(run, 2, "b"), move=by, error=error)).record
        assert (record.last_pos, record.error, record.finished_at) == (4, error, clock.now())

    async def test_errors_come_back_whole(self, store: Store) -> None:
        run = await start(store)
        error = RunError("model.failed", "sch\u00f6n\x00 👩‍🚀", "ModelError", True)
        await write(store, run, move=Move.FAIL, error=error)
        record = await store.get_run("shop", "r1")
        assert record.error == error

    async def test_usage_is_summed(self, store: Store) -> None:
        run = await start(store)
        usage = Usage(prompt_token_count=5, total_token_count=8, candidates_token_count=3)
        first = event(run, 1, "a", usage_metadata=usage)
        await write(store, run, first, event(run, 2, "b"))
        await write(store, run, first, event(run, 3, "c", usage_metadata=Usage(total_token_count=1, thoughts_token_count=1)))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "a", usage_metadata=usage))
        await write(store, second, event(second, 2, "other", usage_metadata=Usage(total_token_count=10)), move=Move.COMPLETE)
        total = (await store.get_run("shop", "r1")).usage
        assert {k: n for k, n in total.items() if n} == {
            "prompt_token_count": 5, "candidates_token_count": 3, "total_token_count": 19, "thoughts_token_count": 1,
        }  # fmt: skip

    # -- the fence --------------------------------------------------------------------------------------------------

    async def test_zombie_attempt_is_fenced(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "a"))
        second = (await next_attempt(store, run)).record
        async with unchanged(store):
            for number in (0, 1, 3, -1):
                zombie = attempt(run, number)
                with raises(Fenced, "run.fenced"):
                    await write(
                        store, zombie, event(zombie, 2, "b", state={"user:n": 1}), steps=[step("k")],
                        interrupts=[question()], state=StateDelta({"app:x": 1}), agent="other",
                    )  # fmt: skip
                with raises(Fenced, "run.fenced"):
                    await write(store, zombie, move=Move.COMPLETE)
        await write(store, second, event(second, 1, "a"))

    async def test_unknown_run_is_fenced(self, store: Store) -> None:
        run = await start(store)
        stranger = run.evolve(uid=run.uid + 1_000_000)
        async with unchanged(store):
            with raises(Fenced, "run.fenced"):
                await write(store, stranger, event(run, 1, "x"))

    async def test_run_that_never_began_is_fenced(self, store: Store) -> None:
        # Of a length that is not worth keeping in memory, too.
        for run_id, text in (("r1", "Hello"), ("r2", "Hello " * 10_000)):
            queued = (await store.submit(new_run(run_id, text=text), begin=False)).record
            async with unchanged(store):
                with raises(Fenced, "run.fenced"):
                    await write(store, attempt(queued, 1), event(attempt(queued, 1), 1, "x"))
            assert (await store.begin(queued.uid)).record.message.text == text

    async def test_repeating_the_last_append_is_fenced(self, store: Store) -> None:
        run = await start(store)
        last = event(run, 1, "a")
        await write(store, run, last, move=Move.COMPLETE)
        async with unchanged(store):
            with raises(Fenced, "run.fenced"):
                await write(store, run, last, move=Move.COMPLETE)

    # -- atomicity --------------------------------------------------------------------------------------------------

    async def test_bad_increment_in_the_second_event_leaves_nothing(self, store: Store) -> None:
        run = await _with_state(store, {"text": "x", "user:n": 1, "flag": True})
        for bad in ("text", "flag"):
            async with unchanged(store):
                with raises(InvalidInput, "state.not_a_number"):
                    await write(
                        store, run, event(run, 1, "a", state={"user:a": 1}, increments={"user:n": 1}),
                        event(run, 2, "b", increments={bad: 1}), steps=[step("k")], interrupts=[question()],
                        state=StateDelta({"app:x": 1}), move=Move.COMPLETE, agent="other",
                    )  # fmt: skip
        await write(store, run, event(run, 1, "other"))

    @pytest.mark.parametrize("by", [float("nan"), float("inf"), "1", True, None, [1]], ids=ascii)
    async def test_increments_are_finite_numbers(self, store: Store, by: Any) -> None:
        run = await _with_state(store, {"n": 1})
        async with unchanged(store):
            with raises(InvalidInput, "state.not_a_number"):
                await write(store, run, state=StateDelta(increments={"n": by}))

    async def test_increments_do_not_leave_the_range_of_numbers(self, store: Store) -> None:
        run = await _with_state(store, {"n": 1.5e308, "big": 10**400})
        async with unchanged(store):
            with raises(InvalidInput, "state.not_a_number"):
                await write(store, run, event(run, 1, "a", increments={"n": 1.5e308}))
            with raises(InvalidInput, "state.not_a_number"):
                await write(store, run, event(run, 1, "a", increments={"big": 0.5}))
        await write(store, run, event(run, 1, "a", increments={"big": 1}))
        assert (await _state(store))["big"] == 10**400 + 1

    @pytest.mark.parametrize(
        ("actions", "code"),
        [
            ({"state_delta": {"app:": 1}}, "state.invalid_key"),
            ({"state_deleted": ("",)}, "state.invalid_key"),
            ({"state_increments": {"x" * 257: 1}}, "state.invalid_key"),
            ({"state_delta": {"a": 1}, "state_deleted": ("a",)}, "state.conflicting_delta"),
            ({"state_delta": {"a": 1}, "state_increments": {"a": 1}}, "state.conflicting_delta"),
            ({"state_deleted": ("a",), "state_increments": {"a": 1}}, "state.conflicting_delta"),
        ],
        ids=str,
    )
    async def test_bad_deltas_leave_nothing(self, store: Store, actions: dict[str, Any], code: str) -> None:
        run = await _with_state(store, {"a": 1})
        bad = event(run, 2, "b").evolve(actions=EventActions(**actions))
        async with unchanged(store):
            with raises(InvalidInput, code):
                await write(store, run, event(run, 1, "a", state={"user:z": 1}), bad, move=Move.COMPLETE)

    @pytest.mark.parametrize("bad", [float("nan"), [float("inf")], {1: 2}, b"bytes", "\ud800"], ids=ascii)
    async def test_nan_leaves_nothing(self, store: Store, bad: Any) -> None:
        run = await start(store)
        batches: list[dict[str, Any]] = [
            {"steps": [step("ok"), step("k", bad)]},
            {"interrupts": [question("q1"), question("q2", prompt=bad)]},
            {"interrupts": [question("q1"), question("q2", schema={"x": bad})]},
            {"state": StateDelta({"a": 1, "b": bad})},
        ]
        async with unchanged(store):
            for batch in batches:
                with raises(InvalidInput, "json.invalid"):
                    await write(store, run, event(run, 1, "a", state={"user:z": 1}), **batch)

    async def test_a_conflict_in_the_last_event_leaves_nothing(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "a"), event(run, 2, "b"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other", state={"n": 1}))
        async with unchanged(store):
            with raises(Conflict, "event.conflict"):
                await write(
                    store, second, event(second, 2, "new", state={"n": 2}), event(second, 1, "yet another"), steps=[step("k")]
                )

    # -- identity ---------------------------------------------------------------------------------------------------

    async def test_append_same_event_again_is_a_noop(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "a", state={"n": 1}), event(run, 2, "b", calls=["c1"], increments={"n": 1}))
        second = (await next_attempt(store, run)).record
        async with unchanged(store, but=["updated_at"]):
            again = await write(
                store, second, event(second, 1, "a", state={"n": 1}), event(second, 2, "b", calls=["c1"], increments={"n": 1})
            )
        assert again.events == [None, None]
        third = await write(store, second, event(second, 2, "b", calls=["c1"], increments={"n": 1}), event(second, 3, "c"))
        assert [e and _numbers(e) for e in third.events] == [None, (4, 4)]

    async def test_ids_and_times_do_not_make_an_event_different(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "a", id="first", custom_metadata={"a": 1}))
        second = (await next_attempt(store, run)).record
        again = event(second, 1, "a", id="second", usage_metadata=Usage(total_token_count=9)).evolve(timestamp=1.0)
        async with unchanged(store, but=["updated_at"]):
            assert (await write(store, second, again)).events == [None]

    @pytest.mark.parametrize(
        "change",
        [
            {"text": "b"}, {"author": "other"}, {"output": [1]}, {"interrupted": True}, {"error_code": "x"}, {"calls": ["c"]},
            {"state": {"n": 2}}, {"increments": {"m": 1}}, {"deleted": ["m"]},
        ],
        ids=str,
    )  # fmt: skip
    async def test_what_makes_an_event_different(self, store: Store, change: dict[str, Any]) -> None:
        run = await start(store)
        base: dict[str, Any] = {"text": "a", "state": {"n": 1}}
        await write(store, run, event(run, 1, **base))
        async with unchanged(store):
            with raises(Conflict, "event.conflict"):
                await write(store, run, event(run, 1, **base | change))
        second = (await next_attempt(store, run)).record
        [stored] = (await write(store, second, event(second, 1, **base | change))).events
        assert stored is not None
        assert stored.supersedes == 2

    async def test_repeating_an_append_whose_reply_was_lost(self, store: Store) -> None:
        run = await start(store)
        events = [event(run, 1, "a", increments={"n": 1}, usage_metadata=Usage(total_token_count=5)), event(run, 2, "b")]
        rest: dict[str, Any] = {"steps": [step("j", 1), step("k", 2)], "interrupts": [question("q1")]}
        first = await write(store, run, *events, question_event(run, 3, "q1"), **rest)
        await reply(store, run)
        async with unchanged(store, but=["updated_at"]):
            again = await write(store, run, *events, question_event(run, 3, "q1"), **rest)
        assert again.events == first.events
        assert [i.status for i in await store.list_interrupts("shop", open_only=False)] == ["answered"]

    async def test_one_event_twice_in_a_batch(self, store: Store) -> None:
        run = await start(store)
        one = event(run, 1, "a", increments={"n": 1})
        appended = await write(store, run, one, one, event(run, 2, "b"))
        assert [e and _numbers(e) for e in appended.events] == [(2, 2), (2, 2), (3, 3)]
        assert (await _state(store)) == {"n": 1}
        async with unchanged(store):
            with raises(Conflict, "event.conflict"):
                await write(store, run, event(run, 3, "c"), event(run, 3, "d"))

    async def test_the_message_is_not_written_over(self, store: Store) -> None:
        run = await start(store)
        second = (await next_attempt(store, run)).record
        async with unchanged(store):
            with raises(Conflict, "event.conflict"):
                await write(store, second, event(second, 0, "other"))

    async def test_branches_count_for_themselves(self, store: Store) -> None:
        run = await start(store)
        branches = (None, "a", "b", "a.a", "A", "a%", "a_")
        await write(store, run, *(event(run, 1, f"in {b}", branch=b) for b in branches))
        second = (await next_attempt(store, run)).record
        async with unchanged(store, but=["updated_at"]):
            again = await write(store, second, *(event(second, 1, f"in {b}", branch=b) for b in branches))
        assert again.events == [None] * len(branches)

    async def test_runs_count_for_themselves(self, store: Store) -> None:
        run, other = await start(store, "r1"), await start(store, "r2")
        await write(store, run, event(run, 1, "a"))
        [stored] = (await write(store, other, event(other, 1, "b"))).events
        assert stored is not None
        assert [e.text for e in await _counting(store)] == ["Hello", "Hello", "a", "b"]

    # -- divergence -------------------------------------------------------------------------------------------------

    async def test_a_different_event_supersedes_what_followed(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, *(event(run, n, str(n)) for n in range(1, 5)))
        second = (await next_attempt(store, run)).record
        appended = await write(store, second, event(second, 1, "1"), event(second, 2, "other"), event(second, 3, "new"))
        first, other, new = appended.events
        assert first is None
        assert other is not None
        assert new is not None
        assert (_numbers(other), other.supersedes, other.attempt) == ((6, 6), 3, 2)
        assert (_numbers(new), new.supersedes) == ((7, 7), None)
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "other", "new"]

    async def test_what_followed_is_stored_anew_even_if_equal(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), event(run, 2, "2"), event(run, 3, "3"))
        second = (await next_attempt(store, run)).record
        appended = await write(store, second, event(second, 1, "other"), event(second, 2, "2"))
        assert [e and _numbers(e) for e in appended.events] == [(5, 5), (6, 6)]
        third = await write(store, second, event(second, 3, "3"))
        assert [e and _numbers(e) for e in third.events] == [(7, 7)]
        assert [e.text for e in await _counting(store)] == ["Hello", "other", "2", "3"]

    async def test_a_third_attempt_is_compared_with_what_counts(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), event(run, 2, "2"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "1"), event(second, 2, "other"))
        third = (await next_attempt(store, second)).record
        appended = await write(store, third, event(third, 1, "1"), event(third, 2, "2"))
        assert appended.events[0] is None
        assert appended.events[1] is not None
        assert appended.events[1].supersedes == 4
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "2"]

    async def test_other_runs_are_not_superseded(self, store: Store) -> None:
        run, other = await start(store, "r1"), await start(store, "r2")
        await write(store, run, event(run, 1, "1"))
        await write(store, other, event(other, 1, "theirs"))
        await write(store, run, event(run, 2, "2"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"))
        assert [e.text for e in await _counting(store)] == ["Hello", "Hello", "theirs", "other"]

    async def test_branches_below_are_superseded_but_not_siblings(self, store: Store) -> None:
        run = await start(store)
        branches = ("a", "a.x", "a.x.y", "ab", "a_", "a%", "A", "A.x", "b", None, "xa.x")
        await write(store, run, event(run, 1, "first", branch="a.x"), event(run, 1, "first", branch="a"))
        await write(store, run, *(event(run, 2, str(b), branch=b) for b in branches))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other", branch="a"))
        kept = ["Hello", "first", "ab", "a_", "a%", "A", "A.x", "b", "None", "xa.x", "other"]
        assert [e.text for e in await _counting(store)] == kept

    @pytest.mark.parametrize("above", ["a%", "a_", "%", "A"])
    async def test_branch_names_are_no_patterns(self, store: Store, above: str) -> None:
        run = await start(store)
        branches = (above, f"{above}.x", "ab", "ab.x", "a", "a.x")
        await write(store, run, *(event(run, 1, b, branch=b) for b in branches))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other", branch=above))
        assert [e.text for e in await _counting(store)] == ["Hello", "ab", "ab.x", "a", "a.x", "other"]

    async def test_the_main_branch_is_above_all(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), event(run, 1, "a", branch="a"), event(run, 1, "b", branch="a.b"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"))
        assert [e.text for e in await _counting(store)] == ["Hello", "other"]

    async def test_an_attempt_does_not_supersede_its_own(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), event(run, 1, "a", branch="a"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 2, "mine", branch="a", state={"n": 1}))
        await write(store, second, event(second, 1, "other"))
        assert [e.text for e in await _counting(store)] == ["Hello", "mine", "other"]
        assert await _state(store) == {"n": 1}

    async def test_an_answer_goes_with_its_call(self, store: Store) -> None:
        run = await start(store)
        asked = [question("q1"), question("q2")]
        asking = (question_event(run, 2, "q1"), question_event(run, 3, "q2"))
        await write(store, run, event(run, 1, "1"), *asking, interrupts=asked)
        await reply(store, run, "q1")
        await reply(store, run, "q2")
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "1"), question_event(second, 2, "q1"), event(second, 3, "other"))
        history = await store.history(session_key(), None)
        assert [e.seq for e in history.events] == [1, 2, 3, 5, 7]
        third = (await next_attempt(store, second)).record
        await write(store, third, event(third, 1, "yet another"))
        history = await store.history(session_key(), None)
        assert [e.seq for e in history.events] == [1, 8]

    @pytest.mark.parametrize("together", [False, True])
    async def test_what_an_attempt_has_said_again_counts_whatever_it_says_after_it(self, store: Store, together: bool) -> None:
        run = await _with_state(store, {"a": "found"})
        await write(store, run, event(run, 1, "x", branch="x"), event(run, 1, "later"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "new", branch="x", state={"a": 2}), said={None: 1, "x": 1})
        await write(store, second, event(second, 1, "later"), said={None: 1, "x": 2})
        third = (await next_attempt(store, second)).record
        again = event(third, 1, "new", branch="x", state={"a": 2})
        if together:
            await write(store, third, again, event(third, 1, "other"), said={None: 1, "x": 1})
        else:
            await write(store, third, again, said={None: 1, "x": 1})
            await write(store, third, event(third, 1, "other"), said={None: 1, "x": 2})
        await write(store, third, move=Move.COMPLETE, live={None: 2, "x": 2}, said={None: 2, "x": 2})
        assert [e.text for e in await _counting(store)] == ["Hello", "new", "other"]
        assert await _state(store) == {"a": 2}

    async def test_what_an_attempt_has_not_said_again_does_not_count_after_something_else(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "x1", branch="x"), event(run, 1, "later"), event(run, 2, "x2", branch="x"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "x1", branch="x"), said={None: 1, "x": 1})
        await write(store, second, event(second, 1, "other"), said={None: 1, "x": 2})
        assert [e.text for e in await _counting(store)] == ["Hello", "x1", "other"]

    # -- what an attempt leaves over --------------------------------------------------------------------------------

    @pytest.mark.parametrize("by", [Move.COMPLETE, Move.FAIL, Move.CANCEL, Move.WAIT])
    async def test_leftovers_of_earlier_attempts_do_not_count(self, store: Store, by: Move) -> None:
        run = await start(store)
        await write(
            store, run, event(run, 1, "1"), event(run, 2, "2"), event(run, 1, "a1", branch="a"),
            event(run, 2, "a2", branch="a"), event(run, 1, "b1", branch="b"), event(run, 0, "c0", branch="c"),
        )  # fmt: skip
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "1"), event(second, 1, "a1", branch="a"))
        await write(store, second, move=by, live={None: 2, "a": 2})
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "a1"]

    async def test_leftovers_stay_unless_told(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), event(run, 2, "2"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "1"), live={None: 2})
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "2"]
        await write(store, second, live={None: 2}, move=Move.REQUEUE)
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "2"]
        third = (await store.begin(run.uid)).record
        await write(store, third, move=Move.COMPLETE)
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "2"]

    async def test_leftovers_are_never_the_attempts_own(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "1"), event(second, 2, "2"), event(second, 1, "a1", branch="a"))
        await write(store, second, event(second, 3, "3"), live={}, move=Move.WAIT)
        assert [e.text for e in await _counting(store)] == ["Hello", "2", "a1", "3"]

    async def test_leftovers_put_back_state_once(self, store: Store) -> None:
        run = await _with_state(store, {"n": 10, "a": "found", "b": "found"})
        await write(
            store, run, event(run, 1, "1", increments={"n": 1}), event(run, 2, "2", state={"a": 1}, increments={"n": 2}),
            event(run, 3, "3", state={"b": 1}, increments={"n": 4}),
        )  # fmt: skip
        second = (await next_attempt(store, run)).record
        other = event(second, 2, "other", increments={"n": 100})
        await write(store, second, event(second, 1, "1", increments={"n": 1}), other, live={None: 3}, move=Move.COMPLETE)
        assert await _state(store) == {"n": 111, "a": "found", "b": "found"}

    async def test_answers_to_leftover_calls_do_not_count(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), question_event(run, 2, "q1"), interrupts=[question("q1")])
        await reply(store, run)
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "1"), live={None: 2}, move=Move.COMPLETE)
        assert [e.seq for e in (await store.history(session_key(), None)).events] == [1, 2]

    async def test_an_answer_follows_its_call_to_another_place(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"))
        await ask(store, run, 2)
        await reply(store, run)
        second = (await store.begin(run.uid)).record
        await write(store, second, event(second, 1, "1"), event(second, 2, "other"))
        assert [e.seq for e in await _counting(store)] == [1, 2, 5]
        batch = [question_event(second, 3, "q1"), event(second, 4, "4")]
        appended = await write(store, second, *batch)
        assert [(e.seq, e.pos) for e in appended.events if e is not None] == [(6, 5), (8, 6)]
        assert appended.record.last_pos == 6
        again = (await _counting(store))[4]
        assert (again.seq, again.pos, again.ordinal, again.author, again.superseded) == (7, None, None, "user", False)
        assert again.get_function_responses()[0].response == {"result": "yes"}
        assert (await store.history(session_key(), 0)).pinned == []
        # A batch that is repeated because its reply was lost stores nothing again.
        async with unchanged(store, but=["updated_at"]):
            await write(store, second, *batch)
        third = (await next_attempt(store, second)).record
        await write(store, third, event(third, 1, "1"), event(third, 2, "third"), question_event(third, 3, "q1"))
        log = await store.list_events(app_name="shop", user_id="alice", session_id="s1", limit=1000, superseded=True)
        assert [e.seq for e in log] == list(range(1, 12))
        assert len({e.id for e in log}) == len(log)
        assert [e.seq for e in log if not e.superseded] == [1, 2, 9, 10, 11]
        assert log[-1].get_function_responses()[0].response == {"result": "yes"}
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert session.event_count == 11

    async def test_what_comes_after_an_answer_that_followed_its_call_is_put_back_by_its_own_number(self, store: Store) -> None:
        run = await _with_state(store, {"a": "found"})
        await ask(store, run, 1)
        await reply(store, run)
        second = (await store.begin(run.uid)).record
        moved = [event(second, 1, "other"), question_event(second, 2, "q1"), event(second, 3, "3", state={"a": 1})]
        await write(store, second, *moved)
        third = (await next_attempt(store, second)).record
        same = [event(third, 1, "other"), question_event(third, 2, "q1")]
        await write(store, third, *same, event(third, 3, "third"))
        assert await _state(store) == {"a": "found"}
        answers = [r.response for e in await _counting(store) for r in e.get_function_responses()]
        assert answers == [{"result": "yes"}]

    async def test_an_answer_that_counts_where_it_is_stays_there(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)
        await reply(store, run)
        second = (await store.begin(run.uid)).record
        await write(store, second, question_event(second, 1, "q1"), event(second, 2, calls=["q1"]))
        assert [e.seq for e in await _counting(store)] == [1, 2, 3, 4]

    async def test_an_answer_stays_with_a_call_that_is_said_again_with_others(self, store: Store) -> None:
        run = await start(store)
        first = event(run, 1, calls=["q1", "q2"], long_running_tool_ids=("q1", "q2"))
        await write(store, run, first, interrupts=[question("q1"), question("q2")], move=Move.WAIT)
        await reply(store, run, "q1")
        await reply(store, run, "q2", "no")
        second = (await store.begin(run.uid)).record
        other = event(second, 1, calls=["q3", "q2"], long_running_tool_ids=("q3", "q2"))
        await write(store, second, other, interrupts=[question("q3")], move=Move.WAIT)
        assert [(e.seq, [r.id for r in e.get_function_responses()]) for e in await _counting(store)] == [
            (1, []), (5, []), (6, ["q2"]),
        ]  # fmt: skip
        assert [e.seq for e in (await store.history(session_key(), 0)).pinned] == [5, 6]
        await reply(store, run, "q3")
        assert (await store.history(session_key(), 0)).pinned == []

    # -- steps ------------------------------------------------------------------------------------------------------

    async def test_steps_are_kept_in_order_of_completion(self, store: Store) -> None:
        run = await start(store)
        failed = step("b", error=failure("tool.failed"), status="failed", started_at=1.0, finished_at=2.0)
        await write(store, run, steps=[step("z", {"v": [1, None]}), failed])
        await write(store, run, steps=[step("a", "x\x00y")])
        second = (await next_attempt(store, run)).record
        await write(store, second, steps=[step("b", 2**70, attempt=2)])
        steps = await store.list_steps(run.uid)
        assert [(s.key, s.status, s.result, s.attempt) for s in steps] == [
            ("z", "done", {"v": [1, None]}, 1), ("a", "done", "x\x00y", 1), ("b", "done", 2**70, 2),
        ]  # fmt: skip
        assert steps[-1].error is None

    async def test_steps_come_back_whole_and_outlive_the_run(self, store: Store) -> None:
        run = await start(store)
        error = failure("tool.failed")
        given = step("tour@1/book:flight", None, status="failed", error=error, started_at=5.5, finished_at=6.25)
        await write(store, run, steps=[given], move=Move.FAIL, error=failure())
        assert await store.list_steps(run.uid) == [given]

    async def test_steps_are_copies(self, store: Store) -> None:
        run = await start(store)
        result = {"list": [1]}
        await write(store, run, steps=[step("k", result)])
        result["list"].append(2)
        (await store.list_steps(run.uid))[0].result["list"].append(3)
        assert (await store.list_steps(run.uid))[0].result == {"list": [1]}

    # -- hand-over --------------------------------------------------------------------------------------------------

    async def test_a_hand_over_is_recorded(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"))
        record = (await write(store, run, event(run, 2, "over"), agent="billing")).record
        assert (record.agent, record.base_ordinal, record.transfers) == ("billing", 3, 1)
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert session.active_agent == "billing"
        record = (await write(store, run, event(run, 3, "back"), agent="root")).record
        assert (record.agent, record.base_ordinal, record.transfers) == ("root", 4, 2)
        again = (await next_attempt(store, run)).record
        assert (again.agent, again.base_ordinal, again.transfers) == ("root", 4, 2)

    async def test_a_hand_over_is_the_ground_of_later_attempts(self, store: Store) -> None:
        run = await _with_state(store, {"n": 0})
        await write(store, run, event(run, 1, "1", increments={"n": 1}), event(run, 2, "over"), agent="billing")
        await write(store, run, event(run, 3, "3", increments={"n": 10}))
        second = await next_attempt(store, run)
        assert second.session.state == {"n": 1}
        await write(store, second.record, event(second.record, 3, "other", increments={"n": 100}))
        assert await _state(store) == {"n": 101}
        third = await next_attempt(store, second.record)
        assert third.session.state == {"n": 1}
        await write(store, third.record, live={None: 3}, move=Move.COMPLETE)
        assert await _state(store) == {"n": 1}
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "over"]

    async def test_a_repeated_hand_over_is_one(self, store: Store) -> None:
        run = await _with_state(store, {"n": 0})
        over = event(run, 1, "over", increments={"n": 1})
        first = await write(store, run, over, agent="billing")
        async with unchanged(store, but=["updated_at"]):
            again = await write(store, run, over, agent="billing")
        assert again == first
        back = event(run, 2, "back")
        assert (await write(store, run, back, agent="root")).record.transfers == 2
        assert (await write(store, run, back, agent="root")).record.transfers == 2
        assert (await next_attempt(store, run)).session.state == {"n": 1}

    async def test_leftovers_end_at_the_hand_over(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), event(run, 1, "a1", branch="a"))
        await write(store, run, event(run, 2, "over"), agent="billing")
        await write(store, run, event(run, 3, "3"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 3, "other"), live={}, move=Move.COMPLETE)
        assert [e.text for e in await _counting(store)] == ["Hello", "1", "a1", "over", "other"]

    async def test_a_hand_over_may_end_the_run(self, store: Store) -> None:
        run = await start(store)
        record = (await write(store, run, event(run, 1, "over"), agent="billing", move=Move.COMPLETE)).record
        assert (record.status, record.agent) == (RunStatus.COMPLETED, "billing")
        assert (await start(store, "r2")).agent == "billing"


def _numbers(stored: Event | None) -> tuple[int | None, int | None]:
    assert stored is not None
    return stored.seq, stored.pos


async def _with_state(store: Store, state: dict[str, Any]) -> RunRecord:
    """A run under way in a session with this state."""
    await store.create_session(app_name="shop", user_id="alice", session_id="s1", state=state)
    return await start(store)


async def _state(store: Store) -> dict[str, Any]:
    return (await store.get_session(app_name="shop", user_id="alice", session_id="s1")).state


async def _counting(store: Store) -> list[Event]:
    return await store.list_events(app_name="shop", user_id="alice", session_id="s1", limit=1000)

"""The cases on the state that runs write: deltas, increments, what an attempt finds, and what is put back."""

# A case is told by its name.

from __future__ import annotations

from typing import Any

import pytest

from sojourn.run.status import Move
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.session.state import StateDelta
from sojourn.testing.builders import ask, event, failure, new_run, next_attempt, reply, session_key, start, write
from sojourn.testing.suite import StoreSuite

SCOPES = ["", "user:", "app:"]


class StateConformance(StoreSuite):
    """What runs do to state, and what is left of it when another attempt takes another way."""

    # -- deltas -----------------------------------------------------------------------------------------------------

    async def test_deltas_are_folded_in_order(self, store: Store) -> None:
        run = await _run_with(store, {"a": 1, "gone": 1})
        await write(
            store, run, event(run, 1, state={"a": 2, "b": None}), event(run, 2, state={"a": 3}, deleted=["gone"]),
            event(run, 3, increments={"a": 4, "new": 1}), event(run, 4, deleted=["absent"]), state=StateDelta({"last": [1]}),
        )  # fmt: skip
        assert await _state(store) == {"a": 7, "b": None, "new": 1, "last": [1]}

    async def test_events_tell_what_they_changed(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, state={"a": 1, "temp:b": 2}, deleted=["c"], increments={"d": 0.5}))
        [stored] = await store.run_events(run.uid)
        assert stored.actions.state_delta["a"] == 1
        assert (stored.actions.state_deleted, stored.actions.state_increments) == (("c",), {"d": 0.5})

    async def test_writes_of_runs_are_visible_by_scope(self, store: Store) -> None:
        await store.create_session(app_name="shop", user_id="alice", session_id="s2")
        await store.create_session(app_name="shop", user_id="bob", session_id="s1")
        await store.create_session(app_name="other", user_id="alice", session_id="s1")
        run = await start(store)
        await write(store, run, event(run, 1, state={"a": 1, "user:a": 2}, increments={"app:a": 3}))
        assert await _state(store) == {"a": 1, "user:a": 2, "app:a": 3}
        assert await _state(store, "s2") == {"user:a": 2, "app:a": 3}
        assert await _state(store, user_id="bob") == {"app:a": 3}
        assert await _state(store, app_name="other") == {}

    async def test_temp_keys_of_runs_are_not_stored(self, store: Store) -> None:
        run = await start(store)
        delta = StateDelta({"temp:a": 1, "b": 2}, {"temp:c": None}, {"temp:d": 1})
        await write(store, run, event(run, 1, state={"temp:x": 1}, deleted=["temp:y"], increments={"temp:z": 1}), state=delta)
        assert await _state(store) == {"b": 2}
        assert (await next_attempt(store, run)).session.state == {}

    async def test_state_without_event_does_not_retain_callers_values(self, store: Store) -> None:
        run = await start(store)
        delta = StateDelta({"list": [1]})
        await write(store, run, state=delta)
        delta.values["list"].append(2)
        assert await _state(store) == {"list": [1]}

    @pytest.mark.parametrize("scope", SCOPES)
    async def test_increments_add_up(self, store: Store, scope: str) -> None:
        key = f"{scope}n"
        run = await _run_with(store, {})
        other = await start(store, "r2", session_key("s1" if scope == "" else "s2"))
        await write(store, run, event(run, 1, increments={key: 2}))
        await write(store, other, event(other, 1, increments={key: 0.5}))
        await write(store, run, state=StateDelta(increments={key: -5}))
        assert (await _state(store))[key] == -2.5

    async def test_numbers_stay_what_they_are(self, store: Store) -> None:
        run = await _run_with(store, {"whole": 1, "float": 1.0, "big": 2**70})
        await write(store, run, event(run, 1, increments={"whole": 1, "float": 1, "big": 1}))
        state = await _state(store)
        assert {k: (v, type(v)) for k, v in state.items()} == {
            "whole": (2, int),
            "float": (2.0, float),
            "big": (2**70 + 1, int),
        }

    async def test_failed_and_cancelled_runs_keep_what_was_stored(self, store: Store) -> None:
        for by in (Move.FAIL, Move.CANCEL, Move.COMPLETE):
            run = await start(store, by.value)
            await write(store, run, event(run, 1, state={by.value: 1}), move=by, error=failure())
        run = await start(store, "taken")
        await write(store, run, event(run, 1, state={"taken": 1}))
        await store.take_over(run.uid, failure(), move=Move.FAIL)
        assert await _state(store) == {"fail": 1, "cancel": 1, "complete": 1, "taken": 1}

    # -- what an attempt finds --------------------------------------------------------------------------------------

    async def test_a_run_finds_what_all_others_wrote(self, store: Store) -> None:
        first = await start(store, "r1", session_key("s1"))
        await write(store, first, event(first, 1, state={"a": 1, "user:b": 2, "app:c": 3}))
        mine = (await store.submit(new_run("r2", session_key("s1")), begin=True)).begun
        sister = (await store.submit(new_run("r3", session_key("s2")), begin=True)).begun
        theirs = (await store.submit(new_run("r4", session_key(user_id="bob")), begin=True)).begun
        found = [b and b.session.state for b in (mine, sister, theirs)]
        assert found == [{"a": 1, "user:b": 2, "app:c": 3}, {"user:b": 2, "app:c": 3}, {"app:c": 3}]

    @pytest.mark.parametrize("scope", SCOPES)
    async def test_each_attempt_finds_what_the_run_found(self, store: Store, scope: str) -> None:
        set_, deleted, number, new, counter = (f"{scope}{k}" for k in ("set", "deleted", "number", "new", "counter"))
        found = {set_: "found", deleted: [1], number: 10}
        run = await _run_with(store, found)
        changes: dict[str, Any] = {"state": {set_: "x", new: 1}, "deleted": [deleted], "increments": {number: 5, counter: 1}}
        written = {set_: "x", new: 1, number: 15, counter: 1}
        await write(store, run, event(run, 1, **changes))
        assert await _state(store) == written
        second = await next_attempt(store, run)
        assert second.session.state == found
        assert await _state(store) == written
        await write(store, second.record, event(second.record, 1, **changes), event(second.record, 2, state={set_: "y"}))
        assert await _state(store) == {**written, set_: "y"}
        third = await next_attempt(store, second.record)
        assert third.session.state == found

    async def test_an_attempt_after_an_answer_finds_what_the_run_found(self, store: Store) -> None:
        run = await _run_with(store, {"n": 1})
        await write(store, run, event(run, 1, state={"n": 2}, increments={"user:m": 1}))
        await ask(store, run, 2)
        await reply(store, run)
        assert (await store.begin(run.uid)).session.state == {"n": 1}

    async def test_an_attempt_finds_what_others_wrote_to_other_keys(self, store: Store) -> None:
        run = await _run_with(store, {"user:a": 1, "user:n": 1})
        await write(store, run, event(run, 1, state={"user:a": 2}, increments={"user:n": 10}))
        other = await start(store, "r2", session_key("s2"))
        await write(store, other, event(other, 1, state={"user:b": 5}, increments={"user:n": 100}))
        begun = await next_attempt(store, run)
        assert begun.session.state == {"user:a": 1, "user:b": 5, "user:n": 101}
        assert await _state(store) == {"user:a": 2, "user:b": 5, "user:n": 111}

    async def test_an_attempt_finds_its_keys_although_others_wrote_them(self, store: Store) -> None:
        run = await _run_with(store, {"user:a": "found"})
        await write(store, run, event(run, 1, state={"user:a": "mine", "user:new": "mine"}, deleted=["user:b"]))
        await _patch(store, {"user:a": "theirs", "user:new": "theirs"})
        assert (await next_attempt(store, run)).session.state == {"user:a": "found"}
        assert await _state(store) == {"user:a": "theirs", "user:new": "theirs"}

    async def test_an_attempt_finds_no_counter_where_there_was_none(self, store: Store) -> None:
        run = await _run_with(store, {})
        await write(store, run, event(run, 1, increments={"n": 1}), event(run, 2, increments={"n": 2}))
        assert (await next_attempt(store, run)).session.state == {}

    # -- what is put back -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("scope", SCOPES)
    async def test_superseded_deltas_are_put_back(self, store: Store, scope: str) -> None:
        set_, deleted, number, new, counter = (f"{scope}{k}" for k in ("set", "deleted", "number", "new", "counter"))
        found = {set_: "found", deleted: [1], number: 10}
        run = await _run_with(store, found)
        await write(store, run, event(run, 1, "same", state={f"{scope}kept": 1}))
        await write(store, run, event(run, 2, state={set_: "x", new: 1}, deleted=[deleted], increments={number: 5, counter: 1}))
        await write(store, run, event(run, 3, state={set_: "y", deleted: 7}, deleted=[new], increments={number: 2, counter: 2}))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "same", state={f"{scope}kept": 1}), event(second, 2, "other"))
        assert await _state(store) == {**found, f"{scope}kept": 1}

    async def test_only_what_is_superseded_is_put_back(self, store: Store) -> None:
        run = await _run_with(store, {"a": 0})
        await write(store, run, event(run, 1, state={"a": 1}), event(run, 2, state={"a": 2}), event(run, 3, state={"a": 3}))
        second = (await next_attempt(store, run)).record
        await write(
            store, second, event(second, 1, state={"a": 1}), event(second, 2, state={"a": 2}), event(second, 3, "other")
        )
        assert await _state(store) == {"a": 2}
        third = (await next_attempt(store, second)).record
        await write(store, third, event(third, 1, "other"))
        assert await _state(store) == {"a": 0}

    async def test_what_others_wrote_since_is_not_put_back(self, store: Store) -> None:
        run = await _run_with(store, {"user:a": 1, "user:b": 1, "user:c": 1, "user:n": 1})
        await write(store, run, event(run, 1, state={"user:a": 2, "user:b": 2}, deleted=["user:c"], increments={"user:n": 10}))
        other = await start(store, "r2", session_key("s2"))
        await write(store, other, event(other, 1, state={"user:a": 3, "user:c": 3}, increments={"user:n": 100}))
        await _patch(store, {}, ["user:b"])
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"))
        assert await _state(store) == {"user:a": 3, "user:c": 3, "user:n": 101}

    async def test_increments_of_what_is_no_number_any_more_are_left(self, store: Store) -> None:
        run = await _run_with(store, {"a": 1, "b": 1, "c": 1})
        await write(store, run, event(run, 1, increments={"a": 1, "b": 1, "c": 1}))
        await _patch(store, {"a": "text", "b": True}, ["c"])
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"))
        assert await _state(store) == {"a": "text", "b": True}

    @pytest.mark.parametrize(
        ("mine", "theirs"), [(1, True), (1, 1.0), (0, False), ([1], [True]), ({"a": 1}, {"a": 1.0})], ids=str
    )
    async def test_values_that_python_takes_for_equal_are_told_apart(self, store: Store, mine: Any, theirs: Any) -> None:
        run = await _run_with(store, {"a": "found"})
        await write(store, run, event(run, 1, state={"a": mine}))
        await _patch(store, {"a": theirs})
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"))
        assert repr((await _state(store))["a"]) == repr(theirs)

    async def test_what_siblings_wrote_is_not_put_back(self, store: Store) -> None:
        run = await _run_with(store, {"n": 0})
        await write(
            store, run, event(run, 1, branch="a", state={"a": 1}, increments={"n": 1}),
            event(run, 1, branch="b", state={"b": 1}, increments={"n": 10}), event(run, 1, branch="a.x", increments={"n": 100}),
        )  # fmt: skip
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other", branch="a"))
        assert await _state(store) == {"b": 1, "n": 10}
        third = (await next_attempt(store, second)).record
        await write(store, third, event(third, 1, "other", branch="b"))
        assert await _state(store) == {"n": 0}

    async def test_a_sibling_stands_on_what_was_found(self, store: Store) -> None:
        run = await _run_with(store, {"x": "found"})
        await write(store, run, event(run, 1, branch="a", state={"x": "a"}), event(run, 1, branch="b", state={"x": "b"}))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other", branch="a"))
        assert await _state(store) == {"x": "b"}
        third = await next_attempt(store, second)
        assert third.session.state == {"x": "found"}
        await write(store, third.record, event(third.record, 1, "other", branch="b"))
        assert await _state(store) == {"x": "found"}

    async def test_an_increment_below_a_siblings_set_is_not_subtracted(self, store: Store) -> None:
        run = await _run_with(store, {"x": 0})
        await write(store, run, event(run, 1, branch="a", increments={"x": 5}), event(run, 1, branch="b", state={"x": 70}))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other", branch="a"))
        assert await _state(store) == {"x": 70}

    async def test_two_branches_may_diverge_in_one_append(self, store: Store) -> None:
        run = await _run_with(store, {"n": 0})
        await write(
            store, run, event(run, 1, branch="a", increments={"n": 1}), event(run, 1, branch="b", increments={"n": 10}),
            event(run, 2, branch="a", increments={"n": 100}),
        )  # fmt: skip
        second = (await next_attempt(store, run)).record
        one, two = event(second, 1, "other", branch="b"), event(second, 1, "other", branch="a", increments={"n": 1000})
        await write(store, second, one, two)
        assert await _state(store) == {"n": 1000}

    async def test_state_without_event_goes_with_the_newest_event(self, store: Store) -> None:
        run = await _run_with(store, {"a": "found", "b": "found"})
        await write(store, run, event(run, 1, "1"), state=StateDelta({"a": 1}))
        await write(store, run, event(run, 2, "2"))
        await write(store, run, state=StateDelta({"b": 1}))
        second = await next_attempt(store, run)
        assert second.session.state == {"a": "found", "b": "found"}
        await write(store, second.record, event(second.record, 1, "1"), event(second.record, 2, "other"))
        assert await _state(store) == {"a": 1, "b": "found"}
        third = (await next_attempt(store, second.record)).record
        await write(store, third, event(third, 1, "other"))
        assert await _state(store) == {"a": "found", "b": "found"}

    async def test_state_of_a_waiting_append_outlives_the_leftovers(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "1"), event(run, 2, "2", state={"b": 1}))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "1"), state=StateDelta({"a": 1}), live={None: 2}, move=Move.WAIT)
        assert await _state(store) == {"a": 1}

    async def test_nothing_is_put_back_after_the_end(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, state={"a": 1}), move=Move.FAIL, error=failure())
        again = await start(store, "r2", retry_of="r1")
        await write(store, again, event(again, 1, state={"b": 1}), move=Move.COMPLETE)
        assert await _state(store) == {"a": 1, "b": 1}


async def _run_with(store: Store, state: dict[str, Any]) -> RunRecord:
    """A run under way in a session with this state."""
    await store.create_session(app_name="shop", user_id="alice", session_id="s1", state=state)
    return await start(store)


async def _state(store: Store, session_id: str = "s1", *, user_id: str = "alice", app_name: str = "shop") -> dict[str, Any]:
    return (await store.get_session(app_name=app_name, user_id=user_id, session_id=session_id)).state


async def _patch(store: Store, delta: dict[str, Any], deleted: list[str] | None = None) -> None:
    await store.patch_session(app_name="shop", user_id="alice", session_id="s1", state_delta=delta, state_deleted=deleted)

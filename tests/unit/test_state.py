"""State and its changes: scopes, pending writes, overlays, conflicts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sojourn.errors import InvalidInput
from sojourn.event import EventActions
from sojourn.session.state import State, StateDelta, add, check_key, check_number

KEYS = st.sampled_from(["a", "b", "user:a", "app:a", "temp:a"])
NUMBERS = st.integers(-5, 5) | st.sampled_from([0.5, -2.0])
WRITES = st.lists(
    st.tuples(st.just("set"), KEYS, NUMBERS | st.lists(NUMBERS, max_size=2))
    | st.tuples(st.just("delete"), KEYS, st.none())
    | st.tuples(st.just("increment"), KEYS, NUMBERS),
    max_size=12,
)


def write(state: State, how: str, key: str, value: object) -> None:
    """Makes one write, unless the state refuses it."""
    if how == "set":
        state[key] = value
    elif how == "delete":
        state.pop(key, None)
    elif not isinstance(state.get(key, 0), list):
        state.increment(key, value)  # type: ignore[arg-type]


class TestKeys:
    @pytest.mark.parametrize("key", ["a", "user:name", "app:x", "temp:x", "a:b", "é", "x" * 256, "user", "users:a", " "])
    def test_good(self, key):
        assert check_key(key) == key

    @pytest.mark.parametrize(
        "key", ["", "app:", "user:", "temp:", "a\x00", "a\nb", "x" * 257, None, 1, ("a",), "\ud800"], ids=ascii
    )
    def test_bad(self, key):
        state, delta = State(), StateDelta()
        for use in (
            lambda: check_key(key),
            lambda: state.__setitem__(key, 1),
            lambda: state.increment(key),
            lambda: delta.put(key, 1),
            lambda: delta.delete(key),
            lambda: delta.increment(key, 1),
        ):
            with pytest.raises(InvalidInput) as caught:
                use()
            assert caught.value.code == "state.invalid_key"
        assert dict(state) == {}
        assert not delta


class TestState:
    def test_it_is_a_mapping(self):
        state = State({"a": 1, "user:b": 2})
        assert state["a"] == 1
        assert state.get("missing", 7) == 7
        assert list(state) == ["a", "user:b"]
        assert len(state) == 2
        assert "user:b" in state
        assert state == {"a": 1, "user:b": 2}
        assert repr(state) == "State({'a': 1, 'user:b': 2})"
        with pytest.raises(KeyError):
            state["missing"]
        with pytest.raises(KeyError):
            del state["missing"]

    def test_without_a_snapshot_it_is_empty(self):
        assert State().to_dict() == {}
        assert State().take() is None

    def test_writes_are_seen_at_once_and_taken_once(self):
        state = State({"a": 1, "b": 2, "n": 3})
        state["a"] = 10
        state["user:x"] = "new"
        del state["b"]
        state.increment("n", 4)
        assert state.to_dict() == {"a": 10, "n": 7, "user:x": "new"}
        delta = state.take()
        assert delta is not None
        assert (delta.values, list(delta.deleted), delta.increments) == ({"a": 10, "user:x": "new"}, ["b"], {"n": 4})
        assert state.take() is None
        assert state.to_dict() == {"a": 10, "n": 7, "user:x": "new"}

    def test_what_is_written_is_a_copy(self):
        state, value = State(), {"list": [1]}
        state["k"] = value
        value["list"].append(2)
        assert state["k"] == {"list": [1]}
        delta = state.take()
        assert delta is not None
        assert delta.values == {"k": {"list": [1]}}

    def test_what_is_read_is_a_copy(self):
        state = State({"k": {"list": [1]}})
        state["k"]["list"].append(2)
        state.to_dict()["k"]["list"].append(3)
        state.get("k")["list"].append(4)
        next(iter(state.values()))["list"].append(5)
        assert state["k"] == {"list": [1]}
        assert state.take() is None

    @pytest.mark.parametrize("bad", [math.nan, math.inf, {1}, b"x", Ellipsis, {1: 2}, "\ud800"], ids=repr)
    def test_only_json_is_taken(self, bad):
        state = State({"k": 1})
        with pytest.raises(InvalidInput) as caught:
            state["k"] = {"deep": [bad]}
        assert caught.value.code == "json.invalid"
        assert "state['k']" in caught.value.message
        assert state.to_dict() == {"k": 1}

    @given(WRITES)
    def test_applying_what_was_taken_gives_what_was_seen(self, writes):
        start = {"a": 1, "user:a": 2}
        state, mirror = State(dict(start)), State(dict(start))
        for index, one in enumerate(writes):
            write(state, *one)
            if index % 3 == 2 and (delta := state.take()):
                mirror.apply(delta)
        if delta := state.take():
            mirror.apply(delta)
        assert mirror.to_dict() == state.to_dict()
        assert mirror.take() is None

    @given(WRITES)
    def test_a_delta_has_each_key_once(self, writes):
        state = State({"a": 1, "b": [1]})
        for one in writes:
            write(state, *one)
        delta = state.take() or StateDelta()
        keys = [*delta.values, *delta.deleted, *delta.increments]
        assert len(keys) == len(set(keys))

    @given(WRITES)
    def test_a_delta_travels_with_an_event(self, writes):
        state = State({"a": 1})
        for one in writes:
            write(state, *one)
        delta = (state.take() or StateDelta()).durable()
        actions = EventActions(**delta.as_actions())
        assert actions.changes_state is bool(delta)
        assert StateDelta.of(EventActions.model_validate_json(actions.to_json())) == delta


class TestIncrement:
    def test_a_missing_key_counts_as_zero(self):
        state = State()
        assert state.increment("n") == 1
        assert state.increment("n", 2.5) == 3.5
        delta = state.take()
        assert delta is not None
        assert delta.increments == {"n": 3.5}

    def test_after_a_set_it_is_part_of_the_set(self):
        state = State({"n": 100})
        state["n"] = 1
        assert state.increment("n", 2) == 3
        delta = state.take()
        assert delta == StateDelta(values={"n": 3})

    def test_after_a_delete_it_sets(self):
        state = State({"n": 100})
        del state["n"]
        assert state.increment("n", 2) == 2
        assert state.take() == StateDelta(values={"n": 2})

    def test_a_later_set_or_delete_replaces_it(self):
        state = State({"n": 1, "m": 1})
        state.increment("n")
        state.increment("m")
        state["n"] = 9
        del state["m"]
        assert state.take() == StateDelta(values={"n": 9}, deleted={"m": None})

    @pytest.mark.parametrize("held", ["1", None, True, [1], {}], ids=repr)
    def test_only_numbers_can_be_incremented(self, held):
        state = State({"n": held})
        with pytest.raises(InvalidInput) as caught:
            state.increment("n")
        assert caught.value.code == "state.not_a_number"
        assert state.take() is None

    @pytest.mark.parametrize("by", ["1", None, True, math.nan, math.inf, -math.inf, 10**5000], ids=lambda v: type(v).__name__)
    def test_only_by_finite_numbers(self, by):
        state, delta = State({"n": 1}), StateDelta()
        for use in (lambda: state.increment("n", by), lambda: delta.increment("n", by), lambda: check_number(by)):
            with pytest.raises(InvalidInput) as caught:
                use()
            assert caught.value.code == "state.not_a_number"
        assert (state["n"], state.take(), bool(delta)) == (1, None, False)

    @pytest.mark.parametrize(
        ("value", "by"), [(1.7e308, 1.7e308), (10**400, 0.5), (2**13_999, 2**13_999)], ids=["inf", "mixed", "big"]
    )
    def test_the_sum_must_be_a_number_that_can_be_stored(self, value, by):
        state = State({"stored": value})
        state["set"] = value
        state.take()
        state["set"] = value
        state.increment("counted", value)
        for key in ("stored", "set", "counted"):
            with pytest.raises(InvalidInput) as caught:
                state.increment(key, by)
            assert caught.value.code == "state.not_a_number"
            assert state[key] == value
        with pytest.raises(InvalidInput):
            add(value, by)

    def test_large_integers_stay_exact(self):
        state = State({"n": 2**64})
        assert state.increment("n", 1) == 2**64 + 1


class TestOverlay:
    def test_it_starts_from_what_is_seen_and_keeps_its_writes(self):
        state = State({"a": 1, "b": [1]})
        state["c"] = 2
        overlay = state.overlay()
        assert overlay.to_dict() == {"a": 1, "b": [1], "c": 2}
        overlay["a"] = 10
        del overlay["c"]
        overlay["d"] = 4
        assert state.to_dict() == {"a": 1, "b": [1], "c": 2}
        assert overlay.take() == StateDelta(values={"a": 10, "d": 4}, deleted={"c": None})

    def test_later_writes_below_do_not_show(self):
        state = State({"a": 1})
        overlay = state.overlay()
        state["a"] = 2
        assert overlay["a"] == 1

    def test_two_overlays_do_not_see_each_other(self):
        state = State({"n": 1})
        first, second = state.overlay(), state.overlay()
        first.increment("n")
        assert second["n"] == 1


class TestDelta:
    def test_of_an_event(self):
        actions = EventActions(
            state_delta={"a": [1], "temp:x": 1}, state_deleted=("b", "temp:y"), state_increments={"c": 1, "temp:z": 1}
        )
        delta = StateDelta.of(actions)
        assert delta == StateDelta({"a": [1]}, {"b": None}, {"c": 1})
        delta.values["a"].append(2)
        assert actions.state_delta["a"] == [1]

    @pytest.mark.parametrize(
        "actions",
        [
            EventActions(state_delta={"k": 1}, state_deleted=("k",)),
            EventActions(state_delta={"k": 1}, state_increments={"k": 1}),
            EventActions(state_deleted=("k",), state_increments={"k": 1}),
            EventActions(state_delta={"temp:k": 1}, state_deleted=("temp:k",)),
        ],
    )
    def test_two_ways_for_one_key_contradict(self, actions):
        with pytest.raises(InvalidInput) as caught:
            StateDelta.of(actions)
        assert caught.value.code == "state.conflicting_delta"

    @pytest.mark.parametrize(
        "actions",
        [
            EventActions(state_delta={"user:": 1}),
            EventActions(state_deleted=("",)),
            EventActions(state_increments={"a\x00": 1}),
            EventActions(state_delta={"x" * 257: 1}),
        ],
    )
    def test_keys_of_an_event_are_checked(self, actions):
        with pytest.raises(InvalidInput) as caught:
            StateDelta.of(actions)
        assert caught.value.code == "state.invalid_key"

    def test_of_values(self):
        values = {"a": [1], "temp:b": 2}
        delta = StateDelta.of_values(values)
        values["a"].append(2)  # type: ignore[attr-defined]
        assert delta == StateDelta(values={"a": [1], "temp:b": 2})
        assert not StateDelta.of_values(None)
        assert delta.durable() == StateDelta(values={"a": [1]})

    def test_the_last_change_of_a_key_stands(self):
        delta = StateDelta()
        delta.put("a", 1)
        delta.delete("a")
        assert delta == StateDelta(deleted={"a": None})
        delta.put("a", 2)
        assert delta == StateDelta(values={"a": 2})
        delta.delete("a")
        delta.increment("a", 3)
        assert delta == StateDelta(values={"a": 3})

    def test_it_is_true_if_it_changes_anything(self):
        assert not StateDelta()
        for delta in (StateDelta({"a": None}), StateDelta(deleted={"a": None}), StateDelta(increments={"a": 0})):
            assert delta

    def test_empty_fields_do_not_travel(self):
        assert StateDelta().as_actions() == {}
        assert StateDelta({"a": 1}, {"b": None}, {"c": 1}).as_actions() == {
            "state_delta": {"a": 1},
            "state_deleted": ("b",),
            "state_increments": {"c": 1},
        }

    def test_durable_keeps_the_object_if_nothing_is_temporary(self):
        delta = StateDelta({"a": 1})
        assert delta.durable() is delta

"""JSON values: what is one, and that copying, encoding and decoding change nothing."""

import datetime
import decimal
import enum
import json
import math
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from sojourn import jsonvalue
from sojourn.errors import InvalidInput
from sojourn.jsonvalue import MAX_DEPTH, MAX_INT_BITS, JsonValue

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=30)


def same(a: Any, b: Any) -> bool:
    """Equal and of the same types: 1, 1.0 and True are three values here."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


def containers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [value, *(c for v in value.values() for c in containers(v))]
    if isinstance(value, list):
        return [value, *(c for v in value for c in containers(v))]
    return []


@given(VALUES)
def test_copy_is_equal_and_shares_no_container(value):
    copied = jsonvalue.copy(value)
    assert same(copied, value)
    assert not {id(c) for c in containers(copied)} & {id(c) for c in containers(value)}


@given(VALUES)
def test_encode_and_decode_are_inverse(value):
    text = jsonvalue.encode(value)
    assert same(jsonvalue.decode(text), value)
    assert same(jsonvalue.decode(text.encode()), value)


@given(VALUES)
def test_encoded_text_is_one_line_of_valid_json(value):
    text = jsonvalue.encode(value)
    assert "\n" not in text
    assert same(json.loads(text, parse_constant=pytest.fail), value)


@given(st.dictionaries(TEXT, SCALARS, min_size=2))
def test_canonical_does_not_depend_on_the_order_of_keys(value):
    turned = dict(reversed(value.items()))
    assert jsonvalue.canonical(value) == jsonvalue.canonical(turned)
    assert jsonvalue.decode(jsonvalue.canonical(value)) == value


@given(VALUES)
def test_a_model_s_field_holds_a_copy_and_travels_as_json(value):
    held = Holder(value=value)
    assert same(held.value, value)
    assert not {id(c) for c in containers(held.value)} & {id(c) for c in containers(value)}
    assert same(Holder.model_validate_json(held.model_dump_json()).value, value)


class Holder(BaseModel):
    value: JsonValue


class Color(enum.StrEnum):
    RED = "red"


class Shade(str, enum.Enum):  # noqa: UP042  (its str() is not its value: what the test is about)
    DARK = "dark"


class Level(enum.IntEnum):
    HIGH = 3


class Point(NamedTuple):
    x: int
    y: float


class Loud(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (Color.RED, "red"),
        (Shade.DARK, "dark"),
        (Loud("quiet"), "quiet"),
        (Level.HIGH, 3),
        (Point(1, 2.0), [1, 2.0]),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        ({Color.RED: 1, Shade.DARK: 2, Loud("quiet"): 3}, {"red": 1, "dark": 2, "quiet": 3}),
    ],
    ids=repr,
)
def test_subclasses_are_taken_as_what_they_extend(value, plain):
    copied = jsonvalue.copy(value)
    assert same(copied, plain)
    assert same(jsonvalue.decode(jsonvalue.encode(value)), plain)
    if isinstance(copied, dict):
        assert {type(k) for k in copied} == {str}


@pytest.mark.parametrize("value", ["\x00", "a\x00b", "😀", "\ufeff", "\u2028", "é", '"\\/\b', ""])
def test_any_text_survives(value):
    assert jsonvalue.decode(jsonvalue.encode({value: [value]})) == {value: [value]}


@pytest.mark.parametrize("value", [2**53 + 1, -(2**63), 2**64, 10**400, 2**MAX_INT_BITS - 1, -(2**MAX_INT_BITS - 1)], ids=hex)
def test_large_integers_survive(value):
    assert jsonvalue.decode(jsonvalue.encode(value)) == value


@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e16, 1.0])
def test_floats_survive(value):
    assert same(jsonvalue.decode(jsonvalue.encode(value)), value)


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        "\ud800",
        "ok\udfff",
        b"bytes",
        {1, 2},
        frozenset(),
        object(),
        1j,
        decimal.Decimal(1),
        datetime.date(2026, 1, 1),
        range(3),
        (i for i in ()),
        2**MAX_INT_BITS,
        -(10**5000),
        CYCLE,
        {1: "a"},
        {None: "a"},
        {b"a": 1},
        {("a",): 1},
        {"\ud800": 1},
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"k": v}, lambda v: ({"k": [v]},)])
def test_what_is_no_json_value_is_refused_everywhere(value, wrap):
    for use in (jsonvalue.copy, jsonvalue.encode, jsonvalue.canonical):
        with pytest.raises(InvalidInput) as caught:
            use(wrap(value))
        assert caught.value.code == "json.invalid"
    with pytest.raises(ValidationError):
        Holder(value=wrap(value))


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def test_nesting_has_a_bound():
    deepest = nested(MAX_DEPTH)
    assert jsonvalue.decode(jsonvalue.encode(deepest)) == deepest
    assert Holder.model_validate_json(Holder(value=deepest).model_dump_json()).value == deepest
    with pytest.raises(InvalidInput, match=f"deeper than {MAX_DEPTH} levels"):
        jsonvalue.copy(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("value", "part"),
    [({"a": {"b": math.nan}}, "state['a']['b'] is nan"), ({"a": [{1}]}, "state['a'] is a set"), ({"a": {2: 1}}, "key 2")],
)
def test_the_message_says_where(value, part):
    with pytest.raises(InvalidInput) as caught:
        jsonvalue.copy(value, where="state")
    assert part in caught.value.message


def test_equal_but_different_values_have_different_canonical_text():
    assert len({jsonvalue.canonical(v) for v in (1, 1.0, True, "1", [1], None)}) == 6


@given(VALUES)
def test_a_clone_is_the_same_and_shares_nothing(value: Any):
    clone = jsonvalue.clone(value)
    assert same(clone, value)
    assert not {id(c) for c in containers(clone)} & {id(c) for c in containers(value)}


def test_long_keys_do_not_make_long_messages_of_all_that_lies_within():
    long = "k" * 1_000_000
    deep = {long: {str(n): n for n in range(5000)}}
    places = []

    class Told(str):
        __slots__ = ()

        def __repr__(self):
            places.append(self)
            return super().__repr__()

    # Each place within would be a text of a million characters.
    deep[long] = {Told(key): value for key, value in deep[long].items()}
    assert jsonvalue.copy(deep) == deep
    assert places == []
    with pytest.raises(InvalidInput, match="lone surrogate"):
        jsonvalue.copy({long: {"a": {"b": "\ud800"}}})

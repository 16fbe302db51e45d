"""What counts as a JSON value here, and the one way to copy, encode and decode one.

Every backend stores what `encode` gives, so a value that one backend would refuse is refused by all of them
(NaN and the infinities, lone surrogates, keys that are not text, objects of other types), and what comes back is
equal to what went in: NUL, emoji and integers of thousands of digits included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, StrictFloat, StrictInt, ValidatorFunctionWrapHandler, WrapValidator

from sojourn.errors import InvalidInput

MAX_DEPTH = 100
"""Nesting beyond this is refused: some readers of the log would overflow their stack on it."""

MAX_WHERE = 1000
"""Characters of a value's place in a message; beyond, what lies deeper is told by what holds it."""

MAX_INT_BITS = 14_000
"""Larger integers are refused: Python itself refuses to read or write more than 4,300 digits."""


def copy(value: Any, *, where: str = "value", depth: int = 0) -> Any:
    """Returns a deep copy of a JSON value; tuples become lists.

    Args:
        value: None, bool, int, float, str, or lists and dicts (with text keys) of these.
        where: What to call the value in an error message.
        depth: Nesting depth of `value` so far.

    Raises:
        InvalidInput: `json.invalid` if it is not a JSON value.
    """
    if value is None or value is True or value is False:
        return value
    kind = type(value)
    if kind is str:
        return _text(value, where)
    if kind is int:
        return value if value.bit_length() <= MAX_INT_BITS else _too_large(where)
    if kind is float:
        if math.isfinite(value):
            return value
        raise InvalidInput(f"{where} is {value!r}, which JSON cannot hold; use None or a string", code="json.invalid")
    if depth >= MAX_DEPTH:
        raise InvalidInput(f"{where} is nested deeper than {MAX_DEPTH} levels", code="json.invalid")
    if kind is dict:
        if len(where) > MAX_WHERE:
            # Of keys that are so long, each place within would be another text of their length.
            return {_key(k, where): copy(v, where=where, depth=depth + 1) for k, v in value.items()}
        return {_key(k, where): copy(v, where=f"{where}[{k!r}]", depth=depth + 1) for k, v in value.items()}
    if kind is list or kind is tuple:
        return [copy(v, where=where, depth=depth + 1) for v in value]
    # Subclasses (StrEnum, IntEnum, NamedTuple, OrderedDict …) are taken as what they extend.
    for base, plain in _PLAIN:
        if isinstance(value, base):
            return copy(plain(value), where=where, depth=depth)
    raise InvalidInput(
        f"{where} is a {kind.__name__}, which is not a JSON value; convert it to text, numbers, lists and dicts",
        code="json.invalid",
    )


def clone(value: Any) -> Any:
    """Returns a deep copy of what has been checked to be a JSON value; `copy` without its checks."""
    if isinstance(value, dict):
        return {k: clone(v) for k, v in value.items()}
    if isinstance(value, list):
        return [clone(v) for v in value]
    return value


class Nothing(dict[str, Any]):
    """An empty object that many values share, so nobody may write into it.

    Args:
        why: What a `TypeError` tells whoever tries.
    """

    __slots__ = ("_why",)

    def __init__(self, why: str) -> None:
        super().__init__()
        self._why = why

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(self._why)

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __deepcopy__(self, memo: Any) -> Nothing:
        return self


# The value that a subclass extends, whatever it makes of `str()` or `int()`: `str(E.A)` of an `(str, Enum)` is "E.A".
_PLAIN: tuple[tuple[type[Any], Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (dict, dict),
    (list, list),
    (tuple, list),
)


def _too_large(where: str) -> NoReturn:
    raise InvalidInput(f"{where} is an integer of more than {MAX_INT_BITS} bits; store it as text", code="json.invalid")


def _text(value: str, where: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"{where} holds a lone surrogate, which is not text", code="json.invalid") from None
    return value


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return _text(str.__str__(key), where)
    raise InvalidInput(f"{where} has the key {key!r}; JSON keys are text", code="json.invalid")


def encode(value: Any, *, where: str = "value") -> str:
    """Encodes a JSON value as compact text, refusing what `copy` refuses."""
    return json.dumps(copy(value, where=where), ensure_ascii=False, separators=(",", ":"))


def size(value: Any) -> int:
    """How many bytes a checked JSON value has as compact text in UTF-8."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def decode(text: str | bytes) -> Any:
    """Decodes what `encode` gave."""
    return json.loads(text)


def canonical(value: Any) -> str:
    """Encodes with sorted keys: equal values give equal text. For hashes and comparisons."""
    return json.dumps(copy(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _validated(value: Any) -> Any:
    try:
        return copy(value)
    except InvalidInput as error:
        raise ValueError(error.message) from None


JsonValue = Annotated[Any, AfterValidator(_validated)]
"""A field that holds a JSON value; the model keeps a copy of its own."""


def _validated_members(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(value, dict):
        return validate(value)
    try:
        # What it holds is as deep as if each member were a value of its own.
        return copy(value, depth=-1)
    except InvalidInput as error:
        raise ValueError(error.message) from None


JsonMembers = Annotated[dict[str, JsonValue], WrapValidator(_validated_members)]
"""A field that holds a JSON object; the first member that is not JSON is told, and no more, of however many there are."""

JsonNumber = Annotated[StrictInt | StrictFloat, AfterValidator(_validated)]
"""A field that holds a number."""

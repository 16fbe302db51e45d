"""docs/errors.md explains every code that the source uses, and none besides."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from sojourn import errors
from sojourn.errors import SojournError
from tests.docs.error_codes import CODE, codes_in_source, codes_of

PAGE = (Path(__file__).parent.parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z_.]+)` \| ((?:`\w+`(?:, )?)+) \| (.+) \| (.+) \|$", re.MULTILINE)
CATEGORY_ROW = re.compile(r"^\| `(\w+)` \| `([a-z_.]+)` \| (\d+) \| (yes|no) \| (.+) \|$", re.MULTILINE)
CLASSES = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, SojournError)}

USED = codes_in_source()
EXPLAINED = {code: set(re.findall(r"\w+", classes)) for code, classes, _, _ in ROW.findall(PAGE)}
DEFAULTS = {code for _, code, *_ in CATEGORY_ROW.findall(PAGE)}


def test_the_source_is_read():
    assert len(USED) > 30
    assert USED["run.illegal_move"] >= {("run/status.py", "Conflict")}


@pytest.mark.parametrize("code", sorted(USED))
def test_every_code_in_use_is_explained(code):
    assert code in EXPLAINED.keys() | DEFAULTS, f"explain {code!r} in docs/errors.md; it is used in {sorted(USED[code])}"


@pytest.mark.parametrize("code", sorted(EXPLAINED.keys() | DEFAULTS))
def test_every_explained_code_is_in_use(code):
    assert code in USED, f"{code!r} is explained in docs/errors.md and used nowhere"


@pytest.mark.parametrize("code", sorted(USED))
def test_codes_have_one_form(code):
    assert CODE.fullmatch(code)


def test_a_code_is_explained_once():
    codes = [code for code, *_ in ROW.findall(PAGE)]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("code", sorted(EXPLAINED))
def test_the_classes_are_those_that_have_the_code(code):
    assert EXPLAINED[code] <= CLASSES.keys()
    assert {name for _, name in USED.get(code, ())} & CLASSES.keys() <= EXPLAINED[code]


def test_every_category_is_in_the_table_as_it_is():
    rows = {name: (code, int(status), retryable == "yes") for name, code, status, retryable, _ in CATEGORY_ROW.findall(PAGE)}
    assert rows == {name: (c.default_code, c.http_status, c.default_retryable) for name, c in CLASSES.items()}


@pytest.mark.parametrize(
    ("source", "codes"),
    [
        ('raise NotFound("x", code="a.b")', [("a.b", "NotFound")]),
        ('raise NotFound("x", code="a.b" if y else "a.c")', [("a.b", "NotFound"), ("a.c", "NotFound")]),
        ('raise errors.NotFound("x", code="a.b")', [("a.b", "")]),
        ('class X(Y):\n    default_code = "a.b"', [("a.b", "X")]),
        ('class X(Y):\n    default_code: ClassVar[str] = "a.b"', [("a.b", "X")]),
        ('RunError("a.b", "message")', [("a.b", "RunError")]),
        ("NotFound(x, code=code)", []),
        ('"""code="a.b" in a docstring"""', []),
    ],
)
def test_codes_are_found_where_they_are_given(source, codes):
    assert list(codes_of(ast.parse(source))) == codes

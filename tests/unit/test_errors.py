"""The error tree: codes, pickling, categories, control flow."""

import copy
import inspect
import pickle
import re

import pytest

from sojourn import errors
from sojourn.errors import CATEGORIES, LimitExceeded, NotFound, RunWaiting, SojournError, Unavailable
from sojourn.run.types import Interrupt, RunError

CLASSES = [
    cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, SojournError) and cls is not RunWaiting
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
class TestEveryClass:
    def test_defaults(self, cls):
        error = cls("what happened")
        assert isinstance(error, Exception)
        assert (error.message, error.code, error.retryable) == ("what happened", cls.default_code, cls.default_retryable)
        assert error.retry_after is None
        assert str(error) == f"what happened [{cls.default_code}]"
        assert error.args == ("what happened",)

    def test_code_and_status_have_their_form(self, cls):
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*(\.[a-z_]+)*", cls.default_code)
        assert 400 <= cls.http_status < 600

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickling_keeps_everything(self, cls, protocol):
        error = cls("what", code="some.code", retryable=True, retry_after=2.5)
        error.add_note("a note")
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is cls
        assert vars(back) == vars(error)
        assert (str(back), back.args, back.__notes__) == (str(error), error.args, ["a note"])

    def test_copying_keeps_everything(self, cls):
        error = cls("what", code="some.code", retryable=False, retry_after=1.0)
        assert vars(copy.copy(error)) == vars(copy.deepcopy(error)) == vars(error)

    def test_it_is_stored_and_rebuilt_by_category(self, cls):
        error = cls("what", code="some.code", retryable=True)
        assert CATEGORIES[cls.__name__] is cls
        rebuilt = RunError.of(error).to_exception()
        assert (type(rebuilt), rebuilt.message, rebuilt.code, rebuilt.retryable) == (cls, "what", "some.code", True)

    def test_it_is_in_the_drawn_tree(self, cls):
        assert re.search(rf"\b{cls.__name__}\b", errors.__doc__ or "")


def test_explicit_values_win_over_the_category_s():
    error = Unavailable("the store is read-only", code="store.read_only", retryable=False, retry_after=3)
    assert (error.code, error.retryable, error.retry_after) == ("store.read_only", False, 3)


def test_only_what_may_succeed_later_is_retryable_by_default():
    assert {c.__name__ for c in CLASSES if c.default_retryable} == {"LimitExceeded", "TimedOut", "Unavailable"}


def test_default_codes_are_unique():
    codes = [c.default_code for c in CLASSES]
    assert len(set(codes)) == len(codes)


def test_an_unknown_category_is_rebuilt_as_the_root():
    error = RunError("x.y", "from a later version", category="Novel").to_exception()
    assert type(error) is SojournError
    assert error.code == "x.y"


def test_a_subclass_of_a_user_pickles_too():
    back = pickle.loads(pickle.dumps(QuotaExceeded("no more")))
    assert (type(back), back.code) == (QuotaExceeded, "limit.quota")


class QuotaExceeded(LimitExceeded):
    """As an application may define one."""

    default_code = "limit.quota"


class TestRunWaiting:
    INTERRUPTS = (
        Interrupt("call-1", "approve", "d1", prompt="Ship it?"),
        Interrupt("call-2", "amount", "d2", prompt={"ask": "How much?"}),
    )

    def test_it_names_the_questions_and_the_remedy(self):
        error = RunWaiting(list(self.INTERRUPTS), run_id="run-9")
        assert error.interrupts == self.INTERRUPTS
        assert error.code == "run.waiting"
        for part in ("run-9", "call-1", "call-2", "Runner.answer"):
            assert part in str(error)

    def test_pickling_keeps_the_questions(self):
        error = RunWaiting(self.INTERRUPTS, run_id="run-9")
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is RunWaiting
        assert vars(back) == vars(error)

    def test_it_is_an_outcome_and_never_stored_as_an_error(self):
        assert "RunWaiting" not in CATEGORIES


def test_a_cause_is_kept_by_the_language():
    with pytest.raises(NotFound) as caught:
        _raise_from(KeyError("driver's"))
    assert isinstance(caught.value.__cause__, KeyError)


def _raise_from(cause: Exception) -> None:
    raise NotFound("no such thing") from cause

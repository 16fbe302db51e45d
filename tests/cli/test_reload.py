"""Noticing edits, and importing a target again."""

import os
import sys

import pytest

from sojourn.cli.reload import Reloader
from sojourn.cli.target import TargetError, load_target

AGENT = """
from sojourn import agent
from words import WORD

@agent
async def helper(ctx):
    return WORD
"""


@pytest.fixture
def words(imports):
    """The target's helper module, and when it was edited: each edit is a second later than the one before."""

    class Words:
        path = imports / "words.py"
        edits = 0

        def edit(self, source):
            self.path.write_text(source)
            self.edits += 1
            os.utime(self.path, (1_000_000 + self.edits, 1_000_000 + self.edits))

    found = Words()
    found.edit("WORD = 'first'\n")
    (imports / "helpers.py").write_text(AGENT)
    return found


def word(target):
    return sys.modules[target.config.agent.fn.__module__].WORD


def test_nothing_changes_by_itself(words):
    assert not Reloader(load_target("helpers.py")).changed()


def test_an_edit_of_an_imported_module_is_taken_over(words):
    target = load_target("helpers.py")
    reloader = Reloader(target)
    words.edit("WORD = 'second'\n")
    assert reloader.changed()
    again = reloader.reload()
    assert again.config.agent is not target.config.agent
    assert word(again) == "second"
    assert not reloader.changed()


def test_an_edit_in_the_same_second_and_of_the_same_size_is_taken_over(words, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    reloader = Reloader(load_target("helpers.py"))
    assert list(words.path.parent.glob("__pycache__/words.*.pyc"))
    seconds = words.path.stat().st_mtime_ns
    words.path.write_text("WORD = 'other'\n")
    os.utime(words.path, ns=(seconds + 1, seconds + 1))
    assert reloader.changed()
    assert word(reloader.reload()) == "other"


def test_a_broken_edit_leaves_the_modules_as_they_were(words):
    target = load_target("helpers.py")
    reloader = Reloader(target)
    before = {name: sys.modules[name] for name in ("helpers", "words")}
    words.edit("WORD = \n")
    with pytest.raises(TargetError):
        reloader.reload()
    assert {name: sys.modules[name] for name in ("helpers", "words")} == before
    assert word(target) == "first"
    words.edit("WORD = 'mended'\n")
    assert reloader.changed()
    assert word(reloader.reload()) == "mended"


def test_what_is_broken_is_tried_again_without_an_edit(words, imports):
    reloader = Reloader(load_target("helpers.py"))
    words.edit("from more_words import WORD\n")
    with pytest.raises(TargetError):
        reloader.reload()
    (imports / "more_words.py").write_text("WORD = 'more'\n")
    assert reloader.changed()
    assert word(reloader.reload()) == "more"
    assert not reloader.changed()


def test_a_module_that_was_removed_counts_as_an_edit(words):
    reloader = Reloader(load_target("helpers.py"))
    words.path.unlink()
    assert reloader.changed()
    with pytest.raises(TargetError):
        reloader.reload()


def test_modules_of_others_are_left_alone(words):
    before = sys.modules["sojourn.agents.base"]
    reloader = Reloader(load_target("helpers.py"))
    words.edit("WORD = 'second'\n")
    reloader.reload()
    assert sys.modules["sojourn.agents.base"] is before


def test_modules_of_a_package_are_reloaded_with_it(imports):
    (imports / "shop").mkdir()
    (imports / "shop/__init__.py").write_text("")
    (imports / "shop/words.py").write_text("WORD = 'first'\n")
    (imports / "shop/helpers.py").write_text(AGENT.replace("from words", "from .words"))
    reloader = Reloader(load_target("shop.helpers:helper"))
    (imports / "shop/words.py").write_text("WORD = 'the second'\n")
    assert reloader.changed()
    assert word(reloader.reload()) == "the second"

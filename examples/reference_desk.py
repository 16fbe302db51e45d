"""A reference desk for the Python standard library: real answers, from the docstrings on this machine.

    sojourn run examples/reference_desk.py:desk "how do I parse JSON?"
    python examples/reference_desk.py --demo

The librarian finds what a question is about and hands over to the specialist for it: modules, functions or classes. The
specialist streams the answer and keeps a reading list. What a user has asked is remembered, and used.
"""

from __future__ import annotations

import asyncio
import doctest
import importlib
import inspect
import math
import os
import pkgutil
import platform
import re
import sys
import tempfile
import textwrap
import threading
import warnings
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from sojourn import Context, Runner, agent
from sojourn.artifact.file import FileArtifactService
from sojourn.errors import NotFound
from sojourn.store.database import DatabaseSessionService

SECONDS_PER_WORD = 0.004
"""A model takes time to write, a docstring does not: without this pause nobody would see the stream."""

# -- what is in the library ---------------------------------------------------------------------------------------------

# Importing these opens a browser, prints a poem, needs a screen or another system, or says nothing to a reader.
SKIPPED = frozenset(
    "antigravity this idlelib lib2to3 test turtle turtledemo tkinter ensurepip distutils encodings pydoc_data msilib msvcrt nt "
    "winreg winsound posix posixpath ntpath nturl2path genericpath readline rlcompleter pyexpat opcode sre_compile sre_constants "
    "sre_parse site __main__".split()
)

# People ask about these far more often than about the rest.
EVERYDAY = frozenset(
    "builtins json csv datetime time re os os.path pathlib shutil collections itertools functools math random statistics string "
    "subprocess asyncio threading logging argparse sqlite3 urllib.parse urllib.request tempfile glob copy dataclasses".split()
)

# What people say, and what the library calls it.
ALSO_CALLED = {
    "parse": ("load", "loads", "strptime", "fromisoformat"),
    "write": ("dump",),
    "save": ("dump", "write"),
    "read": ("load",),
    "date": ("datetime",),
    "directory": ("dir", "folder"),
    "folder": ("directory", "dir"),
    "regex": ("re", "regular"),
    "measure": ("perf", "timer"),
    "delete": ("remove", "unlink", "rmtree"),
    "average": ("mean",),
    "download": ("urlopen", "retrieve"),
}

# What carries no topic in a question.
FILLER = frozenset(
    "a an and any are about be by can could do does did else example examples explain find for from get give have how i in into "
    "is it its like library look me more module mean means function class method my of on one or other please python show some "
    "something tell than that the their them then there these they thing this those to up use used using want way what whats "
    "when where which who why will with would you your".split()
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Something of the library that has a docstring."""

    name: str
    module: str
    kind: str
    doc: str

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, on one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())


@dataclass
class Catalogue:
    """All entries by name, and which words lead to which of them."""

    entries: dict[str, Entry] = field(default_factory=dict)
    words: defaultdict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    modules: int = 0

    def add(self, entry: Entry) -> None:
        """Adds an entry."""
        self.entries[entry.name] = entry
        own = entry.name.rpartition(".")[2]
        weights: Counter[str] = Counter()
        for weight, text in ((0.5, entry.doc[:1000]), (1.5, entry.summary), (1.5, entry.module), (2 + 2 / len(words_of(own)), own)):
            for word in set(words_of(text)):
                weights[word] += weight
        for word, count in weights.items():
            self.words[word][entry.name] = count

    def search(self, question: str, preferred: Sequence[str] = (), limit: int = 5) -> list[str]:
        """The names of the entries that fit a question, best first; none if nothing does.

        Args:
            question: In a person's words. A dotted name in it, or a name that is all of it, is taken literally.
            preferred: Modules to look in first.
            limit: How many at most.
        """
        scores = self._scores([word for topic in topics(question) for word in words_of(topic)])
        for name in scores:
            module = self.entries[name].module
            scores[name] *= (1.25 if module in EVERYDAY else 1) * (3 if module in preferred else 1)
        ranked = sorted(scores, key=lambda n: (-scores[n], len(n), n))
        return list(dict.fromkeys([*self._named(question), *ranked]))[:limit]

    def _named(self, question: str) -> list[str]:
        """What a question names outright, if it does."""
        for name in re.findall(r"\w+(?:\.\w+)+", question):
            if name in self.entries:
                return [name]
        meant = topics(question)
        if len(meant) != 1:
            return []
        if meant[0] in self.entries:
            return meant
        called = [n for n in self.entries if n.rpartition(".")[2] == meant[0]]
        return sorted(called, key=lambda n: (self.entries[n].module not in EVERYDAY, len(n), n))[:1]

    def _scores(self, asked: list[str]) -> Counter[str]:
        """How well entries fit; those that fit less than half of what was asked are left out."""
        scores: Counter[str] = Counter()
        covered: Counter[str] = Counter()
        total = 0.0
        for word in dict.fromkeys(asked):
            found: dict[str, float] = {}
            for known, share in self._known(word):
                for name, weight in self.words.get(known, {}).items():
                    found[name] = max(found.get(name, 0.0), weight * share)
            rarity = math.log(len(self.entries) / (1 + len(found)))
            total += rarity
            for name, weight in found.items():
                scores[name] += rarity * weight
                covered[name] += rarity if weight > 1 else rarity / 2
        fitting = (name for name in scores if covered[name] >= total / 2)
        return Counter({name: scores[name] * covered[name] / total for name in fitting})

    def _known(self, word: str) -> Iterator[tuple[str, float]]:
        """The words of the catalogue that a word may mean, and how surely."""
        yield word, 1.0
        for other in ALSO_CALLED.get(word, ()):
            yield other, 0.8
        bare = re.sub("(ing|ed)$", "", word)
        if len(bare) >= 4:
            for other in self.words:
                if bare in other and word != other:
                    yield other, 0.8 if other.startswith(bare) else 0.4


def words_of(text: str) -> list[str]:
    """The words of a text: names are taken apart, and plurals are made singulars."""
    found = (word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text))
    return [re.sub("(?<=[a-z]{3})(?<![isu])s$", "", word) for word in found]


def topics(question: str) -> list[str]:
    """The words of a question that say what it is about."""
    return [w for w in re.findall(r"[\w.]*\w", question) if w.lower() not in FILLER]


_lock = threading.Lock()


def catalogue() -> Catalogue:
    """The catalogue of this Python's library; made at the first call, which takes a second or so."""
    with _lock:
        return _make_catalogue()


@cache
def _make_catalogue() -> Catalogue:
    made = Catalogue()
    seen: set[int] = set()
    for name, module in _modules():
        made.modules += 1
        if doc := inspect.getdoc(module):
            made.add(Entry(name, name, "module", doc))
        for public in _public_names(module):
            _add_object(made, seen, name, public, getattr(module, public, None))
    return made


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """The library's modules with their names, packages before what is in them."""
    names = [n for n in sorted(sys.stdlib_module_names) if not n.startswith("_") and n not in SKIPPED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in (*names, "os.path"):
            if (module := _import(name)) is None:
                continue
            yield name, module
            for inner in pkgutil.iter_modules(getattr(module, "__path__", ())):
                full = f"{name}.{inner.name}"
                if not inner.name.startswith("_") and (submodule := _import(full)) is not None:
                    yield full, submodule


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except Exception:  # Some are there on other systems only, and what they raise here is up to them.
        return None


def _public_names(module: ModuleType) -> Iterable[str]:
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    own = module.__name__
    return [n for n, thing in vars(module).items() if not n.startswith("_") and getattr(thing, "__module__", None) == own]


def _add_object(made: Catalogue, seen: set[int], module: str, name: str, thing: Any) -> None:
    """Adds a function or class, and its methods; what another module has too is told once."""
    if id(thing) in seen or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    seen.add(id(thing))
    full = name if module == "builtins" else f"{module}.{name}"
    if doc := inspect.getdoc(thing):
        made.add(Entry(full, module, "class" if inspect.isclass(thing) else "function", doc))
    for part, method in vars(thing).items() if inspect.isclass(thing) else ():
        if not part.startswith("_") and inspect.isroutine(getattr(thing, part, None)) and (doc := inspect.getdoc(method)):
            made.add(Entry(f"{full}.{part}", module, "function", doc))

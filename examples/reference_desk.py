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
import pkgutil
import platform
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections import defaultdict
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

WIDTH = 88
"""Characters in a line of an answer."""

LONGEST_QUESTION = 1000
"""Characters of a question that are looked at: nobody asks about one thing in more."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Importing these opens a browser, prints a poem, needs a screen or another system, or says nothing to a reader.
SKIPPED = _words("""
    antigravity distutils encodings ensurepip genericpath idlelib lib2to3 msilib msvcrt nt ntpath nturl2path opcode posix
    posixpath pydoc_data pyexpat readline rlcompleter site sre_compile sre_constants sre_parse test tests this tkinter turtle
    turtledemo winreg winsound
""")

# People ask about these far more often than about the rest.
EVERYDAY = _words("""
    argparse asyncio builtins collections copy csv dataclasses datetime functools glob itertools json logging math os os.path
    pathlib random re shutil sqlite3 statistics string subprocess tempfile threading time urllib.parse urllib.request
""")

# What carries no topic in a question.
FILLER = _words("""
    a about an and any are be by can class could did do does else example examples explain find for from function get give have
    how i in into is it its library like look me mean means method module more my of on one or other please python show some
    something tell than that the their them then there these they thing this those to up use used using want way what whats
    when where which who why will with would you your
""")

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


@dataclass(frozen=True, slots=True)
class Entry:
    """Something of the library that has a docstring."""

    name: str
    module: str
    kind: str
    doc: str
    thing: Any

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
        weights: defaultdict[str, float] = defaultdict(float)
        # A name of one word is about that word; one of three is about each a little.
        naming = 2 + 2 / max(1, len(words_of(own)))
        for weight, text in ((0.5, entry.doc[:1000]), (1.5, entry.summary), (1.5, entry.module), (naming, own)):
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

    def _scores(self, asked: list[str]) -> dict[str, float]:
        """How well entries fit; those that fit less than half of what was asked are left out."""
        scores: defaultdict[str, float] = defaultdict(float)
        covered: defaultdict[str, float] = defaultdict(float)
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
        return {name: scores[name] * covered[name] / total for name in fitting}

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
    return [word for word in re.findall(r"[\w.]*\w", question) if word.lower() not in FILLER]


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
            made.add(Entry(name, name, "module", doc, module))
        for public in _public_names(module):
            _add_object(made, seen, name, public, getattr(module, public, None))
    return made


def _modules() -> Iterator[tuple[str, ModuleType]]:
    """The library's modules with their names, packages before what is in them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield from _import_all("", [*sorted(sys.stdlib_module_names), "os.path"])


def _import_all(prefix: str, names: Iterable[str]) -> Iterator[tuple[str, ModuleType]]:
    for name in names:
        full = prefix + name
        if not name.startswith("_") and name not in SKIPPED and (module := _import(full)) is not None:
            yield full, module
            yield from _import_all(f"{full}.", [inner.name for inner in pkgutil.iter_modules(getattr(module, "__path__", ()))])


def _import(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except Exception:  # Some are there on other systems only, and what they raise here is up to them.
        return None


def _public_names(module: ModuleType) -> list[str]:
    if (listed := getattr(module, "__all__", None)) is not None:
        return list(listed)
    # What is written in C says that it comes from a module of the same name with an underscore.
    own = (module.__name__, f"_{module.__name__}")
    return [n for n, thing in vars(module).items() if not n.startswith("_") and getattr(thing, "__module__", None) in own]


def _add_object(made: Catalogue, seen: set[int], module: str, name: str, thing: Any) -> None:
    """Adds a function or class, and its methods; what another module has too is told once."""
    if id(thing) in seen or not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    seen.add(id(thing))
    full = name if module == "builtins" else f"{module}.{name}"
    if doc := inspect.getdoc(thing):
        made.add(Entry(full, module, "class" if inspect.isclass(thing) else "function", doc, thing))
    for part, method in _methods(thing).items():
        if doc := inspect.getdoc(method):
            made.add(Entry(f"{full}.{part}", module, "function", doc, method))


def _methods(thing: Any) -> dict[str, Any]:
    """The public methods that a class has of its own."""
    if not inspect.isclass(thing):
        return {}
    found = {name: getattr(thing, name, None) for name in vars(thing) if not name.startswith("_")}
    return {name: method for name, method in found.items() if inspect.isroutine(method)}


# -- what is said of an entry -------------------------------------------------------------------------------------------


def describe(entry: Entry) -> str:
    """Signature, summary, what is in it, and an example if there is one."""
    heading = _heading(entry)
    inside = ""
    if entry.kind == "module":
        inside = _listed("In it", _public_names(entry.thing))
    elif entry.kind == "class":
        inside = _listed("Methods", list(_methods(entry.thing)))
    summary = entry.summary.removeprefix(heading).strip()
    prose = [textwrap.fill(heading, WIDTH, subsequent_indent="    "), *(textwrap.fill(t, WIDTH) for t in (summary, inside))]
    return "\n\n".join(paragraph for paragraph in (*prose, _example(entry)) if paragraph)


def _heading(entry: Entry) -> str:
    if entry.kind == "module":
        return f"module {entry.name}"
    try:
        return f"{entry.name}{inspect.signature(entry.thing)}"
    except Exception:  # Much of what is written in C has its signature in the docstring, or none, or one that is broken.
        first = entry.doc.partition("\n")[0]
        return first if first.startswith(entry.name.rpartition(".")[2] + "(") else entry.name


def _listed(title: str, names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{title}: {', '.join(names[:most])}{more}" if names else ""


def _example(entry: Entry) -> str:
    """An example from the docstring, or one from the module's that uses the name."""
    module = catalogue().entries.get(entry.module)
    for doc, wanted in ((entry.doc, ""), (module.doc if module else "", entry.name.rpartition(".")[2] + "(")):
        try:
            examples = doctest.DocTestParser().get_examples(doc)
        except ValueError:
            continue
        for i, example in enumerate(examples):
            if example.want and wanted in example.source and (example.source + example.want).replace("\n", "").isprintable():
                first = i
                while first and not examples[first - 1].want:
                    first -= 1
                return "".join(_shown(e) for e in examples[first : i + 1]).rstrip()
    return ""


def _shown(example: doctest.Example) -> str:
    first, *rest = example.source.splitlines()
    return "\n".join([f">>> {first}", *(f"... {line}" for line in rest), example.want])


# -- the agents ---------------------------------------------------------------------------------------------------------

READING_LIST = "reading-list.md"

SPECIALIST = {"module": "modules", "function": "functions", "class": "classes"}
"""Who knows what, by kind of entry."""

SEE_ALSO = 2
"""How many other entries an answer names."""


async def specialist(ctx: Context) -> AsyncIterator[str]:
    """Answers with what the librarian found."""
    found = ctx.state.get("found")
    if found is None or found["run_id"] != ctx.run_id:
        # A session's next question starts at whoever answered the last one: finding is the librarian's work.
        ctx.transfer_to("librarian")
        return
    entries = (await asyncio.to_thread(catalogue)).entries
    entry, *others = (entries[name] for name in found["names"])
    text = describe(entry)
    if others:
        lines = (textwrap.shorten(f"- {e.name}: {e.summary}", WIDTH, placeholder=" …") for e in others[:SEE_ALSO])
        text = "\n".join([text, "", "See also", *lines])
    for word in re.findall(r"\S+\s*", text):
        yield word
        await asyncio.sleep(SECONDS_PER_WORD)
    version = await ctx.step("note", lambda: note(ctx, entry))
    yield f"\n\nNoted in {READING_LIST}, version {version}."


async def note(ctx: Context, entry: Entry) -> int:
    """Adds an entry to the session's reading list, if it is not there yet; returns the list's version."""
    line = f"- **{entry.name}**: {entry.summary}\n"
    try:
        text = (await ctx.artifacts.load(READING_LIST)).text or ""
    except NotFound:
        text = "# Reading list\n\n"
    if line in text:
        return (await ctx.artifacts.versions(READING_LIST))[-1].version
    return await ctx.artifacts.save(READING_LIST, text + line, mime_type="text/markdown")


modules = agent(name="modules", description="Knows what modules are for.")(specialist)
functions = agent(name="functions", description="Knows functions and methods.")(specialist)
classes = agent(name="classes", description="Knows classes.")(specialist)


@agent(name="librarian", description="Finds what a question is about.", sub_agents=[modules, functions, classes])
async def desk(ctx: Context) -> AsyncIterator[str]:
    """Finds what a question is about, and hands over to the specialist for it."""
    question = ctx.user_content.text[:LONGEST_QUESTION]
    asked = ctx.state.get("asked", [])
    if not topics(question) and not (asked and re.search(r"\w", question)):
        yield "Ask me about Python's standard library: a name like json.dumps, or a task like 'copy a file'."
        return
    # The catalogue can be made again at any time: it is a cache. What the answer depends on is a step, so that a second attempt
    # of this run answers from the same names.
    size = await ctx.step("catalogue", lambda: asyncio.to_thread(size_of_catalogue))
    hits = await ctx.step("search", lambda: asyncio.to_thread(find, question, asked))
    if not hits:
        yield f"I found nothing about that in {size['docstrings']:,} docstrings of Python {size['python']}."
        return
    best = hits[0]
    yield remembered(ctx, best["module"]) or (
        f"Looked through {size['docstrings']:,} docstrings of {size['modules']} modules of Python {size['python']}."
    )
    ctx.state["found"] = {"run_id": ctx.run_id, "names": [hit["name"] for hit in hits]}
    ctx.state["asked"] = [*asked, {"name": best["name"], "module": best["module"]}][-20:]
    ctx.state.increment(f"user:asked:{best['module']}")
    ctx.transfer_to(SPECIALIST[best["kind"]])


def size_of_catalogue() -> dict[str, Any]:
    """What is searched."""
    made = catalogue()
    return {"python": platform.python_version(), "modules": made.modules, "docstrings": len(made.entries)}


def find(question: str, asked: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """What fits a question, best first; "it" is what was asked about last."""
    modules = [a["module"] for a in asked]
    if topics(question):
        refers = re.search(r"\b(it|its|that|them|there|this|those|these|they)\b", question.lower())
        names = catalogue().search(question, preferred=modules[-1:] if refers else ())
    else:
        names = modules[-1:]
    return [{"name": e.name, "module": e.module, "kind": e.kind} for e in map(catalogue().entries.__getitem__, names)]


def remembered(ctx: Context, module: str) -> str | None:
    """What the user's earlier questions have to do with this one, if anything."""
    asked = ctx.state.get("asked", [])
    earlier = [a["name"] for a in asked if a["module"] == module]
    if earlier:
        return f"You asked about {earlier[-1]} earlier; this is from the same module."
    before = sorted(key.removeprefix("user:asked:") for key in ctx.state if key.startswith("user:asked:"))
    if before and not asked:
        return f"Welcome back. In other sessions you asked about {', '.join(before)}."
    return None


# -- the demonstration --------------------------------------------------------------------------------------------------

# Two users, who ask at the same time: what happens, and who asks what in which session.
ROUNDS = (
    (
        "Ann and Ben ask at the same time. Answers are printed as they are written.",
        {"ann": ("home", "How do I parse JSON?"), "ben": ("work", "How do I parse dates?")},
    ),
    (
        "Both go on. What they asked about is in the state of their sessions.",
        {"ann": ("home", "And how do I write it to a file?"), "ben": ("work", "What else is in there?")},
    ),
    (
        "Ann opens another session, which knows of the first. Ben asks for too much.",
        {"ann": ("school", "What is a defaultdict?"), "ben": ("work", "How do I bake bread?")},
    ),
)


async def demonstrate(database: str, artifacts: str) -> str:
    """Asks as two users at once; returns the id of one of the runs."""
    store = DatabaseSessionService(f"sqlite:///{database}")
    services = {"session_service": store, "artifact_service": FileArtifactService(artifacts)}
    async with Runner(app_name="reference_desk", agent=desk, **services) as runner:
        for title, questions in ROUNDS:
            print(f"{title}\n")
            await asyncio.gather(*(ask(runner, user, session, text) for user, (session, text) in questions.items()))
            print()
        newest = (await runner.list_runs(user_id="ann", limit=1)).items[0]
    await store.close()
    return newest.id


async def ask(runner: Runner, user: str, session: str, question: str) -> None:
    """Asks one question and prints the answer as it is written, line by line, with the user in front of each."""
    say(user, "asks", question)
    message, line = "", ""
    async for event in runner.run(user, session, question):
        line += event.delta
        *complete, line = line.split("\n")
        for text in complete:
            say(user, event.author if event.id != message else "", text)
            message = event.id
        if not event.partial and event.text:
            say(user, event.author if event.id != message else "", line)
            line = ""


def say(user: str, who: str, text: str) -> None:
    """Prints a line of a conversation."""
    print(f"{user} | {who:>9} {text}".rstrip())


def show(database: str, *command: str, lines: int) -> None:
    """Calls the command line, and prints the beginning of what it says."""
    print(f"$ sojourn {' '.join(command)}")
    called = [sys.executable, "-m", "sojourn", *command, "--db", database]
    done = subprocess.run(called, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
    shown = done.stdout.splitlines()
    print(*(f"  {line.expandtabs(10)[:118]}".rstrip() for line in shown[:lines]), sep="\n")
    if shown[lines:]:
        print(f"  … and {len(shown) - lines} lines more")
    print()


def main() -> None:
    """Runs the demonstration."""
    if sys.argv[1:] != ["--demo"]:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        database = f"{directory}/sojourn.db"
        run_id = asyncio.run(demonstrate(database, f"{directory}/artifacts"))
        print("All of it is in one SQLite file, which other processes can read.\n")
        show(database, "sessions", "ls", lines=10)
        show(database, "sessions", "show", "home", lines=8)
        show(database, "sessions", "show", "work", lines=8)
        show(database, "runs", "show", run_id, lines=20)


if __name__ == "__main__":
    main()

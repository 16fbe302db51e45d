"""The reference desk answers from the library's own docstrings, and remembers for each user what was asked."""

import asyncio
import bisect
import collections
import inspect
import json
import shutil
import subprocess
import sys
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from examples.reference_desk import READING_LIST, catalogue, desk

from examples import reference_desk
from sojourn import InMemorySessionService, Runner
from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.run.status import RunStatus
from sojourn.testing.artifact_conformance import versions_of
from sojourn.testing.loop import for_seeds

PROGRAM = Path(reference_desk.__file__)


def desk_runner(**services):
    services.setdefault("artifact_service", InMemoryArtifactService())
    return Runner(app_name="desk", agent=desk, **services)


async def ask(runner, question, *, user="ann", session="s"):
    """Everything that the desk's agents say to a question, by agent."""
    said = {}
    async for event in runner.run(user, session, question):
        if not event.partial and event.text:
            said[event.author] = event.text
    return said


def first_paragraph(thing):
    return " ".join(inspect.getdoc(thing).partition("\n\n")[0].split())


def unwrapped(text):
    return " ".join(text.split())


async def reading_list(runner, *, user="ann", session="s"):
    """The reading list's versions, and the text of the newest."""
    found = await runner.get_session(user, session)
    scope = ArtifactScope(found.app_name, user, session, found.uid)
    versions = [v.version for v in await versions_of(runner.artifacts, scope, READING_LIST)]
    return versions, (await runner.artifacts.load_artifact(scope, READING_LIST)).text


class TestAnswers:
    @pytest.mark.parametrize(
        ("question", "who", "thing"),
        [
            ("json.dumps", "functions", json.dumps),
            ("how do I parse JSON?", "functions", json.load),
            ("how do I parse dates", "functions", datetime.strptime),
            ("how do I copy a file?", "functions", shutil.copy),
            ("what does zip do", "classes", zip),
            ("what does bisect do", "modules", bisect),
            ("Tell me about the json module.", "modules", json),
            ("what is a defaultdict?", "classes", collections.defaultdict),
        ],
    )
    def test_come_from_the_real_docstring(self, question, who, thing):
        @for_seeds(1)
        async def check():
            said = await ask(desk_runner(), question)
            assert list(said) == ["librarian", who]
            # What C functions start with is their signature, which the answer has as its heading.
            assert first_paragraph(thing).split(")")[-1].strip() in unwrapped(said[who])
            assert thing.__name__ in said[who]

        check()

    @for_seeds(1)
    async def test_have_signature_and_example(self):
        said = await ask(desk_runner(), "json.load")
        assert unwrapped(f"json.load{inspect.signature(json.load)}") in unwrapped(said["functions"])
        assert ">>> json.load(io)" in said["functions"]
        assert "- json.loads: Deserialize" in said["functions"]

    @for_seeds(1)
    async def test_modules_list_what_is_in_them(self):
        said = await ask(desk_runner(), "what does bisect do")
        assert "bisect_left" in said["modules"]
        assert "insort" in said["modules"]

    @for_seeds(1)
    async def test_stream(self):
        pieces, whole = [], ""
        async for event in desk_runner().run("ann", "s", "json.dumps"):
            if event.author == "functions":
                pieces.append(event.delta)
                whole = event.text
        assert len(pieces) > 20
        assert "".join(pieces) == whole

    @pytest.mark.parametrize("question", ["how do I bake bread?", "quantum teleportation", "supercalifragilistic"])
    def test_say_so_when_nothing_is_found(self, question):
        @for_seeds(1)
        async def check():
            runner = desk_runner()
            said = await ask(runner, question)
            assert list(said) == ["librarian"]
            assert f"nothing about that in {len(catalogue().entries):,} docstrings" in said["librarian"]
            assert "asked" not in (await runner.get_session("ann", "s")).state

        check()


class TestOddQuestions:
    @pytest.mark.parametrize(
        "question",
        [" ", "?!", "🎉", "the of and", "\0", "\n\t", ".", "...", "json.", ".json", "a.b.c.d", "_", "__init__", "%s {0} \\",
         "ﬁle", "如何解析 JSON", "json.dumps" * 10_000, "word " * 50_000, "x" * 300_000,
         " ".join(f"w{n}" for n in range(30_000))],
        ids=lambda text: ascii(text[:12]),
    )  # fmt: skip
    def test_are_answered(self, question):
        @for_seeds(1)
        async def check():
            runner = desk_runner()
            assert await ask(runner, question)
            assert await ask(runner, question)
            runs = (await runner.list_runs()).items
            assert [r.status for r in runs] == [RunStatus.COMPLETED] * 2

        check()

    @for_seeds(1)
    async def test_without_a_topic_get_a_hint(self):
        assert "a name like json.dumps" in (await ask(desk_runner(), "what is it?"))["librarian"]


class TestMemory:
    @for_seeds(1)
    async def test_it_is_what_was_asked_about(self):
        runner = desk_runner()
        await ask(runner, "how do I parse JSON?")
        said = await ask(runner, "and how do I write it to a file?")
        assert "You asked about json.load earlier" in said["librarian"]
        assert said["functions"].startswith("json.dump(")

    @for_seeds(1)
    async def test_without_memory_it_is_anything(self):
        said = await ask(desk_runner(), "and how do I write it to a file?")
        assert "json" not in said["functions"].partition("\n")[0]

    @for_seeds(1)
    async def test_what_else_is_in_there(self):
        runner = desk_runner()
        await ask(runner, "how do I parse JSON?")
        assert (await ask(runner, "what else is in there?"))["modules"].startswith("module json")

    @for_seeds(1)
    async def test_spans_a_users_sessions(self):
        runner = desk_runner()
        await ask(runner, "json.dumps", session="one")
        await ask(runner, "csv.reader", session="two")
        said = await ask(runner, "what does bisect do", session="three")
        assert said["librarian"] == "Welcome back. In other sessions you asked about csv, json."

    @for_seeds(1)
    async def test_counts_questions_of_sessions_at_once(self):
        runner = desk_runner()
        await asyncio.gather(*(ask(runner, "json.dumps", session=f"s{n}") for n in range(5)))
        assert (await runner.get_session("ann", "s0")).state["user:asked:json"] == 5

    @for_seeds(5)
    async def test_is_each_users_own(self):
        runner = desk_runner()
        await ask(runner, "json.dumps", user="ann")
        ann, ben = await asyncio.gather(
            ask(runner, "what else is in there?", user="ann"), ask(runner, "what else is in there?", user="ben")
        )
        assert ann["modules"].startswith("module json")
        assert "a name like json.dumps" in ben["librarian"]
        said = await ask(runner, "csv.reader", user="ben", session="another")
        assert "earlier" not in said["librarian"]
        assert "Welcome back" not in said["librarian"]
        assert not [k for k in (await runner.get_session("ben", "another")).state if "json" in k]


class TestReadingList:
    @for_seeds(1)
    async def test_grows_by_a_version_per_answer(self):
        runner = desk_runner()
        await ask(runner, "json.dumps")
        said = await ask(runner, "csv.reader")
        versions, text = await reading_list(runner)
        assert versions == [0, 1]
        assert [line.split(":")[0] for line in text.splitlines()[2:]] == ["- **json.dumps**", "- **csv.reader**"]
        assert said["functions"].endswith(f"Noted in {READING_LIST}, version 1.")

    @for_seeds(1)
    async def test_has_each_entry_once(self):
        runner = desk_runner()
        for _ in range(3):
            await ask(runner, "json.dumps")
        versions, text = await reading_list(runner)
        assert versions == [0]
        assert text.count("json.dumps") == 1

    @for_seeds(1)
    async def test_is_told_by_the_event(self):
        runner = desk_runner()
        events = [e async for e in runner.run("ann", "s", "json.dumps") if not e.partial]
        assert events[-1].actions.artifact_delta == {READING_LIST: 0}

    @for_seeds(1)
    async def test_is_the_sessions_own(self):
        runner = desk_runner()
        await ask(runner, "json.dumps", user="ann")
        await ask(runner, "csv.reader", user="ben")
        assert "json" not in (await reading_list(runner, user="ben"))[1]


class TestInterruption:
    def test_a_later_attempt_answers_from_what_was_found(self, monkeypatch):
        searches = []

        def find(question, asked, real=reference_desk.find):
            searches.append(question)
            return real(question, asked)

        monkeypatch.setattr(reference_desk, "find", find)

        @for_seeds(5)
        async def check():
            searches.clear()
            services = {"session_service": InMemorySessionService(), "artifact_service": InMemoryArtifactService()}
            first = desk_runner(**services)
            run = await first.start("ann", "s", "json.dumps")
            async for event in run.events():
                if event.author == "functions":
                    break
            report = await first.close(grace=0)
            assert report.suspended == 1
            async with desk_runner(**services) as second:
                run = await second.follow(run.id)
                text = await run.result()
                assert run.record.attempt == 2
                assert text.startswith("json.dumps(")
                assert searches == ["json.dumps"]
                assert (await reading_list(second))[0] == [0]
                state = (await second.get_session("ann", "s")).state
                assert state["user:asked:json"] == 1

        check()


class TestCatalogue:
    @pytest.mark.parametrize(
        "name", ["json.dumps", "os.path.join", "str.split", "collections.abc.Mapping", "urllib.parse.urlparse",
                 "itertools.chain", "time.sleep", "bisect.bisect_left", "xml.etree.ElementTree.parse", "asyncio.run"]
    )  # fmt: skip
    def test_has(self, name):
        assert catalogue().entries[name].doc

    def test_a_module_that_cannot_be_imported_is_left_out(self):
        assert reference_desk._import("no_such_module") is None

    @pytest.mark.slow
    def test_every_entry_can_be_described(self):
        for name, entry in catalogue().entries.items():
            heading = reference_desk.describe(entry).partition("\n")[0]
            assert heading.startswith((name, f"module {name}", name.rpartition(".")[2])), name

    def test_entries_fit_into_the_journal(self):
        hits = reference_desk.find("how do I parse JSON?", [])
        assert len(json.dumps(hits)) < 1000


@pytest.mark.slow
def test_the_demonstration():
    done = subprocess.run([sys.executable, PROGRAM, "--demo"], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    speakers = [line[:3] for line in done.stdout.splitlines() if line.startswith(("ann |", "ben |"))]
    assert sum(a != b for a, b in pairwise(speakers)) > 12, "the streams do not overlap"
    for expected in (
        "functions json.load(fp",
        "librarian You asked about json.load earlier",
        "modules module datetime",
        "librarian Welcome back. In other sessions you asked about json.",
        "librarian I found nothing about that",
        "$ sojourn sessions show home",
        "session home of user ann",
        "session work of user ben",
        "$ sojourn runs show",
        "classes#1/note: 0",
    ):
        assert expected in done.stdout


def test_without_arguments_it_says_how_to_use_it():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--demo" in done.stderr

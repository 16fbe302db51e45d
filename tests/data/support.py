"""What the tests of the care of data share."""

import io
import json
import subprocess
import zipfile

from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.data import DataCare
from sojourn.event import Usage
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.run.status import Move
from sojourn.session.types import SessionKey
from sojourn.testing.builders import answer_event, ask, event, start, step, write

APP = "shop"


async def converse(store, key, *, word, first=1, runs=3):
    """Completed runs in a session; everything that is said, done, kept and answered in them holds a word."""
    for n in range(first, first + runs):
        run = await start(store, f"{key.session_id}-{word}-{n}", key, f"{word} asks", custom_metadata={"note": word})
        await ask(store, run, 1, f"q{n}", prompt=f"{word}?")
        await store.answer(run.uid, f"q{n}", f"{word}!", answer_event(run, f"q{n}", f"{word}!"))
        run = (await store.begin(run.uid)).record
        said = event(run, 2, f"{word} " * 20, state={"a": word, "user:b": word}, calls=[f"c{n}"])
        told = event(run, 3, responses=[f"c{n}"], usage_metadata=Usage(total_token_count=7))
        await write(store, run, said, told, steps=[step("k", {"result": word})], move=Move.COMPLETE)


async def keep_beside(key, uid, word, artifacts, memory):
    """Artifacts of a session and its user, and memories."""
    scope = ArtifactScope(*key, uid)
    for name in ("notes/a.txt", "user:b.bin"):
        for version in range(2):
            await artifacts.save_artifact(scope, name, f"{word} {version}".encode() * 50)
    await memory.add(key.app_name, key.user_id, [Memory(f"{word} likes tea", session_id=key.session_id), Memory(word)])


async def fill(store, artifacts, memory, user_id, *, word, apps=(APP,), sessions=2):
    """Everything that can be kept of a user."""
    for app_name in apps:
        for n in range(1, sessions + 1):
            key = SessionKey(app_name, user_id, f"s{n}")
            await converse(store, key, word=word)
            session = await store.get_session(app_name=app_name, user_id=user_id, session_id=key.session_id)
            await keep_beside(key, session.uid, word, artifacts, memory)


def beside(directory):
    """Artifacts in files and memory in RAM."""
    return FileArtifactService(directory / "artifacts"), InMemoryMemoryService()


async def archive_of(pieces):
    """The files of an archive: their JSON, or their bytes."""
    data = b"".join([piece async for piece in pieces])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: parsed(name, archive.read(name)) for name in archive.namelist()}


def parsed(name, data):
    if name.endswith(".json"):
        return json.loads(data)
    return [json.loads(line) for line in data.splitlines()] if name.endswith(".jsonl") else data


def files_with(directory, text):
    """The files below a directory that hold a text, whatever else is in them.

    Another process looks: when one that has a database open closes the same file, its locks are gone.
    """
    found = subprocess.run(["grep", "-rlaF", text, str(directory)], capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    return found.stdout.splitlines()


STRANGE = ["a/b", "a", "a%", "a_", "..", "a'b", "%", "user:a", "é", "a:b", " a", "a.b", "\u2028x", "u", "app\\x1f"]


async def check_strange_users(store, directory):
    """Users whose ids look like something else, or like the beginning of another's, have their own and nothing of others."""
    artifacts, memory = beside(directory)
    care = DataCare(store, artifacts=artifacts, memory=memory)
    for user in STRANGE:
        await fill(store, artifacts, memory, user, word="w", sessions=1)
    for number, user in enumerate(STRANGE, 1):
        files = await archive_of(care.export(user))
        assert files["end.json"] == {"sessions": 1, "events": 15, "runs": 3, "artifacts": 4, "memories": 2}, user
        assert (await care.erase(user, scrub=False)).sessions == 1
        assert await store.apps_of_user(user) == []
        for other in STRANGE[number:]:
            assert await store.user_state(APP, other) == {"user:b": "w"}
        assert len(list((directory / "artifacts").rglob("data"))) == 4 * (len(STRANGE) - number)

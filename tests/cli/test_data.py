"""`sojourn data`: the care of what is stored, beside whoever executes."""

import asyncio
import io
import json
import os
import subprocess
import sys
import zipfile

import pytest

from sojourn import platform
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.memory.types import Memory
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import finished, session_key
from sojourn.testing.s3 import s3_server
from tests.cli.shell import COMMAND, Terminal, environment, invoke
from tests.data.support import APP, files_with, fill


@pytest.fixture
def kept(tmp_path):
    """A database with two users of one app, and one of another."""

    async def run():
        home = tmp_path / ".sojourn"
        home.mkdir()
        store = SqliteSessionService(home / "sojourn.db", synchronous="normal")
        try:
            artifacts = FileArtifactService(home / "artifacts")
            for user in ("alice", "bob"):
                await fill(store, artifacts, InMemoryMemoryService(), user, word=f"{user}-words")
            await finished(store, "r1", session_key("s9", app_name="bank", user_id="alice"), "alice-words")
        finally:
            await store.close()

    asyncio.run(run())
    return tmp_path


def ok(result):
    assert result.exit_code == 0, result.stderr
    return result


def refused(result, code, exit_code=1):
    assert result.exit_code == exit_code
    assert f"[{code}]" in result.stderr
    return result.stderr


def with_little_room(size, *arguments, cwd):
    """A command whose files may not grow beyond a size."""
    limited = [sys.executable, "-c", _LIMITED, str(size), *COMMAND[1:], *arguments]
    return subprocess.run(limited, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


_LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


# -- prune ------------------------------------------------------------------------------------------------------------


def test_prune_by_count(kept):
    result = ok(invoke("data", "prune", "--app", APP, "--max-events", "5", "--yes", cwd=kept))
    assert result.stderr.strip() == f"removed 0 sessions, 8 runs, 40 events of app {APP}"
    told = json.loads(
        ok(invoke("data", "prune", "--app", APP, "--max-events", "0", "--user", "bob", "--yes", "--json", cwd=kept)).stdout
    )
    assert told == {"appName": APP, "sessions": 0, "runs": 2, "events": 10}
    shown = ok(invoke("runs", "show", "s1-bob-words-1", "--app", APP, cwd=kept))
    assert "completed" in shown.stdout
    assert "bob-words asks" not in shown.stdout
    assert json.loads(ok(invoke("sessions", "export", "s1", "--user", "bob", cwd=kept)).stdout)["runs"][0]["trimmed"] is True


def test_prune_by_age(kept):
    assert "0 runs" in ok(invoke("data", "prune", "--app", APP, "--max-age", "1h", "--ttl", "1h", "--yes", cwd=kept)).stderr
    with platform.use(_Later(7200.0)):
        result = ok(invoke("data", "prune", "--app", APP, "--ttl", "1h", "--yes", cwd=kept))
    assert "removed 4 sessions" in result.stderr
    assert ok(invoke("sessions", "ls", cwd=kept)).stdout.startswith("s9\t")


def test_prune_does_the_rest_of_one_that_was_cut_off(kept):
    """Its last session was gone, and the artifacts were not."""
    artifacts = kept / ".sojourn/artifacts"

    async def drop():
        store = SqliteSessionService(kept / ".sojourn/sojourn.db", synchronous="normal", role="client")
        for session in (await store.list_sessions(app_name=APP)).items:
            await store.drop_session(session.key)
        await store.close()

    asyncio.run(drop())
    assert len(list(artifacts.rglob("data"))) == 16
    refused(invoke("data", "prune", "--app", "shops", "--ttl", "1h", "--yes", cwd=kept), "app.not_found")
    ok(invoke("data", "prune", "--app", APP, "--ttl", "1h", "--yes", cwd=kept))
    assert len(list(artifacts.rglob("data"))) == 8
    refused(invoke("data", "prune", "--app", APP, "--ttl", "1h", "--yes", cwd=kept), "app.not_found")


class _Later(platform.Platform):
    """The time some seconds from now."""

    def __init__(self, seconds):
        self._seconds = seconds

    def now(self):
        return super().now() + self._seconds


@pytest.mark.parametrize(
    "arguments", [["--yes"], ["--max-age", "soon", "--yes"], ["--max-events", "-1", "--yes"], ["--max-events", "1"]]
)
def test_prune_wants_to_be_told_what(kept, arguments):
    assert invoke("data", "prune", "--app", APP, *arguments, cwd=kept).exit_code == 2


def test_prune_wants_to_be_told_which_app(kept):
    refused(invoke("data", "prune", "--max-events", "1", "--yes", cwd=kept), "app.ambiguous", 2)


# -- report -----------------------------------------------------------------------------------------------------------


def test_report(kept):
    result = ok(invoke("data", "report", cwd=kept))
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows][-1] == "s9"
    sizes = [int(row[3]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert rows[0][4:7] == ["15", "3", "2"]
    assert f"5 sessions, 13 runs, 62 events, {sum(sizes)} bytes" in result.stderr
    assert "1 session, 1 run, 2 events, " in ok(invoke("data", "report", "--app", "bank", cwd=kept)).stderr
    told = json.loads(ok(invoke("data", "report", "--json", "--limit", "1", "--app", "bank", cwd=kept)).stdout)
    assert told["total"]["sessions"] == 1
    assert told["sessions"][0]["userId"] == "alice"
    assert len(json.loads(ok(invoke("data", "report", "--json", "--limit", "0", cwd=kept)).stdout)["sessions"]) == 5


# -- export -----------------------------------------------------------------------------------------------------------


def test_export_to_a_file(kept):
    ok(invoke("data", "export", "alice", "-o", "alice.zip", cwd=kept))
    assert (kept / "alice.zip").stat().st_mode & 0o077 == 0
    with zipfile.ZipFile(kept / "alice.zip") as archive:
        assert json.loads(archive.read("manifest.json"))["apps"] == ["bank", APP]
        assert json.loads(archive.read("end.json"))["artifacts"] == 8
    assert not list(kept.glob("*.partial"))


def test_export_to_a_pipe(kept):
    done = subprocess.run(
        [*COMMAND, "data", "export", "bob", "--app", APP], cwd=kept, env=environment(), capture_output=True, check=True
    )
    with zipfile.ZipFile(io.BytesIO(done.stdout)) as archive:
        assert json.loads(archive.read("end.json"))["sessions"] == 2


def test_export_replaces_what_a_link_leads_to(kept):
    (kept / "old.zip").write_text("old")
    (kept / "old.zip").chmod(0o644)
    (kept / "link.zip").symlink_to("old.zip")
    ok(invoke("data", "export", "bob", "-o", "link.zip", cwd=kept))
    assert (kept / "link.zip").is_symlink()
    assert zipfile.is_zipfile(kept / "old.zip")
    assert (kept / "old.zip").stat().st_mode & 0o077 == 0


def test_export_to_what_is_no_file(kept):
    os.mkfifo(kept / "pipe")
    reading = subprocess.Popen(["cat", "pipe"], cwd=kept, stdout=subprocess.PIPE)
    ok(invoke("data", "export", "bob", "-o", "pipe", cwd=kept))
    assert zipfile.is_zipfile(io.BytesIO(reading.communicate(timeout=20)[0]))
    assert (kept / "pipe").is_fifo()


def test_export_that_finds_no_room_leaves_nothing(kept):
    (kept / "alice.zip").write_text("old")
    noise = platform.random_bytes(200_000)
    asyncio.run(
        FileArtifactService(kept / ".sojourn/artifacts").save_artifact(
            ArtifactScope(APP, "alice", "-", "-"), "user:noise", noise
        )
    )
    done = with_little_room(60_000, "data", "export", "alice", "-o", "alice.zip", cwd=kept)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert (kept / "alice.zip").read_text() == "old"
    assert not list(kept.glob("*.partial"))


# -- erase ------------------------------------------------------------------------------------------------------------


def test_erase(kept):
    assert files_with(kept, "alice-words")
    result = ok(invoke("data", "erase", "alice", "--yes", "--json", cwd=kept))
    assert json.loads(result.stdout) == {"userId": "alice", "apps": ["bank", APP], "sessions": 3, "runs": 7, "events": 32}
    assert files_with(kept, "alice") == []
    assert len(files_with(kept, "bob-words")) > 1
    assert "0 sessions" in ok(invoke("data", "erase", "alice", "--yes", cwd=kept)).stderr


@pytest.mark.parametrize("file", [".sojourn/sojourn.db", "memory.db"])
def test_memory_goes_too(kept, file):
    async def remember():
        memory = SqliteMemoryService(kept / file, synchronous="normal")
        for user in ("alice", "bob"):
            await memory.add(APP, user, [Memory(f"{user}-words about xylophones")])
        await memory.close()

    asyncio.run(remember())
    named = [] if file.startswith(".sojourn") else ["--memory", file]
    ok(invoke("data", "export", "alice", "-o", "alice.zip", *named, cwd=kept))
    with zipfile.ZipFile(kept / "alice.zip") as archive:
        assert json.loads(archive.read("end.json"))["memories"] == 1
    (kept / "alice.zip").unlink()
    ok(invoke("data", "erase", "bob", "--yes", *named, cwd=kept))
    assert len(files_with(kept, "xylophones")) == 1
    ok(invoke("data", "erase", "alice", "--yes", *named, cwd=kept))
    assert files_with(kept, "xylophones") == []
    assert files_with(kept, "alice") == []


def test_erase_asks(kept):
    assert invoke("data", "erase", "alice", cwd=kept).exit_code == 2
    for answer, code in (("n", 1), ("y", 0)):
        with Terminal("data", "erase", "alice", cwd=kept) as terminal:
            terminal.sees("for good")
            terminal.types(answer)
            assert terminal.end() == code
        assert bool(files_with(kept, "alice-words")) is (answer == "n")


@pytest.mark.parametrize("command", [["export", "alice", "-o", "alice.zip"], ["erase", "alice", "--yes"]])
def test_what_is_no_database_is_said_to_be_none(tmp_path, command):
    (tmp_path / "notes.txt").write_text("something else, and long enough for a header" * 50)
    refused(invoke("data", *command, "--db", "notes.txt", cwd=tmp_path), "store.foreign")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# -- backup and restore -----------------------------------------------------------------------------------------------


def test_backup_and_restore(kept):
    made = json.loads(ok(invoke("data", "backup", "copy.db", "--json", cwd=kept)).stdout)
    assert made == {"file": "copy.db", "bytes": (kept / "copy.db").stat().st_size}
    refused(invoke("data", "backup", "copy.db", cwd=kept), "data.target_exists")
    ok(invoke("data", "backup", "copy.db", "--overwrite", cwd=kept))
    before = ok(invoke("sessions", "ls", "--app", APP, cwd=kept)).stdout
    ok(invoke("data", "erase", "alice", "--yes", cwd=kept))
    assert ok(invoke("sessions", "ls", "--app", APP, cwd=kept)).stdout != before
    assert invoke("data", "restore", "copy.db", cwd=kept).exit_code == 2
    ok(invoke("data", "restore", "copy.db", "--yes", cwd=kept))
    assert ok(invoke("sessions", "ls", "--app", APP, cwd=kept)).stdout == before
    ok(invoke("data", "restore", "copy.db", "--yes", "--db", "new.db", cwd=kept))
    assert ok(invoke("sessions", "ls", "--app", APP, "--db", "new.db", cwd=kept)).stdout == before


def test_a_backup_that_finds_no_room_leaves_nothing(kept):
    (kept / "copy.db").write_text("old")
    done = with_little_room(30_000, "data", "backup", "copy.db", "--overwrite", cwd=kept)
    assert done.returncode == 1
    assert "[store.unavailable]" in done.stderr
    assert (kept / "copy.db").read_text() == "old"
    assert not list(kept.glob("*.partial*"))


def test_a_restore_that_finds_no_room_changes_nothing(kept):
    ok(invoke("data", "backup", "copy.db", cwd=kept))
    ok(invoke("data", "erase", "alice", "--yes", cwd=kept))
    before = ok(invoke("data", "report", "--json", cwd=kept)).stdout
    for database in (".sojourn/sojourn.db", "new.db"):
        done = with_little_room(30_000, "data", "restore", "copy.db", "--yes", "--db", database, cwd=kept)
        assert done.returncode == 1
        assert "[store.unavailable]" in done.stderr
    assert ok(invoke("data", "report", "--json", cwd=kept)).stdout == before
    assert sorted(path.name for path in kept.iterdir()) == [".sojourn", "copy.db", "new.db.executor"]
    ok(invoke("data", "restore", "copy.db", "--yes", cwd=kept))
    assert len(json.loads(ok(invoke("data", "report", "--json", cwd=kept)).stdout)["sessions"]) == 5


def test_restore_beside_an_executor(kept):
    ok(invoke("data", "backup", "copy.db", cwd=kept))

    async def run():
        store = SqliteSessionService(kept / ".sojourn" / "sojourn.db", synchronous="normal")
        await store.become_executor()
        result = await asyncio.to_thread(invoke, "data", "restore", "copy.db", "--yes", cwd=kept)
        await store.close()
        return result

    assert "this process executes" in refused(asyncio.run(run()), "store.in_use")


@pytest.mark.parametrize(
    "arguments",
    [["prune", "--max-events", "1", "--yes"], ["report"], ["export", "a", "-o", "x"], ["erase", "a", "--yes"], ["backup", "x"]],
)
def test_without_a_database(tmp_path, arguments):
    refused(invoke("data", *arguments, cwd=tmp_path), "store.not_found")
    assert list(tmp_path.iterdir()) == []


# -- sweep ------------------------------------------------------------------------------------------------------------


def test_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with s3_server("bucket") as endpoint:
        url = f"s3://bucket/prefix?endpoint={endpoint}"
        result = ok(invoke("data", "sweep", url, "--older-than", "5m", cwd=tmp_path))
        assert result.stderr.strip() == "removed 0 objects from s3://bucket/prefix"
        told = json.loads(ok(invoke("data", "sweep", url, "--json", cwd=tmp_path)).stdout)
        assert told == {"url": "s3://bucket/prefix", "objects": 0}


def test_sweep_takes_the_url_of_a_bucket(tmp_path):
    refused(invoke("data", "sweep", "artifacts", cwd=tmp_path), "artifact.invalid_url", exit_code=2)
    refused(invoke("data", "sweep", "ftp://host/path", cwd=tmp_path), "artifact.unsupported_url")
    assert invoke("data", "sweep", "s3://bucket", "--older-than", "soon", cwd=tmp_path).exit_code == 2

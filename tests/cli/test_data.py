"""`sojourn data`: the care of what is stored, beside whoever executes."""

import asyncio
import io
import json
import subprocess
import zipfile

import pytest

from sojourn import platform
from sojourn.artifact.file import FileArtifactService
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

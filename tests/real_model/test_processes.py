"""A real model and processes: one that is killed in mid-answer, and the command line."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from sojourn.run.status import RunStatus
from sojourn.store.database import DatabaseSessionService
from tests.real_model import worker
from tests.real_model.support import REAL, ROOT

pytestmark = REAL

PATIENCE = 240
"""Seconds that a process may take which says a few words."""


def work(database, server, max_tokens):
    command = [sys.executable, "-m", "tests.real_model.worker", str(database), server.base_url, str(max_tokens)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_process_that_is_killed_in_mid_answer_is_succeeded_by_one_that_does_the_rest(tmp_path, calling_server):
    database = tmp_path / "sessions.db"
    notes, pieces = [], []
    with work(database, calling_server, max_tokens=1500) as first:
        for line in first.stdout:
            notes.append(json.loads(line))
            pieces += [note["piece"] for note in notes[-1:] if "piece" in note]
            if len(pieces) == 4:
                os.kill(first.pid, signal.SIGKILL)
                break
    assert first.returncode == -signal.SIGKILL
    assert [note for note in notes if "piece" not in note] == [{"asked": "required"}, {"tool": "Paris"}, {"asked": "none"}]

    with work(database, calling_server, max_tokens=8) as second:
        rest = [json.loads(line) for line in second.communicate(timeout=PATIENCE)[0].splitlines()]
    assert second.returncode == 0
    assert rest[0] == {"asked": "none"}, "the call is known, and was made"
    result = rest[-1]["result"]
    assert rest[-1]["attempt"] == 2
    assert "".join(note["piece"] for note in rest[1:-1]) == result

    record, events = asyncio.run(stored(database))
    assert (record.status, record.deaths) == (RunStatus.COMPLETED, 1)
    assert [bool(event.get_function_calls()) for event in events] == [False, True, False, False]
    assert [event.text for event in events][-1] == result
    assert not any(event.interrupted or event.superseded for event in events)
    spent = [event.usage_metadata.total_token_count for event in events if event.usage_metadata]
    assert len(spent) == 2
    assert record.usage["total_token_count"] == sum(spent)


async def stored(database):
    store = DatabaseSessionService(f"sqlite:///{database}", role="client")
    try:
        record = await store.get_run(worker.APP, worker.RUN, worker.USER)
        key = {"app_name": worker.APP, "user_id": worker.USER, "session_id": worker.SESSION}
        return record, await store.list_events(**key, superseded=True)
    finally:
        await store.close()


# -- the command line ---------------------------------------------------------------------------------------------------

TARGET = """\
from sojourn import LlmAgent

helper = LlmAgent(
    name="helper", model="smollm2", base_url="{base_url}", model_settings={{"temperature": 0, "max_tokens": 16}}
)
"""


@pytest.fixture
def sojourn(tmp_path):
    def command(*args):
        return subprocess.run(
            [sys.executable, "-m", "sojourn", *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    return command


def test_an_agent_of_a_file_talks_in_a_shell_and_remembers(tmp_path, server, sojourn):
    (tmp_path / "agents.py").write_text(TARGET.format(base_url=server.base_url))
    spoken = sojourn("run", "agents.py:helper", "Say hello.", "--session", "s")
    assert spoken.returncode == 0, spoken.stderr

    framed = sojourn("run", "agents.py:helper", "Say it again.", "--session", "s", "--json")
    assert framed.returncode == 0, framed.stderr
    frames = [json.loads(line) for line in framed.stdout.splitlines()]
    said = "".join(frame["event"]["content"]["parts"][0]["text"] for frame in frames if frame["kind"] == "partial")
    (event,) = [frame["event"] for frame in frames if frame["kind"] == "event"]
    assert said == event["content"]["parts"][0]["text"]
    assert event["usageMetadata"]["totalTokenCount"] > 0

    exported = json.loads(sojourn("sessions", "export", "s").stdout)
    first, second = exported["runs"]
    assert second["usage"]["prompt_token_count"] > first["usage"]["total_token_count"], "the first exchange is told again"
    assert exported["events"][1]["content"]["parts"][0]["text"] == spoken.stdout.strip()


def test_the_command_line_gives_an_agent_another_model(tmp_path, server, sojourn):
    (tmp_path / "agents.py").write_text(TARGET.format(base_url="http://127.0.0.1:9/v1"))
    spoken = sojourn("run", "agents.py:helper", "Say hello.", "--model", "smollm2", "--base-url", server.base_url)
    assert spoken.returncode == 0, spoken.stderr
    assert spoken.stdout.strip()


def test_a_server_that_is_not_there_is_an_error_with_a_code(tmp_path, sojourn):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    (tmp_path / "agents.py").write_text(TARGET.format(base_url=address))
    spoken = sojourn("run", "agents.py:helper", "Say hello.")
    assert spoken.returncode != 0
    assert "model.unreachable" in spoken.stderr
    assert "Traceback" not in spoken.stderr

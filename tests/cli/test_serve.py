"""`sojourn serve`, and programs that serve their own agent: what they are told and what they tell."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from sojourn.agents.function import agent
from sojourn.errors import InvalidInput
from sojourn.launcher import Launcher
from sojourn.run.config import RunConfig
from sojourn.runner.config import RunnerConfig
from sojourn.runner.runner import Runner
from sojourn.store.inmemory import InMemorySessionService
from tests.cli.shell import environment, invoke, sojourn

pytestmark = pytest.mark.slow

PROGRAM = '''
import asyncio, sys
from sojourn import Launcher, agent

@agent
async def helper(ctx):
    """Says what it is."""
    yield f"{ctx.app_name} heard {ctx.user_content.text}"

launcher = Launcher(helper).app_name("mine")
if "plain" in sys.argv:
    sys.argv.remove("plain")
    launcher.main()
else:
    asyncio.run(launcher.run())
'''


SLOW = """
import asyncio
from sojourn import agent

@agent
async def slow(ctx):
    await asyncio.Event().wait()
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "my.py").write_text(PROGRAM)
    return tmp_path


def run_program(home, *args, stdin=""):
    return subprocess.run(
        [sys.executable, "my.py", *args], cwd=home, input=stdin, env=environment(), capture_output=True, encoding="utf-8",
        timeout=30, check=False,
    )  # fmt: skip


class Serving:
    """A command that serves, from its address to its end."""

    def __init__(self, home, *command, env=None):
        self._popen = subprocess.Popen(
            [sys.executable, *command], cwd=home, env={**environment(), "PYTHONUNBUFFERED": "1", **(env or {})},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        self.url = self._popen.stdout.readline().strip()

    def ask(self, path, body=None, headers=()):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json", **dict(headers)})
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read().decode()

    def stop(self, number=signal.SIGTERM):
        self._popen.send_signal(number)
        out, err = self._popen.communicate(timeout=30)
        return self._popen.returncode, out, err

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.communicate()


SAY = {"userId": "ann", "sessionId": "s1", "newMessage": {"role": "user", "parts": [{"text": "hello"}]}}


def test_it_serves_targets_in_one_process(home):
    with Serving(home, "-m", "sojourn", "serve", "agents.py:echo", "agents.py:listener", "--port", "0") as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert json.loads(server.ask("/list-apps")) == ["echo", "listener"]
        run = json.loads(server.ask("/runs", {"appName": "echo", **SAY}))
        assert "You said: hello" in server.ask(f"/runs/{run['id']}/events?appName=echo")
        code, out, err = server.stop(signal.SIGINT)
    assert (code, out) == (0, "")
    assert f"serving echo, listener; the API is described in {server.url}/openapi.json" in err
    assert " INFO sojourn.access: POST /runs 201 " in err
    assert (home / ".sojourn" / "sojourn.db").exists()
    assert "hello" in sojourn("sessions", "show", "s1", "--app", "echo", cwd=home).stdout


def test_keys_and_the_log_as_json(home):
    key = sojourn("keys", "add", "ann", cwd=home).stdout.strip()
    command = ["-m", "sojourn", "serve", "agents.py:echo", "--port", "0", "--auth", "keys", "--log-format", "json"]
    with Serving(home, *command, "--host", "127.0.0.1") as server:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.ask("/list-apps")
        assert json.loads(server.ask("/list-apps", headers={"X-API-Key": key}.items())) == ["echo"]
        _, _, err = server.stop()
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    access = [line for line in lines if line["logger"] == "sojourn.access"]
    assert [(line["status"], line.get("user_id")) for line in access] == [(401, None), (200, "ann")]
    assert key not in err


def test_that_nobody_can_be_let_in_is_told(home):
    command = ["-m", "sojourn", "serve", "agents.py:echo", "--port", "0", "--db", "my.db", "--auth", "keys"]
    hint = "make one by: sojourn keys add USER --db my.db\n"
    with Serving(home, *command) as server:
        assert hint in server.stop()[2]
    sojourn("keys", "add", "ann", "--db", "my.db", cwd=home)
    with Serving(home, *command) as server:
        assert "sojourn keys add" not in server.stop()[2]


def test_how_much_a_user_may_ask_for(home):
    bounds = ["--rate-per-user", "3", "--max-unfinished-runs-per-user", "1"]
    with Serving(home, "-m", "sojourn", "serve", "agents.py:asker", "--port", "0", *bounds) as server:
        server.ask("/apps/asker/users/ann/sessions", {"sessionId": "s1"})
        assert json.loads(server.ask("/run", SAY))[-1]["longRunningToolIds"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.ask("/runs", SAY)
        assert "limit.runs_per_user" in refused.value.read().decode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.ask("/list-apps")
        assert "limit.rate" in refused.value.read().decode()
        assert int(refused.value.headers["Retry-After"]) > 0
        assert refused.value.headers["RateLimit-Policy"]


def test_how_much_it_does_at_once_and_takes_at_once(home):
    (home / "slow.py").write_text(SLOW)
    bounds = ["--max-concurrency", "1", "--max-body-bytes", "1000", "--heartbeat", "0.1"]
    with Serving(home, "-m", "sojourn", "serve", "slow.py", "--port", "0", *bounds) as server:
        run = json.loads(server.ask("/runs", SAY))
        with urllib.request.urlopen(f"{server.url}/runs/{run['id']}/events", timeout=20) as stream:
            while stream.readline() != b": ping\n":
                pass
        server.ask("/runs", {**SAY, "sessionId": "s2"})
        told = server.ask("/metrics")
        assert 'sojourn_runs{app="slow",status="running"} 1.0' in told
        assert 'sojourn_runs{app="slow",status="queued"} 1.0' in told
        with pytest.raises(urllib.error.HTTPError, match="413"):
            server.ask("/runs", {**SAY, "newMessage": "x" * 1000})


def test_artifacts_and_database_elsewhere(home):
    with Serving(
        home, "-m", "sojourn", "serve", "agents.py:echo", "--port", "0", "--db", "my.db", "--artifacts", "files"
    ) as server:
        server.ask("/runs", SAY)
        path = "/apps/echo/users/ann/sessions/s1/artifacts"
        server.ask(path, {"filename": "a.txt", "artifact": {"text": "hello"}})
        server.stop()
    assert (home / "my.db").exists()
    assert any((home / "files").rglob("*"))
    assert not (home / ".sojourn").exists()


def test_traces_are_exported_as_the_environment_says(home):
    exporters = {"OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"}
    with Serving(home, "-m", "sojourn", "serve", "agents.py:echo", "--port", "0", "--otel", env=exporters) as server:
        run = json.loads(server.ask("/runs", SAY))
        server.ask(f"/runs/{run['id']}/events")
        code, out, _ = server.stop()
    assert code == 0
    assert '"name": "invoke_agent echo"' in out
    assert '"service.name": "sojourn"' in out


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["agents.py:echo", "--host", "0.0.0.0"], 2, "[auth.needs_loopback]"),
        (["agents.py:nobody"], 2, "[target.unknown_name]"),
        (["agents.py:echo", "agents.py:echo"], 2, "[server.invalid]"),
        (["agents.py:echo", "--auth", "none", "--auth", "keys"], 2, "[server.invalid]"),
        (["agents.py:echo", "--auth", "magic"], 2, "--auth"),
        (["agents.py:echo", "--auth", "jwt"], 2, "--jwt-issuer"),
        (["agents.py:echo", "--jwt-issuer", "https://x"], 2, "--auth jwt"),
        (["agents.py:echo", "agents.py:boom", "--app", "one"], 2, "--app"),
        (["agents.py:echo", "--port", "70000"], 2, "--port"),
        (["agents.py:echo", "--on-disconnect", "sing"], 2, "--on-disconnect"),
        (["agents.py:echo", "--allow-origin", "nonsense"], 2, "[server.invalid]"),
        ([], 2, "TARGET"),
    ],
)
def test_what_makes_no_sense(home, imports, args, code, told):
    ran = invoke("serve", *args, cwd=home)
    assert (ran.exit_code, ran.stdout) == (code, "")
    assert told in ran.stderr


def test_exporters_that_are_not_there(home):
    ran = sojourn(
        "serve", "agents.py:echo", "--otel", "--port", "0", cwd=home, env={**environment(), "OTEL_TRACES_EXPORTER": "x"}
    )
    assert ran.returncode == 1
    assert "[otel.not_installed]" in ran.stderr


def test_a_second_server_of_one_database_says_who_has_it(home):
    with Serving(home, "-m", "sojourn", "serve", "agents.py:echo", "--port", "0") as server:
        ran = sojourn("serve", "agents.py:echo", "--port", "0", cwd=home)
        server.stop()
    assert ran.returncode == 1
    assert "[store.in_use]" in ran.stderr


# -- programs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [[], ["plain"]])
def test_a_program_is_a_chat_a_run_or_a_server(program, how):
    chat = run_program(program, *how, stdin="hi\n")
    assert (chat.returncode, chat.stdout) == (0, "mine heard hi\n")
    once = run_program(program, *how, "run", "you", "--user", "ann")
    assert (once.returncode, once.stdout) == (0, "mine heard you\n")
    with Serving(program, "my.py", *how, "serve", "--port", "0") as server:
        run = json.loads(server.ask("/runs", SAY))
        assert "mine heard hello" in server.ask(f"/runs/{run['id']}/events")
        code, out, err = server.stop()
    assert (code, out) == (0, "")
    assert "serving mine;" in err
    assert len(sojourn("sessions", "ls", cwd=program).stdout.splitlines()) == 3


@pytest.mark.parametrize("how", [[], ["plain"]])
@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["serve", "my.py"], "unexpected extra argument"),
        (["run", "hi", "--reload"], "No such option: --reload"),
        (["serve", "--host", "0.0.0.0"], "[auth.needs_loopback]"),
    ],
)
def test_words_that_a_program_does_not_know(program, how, args, told):
    ran = run_program(program, *how, *args)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert told in ran.stderr


def test_help_of_a_program(program):
    shown = run_program(program, "--help").stdout
    assert "Usage: my.py" in shown
    assert "serve" in shown
    assert "TARGET" not in shown + run_program(program, "serve", "--help").stdout


@agent
async def helper(ctx):
    return "hi"


def test_what_a_launcher_is_told():
    store, runs = InMemorySessionService(), RunConfig(max_turns=3)
    launcher = Launcher(helper)
    assert launcher.settings.app_name == "helper"
    launcher.app_name("mine").session_service(store).artifact_service(None).memory_service(None).run_config(runs)
    launcher.config(max_concurrency=7)
    assert launcher.settings == RunnerConfig(
        app_name="mine", agent=helper, session_service=store, artifact_service=None, memory_service=None, run_config=runs,
        max_concurrency=7,
    )  # fmt: skip
    assert Launcher(Runner(launcher.settings)).settings == launcher.settings
    assert Launcher(helper).config(launcher.settings).settings == launcher.settings
    with pytest.raises(InvalidInput) as caught:
        launcher.config(nonsense=1)
    assert caught.value.code == "runner.invalid"


def test_a_launcher_keeps_its_own_services(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["my.py"])
    store = InMemorySessionService()
    Launcher(helper).session_service(store).main(["run", "hello", "--session", "s1"])
    assert capsys.readouterr().out == "hi\n"
    assert os.listdir(tmp_path / ".sojourn") == [".gitignore"]

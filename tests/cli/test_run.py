"""`sojourn run TARGET "message"`, in real processes."""

import asyncio
import json
import os
import re
import signal
import subprocess

import pytest

from sojourn.store.database import DatabaseSessionService
from sojourn.testing.builders import new_run, session_key
from tests.cli.shell import COMMAND, Process, Terminal, environment, invoke, sojourn

LOCK = "store.in_use"


def session_of(err):
    return re.search(r"^session (\w+)$", err, re.MULTILINE)[1]


def runs(home, *args, app):
    """What `runs ls` lists, as cells."""
    listed = invoke("runs", "ls", "--app", app, *args, cwd=home)
    assert listed.exit_code == 0, listed.stderr
    return [line.split("\t") for line in listed.stdout.splitlines()]


# -- the answer ---------------------------------------------------------------------------------------------------------


def test_the_answer_goes_to_stdout_and_the_session_to_stderr(home):
    ran = sojourn("run", "agents.py:echo", "hello there", cwd=home)
    assert (ran.returncode, ran.stdout) == (0, "You said: hello there \n")
    assert re.fullmatch(r"session [0-9a-f]{32}\n", ran.stderr)


def test_the_answer_is_streamed(home):
    with Process("run", "agents.py:slow", "go", cwd=home) as process:
        assert process.read_until("one ") == "one "


def test_a_session_is_continued(home):
    first = sojourn("run", "agents.py:echo", "one", cwd=home)
    session = session_of(first.stderr)
    second = sojourn("run", "agents.py:echo", "two", "--session", session, cwd=home)
    assert second.stderr == ""
    exported = json.loads(invoke("sessions", "export", session, cwd=home).stdout)
    assert exported["state"] == {"turns": 2}
    assert [e["content"]["parts"][0]["text"] for e in exported["events"] if e["author"] == "user"] == ["one", "two"]


def test_each_run_without_a_session_has_one_of_its_own(home):
    for _ in range(2):
        sojourn("run", "agents.py:echo", "hi", cwd=home)
    assert len(invoke("sessions", "ls", cwd=home).stdout.splitlines()) == 2


def test_structured_output_is_json_and_files_are_attached(home):
    (home / "note.txt").write_text("a note")
    (home / "scan.png").write_bytes(b"\x89PNG")
    (home / "thing").write_bytes(b"\x00")
    files = [word for name in ("note.txt", "scan.png", "thing") for word in ("--file", name)]
    ran = sojourn("run", "agents.py:structured", "look", *files, cwd=home)
    assert json.loads(ran.stdout) == {"parts": ["text/plain", "image/png", "application/octet-stream"]}


def test_user_app_and_database_can_be_chosen(home):
    ran = sojourn("run", "agents.py:echo", "hi", "--user", "ann", "--app", "desk", "--db", "my.db", cwd=home)
    assert ran.returncode == 0
    assert not (home / ".sojourn").exists()
    [row] = [r.split("\t") for r in invoke("runs", "ls", "--db", f"sqlite:///{home}/my.db", cwd=home).stdout.splitlines()]
    assert row[1:3] == ["completed", "ann"]
    shown = invoke("sessions", "ls", "--db", "my.db", "--app", "desk", "--user", "bob", cwd=home)
    assert (shown.exit_code, shown.stdout) == (0, "")


def test_what_people_said_stays_out_of_repositories(home):
    sojourn("run", "agents.py:echo", "hi", cwd=home)
    assert (home / ".sojourn" / ".gitignore").read_text() == "*\n"
    assert (home / ".sojourn" / "sojourn.db").exists()


def test_a_config_keeps_its_own_services_unless_a_database_is_named(home):
    (home / "configs.py").write_text(
        "from agents import echo\n"
        "from sojourn import RunnerConfig\n"
        "from sojourn.store.database import DatabaseSessionService\n"
        "desk = RunnerConfig(app_name='desk', agent=echo, session_service=DatabaseSessionService('sqlite:///own.db'))\n"
    )
    sojourn("run", "configs.py:desk", "hi", cwd=home)
    assert len(invoke("sessions", "ls", "--db", "own.db", cwd=home).stdout.splitlines()) == 1
    sojourn("run", "configs.py:desk", "hi", "--db", "named.db", cwd=home)
    assert len(invoke("sessions", "ls", "--db", "own.db", cwd=home).stdout.splitlines()) == 1
    assert len(invoke("sessions", "ls", "--db", "named.db", cwd=home).stdout.splitlines()) == 1


def test_output_is_utf8_whatever_the_locale_says(home):
    env = {
        **environment(),
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    ran = sojourn("run", "agents.py:rude", "hé", cwd=home, env=env)
    assert ran.stdout == "caf\u00e9 \U0001f600 \x1b[31mred\n"


def test_json_prints_the_frames(home):
    ran = sojourn("run", "agents.py:echo", "hi", "--json", cwd=home)
    frames = [json.loads(line) for line in ran.stdout.splitlines()]
    kinds = [f["kind"] for f in frames]
    assert kinds[0] == "run.started"
    assert kinds[-2:] == ["event", "run.completed"]
    assert set(kinds[1:-2]) == {"partial"}
    assert "".join(f["event"]["content"]["parts"][0]["text"] for f in frames if f["kind"] == "partial") == "You said: hi "
    assert all(f["event"]["partial"] for f in frames if f["kind"] == "partial")
    assert [f["pos"] for f in frames if "pos" in f] == [1, 2, 3]
    assert frames[-2]["event"]["actions"] == {"stateDelta": {"turns": 1}}


def test_a_config_without_streaming_has_no_pieces(home):
    (home / "configs.py").write_text(
        "from agents import echo\n"
        "from sojourn import RunConfig, RunnerConfig\n"
        "desk = RunnerConfig(app_name='desk', agent=echo, run_config=RunConfig(streaming_mode='none'))\n"
    )
    ran = sojourn("run", "configs.py:desk", "hi", "--json", cwd=home)
    assert [json.loads(line)["kind"] for line in ran.stdout.splitlines()] == ["run.started", "event", "run.completed"]


# -- how it ends --------------------------------------------------------------------------------------------------------


def test_a_failure_is_told_with_its_code_and_the_users_frames(home):
    ran = sojourn("run", "agents.py:boom", "hi", cwd=home)
    assert (ran.returncode, ran.stdout) == (1, "so far \n")
    assert "[agent.failed]" in ran.stderr.splitlines()[-1]
    assert "ValueError: a secret" in ran.stderr
    assert re.findall(r'File ".*/(\w+\.py)"', ran.stderr) == ["agents.py"]


def test_verbose_shows_all_frames_and_the_log(home):
    ran = sojourn("run", "agents.py:boom", "hi", "--verbose", cwd=home)
    assert "runner/attempt/execution.py" in ran.stderr
    assert "run started" in ran.stderr


def test_a_failure_in_json(home):
    ran = sojourn("run", "agents.py:boom", "hi", "--json", cwd=home)
    assert ran.returncode == 1
    assert json.loads(ran.stdout.splitlines()[-1])["error"]["code"] == "agent.failed"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["agents.py:ecko", "hi"], "did you mean 'echo'?"),
        (["nothing.py:echo", "hi"], "[target.not_found]"),
        (["agents.py:echo", ""], "[message.invalid]"),
        (["agents.py:echo", "hi", "--user", ""], "[id.invalid]"),
        (["agents.py:echo", "hi", "--file", "absent.txt"], "absent.txt"),
        (["agents.py:echo", "--json"], "needs a message"),
        (["agents.py:echo", "--file", "agents.py"], "needs a message"),
        (["agents.py:echo", "hi", "--reload"], "for a chat"),
        (["agents.py:echo", "hi", "--db", "mysql://x"], "[store.unsupported_url]"),
        (["agents.py:echo", "hi", "--db", ""], "[store.invalid_url]"),
        (["agents.py:echo", "hi", "--db", ":memory:"], "[store.invalid_url]"),
        (["agents.py:echo", "hi", "there"], "there"),
        ([], "TARGET"),
    ],
)
def test_wrong_usage(home, imports, args, told):
    ran = invoke("run", *args, cwd=home)
    assert ran.exit_code == (1 if "unsupported" in told else 2)
    assert ran.stdout == ""
    assert told in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("kind", ["Exception", "BaseException", "SystemExit"])
def test_a_file_that_raises_is_told_in_one_line(home, kind):
    (home / "broken.py").write_text(f"class Odd({kind}): pass\nraise Odd('caf\u00e9\\nau lait')\n", encoding="utf-8")
    ran = sojourn("run", "broken.py:x", "hi", cwd=home)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[-1] == "error: broken.py cannot be imported: Odd: caf\u00e9 au lait [target.broken]"
    assert re.findall(r'File ".*/(\w+\.py)"', ran.stderr) == ["broken.py"]


def test_a_broken_file_shows_its_own_frames(home):
    (home / "broken.py").write_text("def f():\n    return 1 / 0\n\nf()\n")
    ran = sojourn("run", "broken.py:x", "hi", cwd=home)
    assert ran.returncode == 2
    assert re.findall(r'File ".*/(\w+\.py)", line (\d)', ran.stderr) == [("broken.py", "4"), ("broken.py", "2")]
    assert ran.stderr.splitlines()[-1].startswith("error: broken.py cannot be imported: ZeroDivisionError")


def test_ctrl_c_cancels_the_run_once(home):
    with Process("run", "agents.py:slow", "go", cwd=home) as process:
        process.read_until("one ")
        process.interrupt()
        code, out, err = process.end()
    assert (code, out) == (130, "\n")
    assert err.splitlines()[-1] == "stopped"
    [run] = runs(home, app="slow")
    assert run[1] == "cancelled [run.cancelled]"
    shown = invoke("runs", "show", run[0], cwd=home).stdout
    assert "slow: one (interrupted)" in shown
    assert "stopped at the console" in shown


@pytest.mark.parametrize("agent", ["stubborn", "blocking"])
def test_ctrl_c_twice_ends_what_does_not_stop(home, agent):
    with Process("run", f"agents.py:{agent}", "go", cwd=home) as process:
        process.read_until("one ")
        process.send_signals(signal.SIGINT)
        code, _, _ = process.end()
    assert code == 130


def test_an_agent_that_does_not_stop_does_not_keep_the_process(home):
    with Process("run", "agents.py:impatient", "go", cwd=home) as process:
        process.read_until("one ")
        process.interrupt()
        code, _, err = process.end()
    assert code == 130
    assert "abandoned" in err
    assert runs(home, app="impatient")[0][1] == "cancelled [run.cancelled]"


def test_a_closed_pipe_cancels_the_run_quietly(home):
    ran = subprocess.run(
        f"{' '.join(COMMAND)} run agents.py:chatty go | head -n 2; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=home, env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout == "line 0\nline 1\n141\n"
    assert re.fullmatch(r"session \w+\n", ran.stderr)
    assert runs(home, app="chatty")[0][1] == "cancelled [run.cancelled]"


def test_a_listing_into_a_closed_pipe(home):
    sojourn("run", "agents.py:echo", "hi", cwd=home)
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [*COMMAND, "runs", "ls"], cwd=home, env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_a_disk_that_is_full(home):
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [*COMMAND, "run", "agents.py:echo", "hi"], cwd=home, env=environment(), stdout=full, stderr=subprocess.PIPE,
            text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[1:] == ["error: No space left on device"]


def test_a_directory_for_the_database_that_cannot_be_made(home):
    (home / ".sojourn").symlink_to(home / "nowhere" / "at all")
    ran = sojourn("run", "agents.py:echo", "hi", cwd=home)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.count("\n") == 1
    assert "name another database with --db [store.unavailable]" in ran.stderr


@pytest.mark.parametrize(
    ("closed", "told", "code"),
    [("<&-", "You said: hi \n", 0), (">&-", "", 0), ("2>&-", "You said: hi \n", 0), ("<&- >&- 2>&-", "", 0)],
)
def test_standard_streams_that_are_closed(home, closed, told, code):
    ran = subprocess.run(
        f"{' '.join(COMMAND)} run agents.py:echo hi {closed}",
        shell=True, cwd=home, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (code, told)
    assert "error" not in ran.stderr
    assert [run[1] for run in runs(home, app="echo")] == ["completed"]


def test_a_chat_with_nobody_at_stdin(home):
    ran = subprocess.run(
        f"{' '.join(COMMAND)} run agents.py:echo <&-",
        shell=True, cwd=home, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_an_agent_that_closes_stdout(home):
    (home / "rude.py").write_text(
        "import sys\nfrom sojourn import agent\n\n@agent\nasync def closer(ctx):\n    sys.stdout.close()\n    return 'hi'\n"
    )
    ran = sojourn("run", "rude.py:closer", "hi", cwd=home)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr


# -- questions ----------------------------------------------------------------------------------------------------------


def commands_in(err):
    return [line.split()[1:] for line in err.splitlines() if line.startswith("  sojourn runs answer")]


def test_a_question_is_answered_in_a_second_process_and_goes_on_in_a_third(home):
    asked = sojourn("run", "agents.py:asker", "hi", cwd=home)
    assert (asked.returncode, asked.stdout) == (3, "Let me see.\n")
    assert "? Are you sure?" in asked.stderr
    [command] = commands_in(asked.stderr)
    command = command[: command.index("--target")]
    run = command[2]

    refused = sojourn(*[word.replace("VALUE", "maybe") for word in command], cwd=home)
    assert refused.returncode == 2
    assert "[interrupt.invalid_answer]" in refused.stderr
    answered = sojourn(*[word.replace("VALUE", "yes") for word in command], cwd=home)
    assert (answered.returncode, answered.stdout) == (0, "")
    assert runs(home, app="asker")[0][1] == "queued"
    again = sojourn(*[word.replace("VALUE", "yes") for word in command], cwd=home)
    assert again.returncode == 0
    other = sojourn(*[word.replace("VALUE", "no") for word in command], cwd=home)
    assert other.returncode == 1
    assert "[interrupt.conflict]" in other.stderr

    session = session_of(asked.stderr)
    third = sojourn("run", "agents.py:asker", "and now", "--session", session, cwd=home)
    assert third.returncode == 3
    assert {r[0]: r[1] for r in runs(home, app="asker")}[run] == "completed"
    said = invoke("sessions", "show", session, "--app", "asker", cwd=home).stdout
    assert said.index("sure=True") < said.index("and now")


def test_the_printed_command_goes_on_with_the_run(home):
    asked = sojourn("run", "agents.py:asker", "hi", "--db", "my.db", "--user", "ann", cwd=home)
    [command] = commands_in(asked.stderr)
    answered = sojourn(*[word.replace("VALUE", "no") for word in command], cwd=home)
    assert (answered.returncode, answered.stdout) == (0, "sure=False\n")


def test_one_question_after_the_other(home):
    asked = sojourn("run", "agents.py:curious", "hi", cwd=home)
    [command] = commands_in(asked.stderr)
    asked = sojourn(*[word.replace("VALUE", "Ann") for word in command], cwd=home)
    assert asked.returncode == 3
    assert "? How old?" in asked.stderr
    [command] = commands_in(asked.stderr)
    assert sojourn(*[word.replace("VALUE", "42") for word in command], cwd=home).stdout == "Ann is 42\n"


def test_json_ends_with_what_is_asked(home):
    ran = sojourn("run", "agents.py:asker", "hi", "--json", cwd=home)
    asks, last = [json.loads(line) for line in ran.stdout.splitlines()][-2:]
    assert (asks["kind"], last["kind"]) == ("interrupt", "run.waiting")
    [question] = last["interrupts"]
    assert question["id"] == asks["event"]["longRunningToolIds"][0]
    assert (last["runId"], question["status"]) == (asks["runId"], "open")


def test_programs_are_not_asked(home):
    with Terminal("run", "agents.py:asker", "hi", "--json", cwd=home) as terminal:
        terminal.sees('"kind":"interrupt"')
        terminal.sees("sojourn runs answer")
        assert terminal.end() == 3


def test_a_person_is_asked_right_there(home):
    with Terminal("run", "agents.py:asker", "hi", cwd=home) as terminal:
        assert "Let me see." in terminal.is_asked()
        terminal.types("maybe")
        terminal.sees("is not of type 'boolean'")
        terminal.is_asked()
        terminal.types("y")
        terminal.sees("sure=True")
        assert terminal.end() == 0


@pytest.mark.parametrize(("key", "code", "status"), [("ctrl_d", 3, "waiting"), ("ctrl_c", 130, "cancelled")])
def test_a_question_that_is_left(home, key, code, status):
    with Terminal("run", "agents.py:asker", "hi", cwd=home) as terminal:
        terminal.is_asked()
        getattr(terminal, key)()
        assert terminal.end() == code
    assert runs(home, app="asker")[0][1].split()[0] == status


# -- two processes, one database ----------------------------------------------------------------------------------------


def test_a_second_terminal_reads_cancels_and_is_told_who_executes(home):
    with Process("run", "agents.py:slow", "go", cwd=home) as first:
        first.read_until("one ")
        refused = sojourn("run", "agents.py:slow", "me too", cwd=home)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"error: process {first.pid} executes the runs of ")
        assert refused.stderr.rstrip().endswith(f"[{LOCK}]")
        assert refused.stderr.count("\n") == 1

        [run] = runs(home, app="slow")
        assert run[1] == "running"
        assert sojourn("sessions", "show", run[3], cwd=home).stdout.endswith("user\ngo\n")
        assert "is running" in invoke("runs", "show", run[0], cwd=home).stdout
        asked = sojourn("runs", "cancel", run[0], "--reason", "enough", cwd=home)
        assert asked.returncode == 0
        code, _, err = first.end()
    assert code == 1
    assert "enough [run.cancelled]" in err
    assert runs(home, app="slow")[0][1] == "cancelled [run.cancelled]"


def test_a_session_can_be_deleted_under_a_running_process(home):
    with Process("run", "agents.py:slow", "go", cwd=home) as first:
        first.read_until("one ")
        [run] = runs(home, app="slow")
        assert sojourn("sessions", "rm", run[3], "--yes", cwd=home).returncode == 0
        code, _, err = first.end()
    assert code == 1
    assert "[session.deleted]" in err
    assert invoke("sessions", "ls", cwd=home).exit_code == 1


def test_an_answer_is_given_beside_a_chat_that_goes_on_with_it(home):
    with Process("run", "agents.py:asker", cwd=home) as chat:
        chat.stdin.write("hi\n/later\n")
        chat.stdin.flush()
        chat.read_until("Let me see.")
        [run] = runs(home, app="asker")
        chat.stdin.write("/state\n")
        chat.stdin.flush()
        chat.read_until("{}")
        followed = sojourn("runs", "answer", run[0], "yes", "--target", "agents.py:asker", cwd=home)
        assert (followed.returncode, followed.stdout) == (0, "sure=True\n")
        assert runs(home, app="asker")[0][1] == "completed"
        chat.end()


def test_what_a_killed_process_left_is_closed_by_the_next(home):
    with Process("run", "agents.py:slow", "go", cwd=home) as first:
        first.read_until("one ")
        first.kill()
    assert runs(home, app="slow")[0][1] == "running"
    assert sojourn("run", "agents.py:echo", "hi", "--app", "slow", cwd=home).returncode == 0
    assert [r[1] for r in runs(home, app="slow")] == ["completed", "failed [run.lost]"]


def test_runs_that_were_taken_up_get_time_to_end_and_go_on_later(home):
    async def submit():
        store = DatabaseSessionService(f"sqlite:///{home}/.sojourn/sojourn.db")
        await store.submit(new_run("earlier", session_key("other", app_name="moody"), "wait"), begin=False)
        await store.close()

    (home / ".sojourn").mkdir()
    asyncio.run(submit())
    with Process("run", "agents.py:moody", "hi", cwd=home) as process:
        process.read_until("one ")
        process.read_until("waiting for 1 earlier run to end", stderr=True)
        process.interrupt()
        code, _, _ = process.end()
    assert code == 0
    assert {r[0]: r[1] for r in runs(home, app="moody")}["earlier"] == "queued"
    exported = json.loads(invoke("sessions", "export", "other", cwd=home).stdout)
    assert [(r["attempt"], r["deaths"]) for r in exported["runs"]] == [(1, 0)]

"""SIGTERM and SIGHUP: what is under way is stopped as by Ctrl-C, and then the command ends."""

import asyncio
import json
import signal

import pytest

from sojourn.agents.function import agent
from sojourn.cli.hosting import hosting
from sojourn.run.status import RunStatus
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import new_run, session_key
from sojourn.testing.loop import for_seeds
from tests.cli.shell import Process, Terminal, invoke
from tests.runner.support import USER, make_runner

ENDS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129)]

PROMPT_LEFT = "\x1b[?2004l"
"""What a prompt writes when it gives the terminal back."""


def statuses(home, app):
    """How the app's runs stand, newest first."""
    listed = invoke("runs", "ls", "--app", app, cwd=home)
    assert listed.exit_code == 0, listed.stderr
    return [line.split("\t")[1].split(" ")[0] for line in listed.stdout.splitlines()]


# -- one message --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_it_cancels_the_run(home, number, code):
    with Process("run", "agents.py:slow", "go", cwd=home) as process:
        process.read_until("one ")
        process.send_signal(number)
        assert process.end()[:2] == (code, "\n")
    assert statuses(home, "slow") == ["cancelled"]


def test_the_frames_are_whole(home):
    with Process("run", "agents.py:slow", "go", "--json", cwd=home) as process:
        process.read_until("one ")
        process.read_until("\n")
        process.send_signal(signal.SIGTERM)
        code, out, _ = process.end()
    assert code == 143
    assert [json.loads(line)["kind"] for line in out.splitlines()][-2:] == ["event", "run.cancelled"]


def test_it_does_not_wait_for_an_agent_that_does_not_stop(home):
    with Process("run", "agents.py:impatient", "go", cwd=home) as process:
        process.read_until("one ")
        process.send_signal(signal.SIGTERM)
        assert process.end()[0] == 143
    assert statuses(home, "impatient") == ["cancelled"]


def test_it_ends_an_agent_that_blocks_the_loop_when_repeated(home):
    with Process("run", "agents.py:blocking", "go", cwd=home) as process:
        process.read_until("one ")
        process.send_signals(signal.SIGTERM)
        assert process.end()[0] == 143


def test_it_ends_what_ctrl_c_has_stopped_already(home):
    with Process("run", "agents.py:stubborn", "go", cwd=home) as process:
        process.read_until("one ")
        process.interrupt()
        process.read_until("stopping", stderr=True)
        process.send_signals(signal.SIGTERM)
        assert process.end()[0] == 143


def test_it_stops_a_run_that_was_answered_here(home):
    with Terminal("run", "agents.py:thorough", "go", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("y")
        terminal.sees("Then I ")
        terminal.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
    assert statuses(home, "thorough") == ["cancelled"]


def test_it_leaves_a_question_open(home):
    with Terminal("run", "agents.py:asker", "go", cwd=home) as terminal:
        terminal.is_asked()
        terminal.send_signal(signal.SIGTERM)
        terminal.sees(PROMPT_LEFT)
        assert terminal.end() == 143
    assert statuses(home, "asker") == ["waiting"]


def test_it_stops_a_run_that_was_answered_from_another_shell(home):
    with Process("run", "agents.py:thorough", "go", cwd=home) as process:
        assert process.end()[0] == 3
    [run] = [line.split("\t")[0] for line in invoke("runs", "ls", cwd=home).stdout.splitlines()]
    with Process("runs", "answer", run, "yes", "--target", "agents.py:thorough", cwd=home) as process:
        process.read_until("Then I ")
        process.send_signal(signal.SIGTERM)
        assert process.end()[0] == 143
    assert statuses(home, "thorough") == ["cancelled"]


def test_it_leaves_earlier_runs_for_later(home):
    async def submit():
        store = DatabaseSessionService(f"sqlite:///{home}/.sojourn/sojourn.db")
        await store.submit(new_run("earlier", session_key("other", app_name="moody"), "wait"), begin=False)
        await store.close()

    (home / ".sojourn").mkdir()
    asyncio.run(submit())
    with Process("run", "agents.py:moody", "hi", cwd=home) as process:
        process.read_until("one ")
        process.read_until("waiting for 1 earlier run to end", stderr=True)
        process.send_signal(signal.SIGTERM)
        assert process.end()[0] == 143
    assert sorted(statuses(home, "moody")) == ["completed", "queued"]


def test_nohup_is_heeded(home):
    with Process("run", "agents.py:slow", "go", cwd=home, under=["nohup"]) as process:
        process.read_until("one ")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.end()[0] == 143


def test_a_run_is_stopped_even_if_nobody_reads_any_more(home):
    with Process("run", "agents.py:slow", "go", cwd=home) as process:
        process.read_until("one ")
        process.stop_reading()
        process.interrupt()
        assert process.wait() in (130, 141)
    assert statuses(home, "slow") == ["cancelled"]


@pytest.mark.parametrize(("number", "code"), [*ENDS, (signal.SIGINT, 130)])
@pytest.mark.parametrize("message", [["hi"], []])
def test_a_file_that_takes_long_to_import_is_left(home, message, number, code):
    (home / "heavy.py").write_text("import threading\nprint('importing', flush=True)\nthreading.Event().wait()\n")
    with Process("run", "heavy.py:x", *message, cwd=home) as process:
        process.read_until("importing")
        process.send_signal(number)
        ended_with, _, err = process.end()
    assert (ended_with, err) == (code, "")


# -- a chat -------------------------------------------------------------------------------------------------------------


def test_it_ends_a_turn_and_the_conversation(home):
    with Process("run", "agents.py:slow", cwd=home) as process:
        process.stdin.write("hi\nthere\n")
        process.stdin.flush()
        process.read_until("one ")
        process.send_signal(signal.SIGTERM)
        assert process.end()[:2] == (143, "\n")
    assert statuses(home, "slow") == ["cancelled"]


def test_it_ends_a_conversation_that_waits_for_input(home):
    with Process("run", "agents.py:echo", cwd=home) as process:
        process.stdin.write("hi\n/session\n")
        process.stdin.flush()
        process.read_until("2 events")
        process.send_signal(signal.SIGTERM)
        code, _, err = process.end()
    assert (code, err) == (143, "")
    assert statuses(home, "echo") == ["completed"]


@pytest.mark.parametrize(("number", "code"), ENDS)
def test_it_ends_a_prompt_and_gives_the_terminal_back(home, number, code):
    with Terminal("run", "agents.py:echo", cwd=home) as terminal:
        terminal.is_asked()
        terminal.send_signal(number)
        terminal.sees(PROMPT_LEFT)
        assert terminal.end() == code


def test_it_ends_a_turn_at_a_terminal(home):
    with Terminal("run", "agents.py:slow", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("one ")
        terminal.send_signal(signal.SIGTERM)
        assert terminal.end() == 143
    assert statuses(home, "slow") == ["cancelled"]


# -- closing ------------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_what_closes_the_runner_is_not_cut_off():
    closing = asyncio.Event()

    @agent
    async def tidy(ctx):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            closing.set()
            await asyncio.sleep(1)
            raise

    store = InMemorySessionService()
    runner = make_runner(tidy, store)

    async def command():
        async with hosting(runner):
            run.append(await runner.start(USER, "s1", "go"))

    run = []
    task = asyncio.ensure_future(command())
    await closing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await store.get_run(run[0].record.app_name, run[0].id)).status is RunStatus.QUEUED

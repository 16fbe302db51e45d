"""`sojourn run TARGET`: conversations, at a terminal and from a pipe."""

import re

from tests.cli.shell import Process, Terminal, invoke, sojourn


def status_of_runs(home, app):
    return [line.split("\t")[1] for line in invoke("runs", "ls", "--app", app, cwd=home).stdout.splitlines()]


# -- from a pipe --------------------------------------------------------------------------------------------------------


def test_lines_from_a_pipe_are_messages_of_one_session(home):
    ran = sojourn("run", "agents.py:echo", cwd=home, stdin="hello\n\nthere")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "You said: hello \nYou said: there \n", "")
    again = sojourn("run", "agents.py:echo", cwd=home, stdin="more\n/state\n")
    assert again.stdout == 'You said: more \n{\n  "turns": 3\n}\n'


def test_input_that_is_not_utf8_and_windows_line_ends(home):
    with Process("run", "agents.py:echo", cwd=home) as process:
        process.stdin.buffer.write(b"caf\xc3\xa9\r\n\xff\n")
        code, out, _ = process.end()
    assert (code, out) == (0, "You said: café \nYou said: \ufffd \n")


def test_answers_come_while_the_pipe_is_open(home):
    with Process("run", "agents.py:echo", cwd=home) as process:
        process.stdin.write("one\n")
        process.stdin.flush()
        assert process.read_until("\n") == "You said: one \n"
        process.stdin.write("two\n")
        process.stdin.flush()
        assert process.read_until("\n") == "You said: two \n"


def test_a_failed_turn_is_told_in_the_end(home):
    ran = sojourn("run", "agents.py:boom", cwd=home, stdin="one\ntwo\n")
    assert (ran.returncode, ran.stdout) == (1, "so far \nso far \n")
    assert ran.stderr.count("[agent.failed]") == 2


def test_questions_are_answered_by_the_next_lines(home):
    ran = sojourn("run", "agents.py:curious", cwd=home, stdin="hi\nAnn\nold\n42\n")
    assert (ran.returncode, ran.stdout) == (0, "Ann is 42\n")
    assert ran.stderr.count("? How old?") == 1
    assert "[interrupt.invalid_answer]" in ran.stderr


def test_after_an_answer_it_streams_on_and_repeats_nothing(home):
    with Process("run", "agents.py:thorough", cwd=home) as process:
        process.stdin.write("hi\nyes\n")
        process.stdin.flush()
        assert process.read_until("Then I ") == "Let me see.\nThen I "


def test_the_end_of_the_pipe_at_a_question_leaves_it_open(home):
    ran = sojourn("run", "agents.py:asker", cwd=home, stdin="hi\n")
    assert ran.returncode == 3
    assert "  sojourn runs answer" in ran.stderr
    again = sojourn("run", "agents.py:asker", cwd=home, stdin="yes\n")
    assert (again.returncode, again.stdout) == (0, "sure=True\n")


def test_a_question_left_for_later_does_not_block_the_session(home):
    ran = sojourn("run", "agents.py:asker", cwd=home, stdin="hi\n/later\nagain\nno\n")
    assert ran.stdout == "Let me see.\nLet me see.\nsure=False\n"
    assert ran.returncode == 3
    assert status_of_runs(home, "asker") == ["completed", "waiting"]


def test_the_last_turn_is_repeated_and_edited(home):
    lines = "/retry\n/edit nothing\nhello\n/retry\nthere\n/edit\n/edit  world \n/retry\n/session\n"
    ran = sojourn("run", "agents.py:listener", cwd=home, stdin=lines)
    assert ran.stdout.splitlines() == [
        "hello after []",
        "hello after []",
        "there after ['hello']",
        "world after ['hello']",
        "world after ['hello']",
        "session console of user user, app listener: 10 events",
    ]
    assert ran.stderr.count("nothing was said in this session yet") == 2
    assert ran.stderr.count("/edit TEXT") == 1
    again = sojourn("run", "agents.py:listener", cwd=home, stdin="/edit more\n")
    assert again.stdout == "more after ['hello']\n"


def test_a_turn_that_waits_is_not_repeated(home):
    ran = sojourn("run", "agents.py:asker", cwd=home, stdin="hi\n/later\n/retry\n")
    assert "[run.not_finished]" in ran.stderr
    assert status_of_runs(home, "asker") == ["waiting"]


def test_the_last_message_is_offered_for_editing(home):
    with Terminal("run", "agents.py:listener", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("good morning")
        terminal.sees("good morning after []")
        terminal.is_asked()
        terminal.types("/edit")
        terminal.is_asked()
        terminal.sees("edit> ")
        terminal.types(", Ann")
        terminal.sees("good morning, Ann after []")
        terminal.is_asked()
        terminal.types("/edit")
        terminal.is_asked()
        terminal.sees("edit> ")
        terminal.ctrl_c()
        terminal.sees("the last message stays as it was")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0
    assert status_of_runs(home, "listener") == ["completed", "completed"]


def test_a_stopped_turn_is_repeated(home):
    with Terminal("run", "agents.py:moody", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("wait")
        terminal.sees("one")
        terminal.ctrl_c()
        terminal.sees("stopped")
        terminal.is_asked()
        terminal.types("/edit go on")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0
    assert status_of_runs(home, "moody") == ["completed", "cancelled [run.cancelled]"]


def test_commands(home):
    ran = sojourn(
        "run", "agents.py:echo", cwd=home, stdin="/session\nhi\n/session\n/new\n/state\n/nothing\n//x\n/help\n/exit\nnever\n"
    )
    lines = ran.stdout.splitlines()
    assert lines[:3] == [
        "session console of user user, app echo: 0 events",
        "You said: hi ",
        "session console of user user, app echo: 2 events",
    ]
    assert lines[3:5] == ["{}", "You said: /x "]
    assert "/exit" in ran.stdout
    assert "never" not in ran.stdout
    assert "there is no command /nothing" in ran.stderr
    assert len(invoke("sessions", "ls", cwd=home).stdout.splitlines()) == 2


def test_ctrl_c_ends_a_piped_conversation(home):
    with Process("run", "agents.py:slow", cwd=home) as process:
        process.stdin.write("hi\nthere\n")
        process.stdin.flush()
        process.read_until("one ")
        process.interrupt()
        code, _, err = process.end()
    assert code == 130
    assert "stopped" in err
    assert status_of_runs(home, "slow") == ["cancelled [run.cancelled]"]


# -- at a terminal ------------------------------------------------------------------------------------------------------


def test_a_conversation_that_is_taken_up_again(home):
    with Terminal("run", "agents.py:echo", cwd=home) as terminal:
        assert "echo, session console; /help tells" in terminal.is_asked()
        terminal.types("hello")
        terminal.sees("You said: hello")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0
    with Terminal("run", "agents.py:echo", cwd=home) as terminal:
        shown = terminal.is_asked()
        assert re.search(r"user.*hello.*echo.*You said: hello.*session console", shown, re.DOTALL)
        terminal.types("/exit")
        assert terminal.end() == 0
    with Terminal("run", "agents.py:echo", "--session", "other", cwd=home) as terminal:
        assert "hello" not in terminal.is_asked()


def test_ctrl_c_stops_the_turn_and_not_the_program(home):
    with Terminal("run", "agents.py:slow", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("one ")
        terminal.ctrl_c()
        terminal.sees("stopped")
        terminal.is_asked()
        terminal.types("/session")
        terminal.sees("2 events")
        terminal.is_asked()
        terminal.ctrl_c()
        terminal.sees("Ctrl-C again, or Ctrl-D, leaves")
        terminal.is_asked()
        terminal.ctrl_c()
        assert terminal.end() == 130
    assert status_of_runs(home, "slow") == ["cancelled [run.cancelled]"]


def test_ctrl_c_at_the_prompt_leaves_after_it_stopped_a_turn(home):
    with Terminal("run", "agents.py:slow", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("one ")
        terminal.ctrl_c()
        terminal.sees("stopped")
        terminal.is_asked()
        terminal.ctrl_c()
        assert terminal.end() == 130


def test_ctrl_c_twice_leaves_an_agent_that_does_not_stop(home):
    with Terminal("run", "agents.py:stubborn", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("one ")
        terminal.ctrl_c()
        terminal.sees("Ctrl-C again leaves at once")
        terminal.ctrl_c()
        assert terminal.end() == 130


def test_a_failed_turn_does_not_end_the_conversation(home):
    with Terminal("run", "agents.py:boom", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("ValueError: a secret")
        terminal.sees("[agent.failed]")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0


def test_open_questions_are_asked_on_return(home):
    with Terminal("run", "agents.py:asker", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("Are you sure?")
        terminal.sees("(yes or no)")
        terminal.is_asked()
        terminal.types("/later")
        terminal.sees("sojourn runs answer")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0
    with Terminal("run", "agents.py:asker", cwd=home) as terminal:
        terminal.sees("Are you sure?")
        terminal.is_asked()
        terminal.types("no")
        terminal.sees("sure=False")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0


def test_ctrl_c_at_a_question_cancels_its_run(home):
    with Terminal("run", "agents.py:asker", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("Are you sure?")
        terminal.is_asked()
        terminal.ctrl_c()
        terminal.sees("stopped")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0
    assert status_of_runs(home, "asker") == ["cancelled [run.cancelled]"]


def test_no_prompt_is_drawn_into_a_file(home):
    ran = sojourn("run", "agents.py:echo", cwd=home, stdin="hi\n")
    assert "\x1b" not in ran.stdout + ran.stderr


# -- edits --------------------------------------------------------------------------------------------------------------

EDITED = """
from sojourn import agent
from words import WORD

@agent
async def helper(ctx):
    ctx.state["turns"] = ctx.state.get("turns", 0) + 1
    return f"{WORD} {ctx.state['turns']}"
"""


def test_edits_are_taken_over_before_each_turn(home):
    (home / "words.py").write_text("WORD = 'first'\n")
    (home / "helpers.py").write_text(EDITED)
    with Terminal("run", "helpers.py:helper", "--reload", cwd=home) as terminal:
        terminal.is_asked()
        terminal.types("hi")
        terminal.sees("first 1")
        terminal.is_asked()
        (home / "words.py").write_text("WORD = 'other'\n")
        terminal.types("hi")
        terminal.sees("reloaded")
        terminal.sees("other 2")
        terminal.is_asked()
        (home / "words.py").write_text("WORD = \n")
        terminal.types("hi")
        terminal.sees('words.py", line 1')
        terminal.sees("[target.broken]")
        terminal.sees("the agent before this edit goes on")
        terminal.sees("other 3")
        terminal.is_asked()
        (home / "words.py").write_text("WORD = 'third'\n")
        terminal.types("hi")
        terminal.sees("third 4")
        terminal.is_asked()
        terminal.types("hi")
        assert "reloaded" not in terminal.sees("third 5")
        terminal.is_asked()
        terminal.ctrl_d()
        assert terminal.end() == 0


def test_without_reload_edits_wait(home):
    (home / "words.py").write_text("WORD = 'first'\n")
    (home / "helpers.py").write_text(EDITED)
    with Process("run", "helpers.py:helper", cwd=home) as process:
        process.stdin.write("hi\n")
        process.stdin.flush()
        process.read_until("first 1")
        (home / "words.py").write_text("WORD = 'other'\n")
        process.stdin.write("hi\n")
        process.stdin.flush()
        process.read_until("first 2")

"""`sojourn sessions` and `sojourn runs`: what is stored, read and changed beside whoever executes."""

import asyncio
import json
import sqlite3

import pytest

from sojourn import platform
from sojourn.artifact.file import FileArtifactService
from sojourn.artifact.types import ArtifactScope
from sojourn.cli import options
from sojourn.content import Content, Part
from sojourn.event import ASK_CALL, Usage
from sojourn.run.status import Move
from sojourn.run.types import RunError
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.artifact_conformance import names_of
from sojourn.testing.builders import (
    ask,
    event,
    finished,
    message,
    next_attempt,
    question,
    question_event,
    session_key,
    start,
    step,
    write,
)
from sojourn.testing.clock import ManualPlatform
from tests.cli.shell import Terminal, invoke, sojourn


@pytest.fixture
def roles(monkeypatch):
    """The roles in which commands of this process have opened databases."""
    seen = []

    def opened(url, *, role):
        seen.append(role)
        return DatabaseSessionService(url, role=role)

    monkeypatch.setattr(options, "DatabaseSessionService", opened)
    return seen


@pytest.fixture
def stored(tmp_path):
    """Fills the database of a working directory; what fills it runs on a clock that stands still."""

    def fill(work, db=".sojourn/sojourn.db"):
        path = tmp_path / db
        path.parent.mkdir(exist_ok=True)

        async def run():
            store = DatabaseSessionService(f"sqlite:///{path}")
            try:
                with platform.use(ManualPlatform()) as clock:
                    return await work(store, clock)
            finally:
                await store.close()

        return asyncio.run(run())

    return fill


def rows(result):
    assert result.exit_code == 0, result.stderr
    return [line.split("\t") for line in result.stdout.splitlines()]


def one_line_error(result, code, exit_code=1):
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.rstrip().endswith(f"[{code}]")
    assert result.stderr.count("\n") == 1


async def story(store, clock):
    """A run with all that a run can have: two attempts, a step, a question, tokens, something superseded."""
    run = await start(store, "r1", text="Charge the card")
    clock.advance(1)
    await write(store, run, event(run, 1, "Let me see.", usage_metadata=Usage(total_token_count=1200)))
    clock.advance(1)
    second = (await next_attempt(store, run)).record
    await write(store, second, event(second, 1, "Let me look."))
    charged = step("charge", "ok", attempt=2, started_at=clock.now(), finished_at=clock.now() + 1)
    clock.advance(1)
    await write(store, second, steps=[charged])
    content = Content("model", (Part.from_function_call(ASK_CALL, {"message": "Really?"}, id="q1"),))
    asking = event(second, 2, content=content, long_running_tool_ids=("q1",))
    asked = question("q1", prompt="Really?", schema={"type": "boolean"}, kind="confirm", call_id="c1")
    await write(store, second, asking, interrupts=[asked], move=Move.WAIT)
    return second


# -- which app, which database ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["sessions", "ls"], ["runs", "ls"], ["sessions", "show", "s1"], ["runs", "cancel", "r1"]])
def test_a_missing_database_is_not_created(tmp_path, command):
    one_line_error(invoke(*command, cwd=tmp_path), "store.not_found")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_database(tmp_path, stored):
    async def nothing(store, clock):
        await store.list_apps()

    stored(nothing)
    one_line_error(invoke("sessions", "ls", cwd=tmp_path), "app.not_found")


def test_the_only_app_need_not_be_named(tmp_path, stored):
    async def one(store, clock):
        await finished(store, "r1", None, "Hi.")

    stored(one)
    assert len(rows(invoke("sessions", "ls", cwd=tmp_path))) == 1
    one_line_error(invoke("sessions", "ls", "--app", "desk", cwd=tmp_path), "app.not_found")

    async def another(store, clock):
        await finished(store, "r2", session_key(app_name="desk"), "Hi.")

    stored(another)
    result = invoke("sessions", "ls", cwd=tmp_path)
    one_line_error(result, "app.ambiguous", 2)
    assert "desk, shop" in result.stderr
    assert rows(invoke("sessions", "ls", "--app", "desk", cwd=tmp_path))[0][0] == "s1"


async def several_apps(store, clock):
    """Two apps with a session of the same id each, and runs of which one id is in both."""
    await story(store, clock)
    await finished(store, "r2", session_key(app_name="desk"), "From the desk.")
    await finished(store, "r3", session_key("s3", app_name="desk"), "Only here.")
    await finished(store, "r4", session_key("s4", app_name="desk"), "At the desk.")
    await finished(store, "r4", session_key("s4"), "In the shop.")
    await finished(store, "r5", session_key("s4", user_id="bob"), "In the shop, too.")


def test_an_id_that_one_app_has_needs_no_app(tmp_path, stored):
    stored(several_apps)
    assert invoke("runs", "show", "r3", cwd=tmp_path).stdout.startswith(
        "run r3 is completed, session s3 of user alice, app desk"
    )
    assert "Only here." in invoke("sessions", "show", "s3", cwd=tmp_path).stdout
    assert json.loads(invoke("sessions", "export", "s3", cwd=tmp_path).stdout)["session"]["appName"] == "desk"
    assert "In the shop, too." in invoke("sessions", "show", "s4", "--user", "bob", cwd=tmp_path).stdout
    assert invoke("runs", "answer", "r1", "yes", cwd=tmp_path).exit_code == 0
    assert invoke("runs", "cancel", "r1", cwd=tmp_path).stderr == "run r1 is cancelled\n"
    assert invoke("sessions", "rm", "s3", "--yes", cwd=tmp_path).exit_code == 0
    one_line_error(invoke("runs", "show", "r3", cwd=tmp_path), "run.not_found")


def test_an_id_that_several_apps_have_needs_one(tmp_path, stored):
    stored(several_apps)
    result = invoke("runs", "show", "r4", cwd=tmp_path)
    one_line_error(result, "run.ambiguous", 2)
    assert "several apps have a run 'r4': desk, shop; say which with --app" in result.stderr
    assert "In the shop." in invoke("runs", "show", "r4", "--app", "shop", cwd=tmp_path).stdout
    result = invoke("sessions", "show", "s1", cwd=tmp_path)
    one_line_error(result, "session.ambiguous", 2)
    assert "desk (user alice), shop (user alice); say which with --app [" in result.stderr
    assert "From the desk." in invoke("sessions", "show", "s1", "--app", "desk", cwd=tmp_path).stdout
    result = invoke("sessions", "rm", "s4", "--yes", cwd=tmp_path)
    one_line_error(result, "session.ambiguous", 2)
    assert "say which with --app and --user [" in result.stderr
    assert "In the shop." in invoke("sessions", "show", "s4", "--app", "shop", "--user", "alice", cwd=tmp_path).stdout


def test_an_id_that_no_app_has(tmp_path, stored):
    stored(several_apps)
    for command, code in (
        (["runs", "show", "r9"], "run.not_found"),
        (["runs", "cancel", "r9"], "run.not_found"),
        (["runs", "show", "r3", "--user", "bob"], "run.not_found"),
        (["sessions", "show", "s9"], "session.not_found"),
        (["sessions", "show", "s3", "--user", "bob"], "session.not_found"),
    ):
        result = invoke(*command, cwd=tmp_path)
        one_line_error(result, code)
        assert "none of the apps desk, shop has a" in result.stderr
    one_line_error(invoke("runs", "show", "r3", "--app", "shop", cwd=tmp_path), "run.not_found")
    one_line_error(invoke("runs", "show", "r3", "--app", "mall", cwd=tmp_path), "app.not_found")
    for command in (["runs", "show", ""], ["sessions", "show", "s1", "--user", ""]):
        one_line_error(invoke(*command, cwd=tmp_path), "id.invalid", 2)


@pytest.mark.parametrize("form", ["{path}", "sqlite:///{path}", "my.db"])
def test_a_database_is_a_path_or_a_url(tmp_path, stored, form):
    async def one(store, clock):
        await finished(store, "r1", None, "Hi.")

    stored(one, "my.db")
    assert len(rows(invoke("sessions", "ls", "--db", form.format(path=tmp_path / "my.db"), cwd=tmp_path))) == 1


def test_a_database_of_a_later_version(tmp_path, stored):
    async def one(store, clock):
        await finished(store, "r1", None, "Hi.")

    stored(one)
    with sqlite3.connect(tmp_path / ".sojourn/sojourn.db") as conn:
        conn.execute("PRAGMA user_version = 999")
    conn.close()
    one_line_error(invoke("sessions", "ls", cwd=tmp_path), "store.schema_newer")


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "notes.txt").write_text("not a database" * 100)
    one_line_error(invoke("runs", "ls", "--db", "notes.txt", cwd=tmp_path), "store.foreign")


def test_verbose_shows_where_an_error_came_from(tmp_path):
    result = invoke("sessions", "ls", "--verbose", cwd=tmp_path)
    assert result.stderr.startswith("Traceback")
    assert result.stderr.rstrip().endswith("[store.not_found]")


@pytest.mark.parametrize(
    "command",
    [
        ["sessions", "ls"], ["sessions", "show", "s1"], ["sessions", "export", "s1"], ["sessions", "rm", "s1", "--yes"],
        ["runs", "ls"], ["runs", "show", "r1"], ["runs", "cancel", "r1"], ["runs", "answer", "r1", "yes"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_executes_nothing_is_only_a_client(tmp_path, stored, roles, command):
    stored(story)
    assert invoke(*command, cwd=tmp_path).exit_code == 0
    assert roles == ["client"]


# -- sessions -----------------------------------------------------------------------------------------------------------


def test_sessions_are_listed_newest_first(tmp_path, stored):
    async def some(store, clock):
        for n in range(5):
            await finished(store, f"r{n}", session_key(f"s{n}", user_id="alice" if n % 2 else "bob"), "Hi.")
            clock.advance(1)

    stored(some)
    listed = rows(invoke("sessions", "ls", cwd=tmp_path))
    assert [(row[0], row[1], row[2]) for row in listed][:2] == [("s4", "bob", "2"), ("s3", "alice", "2")]
    assert [row[0] for row in rows(invoke("sessions", "ls", "--user", "alice", cwd=tmp_path))] == ["s3", "s1"]
    assert [row[0] for row in rows(invoke("sessions", "ls", "--limit", "2", cwd=tmp_path))] == ["s4", "s3"]
    assert len(rows(invoke("sessions", "ls", "--limit", "0", cwd=tmp_path))) == 5


def test_a_conversation_is_shown(tmp_path, stored):
    stored(story)
    result = invoke("sessions", "show", "s1", cwd=tmp_path)
    lines = [line.partition("] ")[2] or line for line in result.stdout.splitlines()]
    assert lines == ["user", "Charge the card", "helper", "Let me look.", "helper", "? Really?"]
    assert result.stderr.startswith("session s1 of user alice, app shop: 4 events, created ")
    everything = invoke("sessions", "show", "s1", "--superseded", cwd=tmp_path).stdout
    assert "helper (superseded)\nLet me see." in everything


def test_a_session_of_several_users(tmp_path, stored):
    async def two(store, clock):
        await finished(store, "r1", session_key(user_id="alice"), "Hi Alice.")
        await finished(store, "r2", session_key(user_id="bob"), "Hi Bob.")

    stored(two)
    result = invoke("sessions", "show", "s1", cwd=tmp_path)
    one_line_error(result, "session.ambiguous", 2)
    assert "alice, bob" in result.stderr
    assert "Hi Bob." in invoke("sessions", "show", "s1", "--user", "bob", cwd=tmp_path).stdout
    one_line_error(invoke("sessions", "show", "s9", cwd=tmp_path), "session.not_found")
    one_line_error(invoke("sessions", "show", "s1", "--user", "carol", cwd=tmp_path), "session.not_found")


def test_an_export_is_whole(tmp_path, stored):
    async def work(store, clock):
        await store.create_session(
            app_name="shop", user_id="alice", session_id="s1", state={"a": 1, "user:b": "é", "app:c": None}
        )
        await story(store, clock)

    stored(work)
    exported = json.loads(invoke("sessions", "export", "s1", cwd=tmp_path).stdout)
    assert exported["session"]["id"] == "s1"
    assert exported["session"]["eventCount"] == 4
    assert exported["state"] == {"a": 1, "user:b": "é", "app:c": None}
    assert [e["seq"] for e in exported["events"]] == [1, 2, 3, 4]
    assert [e.get("superseded", False) for e in exported["events"]] == [False, True, False, False]
    [run] = exported["runs"]
    assert (run["id"], run["status"], run["attempt"], run["deaths"]) == ("r1", "waiting", 2, 1)
    assert [s["key"] for s in run["steps"]] == ["charge"]
    assert [(i["id"], i["status"], i["schema"]) for i in run["interrupts"]] == [("q1", "open", {"type": "boolean"})]
    assert [(i["kind"], i["callId"]) for i in run["interrupts"]] == [("confirm", "c1")]

    written = invoke("sessions", "export", "s1", "-o", "out.json", cwd=tmp_path)
    assert written.stdout == ""
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == exported
    nowhere = invoke("sessions", "export", "s1", "-o", "no/where.json", cwd=tmp_path)
    assert nowhere.exit_code == 1
    assert nowhere.stderr == "error: no/where.json: No such file or directory\n"


def test_an_export_of_more_than_a_page(tmp_path, stored):
    async def work(store, clock):
        run = await start(store)
        await write(store, run, *(event(run, n, f"line {n}") for n in range(1, 1501)), move=Move.COMPLETE)

    stored(work)
    exported = json.loads(invoke("sessions", "export", "s1", cwd=tmp_path).stdout)
    assert [e["seq"] for e in exported["events"]] == list(range(1, 1502))
    assert invoke("sessions", "show", "s1", cwd=tmp_path).stdout.count("line ") == 1500
    assert invoke("runs", "show", "r1", cwd=tmp_path).stdout.count("\tevent\t") == 1500


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_deleting_removes_artifacts_too(tmp_path, stored, place):
    directory = tmp_path / (place or ".sojourn/artifacts")

    async def work(store, clock):
        await finished(store, "r1", None, "Hi.")
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        scope = ArtifactScope("shop", "alice", "s1", session.uid)
        artifacts = FileArtifactService(directory)
        await artifacts.save_artifact(scope, "report.txt", b"text")
        await artifacts.save_artifact(scope, "user:profile.txt", b"text")
        return scope

    scope = stored(work)
    options = ["--artifacts", place] if place else []
    result = invoke("sessions", "rm", "s1", "--yes", *options, cwd=tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    names = asyncio.run(names_of(FileArtifactService(directory), scope))
    assert names == ["user:profile.txt"]
    one_line_error(invoke("sessions", "rm", "s1", "--yes", cwd=tmp_path), "app.not_found")


def test_deleting_is_confirmed(tmp_path, stored):
    async def work(store, clock):
        await finished(store, "r1", None, "Hi.")

    stored(work)
    result = invoke("sessions", "rm", "s1", cwd=tmp_path)
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    for answer, code, left in (("n", 1, 1), ("", 1, 1), ("y", 0, 0)):
        with Terminal("sessions", "rm", "s1", cwd=tmp_path) as terminal:
            assert "Delete session s1 of user alice with its 2 events" in terminal.sees("[y/N]")
            terminal.types(answer)
            assert terminal.end() == code
        assert len(invoke("sessions", "ls", cwd=tmp_path).stdout.splitlines()) == left


def test_ctrl_c_at_the_confirmation_leaves(tmp_path, stored):
    async def work(store, clock):
        await finished(store, "r1", None, "Hi.")

    stored(work)
    with Terminal("sessions", "rm", "s1", cwd=tmp_path) as terminal:
        terminal.sees("[y/N]")
        terminal.ctrl_c()
        assert terminal.end() == 130
    assert len(invoke("sessions", "ls", cwd=tmp_path).stdout.splitlines()) == 1


# -- runs ---------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_and_filtered(tmp_path, stored):
    async def work(store, clock):
        await finished(store, "r1", session_key("s1"), "Hi.")
        clock.advance(1)
        run = await start(store, "r2", session_key("s2", user_id="bob"), text="Do\tit\nnow " + "x" * 100)
        clock.advance(1)
        await write(store, run, move=Move.FAIL, error=RunError("run.timeout", "too slow"))
        await start(store, "r3", session_key("s3"))

    stored(work)
    listed = rows(invoke("runs", "ls", cwd=tmp_path))
    assert [(row[0], row[1], row[2], row[3]) for row in listed] == [
        ("r3", "running", "alice", "s3"),
        ("r2", "failed [run.timeout]", "bob", "s2"),
        ("r1", "completed", "alice", "s1"),
    ]
    assert listed[1][5] == "1.00 s"
    assert listed[1][6] == "Do it now " + "x" * 29 + "…"
    for args, ids in (
        (["--user", "bob"], ["r2"]),
        (["--session", "s1"], ["r1"]),
        (["--status", "running", "--status", "failed"], ["r3", "r2"]),
        (["--limit", "1"], ["r3"]),
    ):
        assert [row[0] for row in rows(invoke("runs", "ls", *args, cwd=tmp_path))] == ids
    assert invoke("runs", "ls", "--status", "lost", cwd=tmp_path).exit_code == 2


def test_a_run_is_drawn(tmp_path, stored):
    stored(story)
    result = invoke("runs", "show", "r1", cwd=tmp_path)
    heading, *lines = result.stdout.splitlines()
    assert heading == "run r1 is waiting, session s1 of user alice, app shop, 2 attempts, 1,200 tokens"
    cells = [line.split("\t") for line in lines]
    assert [(c[1], c[4]) for c in cells] == [
        ("queued", "Charge the card"),
        ("started", ""),
        ("event", "helper: Let me see. (superseded)"),
        ("event", "helper: Let me look. (attempt 2)"),
        ("step", 'charge: "ok" (attempt 2)'),
        ("asked", "helper: q1: Really?"),
        ("is waiting", ""),
    ]
    assert "  sojourn runs answer r1 VALUE --app shop" in result.stderr


def test_an_unknown_run(tmp_path, stored):
    stored(story)
    for command in (["show", "r9"], ["cancel", "r9"], ["answer", "r9", "yes"]):
        one_line_error(invoke("runs", *command, cwd=tmp_path), "run.not_found")


def test_a_run_id_of_two_users(tmp_path, stored):
    async def two(store, clock):
        await finished(store, "r1", session_key(user_id="alice"), "Hi Alice.")
        await finished(store, "r1", session_key(user_id="bob"), "Hi Bob.")

    stored(two)
    result = invoke("runs", "show", "r1", cwd=tmp_path)
    one_line_error(result, "run.ambiguous", 2)
    assert "say which with --user" in result.stderr
    assert "Hi Bob." in invoke("runs", "show", "r1", "--user", "bob", cwd=tmp_path).stdout


def test_a_waiting_run_is_cancelled_at_once(tmp_path, stored):
    stored(story)
    result = invoke("runs", "cancel", "r1", "--reason", "not any more", cwd=tmp_path)
    assert (result.exit_code, result.stderr) == (0, "run r1 is cancelled\n")
    assert "not any more [run.cancelled]" in invoke("runs", "show", "r1", cwd=tmp_path).stdout
    again = invoke("runs", "cancel", "r1", cwd=tmp_path)
    assert (again.exit_code, again.stderr) == (0, "run r1 is cancelled already\n")


def test_a_run_whose_process_is_dead_is_cancelled(tmp_path, stored):
    async def work(store, clock):
        await start(store)

    stored(work)
    assert invoke("runs", "cancel", "r1", cwd=tmp_path).stderr == "run r1 is cancelled\n"


def test_an_answer_is_given_once(tmp_path, stored):
    stored(story)
    one_line_error(invoke("runs", "answer", "r1", "maybe", cwd=tmp_path), "interrupt.invalid_answer", 2)
    one_line_error(invoke("runs", "answer", "r1", "q9", "yes", cwd=tmp_path), "interrupt.not_found")
    answered = invoke("runs", "answer", "r1", "yes", cwd=tmp_path)
    assert (answered.exit_code, answered.stdout) == (0, "")
    assert "run r1 is queued" in answered.stderr
    again = invoke("runs", "answer", "r1", "q1", "true", cwd=tmp_path)
    assert again.exit_code == 0
    assert "has this answer already" in again.stderr
    one_line_error(invoke("runs", "answer", "r1", "no", cwd=tmp_path), "interrupt.conflict")


def test_of_several_questions_one_is_named(tmp_path, stored):
    async def work(store, clock):
        run = await start(store)
        events = [question_event(run, n, f"q{n}") for n in (1, 2)]
        questions = [question(f"q{n}", key=f"k{n}") for n in (1, 2)]
        await write(store, run, *events, interrupts=questions, move=Move.WAIT)

    stored(work)
    result = invoke("runs", "answer", "r1", "yes", cwd=tmp_path)
    one_line_error(result, "interrupt.ambiguous", 2)
    assert "q1, q2" in result.stderr
    shown = invoke("runs", "show", "r1", cwd=tmp_path).stderr
    assert "answer r1 q1 VALUE" in shown
    assert "answer r1 q2 VALUE" in shown
    assert invoke("runs", "answer", "r1", "q2", "yes", cwd=tmp_path).exit_code == 0


def test_a_run_that_asks_nothing(tmp_path, stored):
    async def work(store, clock):
        await finished(store, "r1", None, "Hi.")

    stored(work)
    one_line_error(invoke("runs", "answer", "r1", "yes", cwd=tmp_path), "interrupt.closed")


def test_an_answer_of_several_words_is_quoted(tmp_path, stored):
    stored(story)
    result = invoke("runs", "answer", "r1", "q1", "yes", "please", cwd=tmp_path)
    assert result.exit_code == 2
    assert "quote it" in result.stderr


def test_a_failed_run_is_retried_here(home, stored):
    async def work(store, clock):
        run = await start(store, "r1", session_key(app_name="echo"), text="hello again")
        await write(store, run, move=Move.FAIL, error=RunError("run.timeout", "too slow"))
        await finished(store, "r2", session_key("s2", app_name="echo"), "Hi.")

    stored(work)
    retried = sojourn("runs", "retry", "r1", "agents.py:echo", cwd=home)
    assert (retried.returncode, retried.stdout) == (0, "You said: hello again \n")
    newest = rows(invoke("runs", "ls", "--session", "s1", cwd=home))[0]
    assert newest[1] == "completed"
    assert "repeats r1" in invoke("runs", "show", newest[0], cwd=home).stdout
    assert f"superseded by {newest[0]}" in invoke("runs", "show", "r1", cwd=home).stdout
    refused = sojourn("runs", "retry", "r1", "agents.py:echo", cwd=home)
    assert refused.returncode == 1
    assert "[run.superseded]" in refused.stderr
    assert newest[0] in refused.stderr


def test_an_earlier_message_is_edited_here(home, stored):
    async def work(store, clock):
        content = Content("user").with_text("hello").with_bytes(b"x" * 3, "image/png")
        key = session_key(app_name="structured")
        first = message("r1").evolve(content=content)
        await write(store, await start(store, "r1", key, message=first), move=Move.COMPLETE)
        await finished(store, "r2", key, "Hi.")

    stored(work)
    retried = sojourn("runs", "retry", "r1", "agents.py:structured", "--message", "edited", cwd=home)
    assert (retried.returncode, retried.stdout) == (0, '{"parts": ["image/png"]}\n')
    shown = invoke("sessions", "show", "s1", cwd=home).stdout
    assert "edited" in shown
    assert "Hi." not in shown
    assert "Hi." in invoke("sessions", "show", "s1", "--superseded", cwd=home).stdout
    exported = json.loads(invoke("sessions", "export", "s1", cwd=home).stdout)
    newest = exported["runs"][-1]["id"]
    assert [(r["id"], r["retryOf"], r["supersededBy"]) for r in exported["runs"]] == [
        ("r1", None, newest), ("r2", None, newest), (newest, "r1", None),
    ]  # fmt: skip
    empty = sojourn("runs", "retry", newest, "agents.py:structured", "--message", "", cwd=home)
    assert empty.returncode == 2
    assert "[message.invalid]" in empty.stderr


def test_a_run_is_not_retried_while_a_later_one_goes_on(home, stored):
    async def work(store, clock):
        key = session_key(app_name="echo")
        await finished(store, "r1", key, "Hi.")
        await ask(store, await start(store, "r2", key), 1)

    stored(work)
    refused = sojourn("runs", "retry", "r1", "agents.py:echo", cwd=home)
    assert refused.returncode == 1
    assert "'r2'" in refused.stderr
    assert "answer it, or cancel it" in refused.stderr
    assert "[run.not_finished]" in refused.stderr


def test_columns_on_a_terminal_have_headings(tmp_path, stored):
    stored(story)
    with Terminal("runs", "ls", cwd=tmp_path) as terminal:
        terminal.sees("RUN")
        terminal.sees("MESSAGE")
        terminal.sees("Charge the card")
        assert terminal.end() == 0


def test_control_characters_do_not_reach_a_terminal(tmp_path, stored):
    async def work(store, clock):
        run = await start(store, text="\x1b]0;gotcha\x07")
        await write(store, run, event(run, 1, content=Content.of("\x1b[2Jgone", "model")), move=Move.COMPLETE)

    stored(work)
    for command in (["runs", "ls"], ["runs", "show", "r1"], ["sessions", "show", "s1"]):
        with Terminal(*command, cwd=tmp_path) as terminal:
            shown = terminal.sees("\ufffd")
            assert "\x1b]0;" not in shown
            assert "\x1b[2J" not in shown
            assert terminal.end() == 0

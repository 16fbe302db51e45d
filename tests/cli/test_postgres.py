"""`--db postgresql://…`: the commands on a server, and passwords that nobody gets to see."""

import json

import pytest

from sojourn.cli.options import shown
from tests.cli.shell import invoke, sojourn
from tests.cli.test_serve import SAY, Serving

SECRET = "Tr0ub4dor"


@pytest.fixture(scope="session")
def database(postgres):
    """The URL of a database of its own, with a password, which the server does not ask for."""
    postgres.psql("CREATE DATABASE cli")
    return postgres.url("cli", tcp=True).replace("sojourn@", f"sojourn:{SECRET}@")


@pytest.mark.slow
def test_a_run_is_waited_for_answered_and_listed(home, database):
    asked = sojourn("run", "agents.py:asker", "Hi", "--session", "s1", "--user", "ann", "--db", database, cwd=home)
    run_id = asked.stderr.split("runs answer ")[1].split()[0]
    shown_url = database.replace(f":{SECRET}", "")
    assert f"--db {shown_url}" in asked.stderr
    answered = sojourn(
        "runs", "answer", run_id, "yes", "--app", "asker", "--target", "agents.py:asker", "--db", database, cwd=home
    )
    assert "sure=True" in answered.stdout
    listed = sojourn("runs", "ls", "--app", "asker", "--db", database, cwd=home)
    assert listed.stdout.split("\t")[1] == "completed"
    session = sojourn("sessions", "show", "s1", "--app", "asker", "--db", database, cwd=home)
    assert "Let me see." in session.stdout
    for done in (asked, answered, listed, session):
        assert SECRET not in done.stdout + done.stderr


@pytest.mark.slow
def test_it_is_served(home, database):
    with Serving(home, "-m", "sojourn", "serve", "agents.py:echo", "--port", "0", "--db", database, "--auth", "keys") as server:
        assert server.url.startswith("http://127.0.0.1:")
        second = sojourn("run", "agents.py:echo", "Hi", "--db", database, cwd=home)
        assert "executes the runs of schema 'sojourn'" in second.stderr
        assert second.stderr.rstrip().endswith("[store.in_use]")
        _, out, err = server.stop()
    assert "sojourn keys add USER --db" in err
    for text in (second.stdout, second.stderr, out, err):
        assert SECRET not in text


@pytest.mark.slow
def test_runs_of_a_server(home, database):
    with Serving(home, "-m", "sojourn", "serve", "agents.py:echo", "--port", "0", "--db", database) as server:
        run = json.loads(server.ask("/runs", {"appName": "echo", **SAY}))
        assert "You said: hello" in server.ask(f"/runs/{run['id']}/events?appName=echo")
        assert server.ask("/readyz")
        server.stop()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("postgresql://sojourn:{secret}@127.0.0.1:{port}/nowhere", "store.refused"),
        ("postgresql://sojourn:{secret}@127.0.0.1:1/x", "store.unavailable"),
        ("postgresql://sojourn:{secret}@127.0.0.1:{secret}/x", "store.invalid_url"),
        ("postgresql://sojourn:{secret}@127.0.0.1:{port}/x?sslmode={secret}", "store.invalid_url"),
        ("postgresql://sojourn:1@{secret}@127.0.0.1:{port}/x", "store.invalid_url"),
        ("postgresql://sojourn:1/{secret}@127.0.0.1:{port}/x", "store.invalid_url"),
        ("postgresql://sojourn:1#{secret}@127.0.0.1:{port}/x", "store.invalid_url"),
    ],
)
def test_errors_tell_no_password(home, postgres, url, code):
    result = invoke("sessions", "ls", "--verbose", "--db", url.format(secret=SECRET, port=postgres.port), cwd=home)
    assert result.exit_code in {1, 2}
    assert f"[{code}]" in result.stderr
    assert SECRET not in result.output + result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("channel_binding=require", "channel_binding"),
        ("statement_timeout=soon", "statement_timeout"),
        ("sslmode=sometimes", "verify-full"),
        ("sslmode=verify-full", "sslrootcert"),
    ],
)
def test_an_option_of_a_url_that_cannot_be_had_is_named(home, monkeypatch, postgres, options, said):
    monkeypatch.setenv("HOME", str(home))
    result = invoke("sessions", "ls", "--db", f"{postgres.url('postgres', tcp=True)}?{options}", cwd=home)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert result.stderr.rstrip().endswith("[store.invalid_url]")


@pytest.mark.parametrize(
    ("db", "seen"),
    [
        ("my.db", "my.db"),
        ("sqlite:///my.db", "sqlite:///my.db"),
        ("postgresql://ann:secret@host:1/db", "postgresql://ann@host:1/db"),
        ("postgresql://ann:sec@ret/@host/db?password=secret&sslmode=require", "postgresql://ann@host/db?sslmode=require"),
        ("postgresql://host/db?password=secret", "postgresql://host/db"),
        ("postgresql:///db?host=/tmp", "postgresql:///db?host=/tmp"),
    ],
)
def test_what_is_shown_of_a_database(db, seen):
    assert shown(db) == seen


@pytest.mark.parametrize("command", [("backup", "copy.db"), ("restore", "copy.db", "--yes")])
def test_a_server_has_tools_of_its_own_for_backups(home, database, command):
    sojourn("run", "agents.py:echo", "Hi", "--db", database, cwd=home)
    result = invoke("data", *command, "--db", database, cwd=home)
    assert result.stderr.rstrip().endswith("[data.backup_unsupported]")


def test_a_database_without_sessions_is_not_made_into_one(home, postgres):
    postgres.psql("CREATE DATABASE empty")
    url = postgres.url("empty", tcp=True)
    for command in (("sessions", "ls"), ("runs", "ls"), ("usage", "ann"), ("data", "report")):
        result = invoke(*command, "--db", url, cwd=home)
        assert (result.exit_code, result.stderr.rstrip().endswith("[store.not_found]")) == (1, True), result.stderr
    assert "sojourn" not in postgres.psql("SELECT nspname FROM pg_namespace", database="empty")

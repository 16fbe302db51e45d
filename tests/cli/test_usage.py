"""`sojourn usage`: what a user has spent, read beside whoever executes."""

import asyncio
import json
from datetime import datetime

import pytest

from sojourn import platform
from sojourn.event import Usage
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.builders import event, session_key, start, write
from sojourn.testing.clock import NOON, ManualPlatform
from tests.cli.shell import invoke

HOUR = int(NOON) // 3600 * 3600


async def spend(store, run_id, key, tokens):
    run = await start(store, run_id, key)
    usage = Usage(total_token_count=tokens, prompt_token_count=tokens - 3, candidates_token_count=3, thoughts_token_count=1)
    await write(store, run, event(run, 1, "a", usage_metadata=usage))


@pytest.fixture
def spent(tmp_path):
    """A database in which two users of one app have spent tokens, one of them in two hours."""

    async def run():
        (tmp_path / ".sojourn").mkdir()
        store = DatabaseSessionService(f"sqlite:///{tmp_path / '.sojourn' / 'sojourn.db'}")
        try:
            with platform.use(ManualPlatform()) as clock:
                await spend(store, "r1", session_key(), 1000)
                await spend(store, "r1", session_key(user_id="bob"), 5)
                clock.advance(3600)
                await spend(store, "r2", session_key(), 200)
        finally:
            await store.close()

    asyncio.run(run())
    return tmp_path


def listed(result):
    assert result.exit_code == 0, result.stderr
    return [line.split("\t") for line in result.stdout.splitlines()]


def local(timestamp):
    return datetime.fromtimestamp(timestamp).strftime("%Y-%m-%d %H:%M:%S")


def test_by_the_hour_and_in_total(spent):
    assert listed(invoke("usage", "alice", cwd=spent)) == [
        [local(HOUR), "1000", "997", "3", "0", "1"],
        [local(HOUR + 3600), "200", "197", "3", "0", "1"],
        ["total", "1200", "1194", "6", "0", "2"],
    ]
    assert listed(invoke("usage", "bob", "--app", "shop", cwd=spent))[-1] == ["total", "5", "2", "3", "0", "1"]
    assert listed(invoke("usage", "nobody", cwd=spent)) == [["total", "0", "0", "0", "0", "0"]]


def test_as_json(spent):
    result = invoke("usage", "alice", "--json", cwd=spent)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert (told["appName"], told["userId"]) == ("shop", "alice")
    assert told["total"] == {
        "promptTokenCount": 1194, "candidatesTokenCount": 6, "totalTokenCount": 1200, "cachedContentTokenCount": 0,
        "thoughtsTokenCount": 2,
    }  # fmt: skip
    assert [(h["hour"], h["totalTokenCount"]) for h in told["hours"]] == [(HOUR, 1000), (HOUR + 3600, 200)]


@pytest.mark.parametrize(
    ("since", "total"),
    [
        (datetime.fromtimestamp(HOUR + 3599).isoformat(), "1200"),
        (datetime.fromtimestamp(HOUR + 3600).isoformat(), "200"),
        ("2023-11-14T23:00:00+00:00", "200"),
        ("2023-11-14T22:59:59Z", "1200"),
        ("2023-11-16", "0"),
        ("90m", "0"),
        ("999999d", "1200"),
    ],
)
def test_since_a_time(spent, since, total):
    assert listed(invoke("usage", "alice", "--since", since, cwd=spent))[-1][:2] == ["total", total]


@pytest.mark.parametrize("since", ["", "soon", "7y", "-1h", "2023-13-01"])
def test_a_time_that_is_none(spent, since):
    result = invoke("usage", "alice", f"--since={since}", cwd=spent)
    assert result.exit_code == 2
    assert "--since" in result.stderr
    assert result.stdout == ""


def test_what_was_spent_is_told_when_no_session_is_left(spent):
    for user in ("alice", "bob"):
        assert invoke("sessions", "rm", "s1", "--yes", "--user", user, cwd=spent).exit_code == 0
    result = invoke("usage", "alice", cwd=spent)
    assert (result.exit_code, result.stderr.rstrip()[-15:]) == (1, "[app.not_found]")
    assert listed(invoke("usage", "alice", "--app", "shop", cwd=spent))[-1][1] == "1200"


def test_a_missing_database_is_not_created(tmp_path):
    result = invoke("usage", "alice", cwd=tmp_path)
    assert (result.exit_code, result.stderr.rstrip()[-17:]) == (1, "[store.not_found]")
    assert list(tmp_path.iterdir()) == []

"""`sojourn keys`: API keys, made, listed and removed."""

import re
import stat
from pathlib import Path

import pytest
import typer

from sojourn import platform
from sojourn.cli.keys import moment
from sojourn.server.auth.keyfile import KEY, KeyFile
from sojourn.testing.clock import NOON, ManualPlatform
from tests.cli.shell import invoke, sojourn


def keys_command(*args):
    return invoke("keys", *args, cwd=Path.cwd())


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_key_goes_to_stdout_alone_and_is_kept_beside_the_database(tmp_path):
    done = sojourn("keys", "add", "ann", "--name", "Ann's laptop", cwd=tmp_path)
    assert done.returncode == 0
    key = done.stdout.strip()
    match = KEY.fullmatch(key)
    assert match
    assert key not in done.stderr
    assert "not shown again" in done.stderr
    file = tmp_path / ".sojourn" / "keys.json"
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (tmp_path / ".sojourn" / ".gitignore").read_text() == "*\n"
    (kept,) = KeyFile(file).keys().values()
    assert (kept.id, kept.user_id, kept.admin, kept.name, kept.expires_at) == (match[1], "ann", False, "Ann's laptop", None)


def test_keys_are_listed_without_what_is_secret(home):
    with platform.use(clock := ManualPlatform()):
        made = [keys_command("add", "ann"), keys_command("add", "root", "--admin", "--name", "ops", "--expires", "1h")]
        clock.advance(3600)
        listed = keys_command("ls")
    keys = [re.search(KEY, each.output)[0] for each in made]
    assert not any(key in listed.output or key[13:] in listed.output for key in keys)
    first, second = listed.output.splitlines()
    assert first.split("\t")[:4] == [keys[0][4:12], "ann", "", ""]
    assert second.split("\t")[:4] == [keys[1][4:12], "root", "admin", "ops"]
    assert second.endswith("(expired)")


def test_a_key_is_removed_by_its_id_or_by_itself(home):
    keys = [re.search(KEY, keys_command("add", user).output)[0] for user in ("ann", "ben", "cleo")]
    assert keys_command("rm", keys[0][4:12]).exit_code == 0
    removed = keys_command("rm", keys[1])
    assert removed.exit_code == 0
    assert keys[1] not in removed.output
    assert [key.user_id for key in KeyFile(".sojourn/keys.json").keys().values()] == ["cleo"]
    again = keys_command("rm", keys[0][4:12])
    assert again.exit_code == 1
    assert "keys.not_found" in again.output


def test_each_database_has_keys_of_its_own(home):
    (home / "elsewhere").mkdir()
    for db in ("elsewhere/agents.db", f"sqlite:///{home}/elsewhere/agents.db"):
        assert keys_command("add", "ann", "--db", db).exit_code == 0
    assert len(KeyFile(home / "elsewhere" / "keys.json").keys()) == 2
    assert keys_command("ls").output == ""
    assert not (home / ".sojourn").exists()
    assert keys_command("add", "ann", "--db", "nowhere/agents.db").exit_code == 1


@pytest.mark.parametrize(
    "args", [("add", ""), ("add", "a\x1bb"), ("add", "ann", "--name", "a\nb"), ("add", "ann", "--expires", "soon")]
)
def test_what_cannot_be_is_wrong_usage(args, home):
    assert keys_command(*args).exit_code == 2
    assert KeyFile(".sojourn/keys.json").keys() == {}


def test_when_keys_expire():
    with platform.use(ManualPlatform()):  # 2023-11-14T22:13:20Z
        assert [moment(text) - NOON for text in ("90m", "12h", "30d", "8w")] == [5400, 43_200, 2_592_000, 4_838_400]
        assert moment("2023-11-15") == moment("2023-11-15T00:00:00+00:00") == 1_700_006_400
        assert moment("2023-11-15T01:00:00+01:00") == 1_700_006_400
        for text in ("", "30", "0d", "-1d", "1.5d", "30 d", "2023-11-14", "2023-13-01", "1999999d", "0001-01-01T00:00+23:00"):
            with pytest.raises(typer.BadParameter):
                moment(text)

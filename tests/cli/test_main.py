"""The command itself: its entry points, what it loads, what its pages say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from sojourn.cli.main import app
from tests.cli.shell import environment, invoke, sojourn

PAGE = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^#{2,3} `sojourn ?([a-z ]*)(?: [^`]*)?`$\n(.*?)(?=^#{1,3} |\Z)", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"^\| ((?:`-[^`]+`(?:, )?)+) \|", re.MULTILINE)


def commands(command=None, path=""):
    """The registered commands by path, each with the names of its options."""
    command = command or typer.main.get_command(app)
    found = {path: {name for p in command.params if p.param_type_name == "option" for name in p.opts}}
    for name, child in getattr(command, "commands", {}).items():
        found |= commands(child, f"{path} {name}".strip())
    return found


REGISTERED = commands()
DOCUMENTED = {
    path.strip(): {name.split()[0] for cell in OPTION.findall(text) for name in re.findall(r"`([^`]+)`", cell)}
    for path, text in SECTION.findall(PAGE)
}


def test_the_commands_are_these():
    assert {"run", "sessions ls", "sessions show", "sessions export", "sessions rm"} <= REGISTERED.keys()
    assert {"runs ls", "runs show", "runs cancel", "runs answer", "runs retry"} <= REGISTERED.keys()


@pytest.mark.parametrize("path", sorted(REGISTERED.keys() - {"sessions", "runs", "keys", "data"}))
def test_every_command_and_option_is_documented(path):
    assert path in DOCUMENTED, f"docs/cli.md has no section for sojourn {path}"
    assert DOCUMENTED[path] == REGISTERED[path] - {"--help", "-h"}


def test_no_other_command_is_documented():
    assert DOCUMENTED.keys() <= REGISTERED.keys()


@pytest.mark.parametrize("path", sorted(REGISTERED))
def test_every_command_and_option_has_help(path):
    shown = invoke(*path.split(), "--help", cwd=Path.cwd())
    assert shown.exit_code == 0
    for option in REGISTERED[path]:
        assert option in shown.stdout


def test_the_version(tmp_path):
    assert re.fullmatch(r"sojourn \d+\.\d+\.\d+\n", sojourn("--version", cwd=tmp_path).stdout)


def test_the_installed_command(home):
    command = Path(sys.executable).with_name("sojourn")
    ran = subprocess.run(
        [command, "run", "agents.py:echo", "hi"], cwd=home, env=environment(), capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "You said: hi \n")


@pytest.mark.parametrize("args", [["nonsense"], ["run", "--nonsense"], ["runs", "show"], ["runs", "ls", "--limit", "-1"]])
def test_wrong_usage(tmp_path, args):
    ran = sojourn(*args, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Usage: sojourn" in ran.stderr


def modules_after(code):
    program = f"import sys\n{code}\nprint(*sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def loaded_after(code):
    return {name.partition(".")[0] for name in modules_after(code)}


def test_only_the_command_line_loads_its_libraries():
    assert loaded_after("import sojourn").isdisjoint({"typer", "rich", "prompt_toolkit"})
    loaded = modules_after("import sojourn.cli.main")
    assert loaded.isdisjoint(
        {"rich", "prompt_toolkit", "yaml", "pydantic_ai", "obstore", "asyncpg", "sojourn.artifact.s3.service"}
    )


def test_plain_output_does_without_its_libraries(home):
    code = (
        "import os\n"
        f"os.chdir({str(home)!r})\n"
        "from sojourn.cli.main import app\n"
        "app(['run', 'agents.py:echo', 'hi'], standalone_mode=False)"
    )
    assert loaded_after(code).isdisjoint({"rich", "prompt_toolkit"})

"""The JSON schema for editors: it is up to date, and says what the check says."""

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from sojourn.builder.editor import editor_schema
from tests.builder.test_schema import FULL, WRONG

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "scripts" / "app_schema.py"

VALIDATOR = jsonschema.Draft202012Validator(editor_schema())
BASE = {"app_name": "x", "agents": {"a": {"model": "test"}}}


def test_the_file_is_up_to_date():
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_a_file_that_differs_is_noticed(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "docs").mkdir()
    script = tmp_path / "scripts" / "app_schema.py"
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    for text in (None, "{}\n"):
        if text is not None:
            (tmp_path / "docs" / "app.schema.json").write_text(text, encoding="utf-8")
        checked = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
        assert (checked.returncode, "make docs" in checked.stderr) == (1, True)
    subprocess.run([sys.executable, script], check=True)
    assert subprocess.run([sys.executable, script, "--check"], check=False).returncode == 0


def test_it_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(editor_schema())


@pytest.mark.parametrize(
    "values",
    [
        BASE,
        FULL,
        BASE | {"$schema": "app.schema.json"},
        BASE | {"limits": {"max_concurrency": "${N}"}, "per_user": "${P:-true}", "run_config": {"when_busy": "${W}"}},
        BASE | {"plugins": ["${PLUGIN}"]},
        *(
            yaml.safe_load(path.read_text(encoding="utf-8"))
            for path in sorted((ROOT / "examples").rglob("*.yaml"))
        ),
    ],
)  # fmt: skip
def test_what_fits(values):
    VALIDATOR.validate(values)


@pytest.mark.parametrize(
    "values",
    [
        yaml.safe_load(WRONG),
        {},
        BASE | {"app_nam": "x"},
        BASE | {"agents": {}},
        BASE | {"agents": {"a": {"model": "test", "modl": 5}}},
        BASE | {"agents": {"a": {"kind": "function"}}},
        BASE | {"agents": {"a": {"kind": "lop", "sub_agents": []}}},
        BASE | {"tools": {"a b": "m:f"}},
        BASE | {"tools": {"a": "no dots"}},
        BASE | {"limits": {"max_concurrency": "many"}},
        BASE | {"run_config": {"when_busy": "wait"}},
    ],
)
def test_what_does_not(values):
    assert list(VALIDATOR.iter_errors(values))


def test_every_key_is_explained():
    schema = editor_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, value in section.get("properties", {}).items():
            assert value.get("description") or "$ref" in value, name

"""docs/lifecycle.md says what the table of moves says."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.run.status import TRANSITIONS

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "scripts" / "lifecycle.py"


def _check(tmp_path: Path, page: str) -> subprocess.CompletedProcess[str]:
    """Runs the check on a checkout that consists of the script and this page."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "docs").mkdir()
    script = tmp_path / "scripts" / "lifecycle.py"
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "docs" / "lifecycle.md").write_text(page, encoding="utf-8")
    return subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)


def test_the_page_is_up_to_date(tmp_path):
    page = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    checked = _check(tmp_path, page)
    assert checked.returncode == 0, checked.stderr


def test_a_page_that_differs_is_noticed(tmp_path):
    page = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    checked = _check(tmp_path, page.replace("| queued | begin | running |", "| queued | begin | completed |"))
    assert checked.returncode == 1
    assert "make docs" in checked.stderr


def test_every_move_is_in_diagram_and_table():
    script = runpy.run_path(str(SCRIPT))
    diagram, table = script["diagram"](), script["table"]()
    for t in TRANSITIONS:
        assert f"{t.source.value} --> {t.target.value}: {t.move.value}" in diagram
        assert f"| {t.source.value} | {t.move.value} | {t.target.value} | {t.why} |" in table


def test_a_page_without_marks_is_refused():
    script = runpy.run_path(str(SCRIPT))
    with pytest.raises(ValueError, match="marks"):
        script["rendered"]("# A page\n")

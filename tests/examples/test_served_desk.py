"""The demonstration of the server, as `make demo` runs it."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "examples" / "served_desk.py"


def test_the_demonstration():
    done = subprocess.run([sys.executable, PROGRAM, "--demo"], capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as ada: an answer in" in done.stdout
    assert "as bob: an answer in" in done.stdout
    assert "the same request again is the same run: True" in done.stdout
    assert "every frame once, none missing; asked for more, the server says 204" in done.stdout
    assert "the server ended with exit code 0" in done.stdout


def test_without_its_option_it_says_how_it_is_used():
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, timeout=55, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--demo" in done.stderr

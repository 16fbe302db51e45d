"""The production configuration, on a real PostgreSQL, a server that speaks S3, and Qdrant's embedded engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sojourn.testing.s3 import s3_server

PROGRAM = Path(__file__).parents[2] / "examples" / "production.py"


@pytest.mark.slow
def test_what_was_said_in_one_process_is_known_in_the_next(postgres, tmp_path):
    postgres.psql("CREATE DATABASE production")
    with s3_server("production") as address:
        environ = {
            **os.environ,
            "DATABASE_URL": postgres.url("production"),
            "ARTIFACTS_URL": f"s3://production/app?endpoint={address}",
            "QDRANT_URL": str(tmp_path / "memory"),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

        def say(user, session, message):
            done = subprocess.run(
                [sys.executable, PROGRAM, user, session, message],
                env=environ, capture_output=True, text=True, timeout=50, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout

        assert say("ann", "monday", "My router has a red lamp.") == "Noted, as line 1.\n"
        assert say("ann", "monday", "The garage door code was changed.") == "Noted, as line 2.\n"
        assert say("ann", "friday", "Which lamp is red?") == "You told me in session monday: My router has a red lamp.\n"
        assert say("bob", "friday", "Which lamp is red?") == "I have not been told.\n"


def test_without_its_services_it_says_what_it_needs():
    environ = {key: value for key, value in os.environ.items() if key != "DATABASE_URL"}
    done = subprocess.run([sys.executable, PROGRAM], env=environ, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 1
    assert "export DATABASE_URL" in done.stderr

"""google-adk's `AdkWebServerClient` works unchanged. Asked for with `make test-adk`: google-adk is no dependency."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from sojourn.server import create_app
from tests.server.adk.support import make_runner
from tests.server.serving import serve

pytestmark = [pytest.mark.anyio, pytest.mark.adk_clients, pytest.mark.timeout(300)]

CLIENT = Path(__file__).parent / "client.py"


@pytest.fixture
def python():
    """An interpreter that has google-adk."""
    found = os.environ.get("SOJOURN_ADK_PYTHON")
    assert found, "run `make test-adk`, which installs google-adk into an environment of its own"
    return found


async def test_all_that_the_client_does(python):
    async with serve(create_app(make_runner())) as url:
        process = await asyncio.create_subprocess_exec(
            python, "-W", "ignore", str(CLIENT), url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    told = json.loads(out.decode().splitlines()[-1])
    assert told.pop("version")["version"]
    assert len(told.pop("ids")) == 1, "pieces have the id of the event that holds them"
    assert "a secret of ours" not in told.pop("error")
    assert told.pop("authors").count("user") == 11
    assert told == {
        "state": {"a": 1},
        "final": ["You said: hi"],
        "pieces": "You said: hi",
        "whole": ["You said: hi"],
        "bought": "Bought.",
        "asked": "Hello Ann.",
        "login": "Logged in by 20 characters.",
        "seen": {"a": 1, "b": 2, "last": "hi", "temp:c": 3},
        "artifacts": {"notes/a.txt": 0},
        "mime_type": "text/plain",
        "after": {"a": 1, "b": 2, "count": 2, "d": 4, "last": "hi"},
        "gone": 404,
    }

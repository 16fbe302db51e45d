"""Runs `sojourn` as its users do: in a shell, or at a terminal."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pexpect
from typer.testing import CliRunner, Result

from sojourn.cli.main import app

COMMAND = [sys.executable, "-m", "sojourn"]

AGENTS = '''\
"""Agents to talk to."""

import asyncio
from itertools import count

from sojourn import RunConfig, RunnerConfig, agent


@agent
async def echo(ctx):
    ctx.state["turns"] = ctx.state.get("turns", 0) + 1
    for word in f"You said: {ctx.user_content.text}".split(" "):
        yield word + " "


@agent
async def listener(ctx):
    heard = [e.text for e in await ctx.history() if e.author == "user" and e.run_id != ctx.run_id]
    return f"{ctx.user_content.text} after {heard}"


@agent
async def slow(ctx):
    yield "one "
    await asyncio.Event().wait()


@agent
async def stubborn(ctx):
    yield "one "
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass


impatient = RunnerConfig(app_name="impatient", agent=stubborn, run_config=RunConfig(cancel_grace=0.1))


@agent
async def blocking(ctx):
    yield "one "
    await asyncio.sleep(0)
    while True:
        pass


@agent
async def boom(ctx):
    yield "so far "
    raise ValueError("a secret")


@agent
async def asker(ctx):
    yield "Let me see."
    sure = await ctx.ask("sure", "Are you sure?", schema=bool)
    yield f"sure={sure}"


@agent
async def thorough(ctx):
    yield "Let me "
    await asyncio.sleep(0)
    yield "see."
    await ctx.ask("sure", "Are you sure?", schema=bool)
    yield "Then I "
    await asyncio.Event().wait()


@agent
async def moody(ctx):
    yield "one "
    if ctx.user_content.text == "wait":
        await asyncio.Event().wait()


@agent
async def curious(ctx):
    name = await ctx.ask("name", "Who are you?", schema=str)
    age = await ctx.ask("age", "How old?", schema=int)
    return f"{name} is {age}"


@agent
async def structured(ctx):
    return {"parts": [p.inline_data.mime_type for p in ctx.user_content.parts if p.inline_data]}


@agent
async def chatty(ctx):
    for n in count():
        yield f"line {n}\\n"
        await asyncio.sleep(0)


@agent
async def rude(ctx):
    yield "caf\\u00e9 \\U0001f600 \\x1b[31mred"
'''


def write_agents(directory: Path) -> Path:
    """Writes the agents as `agents.py`."""
    path = directory / "agents.py"
    path.write_text(AGENTS, encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    """A plain environment: no colours asked for, none refused, no terminal to be queried."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONIOENCODING")}
    return {**kept, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}


def sojourn(*args: str, cwd: Path, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with a pipe for stdin."""
    return subprocess.run(
        [*COMMAND, *args],
        cwd=cwd,
        input=stdin,
        env=env or environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=30,
        check=False,
    )


def invoke(*args: str, cwd: Path) -> Result:
    """Runs a command in this process, which is faster; with nobody at stdin."""
    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, list(args), prog_name="sojourn", catch_exceptions=False)


class Process:
    """A command that is still running.

    Args:
        args: Its arguments.
        cwd: Where it runs.
        under: A command that runs it.
    """

    def __init__(self, *args: str, cwd: Path, under: Sequence[str] = ()) -> None:
        self._popen = subprocess.Popen(
            [*under, *COMMAND, *args],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self.stdin = self._popen.stdin
        self._stdout = self._popen.stdout
        self._stderr = self._popen.stderr
        self.pid = self._popen.pid

    def read_until(self, text: str, *, stderr: bool = False) -> str:
        """Reads stdout, or stderr, up to a text."""
        stream = self._stderr if stderr else self._stdout
        read = ""
        while text not in read:
            char = stream.read(1)
            assert char, f"it ended with {read!r}"
            read += char
        return read

    def interrupt(self) -> None:
        """Presses Ctrl-C."""
        self.send_signal(signal.SIGINT)

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._popen.send_signal(number)

    def send_signals(self, number: signal.Signals) -> None:
        """Sends a signal until it ends, as people press Ctrl-C: the system does not count what nobody has heard yet."""
        while True:
            self.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=0.2)
                return

    def stop_reading(self) -> None:
        """Closes this end of stdout and stderr."""
        self._stdout.close()
        self._stderr.close()

    def wait(self) -> int:
        """Waits for its end; returns the exit code."""
        return self._popen.wait(timeout=30)

    def kill(self) -> None:
        """Ends it, without a chance to do anything."""
        self._popen.kill()
        self._popen.communicate()

    def end(self) -> tuple[int, str, str]:
        """Waits for its end; returns exit code, the rest of stdout, stderr."""
        out, err = self._popen.communicate(timeout=30)
        return self._popen.returncode, out, err

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._popen.poll() is None:
            self.kill()
        for stream in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()


class Terminal:
    """A command at a terminal, with a person who types.

    Args:
        args: Its arguments.
        cwd: Where it runs.
    """

    # Switching on bracketed paste is the last thing that the prompt does before it reads.
    READY = re.escape("\x1b[?2004h")

    def __init__(self, *args: str, cwd: Path) -> None:
        self._child = pexpect.spawn(
            COMMAND[0],
            [*COMMAND[1:], *args],
            cwd=str(cwd),
            env=environment(),
            encoding="utf-8",
            timeout=20,
            dimensions=(40, 200),
        )

    def sees(self, text: str) -> str:
        """Waits until a text is shown; returns what was shown before it."""
        self._child.expect_exact(text)
        return str(self._child.before)

    def is_asked(self) -> str:
        """Waits until there is a prompt that reads; returns what was shown before."""
        self._child.expect(self.READY)
        return str(self._child.before)

    def types(self, line: str) -> None:
        """Types a line."""
        self._child.sendline(line)

    def ctrl_c(self) -> None:
        """Presses Ctrl-C."""
        self._child.sendintr()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._child.kill(number)

    def vanish(self) -> None:
        """Closes the window."""
        os.close(self._child.child_fd)

    def ctrl_d(self) -> None:
        """Presses Ctrl-D."""
        self._child.sendeof()

    def end(self) -> int:
        """Waits for its end; returns the exit code."""
        self._child.expect(pexpect.EOF)
        self._child.close()
        assert self._child.exitstatus is not None, f"it was killed by signal {self._child.signalstatus}"
        return int(self._child.exitstatus)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.close(force=True)

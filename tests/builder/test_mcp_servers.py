"""MCP servers of a config: a real one, by command and by address."""

import json
import os
import sys

import pytest

pytest.importorskip("mcp")

from sojourn import Runner, RunStatus, WorkflowBuilder
from sojourn.testing.models import Calls, ScriptedModel
from tests.llm.test_mcp import SERVER, listening

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]


def app(server):
    return json.dumps({
        "app_name": "x",
        "mcp_servers": {"weather": server},
        "agents": {"a": {"model": "test", "tools": ["weather"], "sub_agents": ["b"]}, "b": {"model": "test", "tools": ["weather"]}},
    })  # fmt: skip


async def test_a_server_by_command(write, home):
    (home / "noted.py").write_text(
        "import os, pathlib, runpy, sys\n"
        "with pathlib.Path('pids.txt').open('a') as pids: pids.write(f'{os.getpid()}\\n')\n"
        f"sys.argv = [{SERVER!r}]\nrunpy.run_path({SERVER!r}, run_name='__main__')\n"
    )
    write(app({"command": sys.executable, "args": ["noted.py"]}), "app.json")
    model = ScriptedModel(Calls("forecast", {"city": "Rome"}), "Sunny.", Calls("forecast", {"city": "Oslo"}), "Cold.")
    async with Runner(WorkflowBuilder(models={"test": model}).build("app.json")) as runner:
        assert await (await runner.start("ann", "s", "Rome?")).result() == "Sunny."
        assert await (await runner.start("ann", "s", "Oslo?")).result() == "Cold."
        assert "forecast" in model.requests[0].tools
        assert "Rome: sun for 1 days" in model.requests[1].text
        (pid,) = (home / "pids.txt").read_text().split()  # one process, for both agents and all runs
        os.kill(int(pid), 0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


async def test_a_server_by_its_address_with_what_is_offered(write):
    async with listening() as (_, url):
        server = {
            "url": url,
            "headers": {"X-Key": "${KEY}"},
            "tools": ["forecast", "fail"],
            "prefix": "w",
            "require_approval": True,
        }
        model = ScriptedModel(Calls("w_forecast", {"city": "Rome"}), "Sunny.")
        builder = WorkflowBuilder(models={"test": model}, environ={"KEY": "secret-key"})
        async with builder, Runner(builder.build(write(app(server), "app.json"))) as runner:
            run = await runner.start("ann", "s", "Rome?")
            record = await run.wait()
            assert record.status is RunStatus.WAITING
            (question,) = await run.interrupts()
            run = await runner.answer(run.id, question.id, True)
            assert await run.result() == "Sunny."
            assert set(model.requests[0].tools) == {"transfer_to_agent", "w_forecast", "w_fail"}
            assert "sun for 1 days" in model.requests[1].text


async def test_environment_and_directory_of_a_command(write, home):
    (home / "inner").mkdir()
    (home / "where.py").write_text(
        "import os, pathlib, runpy, sys\n"
        "pathlib.Path('seen.txt').write_text(os.environ['TOKEN'])\n"
        f"sys.argv = [{SERVER!r}]\nrunpy.run_path({SERVER!r}, run_name='__main__')\n"
    )
    server = {"command": sys.executable, "args": ["../where.py"], "env": {"TOKEN": "${TOKEN}"}, "cwd": "inner"}
    builder = WorkflowBuilder(models={"test": ScriptedModel("Hi.")}, environ={"TOKEN": "t-1234"})
    async with builder, Runner(builder.build(write(app(server), "app.json"))) as runner:
        assert await (await runner.start("ann", "s", "Hello")).result() == "Hi."
    assert (home / "inner" / "seen.txt").read_text() == "t-1234"


async def test_missing_packages_are_told(problems, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic_ai.mcp", None)
    (problem,) = problems(app({"command": "x"}), "app.json", make=True)
    assert problem == (
        "app.json:1: mcp_servers.weather: MCP servers need a package that is not installed: pip install 'sojourn[mcp]' "
        "[mcp.not_installed]"
    )

"""Tools of MCP servers: real servers, over stdio and over HTTP."""

import asyncio
import copy
import re
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("mcp")

from fastmcp.client.transports import StdioTransport
from pydantic_ai.mcp import MCPToolset

from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.models import Calls
from tests.llm.support import assert_valid_history, events_of, llm, results_in, said, waiting
from tests.runner.support import SESSION, USER, make_runner, outcome_of

SERVER = str(Path(__file__).parent / "mcp_server.py")

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]


@asynccontextmanager
async def weather():
    """The server as a toolset; its process ends with the block."""
    toolset = MCPToolset(StdioTransport(sys.executable, [SERVER]), id="weather")
    try:
        yield toolset
    finally:
        await toolset.client.close()


async def test_tools_of_a_server_over_stdio_are_called_and_their_failures_told():
    async with weather() as toolset:
        store = InMemorySessionService()
        helper = llm(
            [Calls("forecast", {"city": "Rome", "days": 2}), Calls("fail", {"why": "no sensors"})], "Sunny.", tools=[toolset]
        )
        run = await said(helper, store=store)
        assert await outcome_of(run) == "Sunny."
        forecast, failure = results_in(await events_of(run))
        assert "Rome: sun for 2 days" in str(forecast)
        assert "fail" in failure["error"]
        assert "forecast" in helper.model.requests[0].tools
        assert helper.model.requests[0].info.function_tools[0].parameters_json_schema["properties"].keys() >= {"city", "days"}
        await assert_valid_history(store)


async def test_a_server_that_dies_in_mid_call_is_told_to_the_model_and_started_again_for_the_next_run(tmp_path):
    note = tmp_path / "notes"
    async with weather() as toolset:
        store = InMemorySessionService()
        helper = llm(
            [Calls("die", {"note": str(note)})], "It is gone.", [Calls("forecast", {"city": "Oslo"})], "Sunny.", tools=[toolset]
        )
        runner = make_runner(helper, store)
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "It is gone."
        assert "error" in results_in(await events_of(run))[0]
        assert note.read_text() == "called\n", "nothing is made twice"
        run = await runner.start(USER, SESSION, "again")
        assert await outcome_of(run) == "Sunny."
        assert "Oslo" in str(results_in(await events_of(run)))
        await assert_valid_history(store)


async def test_calls_of_a_dead_server_do_not_end_the_run_until_the_model_gives_up(tmp_path):
    async with weather() as toolset:
        script = [
            [Calls("die", {"note": str(tmp_path / "notes")}), Calls("forecast", {"city": "Rome"})],
            [Calls("forecast", {"city": "Rome"})],
        ]
        run = await said(llm(*script, "It is gone.", tools=[toolset]))
        assert await outcome_of(run) == "It is gone."


async def test_a_server_that_does_not_start_fails_the_run_with_a_code(caplog):
    toolset = MCPToolset(StdioTransport(sys.executable, ["-c", "raise SystemExit(3)"]), id="broken")
    store = InMemorySessionService()
    helper = llm("Hi.", tools=[toolset])
    run = await said(helper, store=store)
    assert await outcome_of(run) == "tool.unavailable"
    assert helper.model.requests == []
    assert "a toolset of agent helper cannot be used: " in caplog.text, "why is for the operator"
    with suppress(Exception):
        await toolset.client.close()


async def test_tools_of_a_server_may_need_leave():
    async with weather() as toolset:
        runner = make_runner(llm([Calls("forecast", {"city": "Rome"})], "Sunny.", tools=[toolset.approval_required()]))
        run, (question,) = await waiting(runner)
        assert (question.kind, "Rome" in question.prompt) == ("confirm", True)
        run = await runner.answer(run.id, question.id, True)
        assert await run.result() == "Sunny."
        assert "sun" in str(results_in(await events_of(run)))


async def test_the_server_of_an_agent_and_its_copy_runs_until_both_are_closed():
    async with weather() as toolset:
        helper = llm([Calls("process")], "There.", repeat=True, tools=[toolset])
        copied = copy.copy(helper)

        async def server_of(agent):
            return str(results_in(await events_of(await said(agent))))

        first = await server_of(helper)
        assert await server_of(copied) == first
        await copied.close()
        assert await server_of(helper) == first
        await helper.close()
        assert await server_of(helper) != first
        await helper.close()


async def test_a_server_by_its_address():
    async with listening() as (process, url):
        toolset = MCPToolset(url, id="weather")
        helper = llm([Calls("forecast", {"city": "Rome"})], "Sunny.", [Calls("forecast", {"city": "Rome"})], tools=[toolset])
        runner = make_runner(helper)
        run = await runner.start(USER, SESSION, "go")
        assert await outcome_of(run) == "Sunny."
        assert "sun for 1 days" in str(results_in(await events_of(run)))
        process.kill()
        await process.wait()
        assert await outcome_of(await runner.start(USER, SESSION, "again")) == "tool.unavailable"


@asynccontextmanager
async def listening():
    """The server as a process of its own that listens, and its address."""
    process = await asyncio.create_subprocess_exec(sys.executable, SERVER, "0", stderr=asyncio.subprocess.PIPE)
    try:
        while not (found := re.search(rb"running on (http://[\d.:]+)", await process.stderr.readline())):
            assert not process.stderr.at_eof(), "the server did not start"
        yield process, f"{found[1].decode()}/mcp"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()

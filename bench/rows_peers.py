"""What the same run costs in other runtimes, as far as they are installed; README.md says how to install them."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from bench import agents, floors
from bench.measure import Measure, Row, Sample, Scale, Stopwatch, cpu_sample
from bench.stores import directory
from sojourn import Runner
from sojourn.store.database import DatabaseSessionService

RUNS_PER_SESSION = 4
"""Few: some peers copy the whole session for each run, and how that grows is not what is measured here."""

RunOnce = Callable[[str], Awaitable[object]]
"""Runs an agent that does nothing in a session, to its end."""

Peer = Callable[[], AbstractAsyncContextManager[RunOnce]]


@asynccontextmanager
async def sojourn_in_memory() -> AsyncIterator[RunOnce]:
    runner = Runner(app_name="bench", agent=agents.returns)
    yield partial(_read, runner)


@asynccontextmanager
async def sojourn_on_sqlite() -> AsyncIterator[RunOnce]:
    with directory() as path:
        store = DatabaseSessionService(f"sqlite:///{path / 'bench.db'}")
        yield partial(_read, Runner(app_name="bench", agent=agents.returns, session_service=store))
        await store.close()


async def _read(runner: Runner, session: str) -> None:
    async for _ in runner.run("user", session, "hi"):
        pass


# -- google-adk -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def adk_in_memory() -> AsyncIterator[RunOnce]:
    from google.adk.sessions import InMemorySessionService

    yield _adk_runner(InMemorySessionService())


@asynccontextmanager
async def adk_on_sqlite() -> AsyncIterator[RunOnce]:
    from google.adk.sessions import DatabaseSessionService as AdkDatabase

    with directory() as path:
        service = AdkDatabase(f"sqlite+aiosqlite:///{path / 'adk.db'}")
        yield _adk_runner(service)
        await service.close()


def _adk_runner(service: Any) -> RunOnce:
    from google.adk.agents import BaseAgent
    from google.adk.events import Event
    from google.adk.runners import Runner as AdkRunner
    from google.genai.types import Content, Part

    class Noop(BaseAgent):  # type: ignore[misc]
        async def _run_async_impl(self, ctx: Any) -> AsyncIterator[Any]:
            yield Event(author="noop", invocation_id=ctx.invocation_id, content=Content(role="model", parts=[Part(text="ok")]))

    runner = AdkRunner(app_name="bench", agent=Noop(name="noop"), session_service=service, auto_create_session=True)

    async def once(session: str) -> None:
        message = Content(role="user", parts=[Part(text="hi")])
        async for _ in runner.run_async(user_id="user", session_id=session, new_message=message):
            pass

    return once


# -- agno -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def agno_without_storage() -> AsyncIterator[RunOnce]:
    yield _agno_agent()


@asynccontextmanager
async def agno_in_memory() -> AsyncIterator[RunOnce]:
    from agno.db.in_memory import InMemoryDb

    yield _agno_agent(db=InMemoryDb())


def _agno_agent(**options: Any) -> RunOnce:
    from agno.agent import Agent
    from agno.models.base import Model
    from agno.models.response import ModelResponse

    class Fixed(Model):  # type: ignore[misc]
        """A model that says the same each time; an agno agent has to have one."""

        def invoke(self, *args: Any, **kwargs: Any) -> Any:
            return ModelResponse(role="assistant", content="ok")

        async def ainvoke(self, *args: Any, **kwargs: Any) -> Any:
            return self.invoke()

        def invoke_stream(self, *args: Any, **kwargs: Any) -> Any:
            yield self.invoke()

        async def ainvoke_stream(self, *args: Any, **kwargs: Any) -> Any:
            yield self.invoke()

        def _parse_provider_response(self, response: Any, **kwargs: Any) -> Any:
            return response

        def _parse_provider_response_delta(self, response: Any) -> Any:
            return response

    agent = Agent(model=Fixed(id="fixed"), telemetry=False, **options)

    async def once(session: str) -> None:
        await agent.arun("hi", user_id="user", session_id=session)

    return once


# -- NeMo Agent Toolkit ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def nat_without_storage() -> AsyncIterator[RunOnce]:
    from nat.builder.workflow_builder import WorkflowBuilder
    from nat.cli.register_workflow import register_function
    from nat.data_models.config import Config
    from nat.data_models.function import FunctionBaseConfig
    from nat.runtime.session import SessionManager

    class Noop(FunctionBaseConfig, name="bench_noop"):  # type: ignore[misc, call-arg]
        """Names the function."""

    async def build(config: Noop, builder: WorkflowBuilder) -> AsyncIterator[Any]:
        async def noop(text: str) -> str:
            return "ok"

        yield noop

    register_function(config_type=Noop)(build)
    config = Config(workflow=Noop())
    async with WorkflowBuilder.from_config(config) as builder:
        manager = await SessionManager.create(config, shared_builder=builder)

        async def once(session: str) -> None:
            async with manager.session(user_id="user") as opened, opened.run("hi") as run:
                await run.result()

        yield once
        await manager.shutdown()


# -- the row --------------------------------------------------------------------------------------------------------


def _measured(what: str, peer: Peer, runs: int) -> Measure:
    async def measure(scale: Scale) -> Sequence[Sample]:
        count = scale.of(runs, 4)
        floor = await floors.two_events(2000)
        async with peer() as once:
            for n in range(scale.of(20, 1)):
                await once(f"warm-up-{n // RUNS_PER_SESSION}")
            with Stopwatch() as watch:
                for n in range(count):
                    await once(f"s{n // RUNS_PER_SESSION}")
        return [cpu_sample(what, watch.per(count), floor)]

    def measure_if_installed(scale: Scale) -> Sequence[Sample]:
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return asyncio.run(measure(scale))
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("sojourn"):
                raise
            return []
        finally:
            logging.disable(logging.NOTSET)

    return measure_if_installed


ROWS = (
    Row(
        "peers",
        "run of an agent that does nothing, here and in other runtimes that are installed",
        (
            _measured("sojourn, in memory", sojourn_in_memory, 2000),
            _measured("NeMo Agent Toolkit, which stores nothing", nat_without_storage, 1000),
            _measured("agno, which stores nothing", agno_without_storage, 1000),
            _measured("agno, in memory", agno_in_memory, 400),
            _measured("google-adk, in memory", adk_in_memory, 400),
            _measured("sojourn, on SQLite", sojourn_on_sqlite, 200),
            _measured("google-adk, on SQLite", adk_on_sqlite, 40),
        ),
        floor="two events, one task, one wake-up",
        repeats=3,
    ),
)

"""What an agent that a model drives costs on top of the library that drives it; the model is scripted and costs nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from pydantic_ai import Agent as Engine
from pydantic_ai.messages import ModelMessage, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from bench.measure import Cost, Sample, Scale, Stopwatch
from sojourn import LlmAgent, Runner

CHUNKS = 400
"""Pieces of the long answer by which a piece is measured."""


async def weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"sunny in {city}"


def model(chunks: int) -> FunctionModel:
    """A model that calls one tool, then answers in so many pieces."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
            for _ in range(chunks):
                yield "tok "
        else:
            yield {0: DeltaToolCall(name="weather", json_args='{"city": "Rome"}', tool_call_id="c1")}

    return FunctionModel(stream_function=stream)


async def alone(runs: int, chunks: int) -> Cost:
    """A run of pydantic-ai's own agent, its events read."""
    engine = Engine(model(chunks), tools=[weather])

    async def once() -> None:
        async with engine.iter("hi") as run:
            async for node in run:
                if Engine.is_model_request_node(node) or Engine.is_call_tools_node(node):
                    async with node.stream(run.ctx) as events:
                        async for _ in events:
                            pass

    await once()
    with Stopwatch() as watch:
        for _ in range(runs):
            await once()
    return watch.per(runs)


async def ours(runs: int, chunks: int) -> Cost:
    """The same as a run in a session."""
    runner = Runner(app_name="bench", agent=LlmAgent(name="helper", model=model(chunks), tools=[weather]))

    async def once(session: str) -> None:
        async for _ in runner.run("user", session, "hi"):
            pass

    await once("first")
    with Stopwatch() as watch:
        for n in range(runs):
            await once(str(n))
    return watch.per(runs)


async def on_top(scale: Scale) -> Sequence[Sample]:
    """What the runtime adds to a run, and to each piece of an answer."""
    runs = scale.of(100, 1)
    floor, mine = await alone(runs, 1), await ours(runs, 1)
    few = scale.of(20, 1)
    long_floor, long_mine = await alone(few, CHUNKS), await ours(few, CHUNKS)
    piece = (long_mine.micros - mine.micros) / CHUNKS
    piece_floor = (long_floor.micros - floor.micros) / CHUNKS
    return [
        Sample("a run with one tool call", mine.micros, floor=floor.micros, rate=mine.rate),
        Sample("of a run on top", mine.micros - floor.micros),
        Sample("a streamed chunk", piece, floor=piece_floor),
        Sample("of a chunk on top", piece - piece_floor, note="below 0: pydantic-ai's own event stream is not used"),
    ]

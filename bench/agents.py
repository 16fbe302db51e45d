"""The agents that are measured: they do nothing, so what is left is the runtime's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sojourn import Context, FunctionAgent, agent


@agent
async def returns(ctx: Context) -> str:
    return "ok"


@agent
async def yields(ctx: Context) -> AsyncIterator[str]:
    yield "ok"


@agent
async def reads_history(ctx: Context) -> str:
    return str(len(await ctx.history()))


@agent
async def asks(ctx: Context) -> str:
    return str(await ctx.ask("go", "Go on?"))


def writes(pieces: int, *, paced: bool) -> FunctionAgent:
    """An agent that writes so many pieces; paced, each is read before the next one is written."""

    @agent
    async def writer(ctx: Context) -> AsyncIterator[str]:
        for _ in range(pieces):
            yield "tok "
            if paced:
                await asyncio.sleep(0)

    return writer


def writes_as_told(*, paced: bool) -> FunctionAgent:
    """An agent that writes as many pieces as its message says; paced, each is read before the next one is written."""

    @agent
    async def writer(ctx: Context) -> AsyncIterator[str]:
        for _ in range(int(ctx.user_content.text)):
            yield "tok "
            if paced:
                await asyncio.sleep(0)

    return writer


@agent
async def stays(ctx: Context) -> AsyncIterator[str]:
    yield "I think "
    await asyncio.Event().wait()


def held_back(gate: asyncio.Event) -> FunctionAgent:
    """An agent that waits for a gate to open."""

    @agent
    async def waits(ctx: Context) -> str:
        await gate.wait()
        return "ok"

    return waits

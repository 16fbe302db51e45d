"""A Runner in the console's process: entered, and left without losing what it has taken up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sojourn.cli.interrupts import CtrlC
from sojourn.cli.screen import Screen
from sojourn.errors import SojournError
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner

DRAIN_SECONDS = 10.0
"""How long runs that an earlier process left, and this one has taken up, have to end before this one leaves."""


@asynccontextmanager
async def hosting(runner: Runner) -> AsyncIterator[None]:
    """Enters a Runner for the block: it takes up the app's unfinished runs, and goes on with them while the block runs.

    What then still executes is interrupted, and goes on when a Runner of the app is entered again.

    Raises:
        Conflict: `store.in_use` if another process executes the runs of this database.
    """
    async with runner:
        try:
            yield
        finally:
            await _close(runner)


async def _close(runner: Runner) -> None:
    """Closes a Runner to the end: cut off by a signal, it would leave its runs as a dead process does."""
    closing = asyncio.ensure_future(runner.close(grace=0))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await closing
        raise


async def drain(runner: Runner, screen: Screen, ctrl_c: CtrlC) -> None:
    """Waits for the runs that still execute, but not for ever; Ctrl-C ends the wait."""
    left = (await runner.list_runs(status=(RunStatus.QUEUED, RunStatus.RUNNING))).items
    if not left:
        return
    all_ended = asyncio.gather(*(_end_of(runner, record.id, record.user_id) for record in left))
    interrupted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with ctrl_c.calls(interrupted.cancel):
        screen.note(f"waiting for {len(left)} earlier run{'s' if len(left) > 1 else ''} to end; Ctrl-C leaves that for later")
        await asyncio.wait((all_ended, interrupted), timeout=DRAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    all_ended.cancel()
    await asyncio.gather(all_ended, return_exceptions=True)


async def _end_of(runner: Runner, run_id: str, user_id: str) -> None:
    try:
        await (await runner.follow(run_id, user_id=user_id)).wait()
    except SojournError:
        return  # Deleted, or the store is away: nothing to wait for.


def title_of(runner: Runner) -> str:
    """What to call who answers: the agent, or the app if each user has agents of their own."""
    return runner.app_name if runner.agent_source is not None else runner.agent.name


def has_several_agents(runner: Runner) -> bool:
    """Whether a reader wants to know who speaks."""
    return runner.agent_source is not None or bool(runner.agent.sub_agents)

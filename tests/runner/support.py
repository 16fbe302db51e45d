"""What the tests of the runtime share."""

import asyncio
import gc
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sojourn.errors import SojournError, Unavailable
from sojourn.event import Event, Partial
from sojourn.runner.attempt.log import APPEND_RETRIES
from sojourn.runner.runner import Runner
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import Fault, FaultyStore

APP = "app"
USER = "alice"
SESSION = "s1"
KEY = SessionKey(APP, USER, SESSION)
TRIES = 1 + len(APPEND_RETRIES)
"""How often an append is tried before it is given up."""
SEEDS = 20


def bug(number, reason):
    """Marks a test that shows a known bug."""
    return pytest.mark.xfail(strict=True, reason=f"{number}: {reason}")


def make_runner(agent, store=None, **fields):
    """A Runner of the tests' app, on a store in memory unless one is given."""
    return Runner(app_name=APP, agent=agent, session_service=store or InMemorySessionService(), **fields)


def collect():
    """Collects what a simulation has left behind; its objects are all in the youngest generation."""
    gc.collect(0)


async def idle():
    """Returns when nothing is ready to run any more: virtual time goes on only then."""
    await asyncio.sleep(1e-6)


async def log_of(store, session_id=SESSION, *, user_id=USER, superseded=False):
    """A session's events."""
    return await store.list_events(app_name=APP, user_id=user_id, session_id=session_id, limit=1000, superseded=superseded)


async def said_in(store, session_id=SESSION, **options):
    """A session's log as (author, text)."""
    return [(e.author, e.text) for e in await log_of(store, session_id, **options)]


async def state_of(store, session_id=SESSION, *, user_id=USER):
    """A session's state."""
    return (await store.get_session(app_name=APP, user_id=user_id, session_id=session_id)).state


async def outcome_of(run):
    """A run's result, or the code of its error."""
    try:
        return await run.result()
    except SojournError as error:
        return error.code


async def dropped(task):
    """Ends a task that has nothing to wait for any more."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@dataclass
class Reading:
    """What a reader of a run got."""

    items: list = field(default_factory=list)
    error: SojournError | None = None

    @property
    def frames(self):
        return [i for i in self.items if not isinstance(i, Partial)]

    @property
    def partials(self):
        return [i for i in self.items if isinstance(i, Partial)]

    @property
    def kinds(self):
        return [f.kind for f in self.frames]

    @property
    def positions(self):
        return [f.pos for f in self.frames]

    @property
    def events(self):
        return [i if isinstance(i, Event) else i.event for i in self.items if isinstance(i, Event) or getattr(i, "event", None)]

    @property
    def screen(self):
        """What somebody sees who prints each `delta`."""
        return "".join((i.event.delta if i.event else "") if hasattr(i, "kind") else i.delta for i in self.items)


async def read_frames(run, after=0, *, partials=True, pause=None):
    """Reads a run's frames to the end, as slowly as `pause` (seconds between two) says."""
    reading = Reading()
    try:
        async for item in run.frames(after, partials=partials):
            reading.items.append(item)
            if pause is not None:
                await asyncio.sleep(pause)
    except SojournError as error:
        reading.error = error
    return reading


async def read_events(stream, *, pause=None):
    """Reads a stream of events and partials to the end."""
    reading = Reading()
    try:
        async for item in stream:
            reading.items.append(item)
            if pause is not None:
                await asyncio.sleep(pause)
    except SojournError as error:
        reading.error = error
    return reading


def assert_whole(reading):
    """Frames are 1, 2, 3 … without gaps, begin with the start and end with the one terminal frame."""
    assert reading.positions == list(range(1, len(reading.frames) + 1))
    assert [f.terminal for f in reading.frames] == [False] * (len(reading.frames) - 1) + [True]
    assert reading.kinds[0] == "run.started" or reading.kinds == ["run.cancelled"] or reading.kinds == ["run.failed"]


def assert_at_rest(runner):
    """Nothing is executed, no slot is taken, nobody waits."""
    assert runner.hub.jobs == {}
    assert runner.hub.live == {}
    assert runner.hub.engine._lanes == {}
    assert (runner.limiter.active, runner.limiter.queued, runner.limiter.abandoned) == (0, 0, 0)


class SharedStore(FaultyStore):
    """A store that others write to, too; `news` is what they did."""

    shared = True

    def __init__(self, inner=None):
        super().__init__(inner or InMemorySessionService())
        self.news = []

    async def changes(self):
        self.calls["changes"] += 1
        if self.news and isinstance(self.news[0], Exception):
            raise self.news.pop(0)
        told, self.news = self.news, []
        return told


# -- processes that die -------------------------------------------------------------------------------------------------


class MortalStore(FaultyStore):
    """What a process has of the common store. Once it is dead, nothing gets through any more, in neither direction."""

    def __init__(self, inner):
        super().__init__(inner)
        self.dead = False
        self.buried = asyncio.Event()

    async def _call(self, method, work):
        async def while_alive():
            # The last moment before the write: whatever kept the call waiting, the dead write nothing.
            await self.outlive(method)
            return await work()

        result = await super()._call(method, while_alive)
        await self.outlive(method)
        return result

    async def outlive(self, method):
        if self.dead:
            await self.buried.wait()
            raise Unavailable(f"this process is dead; {method} went nowhere")


class Process:
    """A Runner in a process of its own: it shares nothing with others but what is in the store."""

    def __init__(self, agent, store, **fields):
        self.store = MortalStore(store)
        self.runner = make_runner(agent, self.store, **fields)

    @property
    def alive(self):
        return not self.store.dead

    def die(self):
        """`kill -9`: from here on nothing of it reaches the store."""
        self.store.dead = True

    def die_at(self, method, *calls, after):
        """Dies in a call: before it has written anything, or when it has written and the reply is on its way."""
        self.store.plan.append(_LastCall(self, method, calls, after=after))

    def bury(self):
        """Ends what is left of a dead process, so that the test's event loop can end."""
        self.runner.dispatcher.admission.closed = True
        if self.store.dead:
            self.store.plan.clear()
            self.store.buried.set()


class _LastCall(Fault):
    def __init__(self, process, method, calls, *, after):
        super().__init__("hold", method, frozenset(calls), after=after)
        self._process = process

    async def strike(self, method):
        self._process.die()
        self.reached.set()
        await self._process.store.outlive(method)


@asynccontextmanager
async def process(agent, store, *, enter=False, **fields):
    """Runs a process until the block ends; `enter` makes its Runner take up what others left."""
    one = Process(agent, store, **fields)
    try:
        if enter:
            await one.runner.__aenter__()
        yield one
        if one.alive:
            await one.runner.close()
    finally:
        one.bury()

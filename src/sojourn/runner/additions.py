"""In which order things are added to one memory service and removed from it, by all Runners of this process."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from sojourn.memory.service import MemoryService
from sojourn.run.types import RunRecord
from sojourn.session.types import SessionKey

MAX_MISSED = 10_000
"""How many sessions are kept in mind that a run of could not be added."""


class Addition:
    """The addition of what a run has said, from the moment at which the run has ended.

    Attributes:
        record: The run.
        task: What adds it, once that has begun.
        broken_off: Whether it must not be made any more.
    """

    __slots__ = ("__weakref__", "_among", "broken_off", "record", "task")

    def __init__(self, record: RunRecord, among: dict[SessionKey, WeakSet[Addition]]) -> None:
        self.record = record
        self._among = among
        self.task: asyncio.Task[Any] | None = None
        self.broken_off = False

    def break_off(self) -> None:
        """Ends it, or sees to it that it does not begin."""
        self.broken_off = True
        if self.task is not None:
            self.task.cancel()

    def end(self) -> None:
        """Takes note that it was made, or was not; also when the event loop it was made in is no more."""
        additions = self._among.get(self.record.key)
        if additions is not None:
            additions.discard(self)
            if not additions:
                del self._among[self.record.key]


class Additions:
    """What is being added to a memory service. Of a session, one thing is added at a time.

    Args:
        memory: The service.
    """

    def __init__(self, memory: MemoryService) -> None:
        # Held, so that nothing else gets its id, by which this is found.
        self._memory = memory
        # By event loop: whoever had a turn in one that has ended never gives it back.
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _UnderWay] = WeakKeyDictionary()
        self._missed: dict[SessionKey, None] = {}

    def turn(self, key: SessionKey) -> asyncio.Lock:
        """Whoever adds something of a session holds this."""
        return self._under_way().turns.setdefault(key, asyncio.Lock())

    def begin(self, record: RunRecord) -> Addition:
        """Takes note that what a run has said is to be added."""
        among = self._under_way().additions
        addition = Addition(record, among)
        among.setdefault(record.key, WeakSet()).add(addition)
        return addition

    async def break_off(self, key: SessionKey) -> None:
        """Breaks off the additions of runs of a session, and waits until nothing is being added of it."""
        async with AsyncExitStack() as stack:
            await self._hold(stack, [key])

    async def forget(self, app_name: str, user_id: str, session_id: str | None) -> None:
        """Removes what memory has of a user, or of one session, and what is being added of that."""
        under_way = self._under_way()
        known = {*under_way.turns, *under_way.additions, *self._missed}
        keys = [k for k in known if k[:2] == (app_name, user_id) and session_id in (None, k.session_id)]
        async with AsyncExitStack() as stack:
            # In one order, so that two who forget do not wait for each other.
            await self._hold(stack, sorted(keys))
            await self._memory.forget(app_name, user_id, session_id=session_id)

    async def _hold(self, stack: AsyncExitStack, keys: list[SessionKey]) -> None:
        turns = [self.turn(key) for key in keys]
        for key in keys:
            for addition in self._under_way().additions.get(key, ()):
                addition.break_off()
        for turn in turns:
            await stack.enter_async_context(turn)
        for key in keys:
            self._missed.pop(key, None)

    def is_missed(self, key: SessionKey) -> bool:
        """Whether something of a session could not be added."""
        return key in self._missed

    def miss(self, key: SessionKey) -> None:
        """Takes note that something of a session could not be added."""
        self._missed[key] = None
        if len(self._missed) > MAX_MISSED:
            del self._missed[next(iter(self._missed))]

    def make_up(self, key: SessionKey) -> None:
        """Takes note that all of a session was added, or need not be any more."""
        self._missed.pop(key, None)

    def _under_way(self) -> _UnderWay:
        loop = asyncio.get_running_loop()
        under_way = self._loops.get(loop)
        if under_way is None:
            under_way = self._loops[loop] = _UnderWay()
        return under_way


class _UnderWay:
    """What is being added in one event loop.

    Attributes:
        turns: Per session, what is held by whoever adds something of it: who adds a whole session must not remove what a run
            has added since it read the log.
        additions: Per session, those of its runs.
    """

    __slots__ = ("additions", "turns")

    def __init__(self) -> None:
        self.turns: WeakValueDictionary[SessionKey, asyncio.Lock] = WeakValueDictionary()
        self.additions: dict[SessionKey, WeakSet[Addition]] = {}


_additions: WeakValueDictionary[int, Additions] = WeakValueDictionary()


def additions_to(memory: MemoryService) -> Additions:
    """The additions to a memory service object; Runners that have the same one share them."""
    found = _additions.get(id(memory))
    if found is None:
        found = _additions[id(memory)] = Additions(memory)
    return found

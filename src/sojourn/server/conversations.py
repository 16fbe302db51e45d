"""Live runs that have a client, or wait for theirs to come back: how long they may last, and who is on the line."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol
from weakref import WeakValueDictionary

from sojourn.agents.live import LiveRequest, LiveRequestQueue
from sojourn.errors import Conflict, SojournError, TimedOut
from sojourn.runner.handle import Run
from sojourn.runner.runner import Runner
from sojourn.server.config import ServerConfig
from sojourn.server.telling import draining_error
from sojourn.session.types import SessionKey

logger = logging.getLogger("sojourn.server")


class Line(Protocol):
    """A connection over which a client takes part in a conversation."""

    def hang_up(self, error: SojournError) -> None:
        """Tells the client why, and closes the connection; twice is fine."""
        ...


class Conversation:
    """A live run, and the client that takes part in it: one at a time, the newest.

    Args:
        runner: Who runs it.
        run: The run, which this leaves in the end.
        requests: What its client sends.
        config: How long it may last.
    """

    def __init__(self, runner: Runner, run: Run, requests: LiveRequestQueue, config: ServerConfig) -> None:
        self.run = run
        self._runner = runner
        self._requests = requests
        self._config = config
        self._line: Line | None = None
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._idle: asyncio.TimerHandle | None = None
        self._longest: asyncio.TimerHandle | None = None
        self._alone: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._over = False
        if config.live_idle_timeout is not None:
            self._idle = self._loop.call_later(config.live_idle_timeout, self._check_idle)
        if config.live_max_duration is not None:
            self._longest = self._loop.call_later(config.live_max_duration, self._lasted_too_long)

    def join(self, line: Line) -> None:
        """Puts a client on the line, in place of the one who is."""
        older, self._line = self._line, line
        self._heard_at = self._loop.time()
        if self._alone is not None and not self._over:
            self._alone.cancel()
            self._alone = None
        if older is not None:
            older.hang_up(Conflict("another connection has taken over this conversation", code="live.taken_over"))

    def part(self, line: Line) -> None:
        """A client has gone. If it does not come back, the run ends as `on_disconnect` says, or once it was idle too long."""
        if self._line is not line:
            return
        self._line = None
        if self._config.on_disconnect == "cancel" and self._alone is None and self._leaving is None:
            self._alone = self._loop.call_later(self._config.disconnect_grace, self._leave)

    def send(self, request: LiveRequest) -> None:
        """Gives the agent something that the client sends; raises as `LiveRequestQueue.send`."""
        self._heard_at = self._loop.time()
        self._requests.send(request)

    def end(self, error: SojournError) -> None:
        """Ends the conversation from here: the agent is told that nothing more comes, and has `disconnect_grace` to finish."""
        self._over = True
        self._requests.close()
        if self._line is not None:
            self._line.hang_up(error)
        if self._alone is None and self._leaving is None:
            self._alone = self._loop.call_later(self._config.disconnect_grace, self._leave)

    async def ended(self) -> None:
        """Returns when the run has ended; nothing of this goes on then."""
        try:
            await self.run.settled()
        finally:
            for timer in (self._idle, self._longest, self._alone):
                if timer is not None:
                    timer.cancel()

    def _check_idle(self) -> None:
        bound = self._config.live_idle_timeout
        assert bound is not None, "the timer is set only with a bound"
        left = self._heard_at + bound - self._loop.time()
        if left > 0:
            self._idle = self._loop.call_later(left, self._check_idle)
        else:
            self.end(TimedOut(f"the client has sent nothing for {bound:g} seconds", code="live.idle_timeout"))

    def _lasted_too_long(self) -> None:
        bound = self._config.live_max_duration
        self.end(TimedOut(f"the conversation has lasted for {bound:g} seconds, its limit", code="live.max_duration"))

    def _leave(self) -> None:
        self._leaving = self._loop.create_task(self._runner.leave(self.run))


class Conversations:
    """The conversations of one server, by session.

    Args:
        config: How long they may last.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._by_session: dict[SessionKey, Conversation] = {}
        self._opening: WeakValueDictionary[SessionKey, asyncio.Lock] = WeakValueDictionary()
        self._keeping: set[asyncio.Task[Any]] = set()

    def find(self, key: SessionKey) -> Conversation | None:
        """The conversation of a session, if there is one."""
        return self._by_session.get(key)

    def opening(self, key: SessionKey) -> asyncio.Lock:
        """Held by whoever finds or begins the conversation of a session, so that two do not begin two."""
        return self._opening.setdefault(key, asyncio.Lock())

    async def begin(self, runner: Runner, key: SessionKey, **options: Any) -> Conversation:
        """Starts a live run.

        Args:
            runner: Who runs it.
            key: The session; it must exist.
            **options: More for `Runner.start_live`.

        Raises:
            SojournError: What `Runner.start_live` raises.
        """
        requests = LiveRequestQueue()
        run = await runner.start_live(key.user_id, key.session_id, requests, create_session=False, **options)
        conversation = self._by_session[key] = Conversation(runner, run, requests, self._config)
        task = asyncio.get_running_loop().create_task(self._keep(key, conversation))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        return conversation

    def close(self) -> None:
        """Ends all conversations, as the server is about to end."""
        for conversation in list(self._by_session.values()):
            conversation.end(draining_error())

    async def _keep(self, key: SessionKey, conversation: Conversation) -> None:
        try:
            await conversation.ended()
        finally:
            if self._by_session.get(key) is conversation:
                del self._by_session[key]

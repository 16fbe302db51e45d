"""Live runs: what the user sends while the agent speaks, on its way from the sender to the agent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator

from sojourn.content import Blob, Content, Flag, Value
from sojourn.errors import Conflict, InvalidInput, LimitExceeded
from sojourn.event import USER

T = TypeVar("T")

INPUT_MIME_TYPE = "audio/pcm;rate=16000"
"""What bytes without a media type are taken for: signed 16-bit little-endian samples, one channel."""

MAX_REQUESTS = 1024
"""Requests that may wait for an agent."""

MAX_BYTES = 1_048_576
"""Bytes that may wait for an agent: half a minute of `INPUT_MIME_TYPE`."""


def _is_sign(value: Any) -> Any:
    # google-adk's wire has an object, empty or not, for what has no content of its own.
    return value is not None if value is None or isinstance(value, dict) else value


_Sign = Annotated[bool, BeforeValidator(_is_sign)]


class LiveRequest(Value):
    """One thing that a user of a live run sends; google-adk's shape.

    Attributes:
        content: A message. It is stored before the agent is given it.
        blob: A piece of audio or video. It is not stored, unless `RunConfig.save_live_blob` says so.
        activity_start: The user begins to speak. If the agent speaks, that interrupts it.
        activity_end: The user has stopped speaking.
        audio_stream_end: The microphone is off: no blobs come for a while.
        close: Nothing more will come.
    """

    content: Content | None = None
    blob: Blob | None = None
    activity_start: _Sign = False
    activity_end: _Sign = False
    audio_stream_end: _Sign = False
    close: Flag = False

    @property
    def size(self) -> int:
        """About how many bytes it holds."""
        size = len(self.blob.data) if self.blob is not None else 0
        for part in self.content.parts if self.content is not None else ():
            size += len(part.text or "") + (len(part.inline_data.data) if part.inline_data is not None else 0)
        return size


class LiveRequestQueue:
    """What a user sends to a live run: give it to `Runner.run_live`, before or after the first thing is sent.

    It belongs to one run and one event loop. What is sent waits for the agent, within bounds; beyond them it is refused, and
    nothing that was taken is dropped.

    Args:
        max_requests: Requests that may wait.
        max_bytes: Bytes that may wait. One request alone may be larger.
    """

    def __init__(self, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        if max_requests < 1 or max_bytes < 1:
            raise InvalidInput("max_requests and max_bytes are 1 or more", code="live.invalid_request")
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._requests = 0
        self._bytes = 0
        self._early: deque[LiveRequest] = deque()
        self._receive: Callable[[LiveRequest], None] = self._early.append
        self._closed = False
        self._taken = False

    def send_content(self, content: Content | str) -> None:
        """Sends a message: text, or content with parts. If the agent speaks, that interrupts it.

        Raises:
            InvalidInput: `message.invalid`.
            LimitExceeded: `live.queue_full`; the same may be sent again later.
            Conflict: `live.closed` after `close`, or once the run has ended.
        """
        if isinstance(content, str):
            try:
                content = Content.of(content)
            except ValueError:
                raise InvalidInput("the message holds a lone surrogate, which is not text", code="message.invalid") from None
        self.send(LiveRequest.unchecked({"content": content}))

    def send_realtime(self, blob: Blob | bytes) -> None:
        """Sends a piece of audio or video; bytes are 16-bit PCM at 16 kHz.

        Raises:
            LimitExceeded: `live.queue_full`: the agent does not take as much. It may be sent again later, if it is still of
                use then.
            Conflict: `live.closed`.
        """
        if not isinstance(blob, Blob):
            blob = Blob(data=bytes(blob), mime_type=INPUT_MIME_TYPE)
        self.send(LiveRequest.unchecked({"blob": blob}))

    def send_activity_start(self) -> None:
        """Tells that the user begins to speak: if the agent speaks, that interrupts it. Raises as `send_realtime`."""
        self.send(LiveRequest.unchecked({"activity_start": True}))

    def send_activity_end(self) -> None:
        """Tells that the user has stopped speaking. Raises as `send_realtime`."""
        self.send(LiveRequest.unchecked({"activity_end": True}))

    def close(self) -> None:
        """Tells that nothing more will come: the agent is given what was sent, and then its loop ends. Twice is fine."""
        if not self._closed:
            self._closed = True
            self._receive(_CLOSE)

    def send(self, request: LiveRequest) -> None:
        """Sends a request.

        Raises:
            InvalidInput: `live.invalid_request` for one that holds nothing, or several things; `message.invalid`.
            LimitExceeded: `live.queue_full`.
            Conflict: `live.closed`.
        """
        if request.close:
            self.close()
            return
        _check(request)
        if self._closed:
            raise Conflict("this conversation is over: its queue was closed, or its run has ended", code="live.closed")
        size = request.size
        full = self._requests >= self._max_requests or (self._requests and self._bytes + size > self._max_bytes)
        if full:
            raise LimitExceeded(
                f"{self._requests} requests of {self._bytes} bytes wait for the agent, which does not take them; at most "
                f"{self._max_requests} and {self._max_bytes} may",
                code="live.queue_full",
            )
        self._requests += 1
        self._bytes += size
        self._receive(request)

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closed

    # -- for the runner ---------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Makes it a run's.

        Raises:
            Conflict: `live.queue_in_use` if it is one's already.
        """
        if self._taken:
            raise Conflict("this queue belongs to another run; make one for each", code="live.queue_in_use")
        self._taken = True

    def connect(self, receive: Callable[[LiveRequest], None]) -> None:
        """Hands on what was sent, and everything that will be."""
        self._receive = receive
        while self._early:
            receive(self._early.popleft())

    def done(self, request: LiveRequest) -> None:
        """Makes room: the agent has taken a request."""
        if not request.close:
            self._requests -= 1
            self._bytes -= request.size

    def disconnect(self) -> None:
        """The run takes nothing any more."""
        self._closed = True
        self._receive = _ignore
        self._early.clear()


_CLOSE = LiveRequest(close=True)


def _ignore(_: LiveRequest) -> None:
    """The run has ended."""


def _check(request: LiveRequest) -> None:
    signs = (request.activity_start, request.activity_end, request.audio_stream_end)
    if sum((request.content is not None, request.blob is not None, *signs)) != 1:
        raise InvalidInput(
            "a live request holds one of content, blob, activityStart, activityEnd, audioStreamEnd and close",
            code="live.invalid_request",
        )
    content = request.content
    if content is None:
        return
    if not isinstance(content, Content):
        raise InvalidInput(f"the message must be text or Content, not {type(content).__name__}", code="message.invalid")
    if not any(part.text or part.inline_data or part.file_data for part in content.parts):
        raise InvalidInput("the message is empty; give text, bytes or files", code="message.invalid")
    if content.get_function_calls() or content.get_function_responses():
        raise InvalidInput(
            "a message of a live run holds text, bytes or files, no function calls and responses; answer questions with "
            "Runner.answer",
            code="message.invalid",
        )


class LiveInput:
    """What the user of a live run sends, as the agent sees it: `async for request in ctx.live`.

    The loop ends when the user's side is closed. Messages are stored before they come out here, in the order in which they
    were sent; so are saved blobs.

    An agent that asks for the next request listens: text that it has said until then is complete, and becomes one event with
    `turn_complete=True`. (An agent that reads in a task of its own, beside the one that speaks, yields
    `Event(turn_complete=True)` when it has finished.)

    When the user begins to speak, or sends a message, while the agent speaks, the agent is **interrupted**: what it has said
    of its open message is stored with `interrupted=True`, audio that readers have not been given is dropped, and of what it
    still says nothing reaches anybody until it takes the request that interrupted it. Its code goes on: it finds out with
    `interrupted`, `interruption()` or `until_interrupted()`.

    Args:
        listen: Called before a request is waited for.
        done: Called with each request that is taken.
    """

    def __init__(self, listen: Callable[[], Awaitable[None]], done: Callable[[LiveRequest], None]) -> None:
        self._listen = listen
        self._done = done
        self._ready: deque[LiveRequest] = deque()
        self._interruption: LiveRequest | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._waiters: list[asyncio.Future[None]] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LiveRequest:
        await self._listen()
        while (request := self.take()) is None:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            await self._changed()
        return request

    def take(self) -> LiveRequest | None:
        """The next request if it is there already; does not end what the agent is saying."""
        if not self._ready:
            return None
        request = self._ready.popleft()
        if request is self._interruption:
            self._interruption = None
        self._done(request)
        return request

    @property
    def closed(self) -> bool:
        """Whether the user's side is closed and everything was taken."""
        return self._ended and not self._ready

    @property
    def interrupted(self) -> bool:
        """Whether the user has interrupted the agent, and the agent has not taken the request that did so."""
        return self._interruption is not None

    async def interruption(self, timeout: float | None = None) -> bool:
        """Waits until the agent is interrupted; at once if it is.

        With a timeout it is the pause between two pieces of audio: `if await ctx.live.interruption(0.1): break`.

        Args:
            timeout: Seconds to wait at most; None for no bound.

        Returns:
            Whether it is interrupted.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self.interrupted:
                    await self._changed()
        except TimeoutError:
            pass
        return self.interrupted

    async def until_interrupted(self, work: Awaitable[T]) -> T | None:
        """Awaits something, and cancels it when the agent is interrupted: a model's answer, `ctx.run_agent(…)`.

        Returns:
            Its result; None if it was cancelled.
        """
        task = asyncio.ensure_future(work)
        cut = asyncio.ensure_future(self.interruption())
        try:
            await asyncio.wait((task, cut), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for each in (task, cut):
                each.cancel()
            await asyncio.gather(task, cut, return_exceptions=True)

    async def _changed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -- for the runner ---------------------------------------------------------------------------------------------

    def give(self, request: LiveRequest, in_place_of: LiveRequest | None = None) -> None:
        """Lets the agent take a request, maybe a changed one in place of the one that was sent."""
        if in_place_of is not None and self._interruption is in_place_of:
            self._interruption = request
        if request.close:
            self._ended = True
        else:
            self._ready.append(request)
        self._wake()

    def withhold(self, request: LiveRequest) -> None:
        """Drops a request that was refused; an agent that it has interrupted may speak again."""
        if request is self._interruption:
            self._interruption = None
        self._done(request)
        self._wake()

    def interrupt(self, by: LiveRequest) -> None:
        """Tells that the agent is interrupted by a request that it will be given."""
        self._interruption = by
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Lets the agent's loop raise once it has taken what is there."""
        self._error = error
        self._wake()


def user_message(content: Content) -> Content:
    """A user's content with a role."""
    return content if content.role else content.model_copy(update={"role": USER})

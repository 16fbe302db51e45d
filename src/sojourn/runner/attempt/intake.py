"""The user's side of a live run: stores what is sent before the agent has it, and interrupts the agent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

from sojourn.agents.context import Context, not_configured
from sojourn.agents.live import LiveInput, LiveRequest, LiveRequestQueue, user_message
from sojourn.content import Content
from sojourn.errors import InvalidInput, SojournError
from sojourn.event import CallDelta, Event
from sojourn.run.config import RunConfig
from sojourn.run.live import LiveRun
from sojourn.runner.attempt import spill
from sojourn.runner.attempt.log import AttemptLog, Said
from sojourn.runner.attempt.recording import Recording
from sojourn.runner.attempt.speech import Speech
from sojourn.runner.plugins import change

if TYPE_CHECKING:
    from sojourn.runner.services import Services


class _Waiting(NamedTuple):
    """Something that was sent: what of it is to be stored, and what the agent is given then."""

    content: Content | None
    request: LiveRequest | None


class Intake:
    """One per attempt of a live run.

    What is sent goes straight to the agent, unless it has to be stored, or comes after something that has: then a task of this
    stores it and hands it on.

    Args:
        queue: What the user sends.
        services: What the executions of the Runner share.
        config: How the run is to be run.
        live: Where its frames are shown.
        log: Where its events are stored.
        speech: What its agents say.
    """

    def __init__(
        self,
        queue: LiveRequestQueue,
        services: Services,
        config: RunConfig,
        live: LiveRun,
        log: AttemptLog,
        speech: Speech,
    ) -> None:
        self.input = LiveInput(self._listen, queue.done)
        self._queue = queue
        self._services = services
        self._live = live
        self._log = log
        self._speech = speech
        self._heard = Recording("user") if config.save_live_blob else None
        self._spoken = Recording("model") if config.save_live_blob else None
        self._max_bytes = config.max_event_bytes
        self._waiting: deque[_Waiting] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._storing: asyncio.Task[None] | None = None
        self._draining = False
        self._agents_task: asyncio.Task[Any] | None = None
        self._ctx: Context
        # Who has spoken since the agent listened last; None if nobody has.
        self._speaker: Context | None = None
        # Whether readers know that the agent has finished.
        self._told = True
        self._said_before = 0
        self._not_said = 0
        self._error: Exception | None = None

    def start(self, ctx: Context) -> None:
        """Begins to take what is sent; called in the attempt's task.

        Raises:
            Unsupported: `artifact.not_configured` if sound is to be saved and there is nowhere to save it.
        """
        if self._heard is not None and self._services.artifacts is None:
            raise not_configured("artifact")
        self._ctx = ctx
        self._agents_task = asyncio.current_task()
        self._said_before = self._said()
        self._queue.connect(self._receive)
        self._storing = asyncio.get_running_loop().create_task(self._store())

    async def finish(self) -> None:
        """The agent has come to its end: takes nothing more, and stores what was taken before.

        Raises:
            SojournError: It cannot be stored.
        """
        self._queue.disconnect()
        self._end_recordings()
        self._draining = True
        self._touch()
        assert self._storing is not None, "started"
        await self._storing
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Takes nothing more, and waits for what is being stored; twice is fine."""
        self._queue.disconnect()
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)

    # -- what the user sends ----------------------------------------------------------------------------------------

    def _receive(self, request: LiveRequest) -> None:
        if request.blob is not None:
            if self._heard is not None and (saved := self._heard.add(request.blob)) is not None:
                self._wait(_Waiting(saved, None))
        elif self._heard is not None and (saved := self._heard.end()) is not None:
            self._wait(_Waiting(saved, None))
        interrupts = self._speaker is not None and (request.content is not None or request.activity_start)
        if interrupts:
            self._cut(request)
        if request.content is not None or interrupts or self._waiting:
            self._wait(_Waiting(user_message(request.content) if request.content is not None else None, request))
        else:
            self.input.give(request)

    def _cut(self, by: LiveRequest) -> None:
        """Ends what is being said. It is in the log's tail at once: whatever is stored next comes after it."""
        speaker = self._speaker
        assert speaker is not None, "somebody speaks"
        self._speaker, self._told = None, True
        self._live.drop_passing()
        self._keep_spoken(speaker)
        self._log.tail.extend(self._speech.interrupt_all() or [(self._speech.event(speaker, interrupted=True), None)])
        self.input.interrupt(by)

    def _wait(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._touch()

    def _touch(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _store(self) -> None:
        try:
            while True:
                while self._waiting:
                    await self._store_waiting()
                if self._draining:
                    return
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
        except Exception as error:
            self._error = error
            self._queue.disconnect()
            self.input.fail(error)

    async def _store_waiting(self) -> None:
        """Stores what waits in one append, and gives it to the agent."""
        batch = list(self._waiting)
        events: list[Said] = []
        refused: set[int] = set()
        for n, waiting in enumerate(batch):
            if waiting.content is None:
                continue
            self._not_said += 1
            try:
                content = await self._seen(waiting.content) if waiting.request is not None else waiting.content
                self._check_size(content)
            except SojournError as error:
                refused.add(n)
                event = self._speech.event(self._ctx, own_actions=False, error_code=error.code, error_message=error.message)
            else:
                event = self._speech.heard(content)
                batch[n] = _Waiting(content, _with_content(waiting.request, content))
            events.append((event, None))
        if events or self._log.tail:
            await self._log.commit(self._ctx, events)
        for n, waiting in enumerate(batch):
            given = self._waiting.popleft().request
            if n in refused and given is not None:
                self.input.withhold(given)
            elif waiting.request is not None and given is not None:
                self.input.give(waiting.request, in_place_of=given)

    async def _seen(self, content: Content) -> Content:
        """Content as the plugins leave it."""
        for hook in self._services.plugins.on_user_message:
            content = await change(hook, self._live.record.key, content, gives=Content) or content
        return content

    def _check_size(self, content: Content) -> None:
        if self._services.artifacts is None and spill.is_large(Event(content=content), self._max_bytes):
            raise InvalidInput(
                "the message is too large for an event and there is no artifact service to keep its parts",
                code="event.too_large",
            )

    # -- what the agent says ----------------------------------------------------------------------------------------

    def hear(self, ctx: Context, produced: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """What an agent yields, without what it still says after it was interrupted."""
        return _Heard(self, ctx, produced)

    def takes(self, ctx: Context, item: Any) -> bool:
        """Whether what an agent says reaches anybody; takes note of who speaks."""
        if not _is_speech(item):
            self._note(ctx, item)
            return True
        if self.input.interrupted:
            return False
        self._speaker, self._told = ctx, False
        if self._spoken is not None and isinstance(item, Event):
            for part in item.content.parts if item.content is not None else ():
                if part.inline_data is not None and (saved := self._spoken.add(part.inline_data)) is not None:
                    self._log.tail.append((self._speech.event(ctx, content=saved, own_actions=False), None))
        return True

    def _note(self, ctx: Context, item: Any) -> None:
        """Takes note of something that is stored as it is."""
        if isinstance(item, Event) and item.turn_complete:
            self._keep_spoken(ctx)
            self._speaker, self._told = None, True
        elif not isinstance(item, Event) or item.input_transcription is None:
            self._told = False
        elif not item.partial:
            self._not_said += 1

    async def _listen(self) -> None:
        """The agent asks for the next request: it has said what it had to say."""
        if asyncio.current_task() is not self._agents_task:
            return
        speaker, self._speaker = self._speaker or self._ctx, None
        self._keep_spoken(speaker)
        ended = self._speech.end_turn()
        if not ended and not self._told and self._said() > self._said_before:
            ended = [(self._speech.event(speaker, turn_complete=True), None)]
        self._told, self._said_before = True, self._said()
        if ended or self._log.tail:
            await self._log.commit(speaker, ended)

    def _said(self) -> int:
        """How many events the agents have made, without what they only heard."""
        return sum(self._speech.ordinals.values()) - self._not_said

    def _keep_spoken(self, ctx: Context) -> None:
        if self._spoken is not None and (saved := self._spoken.end()) is not None:
            self._log.tail.append((self._speech.event(ctx, content=saved, own_actions=False), None))

    def _end_recordings(self) -> None:
        if self._speaker is not None:
            self._keep_spoken(self._speaker)
        if self._heard is not None and (saved := self._heard.end()) is not None:
            self._wait(_Waiting(saved, None))


class _Heard:
    """Leaves out of what an agent yields what nobody is to hear."""

    __slots__ = ("_ctx", "_intake", "_produced")

    def __init__(self, intake: Intake, ctx: Context, produced: AsyncIterator[Any]) -> None:
        self._intake = intake
        self._ctx = ctx
        self._produced = produced

    def __aiter__(self) -> _Heard:
        return self

    async def __anext__(self) -> Any:
        while True:
            item = await self._produced.__anext__()
            if self._intake.takes(self._ctx, item):
                return item
            # An agent that goes on speaking without a pause must not keep others from what would end it.
            await asyncio.sleep(0)


def _is_speech(item: Any) -> bool:
    """Whether something that an agent says is a piece of what it is saying."""
    if not isinstance(item, Event):
        return isinstance(item, str | CallDelta)
    return item.partial and (item.content is not None or item.output_transcription is not None)


def _with_content(request: LiveRequest | None, content: Content) -> LiveRequest | None:
    if request is None or request.content is content:
        return request
    return request.model_copy(update={"content": content})

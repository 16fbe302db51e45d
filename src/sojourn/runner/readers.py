"""Readers of a run: any number, from any `pos`, while it is executed here, elsewhere, or has ended."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

from sojourn.event import CallDelta, Event, Partial
from sojourn.run.live import CallName, LiveRun, OpenMessage, joined, text_of
from sojourn.run.status import RunStatus
from sojourn.run.types import Frame, RunRecord, event_frame, started_frame, terminal_frame
from sojourn.runner.lending import before_waiting

if TYPE_CHECKING:
    from sojourn.runner.delivery.hub import Hub

POLL_SECONDS = 0.5
"""How often the store is read for a run that another process executes."""

BACKLOG = 1024
"""Pieces that a reader may be behind before they reach it joined."""

PASSING_AT_ONCE = 8
"""Pieces of audio that a reader is given at once: what it has been given, an interruption cannot take back."""

PAGE = 256


class _Progress:
    """How much of a message a reader has been given."""

    __slots__ = ("index", "offset", "shown")

    def __init__(self) -> None:
        self.index = 0
        self.offset = 0
        # Characters that are not thoughts: what of the final event's text a screen has already.
        self.shown = 0


class FrameReader:
    """Gives a run's frames after a `pos`, with the partials between them, until the run ends or waits for a person.

    Args:
        hub: Where live runs are found.
        record: The run.
        after: Frames up to this `pos` are skipped.
        partials: Whether to give the pieces of messages.
    """

    def __init__(self, hub: Hub, record: RunRecord, *, after: int = 0, partials: bool = True) -> None:
        self.record = record
        self.pos = after
        self._hub = hub
        self._live: LiveRun | None = hub.live.get(record.uid)
        self._partials = partials
        self._ready: deque[Frame | Partial] = deque()
        self._progress: dict[str, _Progress] = {}
        # How much was passed on before: who comes later has not heard it.
        self._passed = self._live.passed if self._live is not None and after else 0
        # Events that came whole from the store: pieces of them must not follow.
        self._whole: deque[str] = deque(maxlen=PAGE)
        self._joined = False
        # Up to which of the live run's changes all was read.
        self._read = -1
        self._ended = False

    def __aiter__(self) -> FrameReader:
        return self

    def take(self) -> Frame | Partial | None:
        """What there is to read without waiting, if anything."""
        return self._ready.popleft() if self._ready else None

    async def __anext__(self) -> Frame | Partial:
        ready = self._ready
        while not ready:
            if self._ended:
                raise StopAsyncIteration
            live = self._live
            if live is None:
                await self._read_store()
            elif self.pos + 1 < live.first_pos:
                await self._catch_up(live)
            elif self._read == live.changes or not self._read_live(live):
                if live.ended:
                    self._end(live)
                else:
                    before_waiting(self._hub, live)
                    await live.waiter()
        return ready.popleft()

    def _end(self, live: LiveRun) -> None:
        self._ended = True
        self.record = live.record
        if live.failure is not None and not live.record.status.terminal:
            raise live.failure

    # -- a run that this process executes ---------------------------------------------------------------------------

    def _read_live(self, live: LiveRun) -> bool:
        """Takes over what is new; returns whether there was anything."""
        ready = self._ready
        start = self.pos + 1 - live.first_pos
        if 0 <= start < len(live.frames):
            for frame, message in islice(live.frames, start, None):
                if live.passing:
                    self._give_passing(live, before=frame.pos)
                self.pos = frame.pos
                self._give(frame, message)
        if self._partials and live.open:
            for message in live.open.values():
                if not self._joined or len(message.pieces) > (p.index if (p := self._progress.get(message.id)) else 0):
                    self._give_pieces(message)
        if live.passing:
            self._give_passing(live)
        if not live.passing or self._passed == live.passed:
            self._read = live.changes
        self._joined = True
        return bool(ready)

    def _give_passing(self, live: LiveRun, before: int | None = None) -> None:
        """Gives what was passed on: up to a frame all of it, else a little at a time."""
        passing = live.passing
        assert passing is not None, "asked for by the caller"
        first = live.passed - len(passing)
        self._passed = max(self._passed, first)
        for pos, partial in islice(passing, self._passed - first, None):
            if (pos >= before) if before is not None else (len(self._ready) >= PASSING_AT_ONCE):
                return
            self._passed += 1
            if self._partials:
                self._ready.append(partial)

    async def _catch_up(self, live: LiveRun) -> None:
        """Reads a page of the frames that are not in memory any more, or were written by an earlier attempt."""
        if self.pos < 1:
            self._give(started_frame(live.record), None)
            self.pos = 1
        events = await self._hub.store.run_events(self.record.uid, after=self.pos, limit=PAGE)
        events = [e for e in events if (e.pos or 0) < live.first_pos]
        for event in events:
            self.pos = event.pos or 0
            self._whole.append(event.id)
            self._give(event_frame(event), None)
        if not events:
            self.pos = live.first_pos - 1

    def _give(self, frame: Frame, message: OpenMessage | None) -> None:
        event = frame.event
        if event is not None and self._partials:
            if message is not None and not message.replaced:
                self._give_pieces(message)
            progress = self._progress.pop(event.id, None)
            if progress is not None and progress.index:
                frame = Frame(
                    frame.pos, frame.kind, frame.run_id, _rest(event, progress, message), frame.error, frame.timestamp
                )
        if event is not None and frame.event is event:
            own = event.snapshot()
            if own is not event:
                frame = Frame(frame.pos, frame.kind, frame.run_id, own, frame.error, frame.timestamp)
        self._ready.append(frame)

    def _give_pieces(self, message: OpenMessage) -> None:
        progress = self._progress.get(message.id)
        if message.id in self._whole:
            return
        if progress is None:
            progress = self._progress[message.id] = _Progress()
        new = message.pieces[progress.index :]
        if not new:
            return
        progress.index += len(new)
        # Who joins late, or falls far behind, gets in one piece what was written meanwhile.
        if len(new) > BACKLOG or (not self._joined and len(new) > 1):
            new = joined(new)
        for text, kind in new:
            self._ready.append(_partial(message, progress, text, kind))

    # -- a run that has ended, or that another process executes -----------------------------------------------------

    async def _read_store(self) -> None:
        store = self._hub.store
        record = self.record = await store.get_run(self.record.app_name, self.record.id, self.record.user_id)
        if self.pos < 1 and record.started_at is not None:
            self._give(started_frame(record), None)
            self.pos = 1
        events = await store.run_events(record.uid, after=self.pos, limit=PAGE)
        for event in events:
            self.pos = event.pos or 0
            self._whole.append(event.id)
            self._give(event_frame(event), None)
        if len(events) == PAGE or self._ready:
            return
        if record.status.terminal:
            if self.pos < record.last_pos:
                self._give(terminal_frame(record), None)
                self.pos = record.last_pos
            self._ended = True
        elif record.status is RunStatus.WAITING:
            self._ended = True
        else:
            self._live = self._hub.live.get(record.uid)
            if self._live is None:
                await asyncio.sleep(POLL_SECONDS)


def _partial(message: OpenMessage, progress: _Progress, text: str, kind: bool | CallName) -> Partial:
    """A piece for a reader, who has been given what `progress` says, and is given this now."""
    offset = progress.offset
    if isinstance(kind, CallName):
        call = CallDelta(kind.id, kind.name, text)
        return Partial(message.id, message.run_id, message.author, message.branch, offset, "", False, call)
    progress.offset += len(text)
    if not kind:
        progress.shown += len(text)
    return Partial(message.id, message.run_id, message.author, message.branch, offset, text, kind)


def _rest(event: Event, progress: _Progress, message: OpenMessage | None) -> Event:
    """The final event for a reader that was given pieces of it."""
    text = event.text
    if message is not None and message.replaced and not text.startswith(text_of(message.pieces[: progress.index])):
        # What is on the screen cannot be taken back.
        return event.with_delta("")
    return event.with_delta(text[progress.shown :])

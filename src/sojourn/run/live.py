"""A run while a process executes it: its newest frames, the messages being written, and who waits for more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from sojourn.content import Content, Part
from sojourn.errors import SojournError
from sojourn.event import CallDelta, Event, LivePartial
from sojourn.run.status import RunStatus
from sojourn.run.types import Frame, RunRecord

KEPT_FRAMES = 256
"""How many of the newest frames a live run keeps in memory; readers further behind read the store."""


PIECE_OVERHEAD = 64
"""Bytes that a piece takes besides its characters."""


PASSING_BYTES = 4 * 2**20
"""How much of what is passed on and never stored waits for its readers; of audio, a minute and a half."""


class CallName(NamedTuple):
    """Which function call a piece of arguments belongs to."""

    id: str
    name: str


Piece = tuple[str, bool | CallName]


class OpenMessage:
    """A message that an agent is writing.

    Attributes:
        id: The id of the event that will seal it.
        pieces: What was written so far, as (text, kind): the kind is whether it is a thought, or the function call whose
            arguments the text is a piece of.
        size: What it takes: the characters of all pieces and of the calls that they are of, and `PIECE_OVERHEAD` for each.
        replaced: Whether the text of the event that seals it does not begin with the pieces: who has not been given them is
            given the event alone.
    """

    __slots__ = ("author", "branch", "id", "pieces", "replaced", "run_id", "size")

    def __init__(self, id: str, run_id: str, author: str, branch: str | None) -> None:
        self.id = id
        self.run_id = run_id
        self.author = author
        self.branch = branch
        self.pieces: list[Piece] = []
        self.size = 0
        self.replaced = False

    def add(self, text: str, thought: bool = False) -> None:
        """Appends a piece."""
        self.pieces.append((text, thought))
        self.size += len(text) + PIECE_OVERHEAD

    def add_call(self, piece: CallDelta) -> None:
        """Appends a piece of a function call's arguments."""
        self.pieces.append((piece.args, CallName(piece.id, piece.name)))
        self.size += len(piece.id) + len(piece.name) + len(piece.args) + PIECE_OVERHEAD

    def content(self) -> Content | None:
        """The message as content: neighbouring pieces of one kind make one part.

        Function calls are left out: nobody carries out a call of a message that was cut off. None if there is nothing else.
        """
        pieces = self.pieces
        if len(pieces) == 1 and not pieces[0][1]:
            return Content.of(pieces[0][0], "model")
        parts = [Part(text=text, thought=kind) for text, kind in joined(pieces) if isinstance(kind, bool)]
        return Content("model", tuple(parts)) if parts else None

    def seal_with(self, event: Event) -> None:
        """Takes note of what an event says that was not made of the pieces and takes their place."""
        self.replaced = not event.text.startswith(text_of(self.pieces))


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring pieces of one kind as one."""
    return [("".join(text for text, _ in group), kind) for kind, group in groupby(pieces, key=itemgetter(1))]


def text_of(pieces: Sequence[Piece]) -> str:
    """What a screen shows of pieces: neither thoughts nor function calls."""
    return "".join(text for text, kind in pieces if not kind)


class LiveRun:
    """A run that this process has queued or executes; readers of any number follow it.

    Attributes:
        record: The run's record as last stored.
        frames: The newest frames, each with the message that its event seals, if its pieces were sent.
        first_pos: The `pos` of the first of `frames`.
        open: The messages being written, by id.
        passing: The newest audio and transcripts in the making, each with the `pos` of the frame before it.
        passed: How many of these there were in all.
        changes: How often there was something new for readers.
        final: The newest final response that this attempt stored.
        ended: Whether nothing more will come from here: the run is terminal or waits for a person.
        cause: The exception behind a failure, for callers in this process.
        failure: What to tell readers if the run has left this process without a terminal frame: the store is away, the
            session was deleted, the process shuts down.
    """

    __slots__ = (
        "_early", "_passing_bytes", "_waiters", "cause", "changes", "ended", "failure", "final", "first_pos", "frames", "open",
        "passed", "passing", "record",
    )  # fmt: skip

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.frames: deque[tuple[Frame, OpenMessage | None]] = deque()
        # The first attempt publishes the whole run from here; of later ones the store has the beginning.
        first = record.attempt == 0 or (record.attempt == 1 and record.status is RunStatus.RUNNING)
        self.first_pos = 1 if first else record.last_pos + 1
        self.open: dict[str, OpenMessage] = {}
        self.passing: deque[tuple[int, LivePartial]] | None = None
        self.passed = 0
        self.changes = 0
        self._passing_bytes = 0
        self.final: Event | None = None
        self.ended = False
        self.cause: BaseException | None = None
        self.failure: SojournError | None = None
        self._early: dict[int, tuple[Frame, OpenMessage | None]] = {}
        self._waiters: list[asyncio.Future[None]] = []

    def publish(self, frame: Frame, message: OpenMessage | None = None) -> None:
        """Adds a frame and wakes the readers."""
        frames = self.frames
        expected = self.first_pos + len(frames)
        if frame.pos != expected:
            # Parallel branches may learn of their commits in another order than the store made them.
            if frame.pos > expected:
                self._early[frame.pos] = (frame, message)
            return
        frames.append((frame, message))
        while self._early and (early := self._early.pop(self.first_pos + len(frames), None)) is not None:
            frames.append(early)
        while len(frames) > KEPT_FRAMES:
            frames.popleft()
            self.first_pos += 1
        if self._waiters:
            self.touch()

    def publish_last(self, frame: Frame) -> None:
        """Adds the terminal frame. If frames before it are not known here, readers find them in the store."""
        if frame.pos != self.first_pos + len(self.frames):
            self.frames.clear()
            self._early.clear()
            self.first_pos = frame.pos
        self.publish(frame)

    def pass_on(self, partial: LivePartial) -> None:
        """Gives the readers something that is never stored; what none of them has taken for long is dropped."""
        if self.passing is None:
            self.passing = deque()
        self.passing.append((self.first_pos + len(self.frames) - 1, partial))
        self.passed += 1
        self._passing_bytes += _size_of(partial)
        while self._passing_bytes > PASSING_BYTES:
            self._passing_bytes -= _size_of(self.passing.popleft()[1])
        self.touch()

    def drop_passing(self) -> None:
        """Takes back what was passed on and no reader has taken yet."""
        if self.passing is not None:
            self.passing.clear()
            self._passing_bytes = 0

    def touch(self) -> None:
        """Wakes the readers."""
        self.changes += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self) -> None:
        """Tells the readers that nothing more will come."""
        self.ended = True
        self.open.clear()
        self.touch()

    def waiter(self) -> asyncio.Future[None]:
        """A future that is done when there may be more to read."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        return future

    async def wait_ended(self) -> None:
        """Returns when nothing more will come."""
        while not self.ended:
            await self.waiter()


def _size_of(partial: LivePartial) -> int:
    size = PIECE_OVERHEAD
    for part in partial.content.parts:
        if part.inline_data is not None:
            size += len(part.inline_data.data)
    return size

"""What a reader of a run is told, as JSON: the events of ADK's wire, or the run's own frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from sojourn.errors import SojournError
from sojourn.event import CallDelta, LivePartial, Partial
from sojourn.run.types import Frame, FrameOrPartial, Interrupt, RunError
from sojourn.server.adk.events import event_text
from sojourn.server.secrets import redacted_interrupt, redacted_text
from sojourn.server.telling import told
from sojourn.wire import error_to_wire, waiting_to_wire

Said = tuple[int | None, str]
"""The `pos` at which a reader who has read it comes back, None if it has none; and JSON text on one line."""


Items = Literal["adk", "frames"]
"""What is streamed of a run: events as on google-adk's wire, or the run's own frames."""


class Vocabulary(Protocol):
    """How what a run says is put as JSON; one per stream."""

    def item(self, item: FrameOrPartial) -> Said | None:
        """A frame, or a piece of a message; None if it is not told."""
        ...

    def waiting(self, run_id: str, interrupts: Sequence[Interrupt]) -> str | None:
        """The end of the stream of a run that waits for a person; None if that is not told."""
        ...

    def error(self, error: SojournError | RunError) -> str:
        """Why the stream ends, though the run may not have."""
        ...


class AdkEvents:
    """ADK's wire: each item is an event. A run that failed or was cancelled ends with an object that has `error`."""

    __slots__ = ("_partials",)

    def __init__(self) -> None:
        self._partials = _PartialTexts()

    def item(self, item: FrameOrPartial) -> Said | None:
        """See `Vocabulary`."""
        if isinstance(item, Partial):
            return None, self._partials.text(item)
        if item.event is not None:
            return None if item.event.superseded else (item.pos, event_text(item.event))
        return (item.pos, self.error(item.error)) if item.error is not None else None

    def waiting(self, run_id: str, interrupts: Sequence[Interrupt]) -> str | None:
        """Nothing: the event that asks has told it."""
        return None

    def error(self, error: SojournError | RunError) -> str:
        """See `Vocabulary`."""
        code, message = error.code, told(error)
        return _json({"error": message, "errorCode": code, "errorMessage": message, "code": code, "retryable": error.retryable})


class RunFrames:
    """The run's own frames: each item is an object with a `kind`.

    Besides the kinds of `Frame` there are, without a `pos`: `partial`; `run.waiting`, at the end of the stream of a run that
    waits for a person; and `error`, at the end of a stream that broke off although its run may go on.
    """

    __slots__ = ("_partials",)

    def __init__(self) -> None:
        self._partials = _PartialTexts()

    def item(self, item: FrameOrPartial) -> Said | None:
        """See `Vocabulary`."""
        if isinstance(item, Partial):
            return None, self._partials.frame_text(item)
        return item.pos, _frame_text(item)

    def waiting(self, run_id: str, interrupts: Sequence[Interrupt]) -> str | None:
        """See `Vocabulary`."""
        return _json(waiting_to_wire(run_id, [redacted_interrupt(i) for i in interrupts]))

    def error(self, error: SojournError | RunError) -> str:
        """See `Vocabulary`."""
        return _json({"kind": "error", "error": _error(error)})


def vocabulary_of(items: Items) -> Vocabulary:
    """The vocabulary for what is to be streamed, for one stream."""
    return AdkEvents() if items == "adk" else RunFrames()


_MARK = "\0piece\0"


class _PartialTexts:
    """Partials as ADK's partial events. What the pieces of a message have in common is put as JSON once."""

    __slots__ = ("_frame_head", "_head", "_key", "_tail")

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._head = self._tail = self._frame_head = ""

    def text(self, piece: Partial) -> str:
        if isinstance(piece, LivePartial):
            return piece.to_event().to_json()
        call = piece.call
        if self._key != (piece.id, piece.thought, call and call.id):
            self._learn(piece)
        return f"{self._head}{_quoted(piece.delta if call is None else call.args)}{self._tail}"

    def frame_text(self, piece: Partial) -> str:
        event = self.text(piece)
        if isinstance(piece, LivePartial):
            return f'{{"kind":"partial","runId":{_quoted(piece.run_id)},"offset":0,"event":{event}}}'
        return f'{self._frame_head}{piece.offset},"event":{event}}}'

    def _learn(self, piece: Partial) -> None:
        call = piece.call
        self._key = (piece.id, piece.thought, call and call.id)
        marked = None if call is None else CallDelta(call.id, call.name, _MARK)
        delta = _MARK if call is None else ""
        like = Partial(piece.id, piece.run_id, piece.author, piece.branch, 0, delta, piece.thought, marked)
        self._head, _, self._tail = like.to_event().to_json().rpartition(_quoted(_MARK))
        self._frame_head = f'{{"kind":"partial","runId":{_quoted(piece.run_id)},"offset":'


def _frame_text(frame: Frame) -> str:
    """What `frame_to_wire` says, without credentials, and without making a dict of the event first."""
    text = f'{{"kind":"{frame.kind}","runId":{_quoted(frame.run_id)},"pos":{frame.pos},"timestamp":{_json(frame.timestamp)}'
    if frame.event is not None:
        text += f',"event":{redacted_text(frame.event.to_json())}'
    if frame.error is not None:
        text += f',"error":{_json(_error(frame.error))}'
    return text + "}"


def _error(error: SojournError | RunError) -> dict[str, Any]:
    return {**error_to_wire(error), "message": told(error)}


_quoted = json.JSONEncoder(ensure_ascii=False).encode

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

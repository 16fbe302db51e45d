"""What a reader at the console sees of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from sojourn.cli.screen import Screen, one_line
from sojourn.content import Part
from sojourn.event import ASK_CALL, Event, Partial
from sojourn.run.types import FrameOrPartial, Interrupt
from sojourn.wire import frame_to_wire, interrupt_to_wire, waiting_to_wire

DETAIL_WIDTH = 100


class View(Protocol):
    """Shows the frames of runs, one run after the other."""

    def show(self, frame: FrameOrPartial) -> None:
        """Shows a frame or a partial."""
        ...

    def break_line(self) -> None:
        """Something else is about to be written to the same terminal."""
        ...

    def end(self) -> None:
        """The run has ended, or waits for a person."""
        ...

    def wait(self, run_id: str, interrupts: Sequence[Interrupt]) -> None:
        """The run waits for a person, and is not followed any further."""
        ...


class JsonView:
    """Prints each frame as one line of JSON."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def show(self, frame: FrameOrPartial) -> None:
        """Prints a frame or a partial."""
        self._print(frame_to_wire(frame))

    def break_line(self) -> None:
        """Lines are printed whole."""

    def end(self) -> None:
        """Nothing is left to print."""

    def wait(self, run_id: str, interrupts: Sequence[Interrupt]) -> None:
        """Prints what the run asks."""
        self._print(waiting_to_wire(run_id, [interrupt_to_wire(interrupt) for interrupt in interrupts]))

    def _print(self, wire: dict[str, Any]) -> None:
        self._screen.line(json.dumps(wire, ensure_ascii=False, separators=(",", ":")))


class TextView:
    """Prints what agents say as they say it, and on a terminal what they do besides.

    Of messages that are written at the same time, in parallel branches, one is shown while it is written; the others
    follow when it is complete.
    """

    def __init__(self, screen: Screen, *, names: bool = False) -> None:
        """Makes a view.

        Args:
            screen: Where to print.
            names: Whether to say who speaks when it is another agent than before.
        """
        self._screen = screen
        self._names = names and screen.fancy
        self._speaker = ""
        self._open: str | None = None
        self._at_line_start = True
        self._held: dict[str, list[Partial]] = {}
        self._complete: list[Event] = []

    def show(self, frame: FrameOrPartial) -> None:
        """Shows a frame or a partial."""
        if isinstance(frame, Partial):
            self._piece(frame)
        elif frame.event is not None:
            self._event(frame.event)

    def break_line(self) -> None:
        """Ends the line on a terminal."""
        if self._screen.fancy:
            self._end_line()

    def end(self) -> None:
        """Ends the line, and shows what was held back."""
        self._close()
        while self._open is not None:
            self._close()
        self._speaker = ""

    def wait(self, run_id: str, interrupts: Sequence[Interrupt]) -> None:
        """The questions stand elsewhere on the screen."""

    # -- messages ---------------------------------------------------------------------------------------------------

    def _piece(self, piece: Partial) -> None:
        if piece.thought or not piece.delta:
            return
        if self._open is None:
            self._open = piece.id
            self._say_who(piece.author)
        if piece.id == self._open:
            self._write(piece.delta)
        else:
            self._held.setdefault(piece.id, []).append(piece)

    def _event(self, event: Event) -> None:
        if event.superseded:
            return
        if self._open is not None and event.id != self._open:
            self._complete.append(event)
            return
        self._whole(event)
        self._close()

    def _whole(self, event: Event) -> None:
        """Shows what of a stored event is not on the screen."""
        if event.id != self._open and (event.text or event.output is not None):
            self._say_who(event.author)
        for piece in self._held.pop(event.id, ()):
            self._write(piece.delta)
        self._write(event.delta)
        if event.output is not None:
            self._end_line()
            self._write(json.dumps(event.output, ensure_ascii=False))
        self._end_line()
        for line in details(event):
            if self._screen.fancy:
                self._screen.note(line)

    def _close(self) -> None:
        """Ends the open message, and shows what has waited for that."""
        self._end_line()
        self._open = None
        complete, self._complete = self._complete, []
        for event in complete:
            self._whole(event)
        if self._held:
            self._open_next()

    def _open_next(self) -> None:
        """Shows the next of the messages that are being written."""
        id = self._open = next(iter(self._held))
        pieces = self._held.pop(id)
        self._say_who(pieces[0].author)
        for piece in pieces:
            self._write(piece.delta)

    # -- lines ------------------------------------------------------------------------------------------------------

    def _say_who(self, author: str) -> None:
        if self._names and author != self._speaker:
            self._screen.line(author, "bold")
        self._speaker = author

    def _write(self, text: str) -> None:
        if text:
            self._screen.write(text)
            self._at_line_start = text.endswith("\n")

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")


def details(event: Event) -> list[str]:
    """What an event does besides saying something, in lines for people."""
    lines = [line for part in (event.said.parts if event.said else ()) if (line := part_line(part))]
    lines += [f"saved {name} (version {version})" for name, version in event.actions.artifact_delta.items()]
    if event.actions.transfer_to_agent:
        lines.append(f"handed over to {event.actions.transfer_to_agent}")
    if event.error_message or event.error_code:
        lines.append(f"error: {event.error_message or event.error_code}")
    if event.interrupted:
        lines.append("(interrupted)")
    if event.cut_off:
        lines.append(f"(cut off: {event.finish_reason})")
    return lines


def part_line(part: Part) -> str:
    """A part that is not text, in a line for people; empty for text and for questions to people."""
    if part.function_call is not None and part.function_call.name != ASK_CALL:
        return one_line(f"→ {part.function_call.name}({_arguments(part.function_call.args)})", DETAIL_WIDTH)
    if part.function_response is not None and part.function_response.name != ASK_CALL:
        response = json.dumps(part.function_response.response, ensure_ascii=False)
        return one_line(f"← {part.function_response.name}: {response}", DETAIL_WIDTH)
    if part.inline_data is not None:
        name = part.inline_data.display_name or part.inline_data.mime_type
        return f"[{name}, {len(part.inline_data.data):,} bytes]"
    if part.file_data is not None:
        return f"[{part.file_data.display_name or part.file_data.file_uri}]"
    return ""


def _arguments(args: dict[str, object]) -> str:
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in args.items())

"""The log of a session in RAM, with the indexes that make a window of it cheap."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Set

from sojourn.event import Event
from sojourn.session.types import History

GONE = Event(superseded=True)
"""In place of an event that was removed: it does not count, and is no event to give."""


class SessionLog:
    """The events of a session, in the order of `seq`.

    Attributes:
        events: All events there ever were; `GONE` in place of those that were removed.
        trimmed_seq: The highest `seq` of those; 0 for none.
    """

    __slots__ = ("_calls", "_open_calls", "_responses", "_summaries", "events", "trimmed_seq")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.trimmed_seq = 0
        # By `seq`; they hold superseded events too, but for `_open_calls`.
        self._summaries: list[int] = []
        self._calls: dict[str, list[int]] = {}
        self._responses: dict[str, list[int]] = {}
        self._open_calls: dict[str, list[int]] = {}

    def log(self, event: Event) -> None:
        """Appends an event that has its numbers; from here on it is the log's own."""
        seq = len(self.events) + 1
        self.events.append(event)
        if event.content is not None:
            for part in event.content.parts:
                if part.function_call is not None and part.function_call.id:
                    self._calls.setdefault(part.function_call.id, []).append(seq)
                    self._open_calls.setdefault(part.function_call.id, []).append(seq)
                elif part.function_response is not None and part.function_response.id:
                    self._responses.setdefault(part.function_response.id, []).append(seq)
                    self._open_calls.pop(part.function_response.id, None)
        if event.actions.summary_until is not None:
            self._summaries.append(seq)

    def supersede(self, seqs: Set[int]) -> None:
        """Takes events out of what counts."""
        touched: set[str] = set()
        for seq in seqs:
            event = self.events[seq - 1]
            self.events[seq - 1] = event.evolve(superseded=True)
            touched.update(c.id for c in event.get_function_calls() if c.id)
            touched.update(r.id for r in event.get_function_responses() if r.id)
        for id_ in touched:
            answered = max(self._counting(self._responses.get(id_, ())), default=0)
            calls = [s for s in self._counting(self._calls.get(id_, ())) if s > answered]
            if calls:
                self._open_calls[id_] = calls
            else:
                self._open_calls.pop(id_, None)

    def remove(self, seqs: Collection[int]) -> None:
        """Removes events."""
        gone = set(seqs)
        for seq in gone:
            event = self.events[seq - 1]
            self.events[seq - 1] = GONE
            for ids, index in (
                ({c.id for c in event.get_function_calls()}, self._calls),
                ({r.id for r in event.get_function_responses()}, self._responses),
            ):
                for id_ in ids:
                    _forget(index, id_ or "", seq)
            for id_ in {c.id or "" for c in event.get_function_calls()}:
                _forget(self._open_calls, id_, seq)
        self._summaries = [seq for seq in self._summaries if seq not in gone]
        self.trimmed_seq = max([self.trimmed_seq, *gone])

    def pins(self) -> set[int]:
        """What stays whatever its age: the newest summary and calls without a response."""
        summary = self._summary()
        open_calls = {seq for seqs in self._open_calls.values() for seq in seqs}
        return open_calls if summary is None else {summary.seq or 0, *open_calls}

    def linked(self, seq: int) -> Iterator[int]:
        """Where the other halves of the calls and responses in an event that counts are."""
        event = self.events[seq - 1]
        if not event.superseded:
            yield from self._called_by(event)
            yield from self._answers_to(event)

    def newest(self, limit: int | None, floor: int = 0) -> list[Event]:
        """The newest events that count, oldest first, of those with a `seq` beyond `floor`."""
        found: list[Event] = []
        for index in range(len(self.events) - 1, floor - 1, -1):
            if limit is not None and len(found) >= limit:
                break
            event = self.events[index]
            if not event.superseded:
                found.append(event)
        found.reverse()
        return found

    def window(self, limit: int | None) -> History:
        """What `SessionService.history` gives."""
        summary = self._summary()
        window = self.newest(limit, 0 if summary is None else summary.actions.summary_until or 0)
        return History(window, self._pinned(window, summary))

    def _summary(self) -> Event | None:
        """The newest summary that counts."""
        for seq in reversed(self._summaries):
            if not self.events[seq - 1].superseded:
                return self.events[seq - 1]
        return None

    def _pinned(self, window: list[Event], summary: Event | None) -> list[Event]:
        """What must not be missing from a window and lies before it, oldest first."""
        start = window[0].seq or 0 if window else len(self.events) + 1
        todo = [s for seqs in self._open_calls.values() for s in seqs]
        if summary is not None:
            todo.append(summary.seq or 0)
        for event in window:
            todo.extend(self._called_by(event))
        found: set[int] = set()
        while todo:
            seq = todo.pop()
            if seq < start and seq not in found:
                found.add(seq)
                event = self.events[seq - 1]
                todo.extend(self._called_by(event))
                todo.extend(self._answers_to(event))
        return [self.events[s - 1] for s in sorted(found)]

    def _called_by(self, event: Event) -> Iterator[int]:
        """The calls that an event's responses answer: of each id the last before it."""
        for response in event.get_function_responses():
            before = [s for s in self._counting(self._calls.get(response.id or "", ())) if s < (event.seq or 0)]
            yield from before[-1:]

    def _answers_to(self, event: Event) -> Iterator[int]:
        """The responses to an event's calls."""
        for call in event.get_function_calls():
            after = [s for s in self._counting(self._calls.get(call.id or "", ())) if s > (event.seq or 0)]
            until = after[0] if after else len(self.events) + 1
            for seq in self._counting(self._responses.get(call.id or "", ())):
                if (event.seq or 0) < seq <= until:
                    yield seq

    def _counting(self, seqs: list[int] | tuple[()]) -> list[int]:
        return [s for s in seqs if not self.events[s - 1].superseded]


def _forget(index: dict[str, list[int]], id_: str, seq: int) -> None:
    left = [s for s in index.get(id_, ()) if s != seq]
    if left:
        index[id_] = left
    else:
        index.pop(id_, None)

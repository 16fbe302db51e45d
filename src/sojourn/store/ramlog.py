"""The log of a session in RAM, with the indexes that make a window of it cheap."""

from __future__ import annotations

from collections.abc import Iterator, Set

from sojourn.event import Event
from sojourn.session.types import History


class SessionLog:
    """The events of a session, in the order of `seq`."""

    __slots__ = ("_calls", "_open_calls", "_responses", "_summaries", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
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

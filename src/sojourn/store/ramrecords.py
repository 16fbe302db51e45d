"""Sessions and runs as they are kept in RAM."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from itertools import takewhile
from typing import Any

from sojourn import jsonvalue, platform
from sojourn.event import Event
from sojourn.jsonvalue import Nothing, clone
from sojourn.run.status import Move
from sojourn.run.types import Interrupt, RunRecord, Step
from sojourn.session.types import Session, SessionKey
from sojourn.store.ramlog import SessionLog
from sojourn.store.rules import Undo, dropped, without_words

# Most runs have no steps and no questions, and the garbage collector walks through whatever a run keeps.
_NOTHING = Nothing("it is shared; put a dict of the run's own in its place")


class StoredSession(SessionLog):
    """A session: its log, its own state, its runs.

    Attributes:
        no: The store's own key: sessions are numbered in the order of creation.
    """

    __slots__ = ("active_agent", "created_at", "key", "no", "run_no", "runs", "state", "uid", "updated_at")

    def __init__(self, key: SessionKey, no: int) -> None:
        super().__init__()
        self.key = key
        self.no = no
        self.uid = platform.new_id()
        self.created_at = self.updated_at = platform.now()
        self.run_no = 0
        self.runs: dict[int, StoredRun] = {}
        self.state: dict[str, Any] = {}
        self.active_agent: str | None = None

    def runs_from(self, uid: int) -> list[StoredRun]:
        """A run and those submitted after it, in the order of submission; the cost does not grow with those before it."""
        found = list(takewhile(lambda run: run.record.uid >= uid, reversed(self.runs.values())))
        found.reverse()
        return found

    def view(self, state: dict[str, Any], events: tuple[Event, ...] = ()) -> Session:
        """The session as a value."""
        app, user, id_ = self.key
        return Session.unchecked(
            {
                "app_name": app,
                "user_id": user,
                "id": id_,
                "uid": self.uid,
                "state": clone(state),
                "events": events,
                "event_count": len(self.events),
                "first_seq": self.trimmed_seq + 1,
                "active_agent": self.active_agent,
                "created_at": self.created_at,
                "updated_at": self.updated_at,
            }
        )


class StoredRun:
    """A run and what belongs to it; as a `RunLog`, what of it counts.

    Attributes:
        identity: `seq` of the events that count, by branch and ordinal; also once the whole run has ceased to count.
        seqs: All of its events.
        base_seq: The newest event of the session at the last hand-over.
        answered: Whether a question was answered since the attempt began: it has not seen that answer.
        undo: What its changes since the last hand-over replaced.
        steps: The journal, in the order in which its steps were appended last.
        interrupts: The questions, by id, in the order in which they were asked.
    """

    __slots__ = (
        "answered", "base_seq", "identity", "interrupts", "record", "seqs", "session", "steps", "undo",
    )  # fmt: skip

    def __init__(self, record: RunRecord, session: StoredSession) -> None:
        self.record = record
        self.session = session
        self.identity: dict[tuple[str | None, int], int] = {}
        self.seqs: list[int] = []
        self.base_seq = 0
        self.answered = False
        self.undo: list[Undo] | tuple[()] = ()
        self.steps: dict[str, Step] = _NOTHING
        self.interrupts: dict[str, Interrupt] = _NOTHING

    # -- the log ----------------------------------------------------------------------------------------------------

    def log(self, event: Event) -> None:
        """Appends an event of the run to the session's log; it has its numbers and is the log's own."""
        self.session.log(event)
        seq = len(self.session.events)
        self.seqs.append(seq)
        if event.ordinal is not None:
            self.identity[event.branch, event.ordinal] = seq

    def find(self, branch: str | None, ordinal: int) -> Event | None:
        """The event that counts under an identity."""
        seq = self.identity.get((branch, ordinal))
        return None if seq is None else self.session.events[seq - 1]

    def events(self) -> list[Event]:
        """Those that count, in the order of `seq`."""
        events = self.session.events
        return [events[s - 1] for s in self.seqs if not events[s - 1].superseded]

    def answers(self) -> list[Event]:
        """What people answered, in the order of `seq`, also what does not count any more."""
        events = self.session.events
        return [events[s - 1] for s in self.seqs if events[s - 1].ordinal is None]

    def supersede(self, seqs: Set[int]) -> None:
        """Takes events of the run out of what counts."""
        for seq in seqs:
            event = self.session.events[seq - 1]
            if event.ordinal is not None:
                self.identity.pop((event.branch, event.ordinal), None)
        self.session.supersede(seqs)

    def trim(self) -> int:
        """Removes what the run consisted of, but for its record; how many events that were."""
        events = len(self.seqs)
        if events:
            self.session.remove(self.seqs)
        self.seqs, self.identity, self.undo = [], {}, ()
        self.steps = self.interrupts = _NOTHING
        self.record = self.record.evolve(message=without_words(self.record.message), custom_metadata=None, trimmed=True)
        return events

    # -- steps and interrupts ---------------------------------------------------------------------------------------

    def put_step(self, step: Step) -> None:
        """Puts a step at the end of the journal, in place of the one with its key."""
        if self.steps is _NOTHING:
            self.steps = {}
        self.steps.pop(step.key, None)
        self.steps[step.key] = step

    def put_interrupt(self, interrupt: Interrupt) -> None:
        """Puts a question, in place of the one with its id."""
        if self.interrupts is _NOTHING:
            self.interrupts = {}
        self.interrupts[interrupt.id] = interrupt

    def ask(self, interrupt: Interrupt) -> None:
        """Adds a question, unless its id is known; an open one with its key and another digest is dropped."""
        if interrupt.id in self.interrupts:
            return
        for known in list(self.interrupts.values()):
            if known.key == interrupt.key and known.digest != interrupt.digest and known.status == "open":
                self.put_interrupt(replace(known, status="dropped"))
        r = self.record
        self.put_interrupt(replace(interrupt, run_id=r.id, app_name=r.app_name, user_id=r.user_id, session_id=r.session_id))

    def finish(self, by: Move) -> None:
        """Lets go of what only a run that goes on needs."""
        self.undo = ()
        self.drop_interrupts(by)

    def drop_interrupts(self, by: Move) -> None:
        """Closes the questions of a run that has ended or is about to, as `rules.dropped` says."""
        for interrupt in list(self.interrupts.values()):
            self.put_interrupt(dropped(interrupt, by))


def copy_step(step: Step) -> Step:
    """A step that shares nothing mutable with this one.

    Raises:
        InvalidInput: `json.invalid` if it is not JSON.
    """
    return replace(step, result=jsonvalue.copy(step.result, where=f"the result of step {step.key!r}"))


def copy_interrupt(interrupt: Interrupt) -> Interrupt:
    """A question that shares nothing mutable with this one.

    Raises:
        InvalidInput: `json.invalid` if it is not JSON.
    """
    return replace(
        interrupt,
        prompt=jsonvalue.copy(interrupt.prompt, where="prompt"),
        schema=jsonvalue.copy(interrupt.schema, where="schema"),
        answer=jsonvalue.copy(interrupt.answer, where="answer"),
    )

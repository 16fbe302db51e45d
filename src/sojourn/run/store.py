"""The seam for runs: the log that runs write, behind one fence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from sojourn.event import Event
from sojourn.page import Page
from sojourn.run.status import Move
from sojourn.run.types import Interrupt, RunError, RunQuery, RunRecord, Step
from sojourn.run.usage import UserUsage
from sojourn.session.service import SessionService
from sojourn.session.state import StateDelta
from sojourn.session.types import Session, SessionKey

MAX_DEATHS = 3
"""Attempts ended by the death of their process after which a run is not tried again."""


@dataclass(slots=True)
class NewRun:
    """A run to be recorded.

    Attributes:
        id: Its id.
        key: Its session, which is created if missing (unless `create_session` is false).
        message: What the user said, as an event by `user` with id, run id and timestamp; stored as ordinal 0 of branch None
            when the first attempt begins. Its changes of state are made with it and belong to the state that the run found.
        config: `RunConfig.overrides()`.
        attached: Whether the run ends when its reader leaves.
        reject_if_busy: Refuse if another run of the session is queued or running.
        retry_of: Id of a finished run of the same session whose place this one takes; see `RunStore`, "Repeating".
        custom_metadata: Kept on the record.
    """

    id: str
    key: SessionKey
    message: Event
    config: dict[str, Any] = field(default_factory=dict)
    attached: bool = False
    create_session: bool = True
    reject_if_busy: bool = False
    retry_of: str | None = None
    custom_metadata: dict[str, Any] | None = None


class Begun(NamedTuple):
    """A run as an attempt finds it.

    Attributes:
        record: With the attempt's number.
        session: The session with the state *that the run found*: the stored state, with every key that attempts since the
            last hand-over set or deleted as it was before, less what they added to numbers, and no events.
        steps: The journal so far.
        interrupts: The questions so far.
    """

    record: RunRecord
    session: Session
    steps: list[Step]
    interrupts: list[Interrupt]


class Submitted(NamedTuple):
    """The outcome of `RunStore.submit`.

    Attributes:
        record: The run; the one recorded before if the id was known.
        begun: Set if this call began the first attempt.
        known: Whether the run was recorded before this call.
    """

    record: RunRecord
    begun: Begun | None
    known: bool


class Fence(NamedTuple):
    """Who writes: a run, by the store's key, and the attempt."""

    run_uid: int
    attempt: int


@dataclass(slots=True)
class Batch:
    """What one append writes, all or nothing.

    Attributes:
        events: New events in order, with everything but `seq` and `pos`; `ordinal`, `branch` and `attempt` are their
            identity.
        steps: Steps done or failed; each replaces the one with its key.
        interrupts: Questions asked; each comes with an event that holds its function call. One whose id is known is left as
            it is.
        state: Changes of state that no event carries; they go with the run's newest event.
        move: What happens to the run: WAIT, REQUEUE, COMPLETE, FAIL or CANCEL; None for nothing.
        error: Why, for FAIL and CANCEL.
        died: With REQUEUE: the attempt ended by the death of its process (counted); else by a shutdown (not counted).
        agent: The agent that takes over the run; the session's active agent from now on. What the run wrote so far
            becomes the ground that later attempts stand on: the event that hands over is the last of the batch, and
            `base_ordinal` the one after it. The same append again hands over once.
        live: Per branch (None for none), the next ordinal of the attempt; with a terminal move or WAIT, events that earlier
            attempts stored since the last hand-over from there on (0 for a branch that is not named; never the message)
            are superseded, and what they changed is put back as in the identity rule. None leaves them alone.
        said: Per branch (None for none), the ordinal below which the attempt has said everything before this batch, be it what
            was stored already; what has been said does not cease to count by what the attempt says after it. None or a branch
            that is not named: what was stored by earlier attempts has not been said by this one.
        usage_since: Also give what the user has spent, as `RunStore.user_usage` does from this time on; None for not.
    """

    events: list[Event] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    interrupts: list[Interrupt] = field(default_factory=list)
    state: StateDelta | None = None
    move: Move | None = None
    error: RunError | None = None
    died: bool = False
    agent: str | None = None
    live: dict[str | None, int] | None = None
    said: dict[str | None, int] | None = None
    usage_since: float | None = None


class Appended(NamedTuple):
    """The outcome of an append.

    Attributes:
        events: The batch's events in order, with their numbers; `None` in place of one that was stored already by
            an earlier attempt and is equal, which must not be forwarded again. One that this very attempt has
            stored before (the caller repeats an append whose reply was lost) comes with its numbers.
        record: The run after the append.
        user_usage: What `Batch.usage_since` asks for, with this append in it; else None.
    """

    events: list[Event | None]
    record: RunRecord
    user_usage: UserUsage | None = None


class Answered(NamedTuple):
    """The outcome of an answer: the run after it, and whether this call recorded it (else it was known already)."""

    record: RunRecord
    recorded: bool


@dataclass(slots=True, frozen=True)
class Change:
    """Something another process did that the executor must act on.

    Attributes:
        kind: `cancel` (a running run is to be cancelled), `queued` (a run has become ready, by an answer), `closed` (a
            run that this process executed was closed, its session deleted, or another process has taken it up).
    """

    kind: Literal["cancel", "queued", "closed"]
    run_uid: int
    record: RunRecord | None = None


@runtime_checkable
class RunStore(Protocol):
    """Records runs and takes what they write.

    The rules of `SessionService` hold here too. In addition:

    - **One append, one transaction**: events, deltas, steps, interrupts and the run's status are stored together or not
      at all. Within a session, `seq` is 1, 2, 3 … without gaps, in the order of commits.
    - **The fence**: `append` succeeds only for a run that is RUNNING and only for its newest attempt; anything else is
      `Fenced` and changes nothing.
    - **Identity**: an event is identified by (run, branch, ordinal). If an event that counts is stored under the same
      identity and `same_as` holds, the new one is not stored. If it differs and was stored by an earlier attempt,
      the stored one and everything that earlier attempts wrote after it (same branch, or branches below as far as this
      attempt has not said it again before) is superseded: it stays in the log, does not count any more, and what its deltas
      changed is put back where nobody else has written since; the new event carries `supersedes`. If it differs and is this
      attempt's own, or the user's message: `Conflict`, `event.conflict`. The events of a batch are taken one after the
      other, each seeing what those before it did.
    - **Put back**: a key that still holds the very value that was written gets the one before (or is absent again); an
      increment is subtracted from another number, unless a set or delete by this run that stays came after it; anything
      else is left. Values are compared as JSON: 1, 1.0 and true differ.
    - **Answers go with their call**: the event of an answer counts as long as the call it answers. If a later attempt says
      the call in an event that is stored anew, the answer is stored again right after that, without `pos` and ordinal.
    - **Repeating**: a run with `retry_of` takes the place of that run (if that one never began and was to repeat another, of
      that other) in the append that puts its message in the log: the one that records it if it begins at once, else the
      one that begins its first attempt. In this append the run whose place it takes and all that were submitted to the
      session between the two get `superseded_by`, and all their events are superseded, messages and answers included.
      Nothing is copied or put back: state and steps stay. It starts at the agent at which the first of those runs that began
      had started, and that is the session's active agent again; if none had begun, the active agent stays. The cost grows
      with the runs and events that cease to count, not with the session.
    - **The ledger**: the token counts in `usage_metadata` of every event that `append` stores are added, in its transaction,
      to the sums of the run's user for the hour (UTC) in which it is stored. An event that is stored already adds nothing,
      nor does an append that is refused. Nothing is ever taken out again, neither when events cease to count nor when their
      session is deleted, but by `SupportsRetention.erase_user`. A count below zero adds nothing; the sum of an hour stays at
      `run.usage.MAX_COUNT` once it is there.
    - **The outcome is known**: if the caller is cancelled while the store commits, the call waits until the outcome is
      known before it raises. A failed commit is `Unavailable` and has changed nothing.
    - **Moves** follow `sojourn.run.status`; an illegal one is `Conflict`, `run.illegal_move`.
    - A run that gets a terminal status drops its open interrupts (with EXPIRE, those whose time has passed are `expired`);
      its steps stay readable. The terminal frame takes the next `pos`.
    - A `run_uid` is never used again. A method that is given one it does not know raises `NotFound`, `run.not_found`;
      `append` raises `Fenced`.
    """

    shared: bool
    """Whether other processes can write to the store, so that an executor must look at `changes`."""

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        """Records a run, with its session if that is missing.

        Args:
            run: The run.
            begin: Also begin the first attempt, in the same transaction: status RUNNING, the message appended to the log.
                If false the run is QUEUED.

        Returns:
            The record. A run id known for this app and user is not recorded again: the stored record is returned with
            `known=True` if session, message content and `retry_of` are the same.

        Raises:
            Conflict: `run.conflict` if the id is known with another session, message or `retry_of`; `session.busy` with
                `reject_if_busy`.
            Conflict: `run.not_finished` if `retry_of`, or a run that was submitted to the session after it, has not ended;
                `run.superseded` if it does not count any more.
            NotFound: `session.not_found` without `create_session`; `run.not_found` for an unknown `retry_of`.
            InvalidInput: `id.invalid`, `json.invalid`, `state.*`.
        """
        ...

    async def begin(self, run_uid: int) -> Begun:
        """Begins the next attempt of a queued run.

        With the first, the message is appended to the log, and the session's active agent becomes the run's; a run that
        repeats another takes its place first.

        A queued run for which a cancel was requested is closed as cancelled instead.

        Returns:
            The run, its state and journal. If `record.status` is not RUNNING there is nothing to execute: the run waits, has
            ended or was closed by this call.

        Raises:
            NotFound: `run.not_found` (its session was deleted).
            Conflict: `run.illegal_move` if the run is RUNNING: an attempt is under way.
            InvalidInput: `state.not_a_number` if the message increments something else.
        """
        ...

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        """Appends what an attempt wrote.

        `temp:` keys are dropped. With move WAIT, the run becomes QUEUED instead of WAITING if one of its interrupts has
        been answered since the attempt began. Token counts in `usage_metadata` of events that are stored are added to the
        record, and to the user's ledger. An interrupt whose key is known with another digest drops the older one if that is
        open.

        Raises:
            Fenced: `run.fenced`.
            Conflict: `event.conflict`, `run.illegal_move`.
            InvalidInput: `state.not_a_number` for an increment of something else; `state.*`, `json.invalid`.
        """
        ...

    async def take_over(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        """Closes a running run whose code does not end, over its head: fences the attempt and makes the move.

        A run that is not RUNNING any more is left as it is.

        Args:
            run_uid: The run.
            error: Why.
            move: CANCEL or FAIL.

        Raises:
            Conflict: `run.illegal_move` for another move of a running run.
        """
        ...

    async def request_cancel(self, run_uid: int, reason: str) -> RunRecord:
        """Asks for a cancel.

        A queued or waiting run is cancelled at once; of a running one the wish is recorded, and its executor acts on it; a
        finished one is left as it is. The first reason stays. A running run whose executor is gone, so that nobody would
        act on the wish, may be cancelled at once.

        Returns:
            The run afterwards.

        Raises:
            NotFound: `run.not_found`.
        """
        ...

    async def close_run(self, run_uid: int, error: RunError, *, move: Move) -> RunRecord:
        """Closes a queued or waiting run: FAIL or CANCEL for a queued one, EXPIRE or CANCEL for a waiting one.

        A run that is not queued or waiting any more is left as it is.

        Raises:
            Conflict: `run.illegal_move` for another move of a queued or waiting run.
        """
        ...

    async def answer(self, run_uid: int, interrupt_id: str, answer: Any, event: Event) -> Answered:
        """Answers an open interrupt, once.

        The answer and `event` (the function response, by `user`, without `ordinal` and `pos`) are stored; a waiting run
        becomes QUEUED. The run's count of deaths is reset, and it is detached (`attached` false): whoever started it has
        left. The same answer again is a no-op.

        Raises:
            NotFound: `run.not_found`, `interrupt.not_found`.
            Conflict: `interrupt.conflict` if another answer is stored; `interrupt.closed` if it was dropped or has expired.
            InvalidInput: `json.invalid`.
        """
        ...

    async def get_run(self, app_name: str, run_id: str, user_id: str | None = None) -> RunRecord:
        """Reads a run.

        Raises:
            NotFound: `run.not_found`.
            InvalidInput: `run.ambiguous` if `user_id` is omitted and two users have a run of this id.
        """
        ...

    async def list_runs(self, query: RunQuery, *, limit: int = 100, after: str | None = None) -> Page[RunRecord]:
        """Lists runs, newest submitted first: by `uid`, descending. Pages are those of `list_sessions`.

        Raises:
            InvalidInput: `page.invalid`.
        """
        ...

    async def list_interrupts(
        self,
        app_name: str,
        *,
        user_id: str | None = None,
        session_id: str | None = None,
        run_uid: int | None = None,
        open_only: bool = True,
    ) -> list[Interrupt]:
        """Lists questions to people, oldest first."""
        ...

    async def list_steps(self, run_uid: int) -> list[Step]:
        """Lists the journal of a run in the order in which its steps were appended last."""
        ...

    async def run_events(self, run_uid: int, *, after: int = 0, limit: int = 256) -> list[Event]:
        """Lists the agents' events of a run with a `pos` greater than `after`, superseded ones included, by `pos`.

        They are what the run's readers are given, and stay so: `superseded` says here that a later attempt of the run took
        another way, and not that the whole run has ceased to count (`RunRecord.superseded_by`).

        Raises:
            Gone: `cursor.trimmed` if retention has removed what comes after this position; see `SupportsRetention`.
            InvalidInput: `page.invalid` for a limit outside of 1 to 1,000.
        """
        ...

    async def user_usage(self, app_name: str, user_id: str, since: float | None = None) -> UserUsage:
        """Reads the ledger: what a user has spent in an app, in all runs there ever were.

        Args:
            app_name: The app.
            user_id: The user; one that is not known has spent nothing.
            since: Leaves out the hours that were over by then (seconds since the epoch), so that the hour of this time is in
                it as a whole; None for all.

        Returns:
            The sums, and the hours that they are made of, oldest first.

        Raises:
            InvalidInput: `id.invalid`.
        """
        ...

    async def unfinished(self, app_name: str) -> list[RunRecord]:
        """Lists an app's queued, running and waiting runs in the order of (session key, `no`)."""
        ...

    async def requeue_lost(self, run_uid: int, *, ends: Callable[[RunRecord], bool] | None = None) -> RunRecord:
        """Moves a running run whose process died back to queued and counts the death.

        A run that is not RUNNING is left as it is.

        Args:
            run_uid: The run.
            ends: Whether the run, as it is then, is to be ended instead of tried again; it only looks at the record. If so,
                its open questions are dropped in the same step: an answer either came before, and is seen in the record, or
                is refused. None if it is tried again in any case.
        """
        ...

    async def become_executor(self) -> None:
        """Claims the right to execute runs of this store for this process; a store that needs no such right does nothing.

        Claiming again is a no-op. Only an executor may `submit`, `begin` and `append`; a store claims by itself at the
        first of these.

        Raises:
            Conflict: `store.in_use` if another process has it; the message names its pid. `store.client_only` if this store
                object was opened so as never to execute runs.
        """
        ...

    async def changes(self) -> list[Change]:
        """What other processes did since the last call that the executor must act on; empty if nobody else can write."""
        ...

    async def close(self) -> None:
        """Gives up the executor's right and closes what the store opened itself. Closing twice is fine."""
        ...


@runtime_checkable
class Store(SessionService, RunStore, Protocol):
    """One database behind both seams. Sessions and runs are written in the same transactions, so one class serves both."""

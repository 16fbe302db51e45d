"""Stores that are wrong on purpose: a conformance suite that lets one of them pass is worth nothing.

Each breaks one guarantee in a way that real stores have broken it, and names the cases that are to find out. `outcomes`
runs cases of a suite against any store, without pytest's collection.
"""

# What a saboteur's methods do is told by the seam, and what is wrong with them by the class.

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import pytest

from sojourn.errors import AlreadyExists, Conflict, NotFound, SojournError, Unavailable
from sojourn.event import Event, Usage
from sojourn.run.store import Answered, Appended, Batch, Begun, Fence, NewRun, Store, Submitted
from sojourn.run.usage import UsageBucket, UserUsage, hour_of
from sojourn.session.types import History, Session, SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.planning import add_counts
from sojourn.store.ramrecords import StoredRun, StoredSession
from sojourn.testing.faults import FaultyStore
from sojourn.testing.suite import StoreSuite

# -- running a suite ----------------------------------------------------------------------------------------------------


def cases(suite: type[StoreSuite]) -> list[str]:
    """The names of a suite's cases."""
    return [name for name, _ in inspect.getmembers(suite, inspect.isfunction) if name.startswith("test_")]


def outcomes(suite: type[StoreSuite], make_store: Callable[[], Store], names: list[str]) -> dict[str, BaseException | None]:
    """Runs cases of a suite, each with a store of its own.

    Args:
        suite: The suite.
        make_store: Makes an empty store.
        names: Which cases; `cases(suite)` for all.

    Returns:
        The failure of each case, None if it passed; a parametrized case is named once per set of parameters. Skipped
        cases are left out.
    """
    found: dict[str, BaseException | None] = {}
    with asyncio.Runner() as runner:
        for name in names:
            for label, parameters in _parameter_sets(getattr(suite, name)):
                case: Coroutine[Any, Any, None] = getattr(suite(), name)(store=make_store(), **parameters)
                try:
                    runner.run(case)
                except pytest.skip.Exception:
                    continue
                except (Exception, pytest.fail.Exception) as failure:
                    found[name + label] = failure
                else:
                    found[name + label] = None
    return found


def _parameter_sets(case: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """What pytest would give a case, by its `parametrize` marks."""
    axes: list[list[dict[str, Any]]] = []
    for mark in getattr(case, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            if isinstance(names, str):
                axes.append([{names: value} for value in values])
            else:
                axes.append([dict(zip(names, value, strict=True)) for value in values])
    for number, combination in enumerate(product(*axes)):
        merged = {name: value for one in combination for name, value in one.items()}
        yield (f"[{number}]" if axes else ""), merged


# -- the saboteurs ------------------------------------------------------------------------------------------------------


class Saboteur(InMemorySessionService):
    """A store in RAM with one fault.

    Attributes:
        caught_by: Cases of `StoreConformance` that fail on it.
    """

    caught_by: ClassVar[tuple[str, ...]] = ()


class LosesEvents(Saboteur):
    """Every 50th event never reaches the log."""

    caught_by = ("test_open_call_survives_a_thousand_events", "test_fifty_runs_in_fifty_sessions")
    _seen = 0

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        kept: list[Event] = []
        for event in batch.events:
            self._seen += 1
            if self._seen % 50:
                kept.append(event)
        return await super().append(fence, replace(batch, events=kept))


class AcceptsStaleFence(Saboteur):
    """Whoever knows the run may write, also an attempt that was replaced."""

    caught_by = ("test_zombie_attempt_is_fenced", "test_one_fenced_append_undoes_only_itself")

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        return await super().append(fence if run is None else Fence(fence.run_uid, run.record.attempt), batch)


class AppendsOneByOne(Saboteur):
    """Each event of a batch is a write of its own."""

    caught_by = (
        "test_bad_increment_in_the_second_event_leaves_nothing",
        "test_a_conflict_in_the_last_event_leaves_nothing",
        "test_one_failed_append_undoes_only_itself",
    )

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        events: list[Event | None] = []
        for event in batch.events[:-1]:
            events += (await super().append(fence, Batch(events=[event]))).events
        last = await super().append(fence, replace(batch, events=batch.events[-1:]))
        return Appended(events + last.events, last.record)


class KeepsCallersDict(Saboteur):
    """The caller's own dict becomes the state."""

    caught_by = ("test_does_not_retain_callers_dict",)

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        session = await super().create_session(app_name=app_name, user_id=user_id, session_id=session_id, state=state)
        stored = self._sessions[session.key].state
        stored.update((k, v) for k, v in (state or {}).items() if k in stored)
        return session


class HandsOutItsOwnDicts(Saboteur):
    """What is read is what is stored."""

    caught_by = ("test_records_are_copies",)

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        submitted = await super().submit(run, begin=begin)
        return submitted._replace(record=self._runs[submitted.record.uid].record)


class LeavesSeqGaps(Saboteur):
    """A failed append has used up a `seq`."""

    caught_by = ("test_one_failed_append_undoes_only_itself",)

    def __init__(self) -> None:
        super().__init__()
        self._burnt: set[SessionKey] = set()

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        try:
            return await super().append(fence, batch)
        except Exception:
            if fence.run_uid in self._runs:
                self._burnt.add(self._runs[fence.run_uid].session.key)
            raise

    async def list_events(
        self, *, app_name: str, user_id: str, session_id: str, after: int = 0, limit: int = 100, superseded: bool = False
    ) -> list[Event]:
        events = await super().list_events(
            app_name=app_name, user_id=user_id, session_id=session_id, after=after, limit=limit, superseded=superseded
        )
        gap = SessionKey(app_name, user_id, session_id) in self._burnt
        return [e.evolve(seq=(e.seq or 0) + 1) if gap else e for e in events]


class OverwritesOnCreate(Saboteur):
    """Creating a session that exists makes it anew."""

    caught_by = ("test_create_does_not_overwrite", "test_an_id_is_created_once")

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        try:
            return await super().create_session(app_name=app_name, user_id=user_id, session_id=session_id, state=state)
        except AlreadyExists:
            await self.delete_session(app_name=app_name, user_id=user_id, session_id=session_id or "")
            return await super().create_session(app_name=app_name, user_id=user_id, session_id=session_id, state=state)


class MixesUpUsers(Saboteur):
    """A session id is looked up without asking whose it is."""

    caught_by = ("test_two_users_may_use_one_session_id", "test_missing_session_is_not_found")

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        for key in list(self._sessions):
            if (key.app_name, key.session_id) == (app_name, session_id):
                user_id = key.user_id
        return await super().get_session(app_name=app_name, user_id=user_id, session_id=session_id, events=events)


class MixesUpIds(Saboteur):
    """The parts of a key are joined into one text."""

    caught_by = ("test_ids_do_not_run_into_each_other",)

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        if any(f"{k}" == f"{app_name}/{user_id}/{session_id}" for k in self._sessions):
            raise AlreadyExists("the joined key exists", code="session.exists")
        return await super().create_session(app_name=app_name, user_id=user_id, session_id=session_id, state=state)


class PutsNothingBack(Saboteur):
    """The deltas of superseded events stay in the state."""

    caught_by = ("test_superseded_deltas_are_put_back", "test_leftovers_put_back_state_once")

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        if run is not None and run.record.attempt > 1:
            run.undo = []
        return await super().append(fence, batch)


class ShowsAttemptsTheirWrites(Saboteur):
    """A later attempt begins with the state that the one before has left."""

    caught_by = ("test_each_attempt_finds_what_the_run_found", "test_a_hand_over_is_the_ground_of_later_attempts")

    async def begin(self, run_uid: int) -> Begun:
        begun = await super().begin(run_uid)
        run = self._runs[run_uid]
        return begun._replace(session=self._snapshot(run.session))


class SupersedesTheWholeRun(Saboteur):
    """An event that differs takes all branches with it."""

    caught_by = ("test_branches_below_are_superseded_but_not_siblings",)

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        appended = await super().append(fence, batch)
        run = self._runs[fence.run_uid]
        if any(e is not None and e.supersedes for e in appended.events):
            events = run.session.events
            run.supersede({s for s in run.seqs if 0 < (events[s - 1].attempt or 0) < fence.attempt and events[s - 1].pos})
        return appended


class ForgetsWhatWasSaidAgain(Saboteur):
    """An event that differs takes with it what the attempt has said again before it."""

    caught_by = ("test_what_an_attempt_has_said_again_counts_whatever_it_says_after_it",)

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        return await super().append(fence, replace(batch, said=None))


class StoresReplaysAgain(Saboteur):
    """An event that is repeated is stored once more."""

    caught_by = ("test_append_same_event_again_is_a_noop", "test_repeating_an_append_whose_reply_was_lost")

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        if run is not None:
            run.identity.clear()
        return await super().append(fence, batch)


class AnswersTwice(Saboteur):
    """The last answer wins."""

    caught_by = ("test_another_answer_is_a_conflict", "test_a_question_is_answered_once")

    async def answer(self, run_uid: int, interrupt_id: str, answer: Any, event: Event) -> Answered:
        try:
            return await super().answer(run_uid, interrupt_id, answer, event)
        except Conflict:
            interrupts = self._runs[run_uid].interrupts
            interrupts[interrupt_id] = replace(interrupts[interrupt_id], status="open")
            return await super().answer(run_uid, interrupt_id, answer, event)


class SplitsPairs(Saboteur):
    """The window is cut without regard to calls and responses."""

    caught_by = ("test_call_of_a_response_in_the_window_is_pinned", "test_open_calls_are_pinned")

    async def history(self, key: SessionKey, limit: int | None) -> History:
        return (await super().history(key, limit))._replace(pinned=[])


class PinsOnlyCalls(Saboteur):
    """A pinned call comes without the responses that it got before the window."""

    caught_by = ("test_parallel_calls_are_not_split_from_their_responses",)

    async def history(self, key: SessionKey, limit: int | None) -> History:
        window, pinned = await super().history(key, limit)
        return History(window, [e for e in pinned if not e.get_function_responses()])


class CutsTheWindowFirst(Saboteur):
    """The newest events are taken first, and superseded ones left out of them afterwards."""

    caught_by = ("test_history_skips_superseded_events",)

    async def history(self, key: SessionKey, limit: int | None) -> History:
        window, pinned = await super().history(key, limit)
        first = 0 if limit is None else len(self._sessions[key].events) - limit
        return History([e for e in window if (e.seq or 0) > first], pinned)


class HidesAppState(Saboteur):
    """What one session writes to `app:` the others do not see."""

    caught_by = ("test_app_state_visible_to_all_users", "test_writes_of_runs_are_visible_by_scope")

    def _merged(self, session: Any) -> dict[str, Any]:
        return {k: v for k, v in super()._merged(session).items() if not k.startswith("app:")}


class LosesIncrements(Saboteur):
    """An increment is a read and a write, with others in between."""

    caught_by = ("test_increment_is_atomic_across_sessions",)

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        events = [self._as_set(fence, e) for e in batch.events]
        await asyncio.sleep(0)
        return await super().append(fence, replace(batch, events=events))

    def _as_set(self, fence: Fence, event: Event) -> Event:
        state = self._merged(self._runs[fence.run_uid].session)
        sums = {k: state.get(k, 0) + by for k, by in event.actions.state_increments.items()}
        actions = event.actions.model_copy(update={"state_delta": sums, "state_increments": {}})
        return event.evolve(actions=actions) if sums else event


class UsesRunUidsAgain(Saboteur):
    """The internal key of a deleted run goes to the next one."""

    caught_by = ("test_a_run_uid_is_never_used_again",)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        session = await super().delete_session(app_name=app_name, user_id=user_id, session_id=session_id)
        self._next_run_uid = max(self._runs, default=0)
        return session


class KeepsEventsOfTheDeleted(Saboteur):
    """A session that is created again finds its old log."""

    caught_by = ("test_delete_then_create_is_empty",)

    def __init__(self) -> None:
        super().__init__()
        self._graves: dict[SessionKey, list[Event]] = {}

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> Session:
        key = SessionKey(app_name, user_id, session_id)
        if key in self._sessions:
            self._graves[key] = self._sessions[key].events
        return await super().delete_session(app_name=app_name, user_id=user_id, session_id=session_id)

    async def create_session(
        self, *, app_name: str, user_id: str, session_id: str | None = None, state: dict[str, Any] | None = None
    ) -> Session:
        session = await super().create_session(app_name=app_name, user_id=user_id, session_id=session_id, state=state)
        self._sessions[session.key].events = self._graves.get(session.key, [])
        return session


class KeepsWhatCameAfter(Saboteur):
    """A run takes the place of the one it repeats, and what was said after that goes on counting."""

    caught_by = ("test_all_runs_from_there_on_cease_to_count", "test_an_earlier_run_takes_repeats_with_it")

    def _take_place(self, run: StoredRun, repeated: str) -> None:
        runs = run.session.runs
        after = {uid: one for uid, one in runs.items() if uid < run.record.uid and one.record.id != repeated}
        for uid in after:
            del runs[uid]
        super()._take_place(run, repeated)
        run.session.runs = dict(sorted({**runs, **after}.items()))


class TakesThePlaceTooSoon(Saboteur):
    """What is repeated ceases to count although its repeat is queued still."""

    caught_by = (
        "test_a_queued_repeat_takes_the_place_once_it_begins",
        "test_a_queued_repeat_that_never_begins_changes_nothing",
    )

    async def submit(self, run: NewRun, *, begin: bool) -> Submitted:
        submitted = await super().submit(run, begin=begin)
        if run.retry_of is not None and not (begin or submitted.known):
            self._take_place(self._runs[submitted.record.uid], run.retry_of)
        return submitted


class RepeatsWhatGoesOn(Saboteur):
    """Whether a later run of the session goes on is not asked."""

    caught_by = ("test_nothing_is_repeated_while_a_later_run_goes_on", "test_a_run_is_repeated_once")

    def _check_repeatable(self, run_id: str, key: SessionKey, session: StoredSession | None) -> None:
        try:
            super()._check_repeatable(run_id, key, session)
        except Conflict as error:
            if error.code != "run.not_finished" or not self._run_ids[key.app_name, run_id][key.user_id].record.status.terminal:
                raise


class GoesOnWhereTheOldBranchWas(Saboteur):
    """A repeated message goes to whoever has taken over since."""

    caught_by = ("test_it_starts_where_the_repeated_run_started", "test_it_starts_at_the_root_where_the_repeated_run_did")

    def _take_place(self, run: StoredRun, repeated: str) -> None:
        active_agent = run.session.active_agent
        super()._take_place(run, repeated)
        run.session.active_agent = active_agent


class SumsUpItsRuns(Saboteur):
    """What a user has spent is what the runs say that are there: who deletes a session gets the tokens back."""

    caught_by = ("test_deleting_a_session_gives_no_tokens_back", "test_usage_is_kept_by_the_hour")

    async def user_usage(self, app_name: str, user_id: str, since: float | None = None) -> UserUsage:
        hours: dict[int, dict[str, int]] = {}
        for run in self._matching(app_name, user_id, None):
            hour = hour_of(run.record.created_at)
            hours[hour] = add_counts(hours.get(hour, {}), run.record.usage)
        return UserUsage.of(UsageBucket(hour, Usage(**counts)) for hour, counts in sorted(hours.items()) if counts)


class CountsRepeatsAgain(Saboteur):
    """A later attempt that says what is stored already spends its tokens once more."""

    caught_by = ("test_a_repeated_event_is_counted_once",)

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        known = [e for e in batch.events if run is not None and run.find(e.branch, e.ordinal or 0) is not None]
        appended = await super().append(fence, batch)
        for event in known:
            if event.usage_metadata is not None:
                record = appended.record
                counts = event.usage_metadata.model_dump()
                self._ledger.add(record.app_name, record.user_id, event.timestamp, counts)
        return appended


class CountsWhatIsRefused(Saboteur):
    """Tokens are counted in a transaction of their own, ahead of the append."""

    caught_by = ("test_what_is_refused_is_not_spent",)

    async def append(self, fence: Fence, batch: Batch) -> Appended:
        run = self._runs.get(fence.run_uid)
        try:
            return await super().append(fence, batch)
        except SojournError:
            for event in batch.events:
                if run is not None and event.usage_metadata is not None:
                    counts = event.usage_metadata.model_dump()
                    self._ledger.add(run.record.app_name, run.record.user_id, event.timestamp, counts)
            raise


class FailureIsAbsence(FaultyStore):
    """A database that does not answer looks like a session that does not exist."""

    caught_by: ClassVar[tuple[str, ...]] = ("test_failure_is_not_absence",)

    async def get_session(self, *, app_name: str, user_id: str, session_id: str, events: int = 0) -> Session:
        try:
            return await super().get_session(app_name=app_name, user_id=user_id, session_id=session_id, events=events)
        except Unavailable:
            raise NotFound(f"session {session_id!r} does not exist", code="session.not_found") from None


SABOTEURS: tuple[type[Saboteur], ...] = (
    LosesEvents, AcceptsStaleFence, AppendsOneByOne, KeepsCallersDict, HandsOutItsOwnDicts, LeavesSeqGaps, OverwritesOnCreate,
    MixesUpUsers, MixesUpIds, PutsNothingBack, ShowsAttemptsTheirWrites, SupersedesTheWholeRun, ForgetsWhatWasSaidAgain,
    StoresReplaysAgain,
    AnswersTwice, SplitsPairs, PinsOnlyCalls, CutsTheWindowFirst, HidesAppState, LosesIncrements, UsesRunUidsAgain,
    KeepsEventsOfTheDeleted, KeepsWhatCameAfter, TakesThePlaceTooSoon, RepeatsWhatGoesOn, GoesOnWhereTheOldBranchWas,
    SumsUpItsRuns, CountsRepeatsAgain, CountsWhatIsRefused,
)  # fmt: skip
"""All saboteurs but `FailureIsAbsence`, which needs a store to wrap."""

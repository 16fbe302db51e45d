"""The cases on a run's record and its moves: submit, begin, cancel, close, take over, requeue, and reading runs."""

# A case is told by its name.

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from sojourn.errors import Conflict, Fenced, InvalidInput, NotFound
from sojourn.run.status import TRANSITIONS, Move, RunStatus
from sojourn.run.store import Store
from sojourn.run.types import RunError, RunQuery, RunRecord, event_frame, started_frame, terminal_frame
from sojourn.session.types import SessionKey
from sojourn.testing.builders import (
    answer_event,
    ask,
    attempt,
    event,
    failure,
    finished,
    message,
    new_run,
    next_attempt,
    question,
    question_event,
    reply,
    session_key,
    start,
    step,
    write,
)
from sojourn.testing.session_conformance import BAD_IDS
from sojourn.testing.suite import StoreSuite, manual_clock, raises, unchanged
from sojourn.testing.world import all_runs, assert_same_world, read_world

_LEGAL = {(t.source, t.move): t.target for t in TRANSITIONS}
_UNKNOWN = 987_654_321


class RunConformance(StoreSuite):
    """A run's record, from its submission to its end."""

    # -- submit -----------------------------------------------------------------------------------------------------

    async def test_submit_records_a_queued_run(self, store: Store) -> None:
        with manual_clock() as clock:
            given = new_run(config={"max_turns": 3}, attached=True, custom_metadata={"from": "test"})
            submitted = await store.submit(given, begin=False)
        record = submitted.record
        assert (submitted.known, submitted.begun) == (False, None)
        assert (record.id, record.key, record.no, record.status) == ("r1", session_key(), 1, RunStatus.QUEUED)
        assert (record.attempt, record.deaths, record.last_pos, record.transfers, record.base_ordinal) == (0, 0, 0, 0, 0)
        assert (record.config, record.attached, record.custom_metadata) == ({"max_turns": 3}, True, {"from": "test"})
        assert (record.created_at, record.started_at, record.finished_at) == (clock.now(), None, None)
        assert record.message.text == "Hello"
        assert (record.agent, record.error, record.cancel_requested, record.retry_of) == (None, None, None, None)
        assert await store.get_run("shop", "r1") == record
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert (session.event_count, record.session_uid) == (0, session.uid)

    async def test_submit_can_begin_in_the_same_write(self, store: Store) -> None:
        with manual_clock() as clock:
            submitted = await store.submit(new_run(), begin=True)
            assert submitted.begun is not None
            record = submitted.record
            assert record == submitted.begun.record
            assert (record.status, record.attempt, record.last_pos) == (RunStatus.RUNNING, 1, 1)
            assert record.created_at == record.started_at == clock.now()
        assert (submitted.begun.steps, submitted.begun.interrupts) == ([], [])
        assert submitted.begun.session.event_count == 1
        [logged] = await store.list_events(app_name="shop", user_id="alice", session_id="s1")
        assert (logged.seq, logged.pos, logged.ordinal, logged.attempt, logged.author) == (1, None, 0, 1, "user")
        assert (logged.text, logged.run_id, logged.id) == ("Hello", "r1", "r1:message")
        assert started_frame(record).pos == 1

    async def test_submit_creates_the_session(self, store: Store) -> None:
        record = await start(store)
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert session.uid == record.session_uid
        assert (await start(store, "r2")).session_uid == session.uid

    async def test_submit_does_not_create_the_session_unasked(self, store: Store) -> None:
        async with unchanged(store):
            with raises(NotFound, "session.not_found"):
                await store.submit(new_run(create_session=False), begin=True)

    async def test_submit_numbers_the_runs_of_a_session(self, store: Store) -> None:
        numbers = [(await store.submit(new_run(f"r{n}"), begin=bool(n % 2))).record.no for n in range(4)]
        assert numbers == [1, 2, 3, 4]
        assert (await start(store, "r9", session_key("s2"))).no == 1

    async def test_submitting_again_gives_the_stored_run(self, store: Store) -> None:
        first = await start(store)
        await write(store, first, event(first, 1, "Hi."), move=Move.COMPLETE)
        for begin in (True, False):
            async with unchanged(store):
                again = await store.submit(new_run(config={"max_turns": 9}), begin=begin)
            assert (again.known, again.begun) == (True, None)
            assert again.record == await store.get_run("shop", "r1")
        async with unchanged(store):
            assert (await store.submit(new_run(reject_if_busy=True, create_session=False), begin=True)).known

    async def test_a_run_id_is_for_one_message_and_session(self, store: Store) -> None:
        await store.submit(new_run(), begin=False)
        async with unchanged(store):
            with raises(Conflict, "run.conflict"):
                await store.submit(new_run(text="Something else"), begin=False)
            with raises(Conflict, "run.conflict"):
                await store.submit(new_run(key=session_key("s2")), begin=False)

    async def test_a_run_id_is_the_users_own(self, store: Store) -> None:
        mine = await start(store, "r1")
        theirs = await start(store, "r1", session_key(user_id="bob"), text="Bob's")
        elsewhere = await start(store, "r1", session_key(app_name="other"))
        assert len({mine.uid, theirs.uid, elsewhere.uid}) == 3

    async def test_a_busy_session_rejects_on_request(self, store: Store) -> None:
        await store.submit(new_run("r1", reject_if_busy=True), begin=False)
        async with unchanged(store):
            with raises(Conflict, "session.busy"):
                await store.submit(new_run("r2", reject_if_busy=True), begin=True)
        running = (await store.begin((await store.get_run("shop", "r1")).uid)).record
        async with unchanged(store):
            with raises(Conflict, "session.busy"):
                await store.submit(new_run("r2", reject_if_busy=True), begin=True)
        await store.submit(new_run("r9", session_key("s2"), reject_if_busy=True), begin=True)
        await ask(store, running, 1)
        assert not (await store.submit(new_run("r2", reject_if_busy=True), begin=False)).known

    async def test_a_session_takes_many_runs_at_once(self, store: Store) -> None:
        first, second = await start(store, "r1"), await start(store, "r2")
        await write(store, second, event(second, 1, "b"))
        await write(store, first, event(first, 1, "a"))
        events = await store.list_events(app_name="shop", user_id="alice", session_id="s1")
        assert [(e.seq, e.text) for e in events] == [(1, "Hello"), (2, "Hello"), (3, "b"), (4, "a")]

    async def test_a_messages_state_belongs_to_what_the_run_found(self, store: Store) -> None:
        await store.create_session(app_name="shop", user_id="alice", session_id="s1", state={"a": 1})
        opening = message("r1", state={"a": 2, "user:b": 3, "temp:c": 4})
        queued = (await store.submit(new_run(message=opening), begin=False)).record
        assert (await store.get_session(app_name="shop", user_id="alice", session_id="s1")).state == {"a": 1}
        begun = await store.begin(queued.uid)
        assert begun.session.state == {"a": 2, "user:b": 3}
        await write(store, begun.record, event(begun.record, 1, state={"a": 5}))
        second = await next_attempt(store, begun.record)
        assert second.session.state == {"a": 2, "user:b": 3}
        await write(store, second.record, event(second.record, 1, "other"))
        assert (await store.get_session(app_name="shop", user_id="alice", session_id="s1")).state == {"a": 2, "user:b": 3}

    async def test_a_message_that_cannot_be_applied_leaves_nothing(self, store: Store) -> None:
        bad = message("r1")
        bad = bad.evolve(actions=bad.actions.model_copy(update={"state_increments": {"user:n": 1}}))
        other = session_key("s2")
        await store.create_session(app_name="shop", user_id="alice", session_id="s2", state={"user:n": "text"})
        async with unchanged(store):
            with raises(InvalidInput, "state.not_a_number"):
                await store.submit(new_run(message=bad), begin=True)
        queued = (await store.submit(new_run("r1", other, message=bad), begin=False)).record
        async with unchanged(store):
            with raises(InvalidInput, "state.not_a_number"):
                await store.begin(queued.uid)

    @pytest.mark.parametrize("bad", BAD_IDS, ids=lambda v: repr(v)[:20])
    async def test_bad_run_ids_are_refused(self, store: Store, bad: Any) -> None:
        async with unchanged(store):
            for key in (SessionKey(bad, "alice", "s1"), SessionKey("shop", bad, "s1"), SessionKey("shop", "alice", bad)):
                with raises(InvalidInput, "id.invalid"):
                    await store.submit(new_run(key=key), begin=True)
            with raises(InvalidInput, "id.invalid"):
                await store.submit(new_run(bad, message=message("r1")), begin=True)
            with raises(InvalidInput, "id.invalid"):
                await store.get_run("shop", bad)
            with raises(InvalidInput, "id.invalid"):
                await store.get_run(bad, "r1")
            with raises(InvalidInput, "id.invalid"):
                await store.get_run("shop", "r1", bad)
            with raises(InvalidInput, "id.invalid"):
                await store.unfinished(bad)
            for query in (RunQuery(bad), RunQuery("shop", bad), RunQuery("shop", None, bad)):
                with raises(InvalidInput, "id.invalid"):
                    await store.list_runs(query)
                with raises(InvalidInput, "id.invalid"):
                    await store.list_interrupts(query.app_name, user_id=query.user_id, session_id=query.session_id)

    @pytest.mark.parametrize("bad", [float("nan"), b"bytes", {1: 2}, "\ud800"], ids=ascii)
    async def test_nan_in_config_is_refused(self, store: Store, bad: Any) -> None:
        async with unchanged(store):
            with raises(InvalidInput, "json.invalid"):
                await store.submit(new_run(config={"x": bad}), begin=True)
            with raises(InvalidInput, "json.invalid"):
                await store.submit(new_run(custom_metadata={"x": bad}), begin=True)

    async def test_submit_does_not_retain_callers_dict(self, store: Store) -> None:
        config: dict[str, Any] = {"list": [1]}
        metadata: dict[str, Any] = {"list": [1]}
        await store.submit(new_run(config=config, custom_metadata=metadata), begin=False)
        config["list"].append(2)
        metadata["list"].append(2)
        record = await store.get_run("shop", "r1")
        assert (record.config, record.custom_metadata) == ({"list": [1]}, {"list": [1]})

    async def test_records_are_copies(self, store: Store) -> None:
        given = new_run(config={"list": [1]}, custom_metadata={"list": [1]})
        given.message = given.message.evolve(custom_metadata={"list": [1]})
        submitted = await store.submit(given, begin=True)
        run = submitted.record
        appended = await write(store, run, event(run, 1, usage_metadata={"total_token_count": 1}))
        records = [run, appended.record, await store.get_run("shop", "r1"), (await store.submit(given, begin=True)).record]
        records += (await store.list_runs(RunQuery("shop"))).items + await store.unfinished("shop")
        records += [await store.request_cancel(run.uid, "why"), (await next_attempt(store, run)).record]
        for record in records:
            record.config["list"].append("leak")
            record.config["leak"] = 1
            record.usage["leak"] = 1
            assert record.custom_metadata is not None
            record.custom_metadata["list"].append("leak")
            assert record.message.custom_metadata is not None
            record.message.custom_metadata["list"].append("leak")
        kept = await store.get_run("shop", "r1")
        assert (kept.config, kept.custom_metadata) == ({"list": [1]}, {"list": [1]})
        assert kept.message.custom_metadata == {"list": [1]}
        assert "leak" not in kept.usage

    async def test_empty_fields_of_records_are_nobodys_to_fill(self, store: Store) -> None:
        given = new_run(custom_metadata={})
        submitted = await store.submit(given, begin=True)
        assert submitted.begun is not None
        assert given.custom_metadata is not None
        given.config["leak"] = given.custom_metadata["leak"] = 1
        run = submitted.record
        records = [run, submitted.begun.record, (await write(store, run, event(run, 1))).record]
        records += [await store.get_run("shop", "r1"), *(await store.list_runs(RunQuery("shop"))).items]
        records += [*await store.unfinished("shop"), (await write(store, run, event(run, 2), move=Move.COMPLETE)).record]
        for record in records:
            assert record.custom_metadata is not None
            for fields in (record.config, record.usage, record.custom_metadata):
                # A store that shares them instead has to refuse.
                with suppress(TypeError):
                    fields["leak"] = 1
        kept = await store.get_run("shop", "r1")
        again = (await store.submit(new_run("r2"), begin=False)).record
        assert (kept.config, kept.usage, kept.custom_metadata) == ({}, {}, {})
        assert (again.config, again.usage, again.custom_metadata) == ({}, {}, None)

    # -- begin ------------------------------------------------------------------------------------------------------

    async def test_message_is_logged_once(self, store: Store) -> None:
        queued = (await store.submit(new_run(), begin=False)).record
        begun = await store.begin(queued.uid)
        assert (begun.record.attempt, begun.record.status, begun.record.last_pos) == (1, RunStatus.RUNNING, 1)
        second = await next_attempt(store, begun.record)
        third = await next_attempt(store, second.record)
        assert (second.record.attempt, third.record.attempt) == (2, 3)
        assert third.record.last_pos == 1
        events = await store.list_events(app_name="shop", user_id="alice", session_id="s1")
        assert [e.text for e in events] == ["Hello"]

    async def test_started_at_is_the_first_attempts(self, store: Store) -> None:
        with manual_clock() as clock:
            queued = (await store.submit(new_run(), begin=False)).record
            clock.advance(1)
            first = (await store.begin(queued.uid)).record
            clock.advance(1)
            second = (await next_attempt(store, first)).record
            assert first.started_at == second.started_at == clock.now() - 1
            session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
            assert session.updated_at == clock.now() - 1

    async def test_begin_of_a_running_run_is_refused(self, store: Store) -> None:
        run = await start(store)
        async with unchanged(store):
            with raises(Conflict, "run.illegal_move"):
                await store.begin(run.uid)

    async def test_begin_of_a_cancelled_queued_run_closes_it(self, store: Store) -> None:
        run = await start(store)
        await store.request_cancel(run.uid, "changed my mind")
        requeued = await store.requeue_lost(run.uid)
        assert (requeued.status, requeued.cancel_requested) == (RunStatus.QUEUED, "changed my mind")
        with manual_clock() as clock:
            record = (await store.begin(run.uid)).record
        assert (record.status, record.attempt, record.finished_at) == (RunStatus.CANCELLED, 1, clock.now())
        assert record.error == RunError("run.cancelled", "changed my mind", "RunCancelled")
        assert record.last_pos == 2

    async def test_begin_of_a_run_that_is_not_queued_executes_nothing(self, store: Store) -> None:
        waiting = await start(store, "r1")
        await ask(store, waiting, 1)
        ended = await finished(store, "r2", None, "x")
        for run, status in ((waiting, RunStatus.WAITING), (ended, RunStatus.COMPLETED)):
            async with unchanged(store):
                begun = await store.begin(run.uid)
            assert begun.record.status is status

    async def test_the_sessions_active_agent_begins(self, store: Store) -> None:
        early = (await store.submit(new_run("r0"), begin=False)).record
        run = await start(store, "r1")
        assert (early.agent, run.agent) == (None, None)
        await write(store, run, event(run, 1, "over"), agent="billing", move=Move.COMPLETE)
        assert (await start(store, "r2")).agent == "billing"
        assert (await store.begin(early.uid)).record.agent == "billing"
        assert (await start(store, "r3", session_key("s2"))).agent is None

    async def test_a_later_attempt_gets_steps_and_questions(self, store: Store) -> None:
        run = await start(store)
        asked = [question("q1", prompt={"list": [1]}, schema={"type": "string"})]
        steps = [step("a", {"list": [1]})]
        await write(store, run, question_event(run, 1, "q1"), steps=steps, interrupts=asked, move=Move.WAIT)
        await reply(store, run, "q1", {"ok": [True]})
        begun = await store.begin(run.uid)
        assert [(s.key, s.result) for s in begun.steps] == [("a", {"list": [1]})]
        [interrupt] = begun.interrupts
        assert (interrupt.status, interrupt.answer, interrupt.prompt) == ("answered", {"ok": [True]}, {"list": [1]})
        begun.steps[0].result["list"].append("leak")
        interrupt.answer["ok"].append("leak")
        interrupt.prompt["list"].append("leak")
        again = await next_attempt(store, begun.record)
        assert again.steps[0].result == {"list": [1]}
        assert (again.interrupts[0].answer, again.interrupts[0].prompt) == ({"ok": [True]}, {"list": [1]})

    # -- cancel, close, take over, requeue --------------------------------------------------------------------------

    async def test_cancel_of_a_queued_run_closes_it(self, store: Store) -> None:
        queued = (await store.submit(new_run(), begin=False)).record
        with manual_clock() as clock:
            record = await store.request_cancel(queued.uid, "no need")
        assert (record.status, record.cancel_requested, record.last_pos) == (RunStatus.CANCELLED, "no need", 1)
        assert record.error == RunError("run.cancelled", "no need", "RunCancelled")
        assert record.finished_at == clock.now()
        frame = terminal_frame(record)
        assert (frame.pos, frame.kind) == (1, "run.cancelled")
        assert await store.get_run("shop", "r1") == record
        assert (await store.get_session(app_name="shop", user_id="alice", session_id="s1")).event_count == 0

    async def test_cancel_of_a_waiting_run_closes_it(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)
        record = await store.request_cancel(run.uid, "no need")
        assert (record.status, record.last_pos) == (RunStatus.CANCELLED, 3)
        assert [i.status for i in await store.list_interrupts("shop", open_only=False)] == ["dropped"]

    async def test_cancel_of_a_running_run_is_a_wish(self, store: Store) -> None:
        run = await start(store)
        record = await store.request_cancel(run.uid, "first")
        assert (record.status, record.cancel_requested, record.error) == (RunStatus.RUNNING, "first", None)
        assert (await store.request_cancel(run.uid, "second")).cancel_requested == "first"
        done = await write(store, run, event(run, 1, "bye"), move=Move.CANCEL, error=failure("run.cancelled"))
        assert (done.record.status, done.record.error) == (RunStatus.CANCELLED, failure("run.cancelled"))

    async def test_cancel_of_a_finished_run_is_nothing(self, store: Store) -> None:
        run = await finished(store, "r1", None, "x")
        async with unchanged(store):
            record = await store.request_cancel(run.uid, "too late")
        assert (record.status, record.cancel_requested) == (RunStatus.COMPLETED, None)

    @pytest.mark.parametrize("by", [Move.CANCEL, Move.FAIL])
    async def test_take_over_fences_the_attempt(self, store: Store, by: Move) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "x"))
        record = await store.take_over(run.uid, failure("run.timeout"), move=by)
        assert record.status is _LEGAL[RunStatus.RUNNING, by]
        assert (record.error, record.last_pos) == (failure("run.timeout"), 3)
        assert record.attempt > run.attempt
        async with unchanged(store):
            with raises(Fenced, "run.fenced"):
                await write(store, run, event(run, 2, "zombie"))
            with raises(Fenced, "run.fenced"):
                await write(store, record, event(record, 2, "impostor"))
            assert await store.take_over(run.uid, failure("other"), move=by) == record

    async def test_close_run_of_a_queued_run(self, store: Store) -> None:
        for by, status in ((Move.FAIL, RunStatus.FAILED), (Move.CANCEL, RunStatus.CANCELLED)):
            queued = (await store.submit(new_run(by.value), begin=False)).record
            record = await store.close_run(queued.uid, failure("run.waited_too_long"), move=by)
            assert (record.status, record.error, record.last_pos) == (status, failure("run.waited_too_long"), 1)

    async def test_close_run_of_a_waiting_run(self, store: Store) -> None:
        for by, status in ((Move.EXPIRE, RunStatus.FAILED), (Move.CANCEL, RunStatus.CANCELLED)):
            run = await start(store, by.value)
            await ask(store, run, 1)
            record = await store.close_run(run.uid, failure("run.expired"), move=by)
            assert (record.status, record.error, record.last_pos) == (status, failure("run.expired"), 3)

    async def test_close_run_leaves_running_and_finished_runs(self, store: Store) -> None:
        running, ended = await start(store, "r1"), await finished(store, "r2", None, "x")
        async with unchanged(store):
            for run in (running, ended):
                for by in Move:
                    assert (await store.close_run(run.uid, failure(), move=by)).status is run.status

    async def test_requeue_lost_counts_the_death(self, store: Store) -> None:
        run = await start(store)
        record = await store.requeue_lost(run.uid)
        assert (record.status, record.deaths, record.attempt) == (RunStatus.QUEUED, 1, 1)
        async with unchanged(store):
            assert (await store.requeue_lost(run.uid)).deaths == 1
            with raises(Fenced, "run.fenced"):
                await write(store, run, event(run, 1, "zombie"))
        second = (await store.begin(run.uid)).record
        async with unchanged(store):
            with raises(Fenced, "run.fenced"):
                await write(store, run, event(run, 1, "zombie"))
        assert (await store.requeue_lost(second.uid)).deaths == 2

    async def test_requeue_lost_drops_the_questions_of_a_run_that_is_to_end(self, store: Store) -> None:
        seen: list[RunRecord] = []

        def is_first(record: RunRecord) -> bool:
            seen.append(record)
            return record.id == "r1"

        for run_id, ends in (("r1", is_first), ("r2", is_first), ("r3", None)):
            run = await start(store, run_id, session_key(run_id))
            await write(store, run, question_event(run, 1, run_id), interrupts=[question(run_id)])
            assert (await store.requeue_lost(run.uid, ends=ends)).status is RunStatus.QUEUED
            if run_id == "r1":
                async with unchanged(store):
                    with raises(Conflict, "interrupt.closed"):
                        await reply(store, run, run_id, "late")
            else:
                assert (await reply(store, run, run_id, "in time")).recorded
        assert [(r.id, r.status, r.deaths) for r in seen] == [("r1", RunStatus.QUEUED, 1), ("r2", RunStatus.QUEUED, 1)]

    async def test_a_run_that_is_not_running_keeps_its_questions(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)
        async with unchanged(store):
            assert (await store.requeue_lost(run.uid, ends=lambda _: True)).status is RunStatus.WAITING

    async def test_a_shutdown_is_not_a_death(self, store: Store) -> None:
        run = await start(store)
        record = (await write(store, run, move=Move.REQUEUE)).record
        assert (record.status, record.deaths, record.error, record.finished_at) == (RunStatus.QUEUED, 0, None, None)
        second = (await store.begin(run.uid)).record
        assert (await write(store, second, move=Move.REQUEUE, died=True)).record.deaths == 1

    async def test_unknown_runs_are_not_found(self, store: Store) -> None:
        run = await start(store)
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: store.begin(_UNKNOWN),
            lambda: store.take_over(_UNKNOWN, failure(), move=Move.FAIL),
            lambda: store.request_cancel(_UNKNOWN, "why"),
            lambda: store.close_run(_UNKNOWN, failure(), move=Move.FAIL),
            lambda: store.answer(_UNKNOWN, "q1", 1, answer_event(run, "q1", 1)),
            lambda: store.list_steps(_UNKNOWN),
            lambda: store.run_events(_UNKNOWN),
            lambda: store.requeue_lost(_UNKNOWN),
            lambda: store.get_run("shop", "unknown"),
            lambda: store.get_run("other", "r1"),
            lambda: store.get_run("shop", "r1", "bob"),
        ]
        async with unchanged(store):
            for call in calls:
                with raises(NotFound, "run.not_found"):
                    await call()

    # -- the table of moves -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("by", list(Move))
    async def test_append_makes_the_moves_of_the_table(self, store: Store, by: Move) -> None:
        run = await start(store)
        target = _LEGAL.get((RunStatus.RUNNING, by))
        if target is None:
            async with unchanged(store):
                with raises(Conflict, "run.illegal_move"):
                    await write(store, run, event(run, 1, "x", state={"a": 1}), steps=[step("s")], move=by)
            return
        record = (await write(store, run, event(run, 1, "x"), move=by, error=failure())).record
        assert record.status is target
        assert (record.finished_at is not None) is target.terminal
        assert record.last_pos == (3 if target.terminal else 2)
        assert await store.get_run("shop", "r1") == record

    @pytest.mark.parametrize("status", list(RunStatus))
    async def test_append_needs_a_running_run(self, store: Store, status: RunStatus) -> None:
        run = await _in_status(store, status)
        if status is RunStatus.RUNNING:
            return
        async with unchanged(store):
            for number in range(run.attempt + 3):
                for by in (None, *Move):
                    with raises(Fenced, "run.fenced"):
                        await write(store, attempt(run, number), event(run, 5, "x", state={"a": 1}), move=by)

    @pytest.mark.parametrize("by", list(Move))
    async def test_take_over_only_cancels_or_fails(self, store: Store, by: Move) -> None:
        if by in (Move.CANCEL, Move.FAIL):
            return
        run = await start(store)
        async with unchanged(store):
            with raises(Conflict, "run.illegal_move"):
                await store.take_over(run.uid, failure(), move=by)
        await write(store, run, event(run, 1, "still the writer"))

    @pytest.mark.parametrize("status", [RunStatus.QUEUED, RunStatus.WAITING])
    async def test_close_run_makes_the_moves_of_the_table(self, store: Store, status: RunStatus) -> None:
        run = await _in_status(store, status)
        closing = (Move.FAIL, Move.CANCEL, Move.EXPIRE)
        async with unchanged(store):
            for by in Move:
                if by not in closing or (status, by) not in _LEGAL:
                    with raises(Conflict, "run.illegal_move"):
                        await store.close_run(run.uid, failure(), move=by)

    @pytest.mark.parametrize("status", list(RunStatus))
    async def test_only_running_runs_are_taken_over_or_requeued(self, store: Store, status: RunStatus) -> None:
        run = await _in_status(store, status)
        if status is RunStatus.RUNNING:
            return
        async with unchanged(store):
            for by in Move:
                assert (await store.take_over(run.uid, failure(), move=by)).status is status
            assert (await store.requeue_lost(run.uid)).status is status

    @pytest.mark.parametrize("status", [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED])
    async def test_nothing_moves_a_finished_run(self, store: Store, status: RunStatus) -> None:
        run = await _in_status(store, status)
        async with unchanged(store):
            await store.begin(run.uid)
            await store.request_cancel(run.uid, "why")
            await store.close_run(run.uid, failure("other"), move=Move.CANCEL)

    # -- frames -----------------------------------------------------------------------------------------------------

    async def test_frames_are_numbered_without_gaps(self, store: Store) -> None:
        run = await start(store, "r1")
        other = await start(store, "r2")
        await write(store, run, event(run, 1, "a"), event(run, 2, "b"))
        await write(store, other, event(other, 1, "x"))
        await ask(store, run, 3)
        await reply(store, run)
        run = (await store.begin(run.uid)).record
        record = (await write(store, run, event(run, 4, "c"), move=Move.COMPLETE)).record
        frames = [started_frame(record), *map(event_frame, await store.run_events(run.uid)), terminal_frame(record)]
        assert [f.pos for f in frames] == [1, 2, 3, 4, 5, 6]
        assert [f.kind for f in frames] == ["run.started", "event", "event", "interrupt", "event", "run.completed"]

    async def test_run_events_are_read_by_pos(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, *(event(run, n, str(n)) for n in range(1, 6)))
        assert [e.pos for e in await store.run_events(run.uid)] == [2, 3, 4, 5, 6]
        assert [e.pos for e in await store.run_events(run.uid, after=3)] == [4, 5, 6]
        assert [e.pos for e in await store.run_events(run.uid, after=3, limit=2)] == [4, 5]
        assert await store.run_events(run.uid, after=6) == []

    async def test_run_events_hold_superseded_ones(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "a"), event(run, 2, "b"))
        second = (await next_attempt(store, run)).record
        await write(store, second, event(second, 1, "other"))
        events = await store.run_events(run.uid)
        assert [(e.pos, e.text, e.superseded, e.supersedes) for e in events] == [
            (2, "a", True, None), (3, "b", True, None), (4, "other", False, 2),
        ]  # fmt: skip

    # -- reading runs -----------------------------------------------------------------------------------------------

    async def test_get_run_asks_whose_it_is(self, store: Store) -> None:
        await start(store, "r1")
        assert (await store.get_run("shop", "r1")).user_id == "alice"
        await start(store, "r1", session_key(user_id="bob"))
        with raises(InvalidInput, "run.ambiguous"):
            await store.get_run("shop", "r1")
        assert (await store.get_run("shop", "r1", "alice")).user_id == "alice"
        assert (await store.get_run("shop", "r1", "bob")).user_id == "bob"
        with raises(NotFound, "run.not_found"):
            await store.get_run("shop", "r1", "carol")
        await store.delete_session(app_name="shop", user_id="alice", session_id="s1")
        assert (await store.get_run("shop", "r1")).user_id == "bob"

    async def test_list_runs_filters(self, store: Store) -> None:
        with manual_clock() as clock:
            await finished(store, "r1", session_key("s1"), "x")
            clock.advance(1)
            await start(store, "r2", session_key("s2"))
            clock.advance(1)
            await store.submit(new_run("r3", session_key("s1")), begin=False)
            clock.advance(1)
            await start(store, "r4", session_key("s1", user_id="bob"))
            clock.advance(1)
            await start(store, "r5", session_key(app_name="other"))
        expected = {
            RunQuery("shop"): ["r4", "r3", "r2", "r1"],
            RunQuery("shop", "alice"): ["r3", "r2", "r1"],
            RunQuery("shop", "alice", "s1"): ["r3", "r1"],
            RunQuery("shop", None, "s1"): ["r4", "r3", "r1"],
            RunQuery("shop", status=(RunStatus.RUNNING,)): ["r4", "r2"],
            RunQuery("shop", "alice", status=(RunStatus.QUEUED, RunStatus.COMPLETED)): ["r3", "r1"],
            RunQuery("shop", "carol"): [],
            RunQuery("nobody"): [],
        }
        for query, ids in expected.items():
            assert [r.id for r in (await store.list_runs(query)).items] == ids
            assert [r.id for r in await all_runs(store, query, limit=1)] == ids

    @pytest.mark.parametrize("tick", [1, 0, -1], ids=["ticking", "same-moment", "set-back"])
    async def test_pages_of_runs_neither_repeat_nor_skip(self, store: Store, tick: int) -> None:
        with manual_clock() as clock:
            for n in range(12):
                await store.submit(new_run(f"r{n}", session_key(f"s{n % 2}")), begin=False)
                clock.advance(tick)
        whole = [r.id for r in (await store.list_runs(RunQuery("shop"))).items]
        assert whole == [f"r{n}" for n in reversed(range(12))]
        for limit in (1, 4, 5, 12, 13):
            assert [r.id for r in await all_runs(store, RunQuery("shop"), limit=limit)] == whole

    async def test_unfinished_runs_in_order_of_session_and_no(self, store: Store) -> None:
        for n, id_ in enumerate(("s2", "s1", "s2", "s1")):
            await store.submit(new_run(f"r{n}", session_key(id_)), begin=n == 0)
        waiting = await start(store, "r5", session_key("s1"))
        await ask(store, waiting, 1)
        await finished(store, "r6", session_key("s1"), "x")
        await start(store, "r7", session_key("s1", user_id="aaron"))
        await start(store, "r8", session_key(app_name="other"))
        found = [(r.user_id, r.session_id, r.no, r.status.value) for r in await store.unfinished("shop")]
        assert found == [
            ("aaron", "s1", 1, "running"), ("alice", "s1", 1, "queued"), ("alice", "s1", 2, "queued"),
            ("alice", "s1", 3, "waiting"), ("alice", "s2", 1, "running"), ("alice", "s2", 2, "queued"),
        ]  # fmt: skip
        assert await store.unfinished("nobody") == []

    # -- the store itself -------------------------------------------------------------------------------------------

    async def test_is_a_store(self, store: Store) -> None:
        assert isinstance(store, Store)

    async def test_becoming_the_executor_again_is_fine(self, store: Store) -> None:
        await store.become_executor()
        await store.become_executor()
        await start(store)
        assert await store.changes() == []

    async def test_closing_twice_is_fine(self, store: Store) -> None:
        await start(store)
        await store.close()
        await store.close()

    async def test_reopen_keeps_runs(self, store: Store) -> None:
        if not self.durable:
            pytest.skip("this store lives as long as its object")
        run = await start(store, "r1", config={"max_turns": 3}, custom_metadata={"a": [1]}, attached=True)
        await write(
            store, run, event(run, 1, "x", state={"a": 1}, usage_metadata={"total_token_count": 7}), steps=[step("k", [1])]
        )
        await ask(store, run, 2)
        await finished(store, "r2", None, "done")
        queued = (await store.submit(new_run("r3"), begin=False)).record
        before = await read_world(store, ["shop"])
        store = await self.reopen(store)
        assert_same_world(await read_world(store, ["shop"]), before)
        await reply(store, run)
        begun = await store.begin(run.uid)
        assert begun.session.state == {}
        assert [s.result for s in begun.steps] == [[1]]
        await write(store, begun.record, event(begun.record, 1, "other"))
        assert (await store.get_session(app_name="shop", user_id="alice", session_id="s1")).state == {}
        assert (await store.begin(queued.uid)).record.no == 3
        assert (await start(store, "r4")).uid not in {run.uid, queued.uid}


async def _in_status(store: Store, status: RunStatus) -> RunRecord:
    """A run in a given status, with one event by its first attempt where there was one."""
    if status is RunStatus.QUEUED:
        return (await store.submit(new_run(), begin=False)).record
    run = await start(store)
    if status is RunStatus.WAITING:
        return (await ask(store, run, 1)).record
    if status is RunStatus.RUNNING:
        return (await write(store, run, event(run, 1, "x"))).record
    by = next(t.move for t in TRANSITIONS if t.source is RunStatus.RUNNING and t.target is status)
    return (await write(store, run, event(run, 1, "x"), move=by, error=failure())).record

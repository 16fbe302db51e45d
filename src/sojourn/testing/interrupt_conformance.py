"""The cases on questions to people: asking, waiting, answering once, expiring."""

# A case is told by its name.

from __future__ import annotations

from typing import Any

import pytest

from sojourn.errors import Conflict, InvalidInput, NotFound
from sojourn.run.status import Move, RunStatus
from sojourn.run.store import Store
from sojourn.run.types import RunRecord
from sojourn.testing.builders import (
    answer_event,
    ask,
    event,
    failure,
    next_attempt,
    question,
    question_event,
    reply,
    session_key,
    start,
    write,
)
from sojourn.testing.suite import StoreSuite, manual_clock, raises, unchanged


class InterruptConformance(StoreSuite):
    """Questions outlive everything and are answered once."""

    # -- asking -----------------------------------------------------------------------------------------------------

    async def test_a_question_is_stored_whole(self, store: Store) -> None:
        run = await start(store)
        with manual_clock() as clock:
            given = question(
                "q1", key="tour/approve", digest="d1", prompt={"ask": ["\x00", 2**70]}, schema={"type": "string"},
                expires_at=clock.now() + 60, kind="confirm", call_id="call-1",
            )  # fmt: skip
            record = (await write(store, run, question_event(run, 1, "q1"), interrupts=[given], move=Move.WAIT)).record
        assert record.status is RunStatus.WAITING
        [stored] = await store.list_interrupts("shop")
        assert (stored.id, stored.key, stored.digest, stored.prompt) == ("q1", "tour/approve", "d1", {"ask": ["\x00", 2**70]})
        assert (stored.schema, stored.status, stored.answer) == ({"type": "string"}, "open", None)
        assert (stored.created_at, stored.expires_at, stored.answered_at) == (clock.now(), clock.now() + 60, None)
        assert (stored.run_id, stored.app_name, stored.user_id, stored.session_id) == ("r1", "shop", "alice", "s1")
        assert (stored.kind, stored.call_id) == ("confirm", "call-1")

    async def test_a_waiting_run_survives_a_reopen(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1, prompt={"ask": [1]}, schema={"type": "string"})
        before = await store.list_interrupts("shop")
        store = await self.reopen(store)
        assert await store.list_interrupts("shop") == before
        assert (await reply(store, run, "q1", {"ok": True})).recorded
        store = await self.reopen(store)
        assert not (await reply(store, run, "q1", {"ok": True})).recorded
        begun = await store.begin(run.uid)
        assert [(i.status, i.answer) for i in begun.interrupts] == [("answered", {"ok": True})]

    async def test_questions_are_copies(self, store: Store) -> None:
        run = await start(store)
        prompt, schema, answer = {"list": [1]}, {"enum": [1]}, {"list": [1]}
        await ask(store, run, 1, prompt=prompt, schema=schema)
        await reply(store, run, "q1", answer)
        for value in (prompt["list"], schema["enum"], answer["list"]):
            value.append(2)
        [leaked] = await store.list_interrupts("shop", open_only=False)
        leaked.prompt["list"].append(3)
        assert leaked.schema is not None
        leaked.schema["enum"].append(3)
        leaked.answer["list"].append(3)
        [kept] = await store.list_interrupts("shop", open_only=False)
        assert (kept.prompt, kept.schema, kept.answer) == ({"list": [1]}, {"enum": [1]}, {"list": [1]})

    async def test_asking_differently_drops_the_older_question(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, interrupts=[question("q1", key="k", digest="old"), question("q2", key="other", digest="old")])
        await write(store, run, interrupts=[question("q3", key="k", digest="new")])
        assert await _statuses(store) == {"q1": "dropped", "q2": "open", "q3": "open"}
        async with unchanged(store):
            with raises(Conflict, "interrupt.closed"):
                await reply(store, run, "q1")

    async def test_asking_differently_keeps_an_answer(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, interrupts=[question("q1", key="k", digest="old")])
        await reply(store, run)
        await write(store, run, interrupts=[question("q2", key="k", digest="new")])
        assert await _statuses(store) == {"q1": "answered", "q2": "open"}

    async def test_asking_again_leaves_the_question_as_it_is(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, interrupts=[question("q1", prompt="first")])
        await write(store, run, interrupts=[question("q1", prompt="second")])
        await reply(store, run)
        await write(store, run, interrupts=[question("q1", prompt="third")])
        [kept] = await store.list_interrupts("shop", open_only=False)
        assert (kept.prompt, kept.status) == ("first", "answered")

    async def test_runs_may_ask_under_the_same_id(self, store: Store) -> None:
        first, second = await start(store, "r1"), await start(store, "r2")
        await ask(store, first, 1, "q1")
        await ask(store, second, 1, "q1", digest="other")
        await reply(store, first, "q1")
        found = await store.list_interrupts("shop", open_only=False)
        assert {i.run_id: i.status for i in found} == {"r1": "answered", "r2": "open"}

    # -- answering --------------------------------------------------------------------------------------------------

    async def test_an_answer_is_recorded_and_logged(self, store: Store) -> None:
        run = await start(store)
        waiting = (await ask(store, run, 1)).record
        with manual_clock() as clock:
            answered = await reply(store, run, "q1", {"ok": [True, None]})
        assert (answered.recorded, answered.record.status) == (True, RunStatus.QUEUED)
        assert (answered.record.attempt, answered.record.last_pos) == (1, waiting.last_pos)
        assert await store.get_run("shop", "r1") == answered.record
        [interrupt] = await store.list_interrupts("shop", open_only=False)
        assert (interrupt.status, interrupt.answer, interrupt.answered_at) == ("answered", {"ok": [True, None]}, clock.now())
        logged = (await store.list_events(app_name="shop", user_id="alice", session_id="s1"))[-1]
        assert (logged.seq, logged.pos, logged.ordinal, logged.author, logged.run_id) == (3, None, None, "user", "r1")
        assert logged.get_function_responses()[0].response == {"result": {"ok": [True, None]}}
        assert [e.pos for e in await store.run_events(run.uid)] == [2]
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        assert session.updated_at == clock.now()

    async def test_the_same_answer_again_is_a_noop(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)
        await reply(store, run, "q1", {"a": 1, "b": 2})
        async with unchanged(store):
            again = await reply(store, run, "q1", {"b": 2, "a": 1})
        assert (again.recorded, again.record) == (False, await store.get_run("shop", "r1"))
        record = (await store.begin(run.uid)).record
        await write(store, record, move=Move.COMPLETE)
        async with unchanged(store):
            assert not (await reply(store, run, "q1", {"a": 1, "b": 2})).recorded

    @pytest.mark.parametrize("other", ["no", None, True, 1.0, [1], {"a": 1}], ids=repr)
    async def test_another_answer_is_a_conflict(self, store: Store, other: Any) -> None:
        run = await start(store)
        await ask(store, run, 1)
        await reply(store, run, "q1", 1)
        async with unchanged(store):
            with raises(Conflict, "interrupt.conflict"):
                await reply(store, run, "q1", other)

    async def test_none_is_an_answer(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)
        assert (await reply(store, run, "q1", None)).recorded
        assert not (await reply(store, run, "q1", None)).recorded

    async def test_unknown_question_is_not_found(self, store: Store) -> None:
        run = await start(store, "r1")
        await ask(store, run, 1)
        other = await start(store, "r2")
        async with unchanged(store):
            for asked, interrupt_id in ((run, "q2"), (other, "q1")):
                with raises(NotFound, "interrupt.not_found"):
                    await reply(store, asked, interrupt_id)

    async def test_nan_is_no_answer(self, store: Store) -> None:
        run = await start(store)
        await ask(store, run, 1)
        async with unchanged(store):
            with raises(InvalidInput, "json.invalid"):
                await store.answer(run.uid, "q1", [float("nan")], answer_event(run, "q1", None))

    async def test_an_expired_question_takes_no_answer(self, store: Store) -> None:
        run = await start(store)
        with manual_clock() as clock:
            await ask(store, run, 1, expires_at=clock.now() + 10)
            clock.advance(10)
            async with unchanged(store):
                with raises(Conflict, "interrupt.closed"):
                    await reply(store, run)
            clock.advance(-0.5)
            assert (await reply(store, run)).recorded
            clock.advance(100)
            assert not (await reply(store, run)).recorded

    async def test_a_finished_run_takes_no_answer(self, store: Store) -> None:
        for n, by in enumerate((Move.COMPLETE, Move.FAIL, Move.CANCEL)):
            run = await start(store, f"r{n}")
            await write(store, run, interrupts=[question("q1")])
            await write(store, run, move=by, error=failure())
            async with unchanged(store):
                with raises(Conflict, "interrupt.closed"):
                    await reply(store, run)

    async def test_every_way_to_end_drops_open_questions(self, store: Store) -> None:
        run = await start(store, "taken")
        await write(store, run, interrupts=[question("q1"), question("q2")])
        await reply(store, run, "q2")
        await store.take_over(run.uid, failure(), move=Move.FAIL)
        run = await start(store, "cancelled")
        await ask(store, run, 1, "q3")
        await store.request_cancel(run.uid, "why")
        run = await start(store, "closed")
        await ask(store, run, 1, "q4")
        await store.close_run(run.uid, failure(), move=Move.CANCEL)
        assert await _statuses(store) == {"q1": "dropped", "q2": "answered", "q3": "dropped", "q4": "dropped"}
        assert await store.list_interrupts("shop") == []

    async def test_what_nobody_answered_in_time_is_expired(self, store: Store) -> None:
        run = await start(store)
        with manual_clock() as clock:
            asked = [
                question("soon", expires_at=clock.now() + 5),
                question("late", expires_at=clock.now() + 50),
                question("never"),
            ]
            await write(store, run, interrupts=asked, move=Move.WAIT)
            clock.advance(5)
            await store.close_run(run.uid, failure("run.expired"), move=Move.EXPIRE)
        assert await _statuses(store) == {"soon": "expired", "late": "dropped", "never": "dropped"}

    async def test_two_questions_may_wait(self, store: Store) -> None:
        run = await start(store)
        events = [question_event(run, 1, "q1"), question_event(run, 2, "q2")]
        await write(store, run, *events, interrupts=[question("q1"), question("q2")], move=Move.WAIT)
        assert (await reply(store, run, "q1")).record.status is RunStatus.QUEUED
        assert (await reply(store, run, "q2")).record.status is RunStatus.QUEUED
        begun = await store.begin(run.uid)
        assert {i.id: i.status for i in begun.interrupts} == {"q1": "answered", "q2": "answered"}

    async def test_an_answer_resets_the_deaths(self, store: Store) -> None:
        run = (await next_attempt(store, await start(store))).record
        assert run.deaths == 1
        await ask(store, run, 1)
        assert (await reply(store, run)).record.deaths == 0
        run = (await next_attempt(store, (await store.begin(run.uid)).record)).record
        assert run.deaths == 1
        await write(store, run, interrupts=[question("q2")])
        record = (await reply(store, run, "q2")).record
        assert (record.deaths, record.status) == (0, RunStatus.RUNNING)

    async def test_an_answered_run_is_detached(self, store: Store) -> None:
        run = await start(store, attached=True)
        assert (await ask(store, run, 1)).record.attached
        assert not (await reply(store, run)).record.attached
        assert not (await store.get_run("shop", "r1")).attached

    # -- answered meanwhile -----------------------------------------------------------------------------------------

    async def test_a_run_does_not_wait_for_what_was_answered_meanwhile(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, question_event(run, 1, "q1"), interrupts=[question("q1")])
        assert (await reply(store, run)).record.status is RunStatus.RUNNING
        record = (await write(store, run, move=Move.WAIT)).record
        assert record.status is RunStatus.QUEUED
        second = (await store.begin(run.uid)).record
        record = (await write(store, second, question_event(second, 1, "q1"), event(second, 2, "x"), move=Move.WAIT)).record
        assert record.status is RunStatus.WAITING

    async def test_an_answer_between_attempts_is_seen_by_the_next(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, interrupts=[question("q1"), question("q2")], move=Move.WAIT)
        await reply(store, run, "q1")
        await reply(store, run, "q2")
        second = (await store.begin(run.uid)).record
        assert (await write(store, second, move=Move.WAIT)).record.status is RunStatus.WAITING

    # -- listing ----------------------------------------------------------------------------------------------------

    async def test_questions_are_listed_oldest_first(self, store: Store) -> None:
        with manual_clock() as clock:
            runs: list[RunRecord] = []
            keys = [session_key("s2"), session_key("s1"), session_key("s1", user_id="bob"), session_key(app_name="other")]
            for n, key in enumerate(keys):
                clock.advance(1)
                run = await start(store, f"r{n}", key)
                await ask(store, run, 1, f"q{n}")
                runs.append(run)
        await reply(store, runs[0], "q0")

        async def ids(app_name: str = "shop", **filters: Any) -> list[str]:
            return [i.id for i in await store.list_interrupts(app_name, **filters)]

        assert await ids() == ["q1", "q2"]
        assert await ids(open_only=False) == ["q0", "q1", "q2"]
        assert await ids(user_id="alice", open_only=False) == ["q0", "q1"]
        assert await ids(user_id="alice", session_id="s2", open_only=False) == ["q0"]
        assert await ids(session_id="s1") == ["q1", "q2"]
        assert await ids(run_uid=runs[2].uid) == ["q2"]
        assert await ids(run_uid=runs[0].uid) == []
        assert await ids("other") == ["q3"]
        assert await ids("nobody") == []
        assert await ids(user_id="alice", run_uid=runs[2].uid) == []


async def _statuses(store: Store) -> dict[str, str]:
    return {i.id: i.status for i in await store.list_interrupts("shop", open_only=False)}

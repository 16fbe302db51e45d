"""The cases on the ledger: what users have spent, counted once and for good."""

# A case is told by its name.

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sojourn.errors import Conflict, Fenced, InvalidInput, Unavailable
from sojourn.event import Usage
from sojourn.run.status import Move
from sojourn.run.store import RunStore, Store
from sojourn.run.types import RunRecord
from sojourn.run.usage import HOUR, MAX_COUNT
from sojourn.session.types import SessionKey
from sojourn.testing.builders import attempt, event, failure, finished, next_attempt, session_key, start, write
from sojourn.testing.clock import NOON
from sojourn.testing.suite import StoreSuite, manual_clock, raises

_HOUR = int(NOON) // HOUR * HOUR
"""The hour in which a manual clock starts."""


class UsageConformance(StoreSuite):
    """Tokens are summed per user, by the hour, whatever becomes of the sessions."""

    async def test_usage_is_summed_per_user(self, store: Store) -> None:
        run, other = await start(store, "r1"), await start(store, "r2", session_key("s2"))
        usage = Usage(prompt_token_count=5, candidates_token_count=3, total_token_count=8, thoughts_token_count=1)
        await write(store, run, event(run, 1, "a", usage_metadata=usage), event(run, 2, "b"))
        await write(store, run, event(run, 3, "c", usage_metadata=usage))
        await write(store, other, event(other, 1, "a", usage_metadata=Usage(total_token_count=4, cached_content_token_count=2)))
        for key in (SessionKey("shop", "bob", "s1"), SessionKey("desk", "alice", "s1")):
            await _spend(store, await start(store, "r1", key), 1, 100)
        total = (await store.user_usage("shop", "alice")).total
        assert total == Usage(
            prompt_token_count=10, candidates_token_count=6, total_token_count=20, cached_content_token_count=2,
            thoughts_token_count=2,
        )  # fmt: skip
        assert [await _spent(store, *who) for who in (("shop", "bob"), ("desk", "alice"), ("desk", "bob"))] == [100, 100, 0]

    async def test_who_has_spent_nothing_has_no_hours(self, store: Store) -> None:
        run = await start(store)
        await write(store, run, event(run, 1, "a"), event(run, 2, "b", usage_metadata=Usage()))
        for user in ("alice", "nobody"):
            assert await store.user_usage("shop", user) == (Usage(), [])

    async def test_usage_is_kept_by_the_hour(self, store: Store) -> None:
        with manual_clock() as clock:
            run = await start(store)
            clock.advance(_HOUR + HOUR - 1 - clock.now())
            await _spend(store, run, 1, 1)
            clock.advance(0.5)
            await _spend(store, run, 2, 2)
            clock.advance(0.5)
            await _spend(store, run, 3, 4)
            clock.advance(5 * HOUR)
            await _spend(store, run, 4, 8)
            clock.advance(-5 * HOUR)
            await _spend(store, run, 5, 16)
        found = await store.user_usage("shop", "alice")
        hours = [(_HOUR, 3), (_HOUR + HOUR, 20), (_HOUR + 6 * HOUR, 8)]
        assert [(b.hour, b.usage.total_token_count) for b in found.buckets] == hours
        assert found.total.total_token_count == 31

    async def test_usage_since_a_time_has_its_hour_as_a_whole(self, store: Store) -> None:
        with manual_clock() as clock:
            run = await start(store)
            for ordinal in (1, 2, 3):
                await _spend(store, run, ordinal, 10**ordinal)
                clock.advance(HOUR)
        times: dict[float, int] = {
            0: 1110, _HOUR - 0.5: 1110, _HOUR: 1110, _HOUR + HOUR - 0.5: 1110, _HOUR + HOUR: 1100, _HOUR + 2 * HOUR - 0.5: 1100,
            _HOUR + 2 * HOUR: 1000, _HOUR + 3 * HOUR - 0.5: 1000, _HOUR + 3 * HOUR: 0,
        }  # fmt: skip
        for since, spent in times.items():
            found = await store.user_usage("shop", "alice", since)
            assert found.total.total_token_count == sum(b.usage.total_token_count for b in found.buckets) == spent, since

    async def test_a_repeated_event_is_counted_once(self, store: Store) -> None:
        run = await start(store)
        first = event(run, 1, "a", usage_metadata=Usage(total_token_count=5))
        await write(store, run, first, first)
        await write(store, run, first, event(run, 2, "b", usage_metadata=Usage(total_token_count=2)))
        second = (await next_attempt(store, run)).record
        again = [event(second, n, text, usage_metadata=Usage(total_token_count=100)) for n, text in ((1, "a"), (2, "b"))]
        await write(store, second, *again, move=Move.COMPLETE)
        assert await _spent(store) == 7

    async def test_what_ceases_to_count_stays_spent(self, store: Store) -> None:
        run = await start(store)
        await _spend(store, run, 1, 5)
        second = (await next_attempt(store, run)).record
        other = event(second, 1, "other", usage_metadata=Usage(total_token_count=2))
        await write(store, second, other, move=Move.FAIL, error=failure())
        repeat = await start(store, "r2", retry_of="r1")
        await _spend(store, repeat, 1, 1, move=Move.COMPLETE)
        assert await _spent(store) == 8

    async def test_deleting_a_session_gives_no_tokens_back(self, store: Store) -> None:
        run = await start(store)
        await _spend(store, run, 1, 5)
        before = await store.user_usage("shop", "alice")
        await store.delete_session(app_name="shop", user_id="alice", session_id="s1")
        assert await store.user_usage("shop", "alice") == before
        await finished(store, "r1", None, "a")
        assert await store.user_usage("shop", "alice") == before
        await _spend(store, await start(store, "r2"), 1, 2)
        await store.delete_session(app_name="shop", user_id="alice", session_id="s1")
        assert await _spent(store) == 7

    async def test_what_is_refused_is_not_spent(self, store: Store) -> None:
        run = await start(store)
        usage = Usage(total_token_count=5)
        await write(store, run, event(run, 1, "a"))
        zombie = attempt(run, 0)
        with raises(Fenced, "run.fenced"):
            await write(store, zombie, event(zombie, 2, "b", usage_metadata=usage))
        with raises(Conflict, "event.conflict"):
            await write(store, run, event(run, 2, "b", usage_metadata=usage), event(run, 1, "other"))
        with raises(InvalidInput, "state.not_a_number"):
            wrong = event(run, 3, "c", state={"n": "text"}), event(run, 4, "d", increments={"n": 1})
            await write(store, run, event(run, 2, "b", usage_metadata=usage), *wrong)
        await write(store, run, move=Move.COMPLETE)
        with raises(Fenced, "run.fenced"):
            await write(store, run, event(run, 2, "b", usage_metadata=usage))
        assert await _spent(store) == 0

    async def test_an_append_can_tell_what_was_spent(self, store: Store) -> None:
        with manual_clock() as clock:
            run, other = await start(store, "r1"), await start(store, "r2", session_key("s2"))
            await _spend(store, other, 1, 5)
            clock.advance(HOUR)
            told = await _spend(store, run, 1, 2, usage_since=0.0)
            assert told.user_usage == await store.user_usage("shop", "alice")
            assert told.user_usage.total.total_token_count == 7
            recent = await _spend(store, run, 1, 2, usage_since=clock.now())
            assert recent.user_usage == await store.user_usage("shop", "alice", clock.now())
            assert recent.user_usage.total.total_token_count == 2
            last = await write(store, run, move=Move.COMPLETE, usage_since=0.0)
            assert last.user_usage == told.user_usage
            assert (await write(store, other)).user_usage is None

    async def test_runs_that_spend_at_once_are_all_counted(self, store: Store) -> None:
        runs = [await start(store, f"r{n}", session_key(f"s{n}")) for n in range(8)]
        for ordinal in (1, 2, 3):
            await asyncio.gather(*(_spend(store, run, ordinal, 1) for run in runs))
        assert await _spent(store) == 24

    async def test_counts_that_cannot_be_are_bounded(self, store: Store) -> None:
        with manual_clock():
            run = await start(store)
            usage = Usage(total_token_count=10**30, prompt_token_count=-5, thoughts_token_count=MAX_COUNT - 1)
            for ordinal in (1, 2):
                await write(store, run, event(run, ordinal, "a", usage_metadata=usage))
            await write(store, run, event(run, 3, "a", usage_metadata=Usage(total_token_count=-5)))
        total = (await store.user_usage("shop", "alice")).total
        assert total == Usage(total_token_count=MAX_COUNT, thoughts_token_count=MAX_COUNT)
        assert (await store.get_run("shop", "r1")).usage["total_token_count"] == 2 * 10**30 - 5

    async def test_usage_is_there_after_reopening(self, store: Store) -> None:
        run = await start(store)
        await _spend(store, run, 1, 5)
        await store.delete_session(app_name="shop", user_id="alice", session_id="s1")
        store = await self.reopen(store)
        assert await _spent(store) == 5

    async def test_whose_usage_is_checked(self, store: Store) -> None:
        for app, user in (("", "alice"), ("shop", ""), ("shop", "a\n")):
            with raises(InvalidInput, "id.invalid"):
                await store.user_usage(app, user)

    async def test_a_failing_database_does_not_tell_of_nothing_spent(self, store: Store) -> None:
        if not self.can_fail:
            pytest.skip("this backend cannot be made to fail")
        await _spend(store, await start(store), 1, 5)
        async with self.failing(store):
            with raises(Unavailable, "store.unavailable"):
                await store.user_usage("shop", "alice")


async def _spend(store: RunStore, run: RunRecord, ordinal: int, tokens: int, **fields: Any) -> Any:
    """Appends an event that tells of tokens; `fields` are those of `Batch`."""
    return await write(store, run, event(run, ordinal, "a", usage_metadata=Usage(total_token_count=tokens)), **fields)


async def _spent(store: RunStore, app_name: str = "shop", user_id: str = "alice") -> int:
    return (await store.user_usage(app_name, user_id)).total.total_token_count

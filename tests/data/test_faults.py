"""The care of data on a store that fails: each of its calls once, before it has written and after."""

import asyncio
import io
import zipfile
from contextlib import asynccontextmanager
from itertools import count, repeat

import pytest

from sojourn.artifact.inmemory import InMemoryArtifactService
from sojourn.data import DataCare, Retention, erasing
from sojourn.errors import Conflict, Fenced, Unavailable
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import event, session_key, start, write
from sojourn.testing.faults import FaultyRetainingStore, fail_after, fail_before, hold
from sojourn.testing.suite import manual_clock, raises
from sojourn.testing.world import assert_same_world, read_world
from tests.data.support import APP, fill

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def noticed_at_once(monkeypatch):
    """No other process executes what is erased here."""
    monkeypatch.setattr(erasing, "NOTICE_SECONDS", 0.0)


class InSmallParts(SqliteSessionService):
    """Removes a few events with each call, so that there are many calls."""

    async def drop_session(self, key, **which):
        return await super().drop_session(key, **{**which, "limit": 6})

    async def trim_session(self, key, **which):
        return await super().trim_session(key, **{**which, "limit": 6})


class Kept:
    """What two users have, on a store that fails on demand."""

    def __init__(self, inner):
        self.store = FaultyRetainingStore(inner)
        self.artifacts, self.memory = InMemoryArtifactService(), InMemoryMemoryService()
        self.care = DataCare(self.store, artifacts=self.artifacts, memory=self.memory)

    async def world(self):
        """All that is kept, beside what the backends keep of what is gone: nothing."""
        inner = self.store.inner
        assert await inner.dropped_sessions(APP) == []
        return {
            **await read_world(inner, [APP]),
            "apps": {user: await inner.apps_of_user(user) for user in ("alice", "bob")},
            "artifacts": {key: len(owned) for key, owned in self.artifacts._users.items()},
            "memories": {user: len((await self.memory.list_memories(APP, user)).items) for user in ("alice", "bob")},
        }


@asynccontextmanager
async def kept_on(path=None):
    """The same at the same time, each time anew, in RAM or in a file."""
    with manual_clock() as clock:
        kept = Kept(InMemorySessionService() if path is None else InSmallParts(path, synchronous="normal"))
        for user in ("alice", "bob"):
            await fill(kept.store.inner, kept.artifacts, kept.memory, user, word=f"{user}s", sessions=2 if path is None else 1)
            clock.advance(10)
        yield kept
        await kept.store.inner.close()


async def drop(care):
    await care.prune(APP, Retention(ttl=15.0))


async def trim(care):
    await care.prune(APP, Retention(max_events=4, max_age=1e9))


async def erase(care):
    await care.erase("alice")


def each(calls):
    """Each call of each method, by its number."""
    return [(method, number) for method, calls_of_it in calls.items() for number in range(1, calls_of_it + 1)]


@pytest.mark.parametrize("backend", ["ram", "sqlite"])
@pytest.mark.parametrize("work", [drop, trim, erase])
async def test_what_a_fault_has_cut_off_is_done_by_the_next_call(work, backend, tmp_path):
    paths = repeat(None) if backend == "ram" else (tmp_path / f"{n}.db" for n in count())
    async with kept_on(next(paths)) as kept:
        await work(kept.care)
        expected, calls = await kept.world(), dict(kept.store.calls)
    assert len(calls) >= 2
    for method, number in each(calls):
        for fault in (fail_before(method, number), fail_after(method, number)):
            async with kept_on(next(paths)) as kept:
                kept.store.plan.append(fault)
                with raises(Unavailable, "store.unavailable"):
                    await work(kept.care)
                kept.store.plan.clear()
                await work(kept.care)
                assert_same_world(await kept.world(), expected)


async def test_an_export_that_a_fault_cuts_off_says_so():
    async with kept_on() as kept:
        pieces = [piece async for piece in kept.care.export("alice")]
        calls = dict(kept.store.calls)
        assert zipfile.ZipFile(io.BytesIO(b"".join(pieces))).namelist()[-1] == "end.json"
        for method, number in each(calls):
            kept.store.calls.clear()
            kept.store.plan[:] = [fail_before(method, number)]
            taken = []
            with raises(Unavailable, "store.unavailable"):
                async for piece in kept.care.export("alice"):
                    taken.append(piece)
            assert b"end.json" not in b"".join(taken)


async def test_a_report_that_a_fault_cuts_off_says_so():
    async with kept_on() as kept:
        for method in ("list_apps", "session_sizes"):
            kept.store.plan[:] = [fail_before(method)]
            with raises(Unavailable, "store.unavailable"):
                await kept.care.report()


# -- meanwhile --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "call"), [("drop_session", 2), ("settle_dropped", 2), ("erase_user", 1)])
async def test_a_run_that_is_submitted_while_its_user_is_erased(method, call):
    async with kept_on() as kept:
        held = hold(method, call)
        kept.store.plan.append(held)
        erasing_ = asyncio.create_task(kept.care.erase("alice"))
        await held.reached.wait()
        run = await start(kept.store.inner, "now", session_key("s1"))
        held.go.set()
        if method == "drop_session":
            await erasing_
        else:
            with raises(Conflict, "data.user_active"):
                await erasing_
            assert (await kept.store.inner.get_run(APP, "now", "alice")).id == "now"
            await kept.care.erase("alice")
        with raises(Fenced, "run.fenced"):
            await write(kept.store.inner, run, event(run, 1, "Hi."))
        assert (await kept.world())["apps"] == {"alice": [], "bob": [APP]}


async def test_a_session_that_is_used_while_it_is_pruned_stays():
    async with kept_on() as kept:
        held = hold("drop_session", 1)
        kept.store.plan.append(held)
        pruning = asyncio.create_task(drop(kept.care))
        await held.reached.wait()
        (first, *others) = [s.id for s in (await kept.store.inner.list_sessions(app_name=APP, user_id="alice")).items]
        await start(kept.store.inner, "now", session_key(first))
        held.go.set()
        await pruning
        assert [s.id for s in (await kept.store.inner.list_sessions(app_name=APP, user_id="alice")).items] == [first]
        assert others

"""What is told to an executor while it writes itself: what others did, and nothing that it did."""

import asyncio

from sojourn.run.status import RunStatus
from sojourn.store.inmemory import InMemorySessionService
from sojourn.store.postgres.watch import Watch
from sojourn.testing.builders import new_run
from sojourn.testing.loop import for_seeds


class Tables:
    """Gives the same rows to every look, which a test lets wait."""

    def __init__(self):
        self.rows = []
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def all(self, sql, *args):
        if "= ANY" in sql:
            return []
        rows = list(self.rows)
        self.asked.set()
        await self.answer.wait()
        return rows


async def running_run():
    return (await InMemorySessionService().submit(new_run("r1"), begin=True)).record


async def look_while(tables, watch, work):
    """What a look tells that has read the tables before some work, and compares them after it."""
    looking = asyncio.ensure_future(watch.look(tables))
    await tables.asked.wait()
    await work()
    tables.answer.set()
    return await looking


@for_seeds(5)
async def test_a_run_that_begins_meanwhile_is_not_taken_for_closed():
    tables, watch = Tables(), Watch()
    watch.started = True
    record = await running_run()

    async def begin():
        with watch.writing(record.uid):
            await asyncio.sleep(0)
            watch.saw(record)

    assert await look_while(tables, watch, begin) == []
    tables.rows = [(record.uid, "running", 1, False, "r1")]
    assert await watch.look(tables) == []
    tables.rows = []
    assert [(c.kind, c.run_uid) for c in await watch.look(tables)] == [("closed", record.uid)]


@for_seeds(5)
async def test_a_run_that_is_just_recorded_is_not_taken_for_somebody_elses():
    tables, watch = Tables(), Watch()
    watch.started = True
    record = (await running_run()).evolve(status=RunStatus.QUEUED)
    tables.rows = [(record.uid, "queued", 0, False, "r1")]
    with watch.submitting("r1"):
        tables.answer.set()
        assert await watch.look(tables) == []
        watch.saw(record)
    assert await watch.look(tables) == []
    tables.rows.append((record.uid + 1, "queued", 0, False, "r2"))
    assert [(c.kind, c.run_uid) for c in await watch.look(tables)] == [("queued", record.uid + 1)]


@for_seeds(5)
async def test_a_cancel_of_its_own_is_not_told_and_somebody_elses_is():
    tables, watch = Tables(), Watch()
    watch.started = True
    record = await running_run()
    watch.saw(record)
    tables.rows = [(record.uid, "running", 1, True, "r1")]

    async def cancel():
        with watch.writing(record.uid):
            await asyncio.sleep(0)
            watch.asked(record)

    assert await look_while(tables, watch, cancel) == []
    assert await watch.look(tables) == []
    other = record.evolve(uid=record.uid + 1)
    watch.saw(other)
    tables.rows.append((other.uid, "running", 1, True, "r2"))
    assert [(c.kind, c.run_uid) for c in await watch.look(tables)] == [("cancel", other.uid)]
    assert await watch.look(tables) == []


@for_seeds(5)
async def test_a_run_that_is_recorded_and_begun_meanwhile_is_not_taken_for_closed():
    tables, watch = Tables(), Watch()
    watch.started = True
    record = await running_run()

    async def submit():
        with watch.submitting("r1"):
            await asyncio.sleep(0)
            watch.saw(record)

    assert await look_while(tables, watch, submit) == []
    tables.rows = [(record.uid, "running", 1, False, "r1")]
    assert await watch.look(tables) == []


@for_seeds(5)
async def test_a_run_that_another_process_has_taken_up_again_is_told_once():
    tables, watch = Tables(), Watch()
    watch.started = True
    tables.answer.set()
    record = await running_run()
    watch.saw(record)
    tables.rows = [(record.uid, "running", 2, False, "r1")]
    assert [(c.kind, c.run_uid) for c in await watch.look(tables)] == [("closed", record.uid)]
    assert await watch.look(tables) == []
    watch.saw(record.evolve(attempt=2))
    assert await watch.look(tables) == []


@for_seeds(5)
async def test_of_two_looks_at_once_one_tells():
    tables, watch = Tables(), Watch()
    watch.started = True
    record = await running_run()
    watch.saw(record)
    first = asyncio.ensure_future(watch.look(tables))
    await tables.asked.wait()
    assert await watch.look(tables) == []
    tables.answer.set()
    assert [(c.kind, c.run_uid) for c in await first] == [("closed", record.uid)]


@for_seeds(1)
async def test_who_never_looks_keeps_nothing():
    watch = Watch()
    record = await running_run()
    with watch.writing(record.uid), watch.submitting("r1"):
        watch.saw(record)
    watch.forget([record.uid])
    assert not any((watch._touched, watch._submitted, watch._writing, watch._submitting))

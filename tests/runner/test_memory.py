"""M1 and S2: what a run has said is added to memory at its end, whatever the length of its session."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from sojourn import platform
from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import InvalidInput, NotFound, Unavailable, Unsupported
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.page import MAX_PAGE
from sojourn.run.status import RunStatus
from sojourn.runner import additions
from sojourn.runner.plugins import Plugin
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.builders import event, start, write
from sojourn.testing.faults import FaultyStore, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import APP, KEY, SESSION, USER, dropped, idle, log_of, make_runner, outcome_of, process


class CountsEvents(FaultyStore):
    """Counts the events that are read from a store."""

    read = 0

    async def _call(self, method, work):
        found = await super()._call(method, work)
        events = {
            "list_events": lambda: found,
            "run_events": lambda: found,
            "history": lambda: [*found.events, *found.pinned],
            "get_session": lambda: found.events,
        }
        self.read += len(events[method]()) if method in events else 0
        return found


class CountsAdditions(InMemoryMemoryService):
    """Counts the events that it is given, and fails while it is away."""

    def __init__(self):
        super().__init__()
        self.given = []
        self.away = False

    async def add_session(self, app_name, user_id, session_id, events):
        await self._add(events)
        await super().add_session(app_name, user_id, session_id, events)

    async def add_events(self, app_name, user_id, session_id, events):
        await self._add(events)
        await super().add_events(app_name, user_id, session_id, events)

    async def _add(self, events):
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("memory is away", code="memory.unavailable")
        self.given.append(len(events))


async def remembered(memory, session_id=SESSION):
    """The texts in memory that came from a session, sorted."""
    entries = []
    after = None
    while True:
        page = await memory.list_memories(APP, USER, limit=1000, after=after)
        entries += page.items
        after = page.next
        if after is None:
            return sorted(entry.text for entry in entries if entry.session_id == session_id)


async def texts_of(store):
    """The texts that count in the session's log, sorted."""
    return sorted(e.text for e in await log_of(store) if e.text)


def ingesting(agent, store, memory, **fields):
    return make_runner(agent, store, memory_service=memory, memory_ingest="on_run_end", **fields)


@agent
async def helper(ctx):
    """Says three things, each of them another one."""
    for n in range(3):
        yield Content("model").with_text(f"{ctx.user_content.text} {n}")


# -- the cost -----------------------------------------------------------------------------------------------------------


async def fill(store, count):
    """A run in the session that has said as many things."""
    run = await start(store, "before", KEY, "earlier")
    for first in range(1, count + 1, 500):
        await write(store, run, *(event(run, n, f"earlier {n}") for n in range(first, min(first + 500, count + 1))))
    await write(store, run, move="complete")


async def cost_of_a_run(inner, length):
    """How many events a run reads, and gives to memory, in a session of that length."""
    await fill(inner, length)
    store, memory = CountsEvents(inner), CountsAdditions()
    runner = ingesting(helper, store, memory)
    for text in ("one", "two"):
        store.read = 0
        memory.given.clear()
        await (await runner.start(USER, SESSION, text)).result()
        await runner.hub.settle(10)
    assert await remembered(memory) == [f"{text}{n}" for text in ("one", "two") for n in ("", " 0", " 1", " 2")]
    return store.read, memory.given


@pytest.mark.parametrize("length", [10, 3000])
def test_adding_a_run_reads_its_own_events_and_no_others(length):
    @for_seeds(1)
    async def case():
        assert await cost_of_a_run(InMemorySessionService(), length) == (3, [4])

    case()


@pytest.mark.anyio
@pytest.mark.parametrize("length", [10, 3000])
async def test_adding_a_run_reads_its_own_events_and_no_others_in_a_database(tmp_path, length):
    store = DatabaseSessionService(f"sqlite:///{tmp_path}/sessions.db")
    try:
        assert await cost_of_a_run(store, length) == (3, [4])
    finally:
        await store.close()


@for_seeds(1)
async def test_a_long_run_is_added_in_pages():
    store, memory = CountsEvents(InMemorySessionService()), CountsAdditions()
    said = MAX_PAGE + 5

    @agent
    async def talker(ctx):
        for n in range(said):
            yield Content("model").with_text(f"{n}")

    runner = ingesting(talker, store, memory)
    await (await runner.start(USER, SESSION, "go")).wait()
    await idle()
    assert await remembered(memory) == sorted(["go", *(f"{n}" for n in range(said))])
    assert (store.read, memory.given) == (said, [1 + MAX_PAGE, 5])


# -- what is there ------------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_runs_and_their_session_are_added_once_each():
    store, memory = InMemorySessionService(), InMemoryMemoryService()
    runner = ingesting(helper, store, memory)
    for text in ("one", "two"):
        await (await runner.start(USER, SESSION, text)).result()
        await idle()
        assert await remembered(memory) == await texts_of(store)
    before = await memory.list_memories(APP, USER)
    await memory.add(APP, USER, [Memory("a note", id="note", session_id=SESSION)])
    await runner.add_session_to_memory(USER, SESSION)
    await memory.forget(APP, USER, ids=["note"])
    assert await memory.list_memories(APP, USER) == before
    assert await remembered(memory, "other") == []


@for_seeds(5)
async def test_a_run_that_took_another_way_leaves_nothing_of_the_first_in_memory():
    store, memory = InMemorySessionService(), InMemoryMemoryService()

    @agent
    async def wavering(ctx):
        yield Content("model").with_text("same")
        yield Content("model").with_text(f"attempt {ctx.attempt}")
        if ctx.attempt == 1:
            await asyncio.Event().wait()

    fields = {"memory_service": memory, "memory_ingest": "on_run_end"}
    async with process(wavering, store, **fields) as first:
        run = await first.runner.start(USER, SESSION, "go")
        await idle()
        await first.runner.add_session_to_memory(USER, SESSION)
        assert await remembered(memory) == ["attempt 1", "go", "same"]
        first.die()
        async with process(wavering, store, enter=True, **fields) as second:
            assert await (await second.runner.follow(run.id)).result() == "attempt 2"
    assert await remembered(memory) == await texts_of(store) == ["attempt 2", "go", "same"]


@for_seeds(5)
async def test_what_a_person_answered_belongs_to_the_run():
    store, memory = InMemorySessionService(), InMemoryMemoryService()

    @agent
    async def asking(ctx):
        yield Content("model").with_text("hello")
        if ctx.user_content.text == "ask":
            yield Content("model").with_text(f"you said {await ctx.ask('q', 'what?')}")

    runner = ingesting(asking, store, memory)
    run = await runner.start(USER, SESSION, "ask")
    await run.wait()
    await (await runner.start(USER, SESSION, "meanwhile")).result()
    await idle()
    assert await remembered(memory) == ["hello", "meanwhile"]
    await (await runner.answer(run.id, (await run.interrupts())[0].id, "yes")).result()
    await idle()
    assert await remembered(memory) == await texts_of(store)


@for_seeds(5)
async def test_a_retry_replaces_all_the_runs_that_it_repeats():
    store, memory = InMemorySessionService(), InMemoryMemoryService()
    tries = []

    @agent
    async def failing(ctx):
        tries.append(ctx.run_id)
        yield Content("model").with_text(f"try {len(tries)}")
        if len(tries) < 3:
            raise ValueError("broken")

    runner = ingesting(failing, store, memory)
    run = await runner.start(USER, SESSION, "go")
    await run.wait()
    await idle()
    assert await remembered(memory) == [], "only completed runs are added"
    await runner.add_session_to_memory(USER, SESSION)
    assert await remembered(memory) == ["go", "try 1"]
    for number in (2, 3):
        run = await runner.retry(run.id)
        await run.wait()
        await idle()
        assert run.status is (RunStatus.COMPLETED if number == 3 else RunStatus.FAILED)
    assert await remembered(memory) == await texts_of(store) == ["go", "try 3"]


@agent
async def reminded(ctx):
    """Says what it was told, and tells which of it was in memory."""
    shown.append(sorted(memory.text for memory in ctx.memories))
    if ctx.user_content.text == "fail":
        raise ValueError("broken")
    yield Content("model").with_text(f"you said {ctx.user_content.text}")


shown = []


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled at once"])
def test_what_is_superseded_is_forgotten_before_the_new_run_looks(ending):
    @for_seeds(5)
    async def case():
        shown.clear()
        store, memory = InMemorySessionService(), InMemoryMemoryService()
        runner = ingesting(reminded, store, memory)
        runs = []
        for text in ("my cat is Tom", "my dog is Rex", "my bird is Joe"):
            runs.append(await runner.start(USER, SESSION, text))
            await runs[-1].result()
            await idle()
        await memory.add(APP, USER, [Memory(content=Content.of("my fish is Jim"), session_id=SESSION)])
        assert len(await remembered(memory)) == 7
        shown.clear()
        edited = await runner.retry(runs[1].id, "fail" if ending == "failed" else "my dog is Max")
        if ending == "cancelled at once":
            await edited.cancel()
        await edited.wait()
        await idle()
        kept = ["my cat is Tom", "my fish is Jim", "you said my cat is Tom"]
        said = ["my dog is Max", "you said my dog is Max"] if ending == "completed" else []
        assert await remembered(memory) == sorted(kept + said)
        if ending == "completed":
            assert not {text for text in shown[0] if "Rex" in text or "Joe" in text}
            assert "my cat is Tom" in shown[0], "it does look"

    case()


@for_seeds(5)
async def test_what_was_added_by_hand_is_forgotten_too():
    store, memory = InMemorySessionService(), InMemoryMemoryService()
    runner = make_runner(helper, store, memory_service=memory)
    run = await runner.start(USER, SESSION, "one")
    await run.wait()
    await runner.add_session_to_memory(USER, SESSION)
    assert await remembered(memory) == ["one", "one 0", "one 1", "one 2"]
    await (await runner.retry(run.id, "two")).wait()
    await idle()
    assert await remembered(memory) == []


@for_seeds(5)
async def test_a_memory_that_is_away_costs_no_repeat_and_is_made_up_for():
    store, memory = InMemorySessionService(), CountsAdditions()
    runner = ingesting(helper, store, memory)
    run = await runner.start(USER, SESSION, "one")
    await run.wait()
    await idle()
    memory.away = True
    again = await runner.retry(run.id, "two")
    assert await again.result() == "two 2"
    await idle()
    assert await remembered(memory) == ["one", "one 0", "one 1", "one 2"]
    memory.away = False
    await (await runner.start(USER, SESSION, "three")).result()
    await idle()
    assert await remembered(memory) == await texts_of(store)
    assert "one" not in await remembered(memory)


@pytest.mark.parametrize("queued_before", [False, True])
@pytest.mark.parametrize("earlier", [1, 40])
def test_forgetting_reads_no_more_than_what_is_superseded(earlier, queued_before):
    @for_seeds(2)
    async def case():
        store, memory = CountsEvents(InMemorySessionService()), InMemoryMemoryService()
        runner = ingesting(helper, store, memory, max_concurrency=1)
        for n in range(earlier):
            await (await runner.start(USER, SESSION, f"before {n}")).result()
        run = await runner.start(USER, SESSION, "one")
        await run.wait()
        await idle()
        if queued_before:
            other = await runner.start(USER, "other", "x")
            run = await runner.retry(run.id, "never")
            await run.cancel()
            await other.wait()
            await idle()
        store.read = 0
        await (await runner.retry(run.id, "two")).wait()
        await idle()
        assert store.read == (4 + 1) + 3, "the old run and the new message, then what the new run said"

    case()


@for_seeds(5)
async def test_a_repeat_of_a_run_that_never_began_forgets_what_came_after_it():
    store, memory = InMemorySessionService(), InMemoryMemoryService()
    runner = ingesting(helper, store, memory, max_concurrency=1)
    await (await runner.start(USER, SESSION, "one")).wait()
    await idle()
    hold_it = asyncio.Event()

    @agent
    async def busy(ctx):
        await hold_it.wait()

    other = make_runner(busy, store)
    blocking = await other.start(USER, SESSION, "x")
    never = await other.start(USER, SESSION, "never")
    await never.cancel()
    await blocking.cancel()
    await blocking.wait()
    await (await runner.start(USER, SESSION, "three")).wait()
    await idle()
    assert "three" in await remembered(memory)
    await (await runner.retry(never.id, drop_later=True)).result()
    await idle()
    assert [t for t in await remembered(memory) if t in ("one", "never", "three")] == ["never", "one"]


# -- what may go wrong --------------------------------------------------------------------------------------------------


@for_seeds(5)
async def test_a_memory_that_is_away_costs_no_answer_and_is_made_up_for_by_the_next_run():
    store, memory = CountsEvents(InMemorySessionService()), CountsAdditions()
    runner = ingesting(helper, store, memory)
    await (await runner.start(USER, SESSION, "one")).result()
    await idle()
    memory.away = True
    for text in ("two", "three"):
        run = await runner.start(USER, SESSION, text)
        assert await run.result() == f"{text} 2"
        await idle()
        assert run.status is RunStatus.COMPLETED
    assert await remembered(memory) == ["one", "one 0", "one 1", "one 2"]
    memory.away = False
    await (await runner.start(USER, "other", "else")).result()
    await (await runner.start(USER, SESSION, "four")).result()
    await idle()
    assert await remembered(memory) == await texts_of(store)
    store.read = 0
    memory.given.clear()
    await (await runner.start(USER, SESSION, "five")).result()
    await idle()
    assert (store.read, memory.given) == (3, [4]), "made up for once"


@for_seeds(5)
async def test_what_could_not_be_added_is_added_by_itself_once_memory_is_back():
    store, memory = CountsEvents(InMemorySessionService()), CountsAdditions()
    runner = ingesting(helper, store, memory)
    memory.away = True
    for text in ("one", "two"):
        assert await (await runner.start(USER, SESSION, text)).result() == f"{text} 2"
    await asyncio.sleep(100)
    assert await remembered(memory) == []
    memory.away = False
    await asyncio.sleep(200)
    assert await remembered(memory) == await texts_of(store)
    assert memory.given == [8], "once"
    await asyncio.sleep(10_000)
    assert memory.given == [8]


@for_seeds(3)
async def test_how_long_it_is_until_the_next_try():
    tries = []

    class Away(InMemoryMemoryService):
        async def add_events(self, *args):
            tries.append(platform.monotonic())
            raise Unavailable("away", code="memory.unavailable", retry_after=3.0)

        async def add_session(self, *args):
            tries.append(platform.monotonic())
            if len(tries) == 12:
                raise InvalidInput("no", code="memory.invalid_option")
            raise Unavailable("away", code="memory.unavailable")

    runner = ingesting(helper, InMemorySessionService(), Away())
    await (await runner.start(USER, SESSION, "one")).result()
    await asyncio.sleep(5000)
    waits = [round(after - before) for before, after in itertools.pairwise(tries)]
    assert waits == [3, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300], "and none after an error that stays"


@for_seeds(3)
@pytest.mark.parametrize("ends", ["close", "forget", "delete"])
async def test_nothing_is_tried_again_once_nobody_wants_it(ends):
    memory = CountsAdditions()
    runner = ingesting(helper, InMemorySessionService(), memory)
    memory.away = True
    await (await runner.start(USER, SESSION, "one")).result()
    await asyncio.sleep(5)
    memory.away = False
    match ends:
        case "close":
            await runner.close()
        case "forget":
            await runner.forget_memories(USER)
        case "delete":
            await runner.delete_session(USER, SESSION)
    await asyncio.sleep(1000)
    assert await remembered(memory) == []


@for_seeds(3)
async def test_a_slow_embedder_is_waited_for_by_nobody_and_what_was_said_is_added_once():
    memory = CountsAdditions()
    embedded = asyncio.Event()
    add = memory._add

    async def slowly(events):
        await embedded.wait()
        await add(events)

    memory._add = slowly
    runner = ingesting(helper, InMemorySessionService(), memory)
    for text in ("one", "two"):
        run = await runner.start(USER, SESSION, text)
        assert await run.result() == f"{text} 2"
        assert run.status is RunStatus.COMPLETED
    await asyncio.sleep(50)
    assert memory.given == []
    embedded.set()
    await asyncio.sleep(50)
    assert memory.given == [4, 4]
    assert len(await remembered(memory)) == 8


@for_seeds(3)
async def test_sessions_to_make_up_for_are_bounded():
    memory = CountsAdditions()
    memory.away = True
    runner = ingesting(helper, InMemorySessionService(), memory)
    bound, additions.MAX_MISSED = additions.MAX_MISSED, 2
    try:
        for session_id in ("a", "b", "c"):
            await (await runner.start(USER, session_id, "hi")).result()
            await idle()
        memory.away = False
        for session_id in ("c", "b", "a"):
            memory.given.clear()
            await (await runner.start(USER, session_id, "hi")).result()
            await idle()
            assert memory.given == [4 if session_id == "a" else 8]
    finally:
        additions.MAX_MISSED = bound


@for_seeds(10)
async def test_adding_a_session_by_hand_does_not_remove_what_a_run_adds_meanwhile():
    memory = InMemoryMemoryService()
    store = FaultyStore(InMemorySessionService())
    runner = ingesting(helper, store, memory)
    await (await runner.start(USER, SESSION, "one")).result()
    await idle()
    late = hold("list_events", after=True)
    store.plan.append(late)
    by_hand = asyncio.ensure_future(runner.add_session_to_memory(USER, SESSION))
    await late.reached.wait()
    await (await runner.start(USER, SESSION, "two")).result()
    await idle()
    late.go.set()
    await by_hand
    await idle()
    assert await remembered(memory) == await texts_of(store)


@for_seeds(5)
async def test_a_session_that_is_deleted_while_its_run_is_added():
    memory = InMemoryMemoryService()
    store = CountsEvents(InMemorySessionService())
    runner = ingesting(helper, store, memory)
    late = hold("run_events", 1)
    store.plan.append(late)
    run = await runner.start(USER, SESSION, "one")
    assert await outcome_of(run) == "one 2"
    await late.reached.wait()
    await runner.delete_session(USER, SESSION)
    late.go.set()
    await idle()
    assert await remembered(memory) == []
    with raises(NotFound, "session.not_found"):
        await runner.add_session_to_memory(USER, SESSION)
    store.read = 0
    await (await runner.start(USER, SESSION, "new")).result()
    await idle()
    assert store.read == 3, "there is nothing to make up for"
    assert await remembered(memory) == await texts_of(store)


@for_seeds(5)
async def test_nothing_is_added_any_more_once_a_session_is_deleted():
    reached, go = asyncio.Event(), asyncio.Event()

    class Slow(InMemoryMemoryService):
        async def add_events(self, app_name, user_id, session_id, events):
            reached.set()
            await go.wait()
            await super().add_events(app_name, user_id, session_id, events)

    memory = Slow()
    runner = ingesting(helper, InMemorySessionService(), memory)
    await (await runner.start(USER, SESSION, "one")).result()
    await reached.wait()
    # This one waits for its turn.
    await (await runner.start(USER, SESSION, "two")).result()
    await runner.delete_session(USER, SESSION)
    await memory.forget(APP, USER)
    go.set()
    await idle()
    assert await remembered(memory) == []


# -- forgetting ---------------------------------------------------------------------------------------------------------


class Halting(InMemoryMemoryService):
    """Halts in the middle of an addition if `halts` says so, once; fails while `fails` says so."""

    def __init__(self):
        super().__init__()
        self.halts = False
        self.fails = False
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def add_session(self, app_name, user_id, session_id, events):
        await self._halt(app_name, user_id, session_id, events)
        await super().add_session(app_name, user_id, session_id, events)

    async def add_events(self, app_name, user_id, session_id, events):
        await self._halt(app_name, user_id, session_id, events)
        await super().add_events(app_name, user_id, session_id, events)

    async def _halt(self, app_name, user_id, session_id, events):
        if self.fails:
            raise Unavailable("memory is away", code="memory.unavailable")
        if self.halts:
            self.halts = False
            await super().add_events(app_name, user_id, session_id, events[:1])
            self.reached.set()
            await self.go.wait()


ADDITIONS = ("a run's", "a run's that waits for its turn", "by hand", "by another Runner")


@pytest.mark.parametrize("of", ["the user", "the session"])
@pytest.mark.parametrize("addition", ADDITIONS)
def test_what_is_being_added_does_not_come_back_after_forgetting(addition, of):
    @for_seeds(10)
    async def check():
        memory, store = Halting(), InMemorySessionService()
        runner = ingesting(helper, store, memory)
        other = ingesting(helper, store, memory)
        await (await runner.start(USER, SESSION, "old")).result()
        await (await runner.start("bob", SESSION, "bob's")).result()
        await (await runner.start(USER, "other", "other")).result()
        await idle()
        memory.halts = True
        by_hand = None
        if addition == "by hand":
            by_hand = asyncio.ensure_future(other.add_session_to_memory(USER, SESSION))
        else:
            await (await (other if addition == "by another Runner" else runner).start(USER, SESSION, "new")).result()
        await memory.reached.wait()
        if addition == "a run's that waits for its turn":
            await (await runner.start(USER, SESSION, "newer")).result()
        forgetting = asyncio.ensure_future(runner.forget_memories(USER, session_id=None if of == "the user" else SESSION))
        await idle()
        memory.go.set()
        await forgetting
        await idle()
        if by_hand is not None:
            await by_hand
        assert await remembered(memory) == []
        assert (await remembered(memory, "other") == []) is (of == "the user")
        assert len((await memory.list_memories(APP, "bob")).items) == 4
        await (await runner.start(USER, SESSION, "later")).result()
        await idle()
        assert await remembered(memory) == ["later", "later 0", "later 1", "later 2"], "nothing is made up for"

    check()


@for_seeds(20)
async def test_what_a_run_has_said_that_has_ended_does_not_come_back_however_late_it_would_be_added():
    class Slow(Plugin):
        async def after_run(self, record, error):
            await asyncio.sleep(5)

    memory = InMemoryMemoryService()
    runner = ingesting(helper, InMemorySessionService(), memory, plugins=[Slow()])
    run = await runner.start(USER, SESSION, "one")
    assert await run.result() == "one 2"
    await runner.forget_memories(USER)
    await asyncio.sleep(10)
    assert await remembered(memory) == []


@for_seeds(5)
async def test_what_could_not_be_added_is_not_made_up_for_once_it_is_forgotten():
    memory = Halting()
    runner = ingesting(helper, InMemorySessionService(), memory)
    memory.fails = True
    await (await runner.start(USER, SESSION, "one")).result()
    await idle()
    memory.fails = False
    await runner.forget_memories(USER)
    await (await runner.start(USER, SESSION, "two")).result()
    await idle()
    assert await remembered(memory) == ["two", "two 0", "two 1", "two 2"]


@for_seeds(5)
async def test_forgetting_needs_a_memory_and_ids():
    runner = ingesting(helper, InMemorySessionService(), InMemoryMemoryService())
    for ids in ({"user_id": ""}, {"user_id": USER, "session_id": "a\nb"}):
        with raises(InvalidInput, "id.invalid"):
            await runner.forget_memories(**ids)
    with raises(Unsupported, "memory.not_configured"):
        await make_runner(helper, memory_service=None).forget_memories(USER)


@for_seeds(30)
async def test_forgetting_at_any_moment_leaves_nothing_of_what_had_ended():
    memory, store = CountsAdditions(), InMemorySessionService()
    runners = [ingesting(helper, store, memory) for _ in range(2)]
    ended = []

    async def talk(n):
        await asyncio.sleep(platform.random())
        text = f"text {n}"
        await (await runners[n % 2].start(USER, f"s{n % 3}", text)).result()
        ended.append(text)

    async def forget():
        await asyncio.sleep(platform.random())
        before = list(ended)
        await asyncio.gather(*(runner.forget_memories(USER) for runner in runners))
        return before

    *_, forgotten, again = await asyncio.gather(*(talk(n) for n in range(8)), forget(), forget())
    await idle()
    left = [entry.text for entry in (await memory.list_memories(APP, USER)).items]
    for text in {*forgotten, *again}:
        assert not [entry for entry in left if entry.startswith(text)]


# -- memory services that break their word ------------------------------------------------------------------------------


class Broken(InMemoryMemoryService):
    async def search(self, *args, **options):
        raise RuntimeError("search is broken")

    async def add_events(self, *args, **options):
        raise RuntimeError("adding is broken")


@for_seeds(3)
async def test_a_memory_that_raises_anything_costs_no_answer_and_is_logged(caplog):
    caplog.clear()
    runner = ingesting(helper, InMemorySessionService(), Broken())
    run = await runner.start(USER, SESSION, "one")
    assert await outcome_of(run) == "one 2"
    await idle()
    retried = await runner.retry(run.id)
    assert await outcome_of(retried) == "one 2"
    await idle()
    told = [(r.name, r.getMessage().split(":")[0].split(" with ")[0]) for r in caplog.records if r.levelname == "ERROR"]
    assert set(told) == {
        ("sojourn.run", "memory search failed"),
        ("sojourn.run", f"run {run.id} of session {KEY} was not added to memory"),
        ("sojourn.run", f"what run {retried.id} of session {KEY} repeats was not removed from memory"),
    }


@pytest.mark.parametrize("cancelled", [True, False])
def test_an_addition_that_was_cut_off_with_its_event_loop_is_made_up_for_in_the_next(cancelled):
    memory = CountsAdditions()
    store = FaultyStore(InMemorySessionService())
    runner = ingesting(helper, store, memory)

    async def first():
        stuck = hold("run_events")
        store.plan.append(stuck)
        await (await runner.start(USER, SESSION, "one")).result()
        await stuck.reached.wait()
        store.plan.clear()

    async def second():
        await (await runner.start(USER, SESSION, "two")).result()
        await runner.hub.settle(10)
        assert await remembered(memory) == await texts_of(store)
        assert memory.given == [8]

    if cancelled:
        asyncio.run(first())
        left = set()
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(first())
        left = asyncio.all_tasks(loop)
        assert left, "the addition is under way"
        loop.close()
    asyncio.run(second())
    for task in left:
        task._log_destroy_pending = False


@for_seeds(3)
async def test_closing_waits_for_what_is_being_added():
    memory = InMemoryMemoryService()
    store = FaultyStore(InMemorySessionService())
    runner = ingesting(helper, store, memory)
    late = hold("run_events")
    store.plan.append(late)
    await (await runner.start(USER, SESSION, "one")).result()
    await late.reached.wait()
    closing = asyncio.ensure_future(runner.close())
    await idle()
    assert not closing.done()
    late.go.set()
    await closing
    assert len(await remembered(memory)) == 4
    await dropped(closing)


def test_an_addition_that_was_cut_off_by_the_end_of_its_event_loop_ends_all_the_same():
    to_memory = additions.additions_to(InMemoryMemoryService())
    record = SimpleNamespace(key=KEY)

    async def begin():
        return to_memory.begin(record), to_memory.begin(record)

    first, second = asyncio.run(begin())
    for addition in (first, second, second):
        addition.end()
    assert not first._among

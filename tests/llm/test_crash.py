"""C1 for agents that a model drives: no finished answer is paid for twice, no finished tool call is made again."""

import asyncio
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing

import pytest

from sojourn.agents.llm.tool import ToolContext
from sojourn.run.status import RunStatus
from sojourn.run.store import MAX_DEATHS
from sojourn.runner.runner import Runner
from sojourn.store.database import DatabaseSessionService
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.clock import ManualPlatform
from sojourn.testing.faults import FaultyStore, fail_after, fail_before
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls
from tests.crash.test_kill9 import Processes
from tests.llm import crash_worker
from tests.llm.support import assert_valid_history, crashed, llm, results_in
from tests.runner.support import SESSION, USER, log_of, make_runner, outcome_of, process, state_of

ROUNDS = 30
SEED = 20260102


# -- real processes -----------------------------------------------------------------------------------------------------


async def finish(path, notes_path):
    """Takes up what is left, allows all, and waits for the end; runs, sessions' logs and states."""
    store = DatabaseSessionService(f"sqlite:///{path}")
    agent = crash_worker.make_agent(crash_worker.Notes(notes_path))
    try:
        async with Runner(app_name=crash_worker.APP, agent=agent, session_service=store) as runner:
            while left := await store.unfinished(crash_worker.APP):
                for question in await runner.list_interrupts():
                    await runner.answer(question.run_id, question.id, True, user_id=question.user_id)
                for record in left:
                    await (await runner.follow(record.id)).settled()
            runs, logs, states = {}, {}, {}
            for user in crash_worker.USERS:
                for session in (await store.list_sessions(app_name=crash_worker.APP, user_id=user, limit=1000)).items:
                    run_id = f"r{session.id[1:]}"
                    runs[run_id] = await store.get_run(crash_worker.APP, run_id, user)
                    logs[run_id] = await store.list_events(
                        app_name=crash_worker.APP, user_id=user, session_id=session.id, limit=1000
                    )
                    found = await store.get_session(app_name=crash_worker.APP, user_id=user, session_id=session.id)
                    states[run_id] = found.state
            return runs, logs, states
    finally:
        await store.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_process_that_is_killed_at_random_points_pays_for_nothing_twice(tmp_path):
    chance = ManualPlatform(seed=SEED)
    with Processes(tmp_path, "tests.llm.crash_worker") as processes:
        for _ in range(ROUNDS):
            # How much a process does in a time is the machine's business; how much it has done is not.
            processes.live_and_die(20, lines=int(chance.random() * 80))
        notes = processes.notes()
    assert not [n for n in notes if "broken" in n]
    runs, logs, states = asyncio.run(finish(processes.path, processes.notes_path))
    notes = processes.notes()
    with closing(sqlite3.connect(processes.path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert sum(r.attempt > 1 for r in runs.values()) > ROUNDS / 4, "too few runs were killed to tell"
    assert sum(r.status is RunStatus.COMPLETED for r in runs.values()) > ROUNDS / 3, "too few runs came to their end to tell"
    assert any(r.status is RunStatus.COMPLETED and crash_worker.needs_leave(crash_worker.payment(i)) for i, r in runs.items())
    for note in notes:
        if "started" in note:
            assert note["started"] in runs
    for run_id, record in runs.items():
        check_log(record, logs[run_id])
        own = [n for n in notes if n.get("run") == run_id]
        check_payments(record, own)
        check_order(own)
        if record.status is RunStatus.COMPLETED:
            looks = 3 if crash_worker.hands_over(run_id) else 2
            assert states[run_id] == {"looks": looks, "paid": crash_worker.payment(run_id)}


def check_log(record, log):
    """What counts is what the agents say, once and in order; each call has its response."""
    called = [c.id for e in log for c in e.get_function_calls()]
    assert len(set(called)) == len(called)
    if record.status is not RunStatus.COMPLETED:
        assert record.error.code == "run.crash_loop"
        # The process that was to close it may have died of it, too.
        assert record.deaths >= MAX_DEATHS
        return
    assert sorted(called) == sorted(r.id for e in log for r in e.get_function_responses())
    texts = [(e.author, e.text.strip()) for e in log if e.text and e.author != "user"]
    own = [("root", f"turn {n} of mine.") for n in range(3)]
    if crash_worker.hands_over(record.id):
        own += [("child", f"turn {n} of mine.") for n in range(2)]
    own[-1] = (own[-1][0], f"{own[-1][1]} End.")
    assert texts == own
    given = [r.response["result"] for e in log for r in e.get_function_responses() if r.name in ("look", "pay")]
    looks = ["seen 3"] if crash_worker.hands_over(record.id) else []
    assert given == ["seen 1", "seen 2", f"paid {crash_worker.payment(record.id)}", *looks]


def check_payments(record, notes):
    """Only what was under way when a process died is done again, and under the same key."""
    asked = Counter(n["asked"] for n in notes if "asked" in n)
    called = Counter(n["called"] for n in notes if "called" in n)
    assert sum(asked.values()) - len(asked) <= record.attempt - 1, asked
    for name, count in called.items():
        assert count <= record.attempt, name
    keys = defaultdict(set)
    for note in notes:
        if "called" in note:
            keys[note["called"]].add(note["key"])
    if record.status is RunStatus.COMPLETED:
        assert len(asked) == (5 if crash_worker.hands_over(record.id) else 3)
        assert len(called) == (4 if crash_worker.hands_over(record.id) else 3)
    assert all(len(found) == 1 for found in keys.values()), "the key of a call is the same in all attempts"


def check_order(notes):
    """What a reader was shown is never done again, nor is what came before something that was done."""
    done = set()
    turns = ["root0", "root1", "root2", "child0", "child1"]
    reached = 0
    for note in notes:
        if "asked" in note:
            turn = turns.index(note["asked"])
            assert turn >= reached, f"{note} was paid for before: {notes}"
            reached = turn
        elif "called" in note:
            assert note["id"] not in done, f"{note} was done before: {notes}"
        elif "seen" in note and note["author"] in ("root", "child"):
            done.update(note["results"])
            if note["text"].startswith("turn"):
                reached = max(reached, turns.index(f"{note['author']}{note['text'][5]}") + 1)


# -- simulated ----------------------------------------------------------------------------------------------------------


def shop():
    """An agent that looks twice at once, buys, and says so; and what was really done."""
    done = []

    async def look(at: int, context: ToolContext) -> str:
        """Looks."""
        done.append(("look", at))
        context.state.increment("looks")
        return f"seen {at}"

    async def buy(what: str, context: ToolContext) -> str:
        """Buys."""
        done.append(("buy", what))
        context.state["bought"] = what
        return f"bought {what}"

    def turn(shown):
        done.append(("model", len(shown.messages)))
        if "seen 2" not in shown.text:
            return ["I look. ", Calls("look", {"at": 1}, id="call_0"), Calls("look", {"at": 2}, id="call_1")]
        if "bought" not in shown.text:
            return ["I buy. ", Calls("buy", {"what": "tea"}, id="call_0")]
        return "Here you are."

    return llm(turn, repeat=True, tools=[look, buy]), done


async def assert_bought(store, done, deaths):
    assert await state_of(store) == {"looks": 2, "bought": "tea"}
    events = await log_of(store)
    assert [e.text for e in events if e.text] == ["go", "I look. ", "I buy. ", "Here you are."]
    assert results_in(events) == [{"result": "seen 1"}, {"result": "seen 2"}, {"result": "bought tea"}]
    await assert_valid_history(store)
    times = Counter(done)
    assert set(times) == {("look", 1), ("look", 2), ("buy", "tea"), ("model", 1), ("model", 3), ("model", 5)}
    assert max(times.values()) <= 1 + deaths
    models = [name for name in done if name[0] == "model"]
    assert models == sorted(models)
    assert len(models) <= 3 + deaths


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_process_that_dies_in_any_append(number, after):
    @for_seeds(4)
    async def case():
        store = InMemorySessionService()
        agent, done = shop()
        async with crashed(agent, store, number, after=after) as run, process(agent, store, enter=True) as second:
            assert await outcome_of(await second.runner.follow(run.id)) == "Here you are."
            await assert_bought(store, done, 1)

    case()


@pytest.mark.parametrize("first", range(1, 8, 2))
@pytest.mark.parametrize("second", range(1, 8, 2))
def test_two_processes_that_die_one_after_the_other(first, second):
    @for_seeds(2)
    async def case():
        store = InMemorySessionService()
        agent, done = shop()
        async with crashed(agent, store, first) as run:
            async with process(agent, store) as two:
                two.die_at("append", second, after=True)
                await two.runner.__aenter__()
                await asyncio.sleep(30)
                two.die()
                async with process(agent, store, enter=True) as three:
                    assert await outcome_of(await three.runner.follow(run.id)) == "Here you are."
                    await assert_bought(store, done, 2)
            await asyncio.sleep(10)

    case()


@pytest.mark.parametrize("fault", [fail_before, fail_after])
@pytest.mark.parametrize("number", range(1, 9))
def test_a_store_that_fails_in_any_append_changes_nothing(number, fault):
    @for_seeds(3)
    async def case():
        inner = InMemorySessionService()
        agent, done = shop()
        run = await make_runner(agent, FaultyStore(inner, [fault("append", number)])).start(USER, SESSION, "go")
        assert await outcome_of(run) == "Here you are."
        await assert_bought(inner, done, 0)

    case()


@for_seeds(3)
async def test_a_store_that_stays_away_ends_the_run_and_no_tool_is_blamed():
    inner = InMemorySessionService()
    agent, done = shop()
    store = FaultyStore(inner)
    run = await make_runner(agent, store).start(USER, SESSION, "go")
    store.plan.append(fail_before("append"))
    assert await outcome_of(run) == "store.unavailable"
    store.plan.clear()
    assert results_in(await log_of(inner)) == []

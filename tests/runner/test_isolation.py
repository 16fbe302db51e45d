"""R7 and S3: a run starts in an empty context, nothing flows back, and nobody sees what is another's."""

import asyncio
import contextvars

import pytest

from sojourn.agents.current import current_run, current_session, find_current_run
from sojourn.agents.function import agent
from sojourn.agents.workflow import ParallelAgent, SequentialAgent
from sojourn.content import Content
from sojourn.errors import NotFound
from sojourn.memory.inmemory import InMemoryMemoryService
from sojourn.memory.types import Memory
from sojourn.runner.plugins import Plugin
from sojourn.session.types import SessionKey
from sojourn.store.inmemory import InMemorySessionService
from sojourn.testing.faults import FaultyStore, hold
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import APP, SESSION, USER, idle, log_of, make_runner, outcome_of, read_events, state_of

tenant = contextvars.ContextVar("tenant", default="nobody")
request = contextvars.ContextVar("request", default="none")
unset = contextvars.ContextVar("unset")


@for_seeds(10)
async def test_a_run_sees_only_the_variables_that_are_handed_on():
    seen = []

    @agent
    async def helper(ctx):
        seen.append((tenant.get(), request.get(), unset.get("unset")))

    runner = make_runner(helper, propagate=[tenant, unset])
    tenant.set("acme")
    request.set("r-1")
    await (await runner.start(USER, SESSION, "hi")).result()
    async for _ in runner.run(USER, SESSION, "hi"):
        pass
    tenant.set("other")
    await (await make_runner(helper).start(USER, SESSION, "hi")).result()
    assert seen == [("acme", "none", "unset")] * 2 + [("nobody", "none", "unset")]


@for_seeds(10)
async def test_a_queued_run_has_the_values_of_its_call_not_of_whoever_let_it_start():
    seen = {}

    @agent
    async def helper(ctx):
        tenant.set(f"inside {ctx.user_content.text}")
        await asyncio.sleep(1)
        seen[ctx.user_content.text] = tenant.get()

    runner = make_runner(helper, propagate=[tenant], max_concurrency=1)

    async def call(name):
        tenant.set(name)
        return await (await runner.start(name, SESSION, name)).result()

    plain = make_runner(agent(name="plain")(lambda ctx: tenant.get()), propagate=[tenant])
    await asyncio.gather(*(asyncio.ensure_future(call(f"t{n}")) for n in range(5)))
    assert seen == {f"t{n}": f"inside t{n}" for n in range(5)}
    assert tenant.get() == "nobody"
    assert await (await plain.start(USER, SESSION, "hi")).result() == "nobody"


@for_seeds(10)
async def test_nothing_flows_back_to_the_caller_or_to_later_runs():
    seen = []

    @agent
    async def helper(ctx):
        seen.append(request.get())
        request.set("set by a run")
        yield "x"

    runner = make_runner(helper)
    async for _ in runner.run(USER, SESSION, "hi"):
        assert request.get() == "none"
        assert find_current_run() is None
    await (await runner.start(USER, SESSION, "hi")).result()
    assert seen == ["none", "none"]
    assert request.get() == "none"


@for_seeds(10)
async def test_the_current_run_is_known_everywhere_below_a_run():
    seen = []

    def note(where):
        run = current_run()
        assert current_session() == run.session
        seen.append((where, run.run_id, run.user_id, run.session, run.attempt))

    class Noting(Plugin):
        async def before_run(self, ctx):
            note("plugin")

    def before(ctx):
        note("callback")

    def branch(name):
        @agent(name=name)
        async def speak(ctx):
            await asyncio.sleep(0)
            note(name)

        return speak

    @agent
    def thread(ctx):
        note("thread")

    @agent
    async def main(ctx):
        note("agent")
        await ctx.step("s", lambda: note("step"))
        await asyncio.gather(asyncio.to_thread(note, "to_thread"), asyncio.create_task(_in_task(note)))

    tree = SequentialAgent(
        name="all",
        before_agent=before,
        sub_agents=[main, thread, ParallelAgent(name="par", sub_agents=[branch("x"), branch("y")])],
    )
    run = await make_runner(tree, plugins=[Noting()]).start(USER, SESSION, "hi")
    await run.result()
    assert {s[0] for s in seen} == {"plugin", "callback", "agent", "step", "to_thread", "task", "thread", "x", "y"}
    assert {s[1:] for s in seen} == {(run.id, USER, SessionKey(APP, USER, SESSION), 1)}
    with raises(NotFound, "run.none_current"):
        current_run()
    with raises(NotFound, "run.none_current"):
        current_session()


async def _in_task(note):
    note("task")


@for_seeds(5)
async def test_two_hundred_users_interleaved_never_see_each_others_data():
    users = 200
    memory = InMemoryMemoryService()
    for n in range(users):
        await memory.add(APP, f"u{n}", [Memory(f"secret of u{n} router")])

    @agent
    async def helper(ctx):
        secret = f"secret of {ctx.user_id}"
        await asyncio.sleep(0)
        assert current_run().user_id == ctx.user_id
        assert ctx.state.to_dict() in ({}, {"own": secret, "user:own": secret})
        assert {m.text for m in ctx.memories} == {f"{secret} router"}
        ctx.state["own"] = ctx.state["user:own"] = secret
        await asyncio.sleep(0)
        history = await ctx.history()
        assert {e.text for e in history} <= {f"router of {ctx.user_id}", secret}
        yield secret
        await ctx.artifacts.save("own.txt", secret)
        await asyncio.sleep(0)
        assert (await ctx.artifacts.load("own.txt")).text == secret
        assert await ctx.artifacts.names() == ["own.txt"]

    runner = make_runner(helper, memory_service=memory, max_concurrency=50)

    async def user(n):
        for _ in range(2):
            reading = await read_events(runner.run(f"u{n}", "same session id", f"router of u{n}"))
            assert reading.error is None
            assert {e.text for e in reading.events} == {f"secret of u{n}"}

    await asyncio.gather(*(user(n) for n in range(users)))
    for n in range(0, users, 20):
        log = await log_of(runner.store, "same session id", user_id=f"u{n}")
        assert {e.text for e in log} == {f"router of u{n}", f"secret of u{n}"}


# -- state --------------------------------------------------------------------------------------------------------------


@for_seeds(10)
async def test_state_is_the_snapshot_at_the_start_and_the_runs_own_writes():
    store = InMemorySessionService()
    go_on = asyncio.Event()
    seen = []

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "writer":
            ctx.state["user:name"] = "Ann"
            ctx.state["app:motd"] = "hello"
            ctx.state["mine"] = 1
            return "written"
        await go_on.wait()
        seen.append(dict(ctx.state))
        ctx.state["late"] = True
        seen.append(dict(ctx.state))

    runner = make_runner(helper, store)
    reader = await runner.start(USER, SESSION, "reader")
    await (await runner.start(USER, "other", "writer")).result()
    go_on.set()
    await reader.result()
    await (await runner.start(USER, SESSION, "reader")).result()
    await (await runner.start("bob", SESSION, "reader")).result()
    assert seen[:2] == [{}, {"late": True}]
    assert seen[2] == {"user:name": "Ann", "app:motd": "hello", "late": True}
    assert seen[4] == {"app:motd": "hello"}
    assert await state_of(store, "other") == {"user:name": "Ann", "app:motd": "hello", "mine": 1}


@for_seeds(10)
async def test_sessions_that_write_different_keys_or_increment_the_same_lose_nothing():
    @agent
    async def helper(ctx):
        await asyncio.sleep(0)
        ctx.state[f"user:{ctx.session_id}"] = True
        ctx.state.increment("user:count")
        ctx.state.increment("app:count", 2)
        await asyncio.sleep(0)

    runner = make_runner(helper)
    runs = await asyncio.gather(*(runner.start(f"u{n % 2}", f"s{n}", "hi") for n in range(20)))
    await asyncio.gather(*(r.wait() for r in runs))
    state = await state_of(runner.store, "s0", user_id="u0")
    assert state == {"user:count": 10, "app:count": 40, **{f"user:s{n}": True for n in range(0, 20, 2)}}


@for_seeds(5)
async def test_keys_can_be_deleted_and_temporary_ones_are_never_stored():
    store = InMemorySessionService()
    seen = []

    @agent
    async def helper(ctx):
        seen.append(dict(ctx.state))
        ctx.state["temp:x"] = 1
        ctx.state["a"] = 1
        ctx.state["user:b"] = 2
        yield Content("model").with_text("one")
        seen.append(dict(ctx.state))
        del ctx.state["a"]
        del ctx.state["user:b"]
        assert "a" not in ctx.state

    runner = make_runner(helper, store)
    for _ in range(2):
        await (await runner.start(USER, SESSION, "hi")).result()
    assert seen == [{}, {"temp:x": 1, "a": 1, "user:b": 2}] * 2
    assert await state_of(store) == {}


@pytest.mark.parametrize("value", [float("nan"), object(), {1: 2}, b"bytes", {"a": {1, 2}}])
def test_what_is_no_json_value_is_refused_where_it_is_written(value):
    from sojourn.errors import InvalidInput

    @for_seeds(2)
    async def case():
        told = []

        @agent
        async def helper(ctx):
            try:
                ctx.state["x"] = value
            except InvalidInput as error:
                told.append(error.code)
                raise

        assert await outcome_of(await make_runner(helper).start(USER, SESSION, "hi")) == "json.invalid"
        assert told == ["json.invalid"]

    case()


@for_seeds(3)
async def test_values_round_trip_and_are_copies():
    values = {"text": "NUL \x00 and 🎈", "big": 2**63 + 1, "nested": {"list": [1, None, {"x": 1.5}]}}
    store = InMemorySessionService()
    mine = {"list": [1]}

    @agent
    async def helper(ctx):
        if ctx.user_content.text == "write":
            ctx.state["values"] = values
            ctx.state["mine"] = mine
            mine["list"].append(2)
            ctx.state["mine"]["list"].append(3)
            return values
        assert ctx.state["values"] == values
        return ctx.state["mine"]

    runner = make_runner(helper, store)
    assert await (await runner.start(USER, SESSION, "write")).result() == values
    result = await (await runner.start(USER, SESSION, "read")).result()
    assert result == {"list": [1]}
    result["list"].clear()
    assert (await state_of(store))["mine"] == {"list": [1]}


@for_seeds(5)
async def test_a_write_that_does_not_fit_what_is_stored_fails_the_run_with_a_code():
    """Another session has made the key something that cannot be incremented, after this run began."""
    store = FaultyStore(InMemorySessionService())
    held = hold("append", 1)
    store.plan.append(held)

    @agent
    async def helper(ctx):
        ctx.state.increment("user:n")
        yield "said"

    runner = make_runner(helper, store)
    run = await runner.start(USER, SESSION, "hi")
    await held.reached.wait()
    await store.create_session(app_name=APP, user_id=USER, session_id="other", state={"user:n": "text"})
    held.go.set()
    assert await outcome_of(run) == "state.not_a_number"
    await idle()
    assert await outcome_of(await runner.start(USER, SESSION, "hi")) == "state.not_a_number"

"""From a config to runs: with a Runner, with a SessionManager, again and again."""

import asyncio
import sys

import pytest

from sojourn import AppConfig, Runner, SessionManager, WorkflowBuilder, load_config
from sojourn.errors import InvalidInput, Unavailable
from sojourn.testing.loop import for_seeds
from sojourn.testing.models import Calls, ScriptedModel

pytestmark = pytest.mark.anyio

SHOP = """
from sojourn import agent

sold = []


def price(item: str) -> int:
    \"\"\"Tells a price.\"\"\"
    return 5


def sell(item: str) -> str:
    sold.append(item)
    return "sold"


@agent
async def counter(ctx):
    return str(ctx.state.increment("n"))
"""

APP = """\
app_name: shop
tools:
  price: shop:price
  sell: {function: 'shop:sell', require_approval: true}
agents:
  desk:
    model: main
    instruction: Help.
    tools: [price, sell]
    sub_agents: [counter]
  counter: {kind: function, function: 'shop:counter'}
models: {main: test}
services: {session: 'sqlite:///shop.db'}
limits: {max_concurrency: 3}
run_config: {max_turns: 2}
"""

COUNTER = "app_name: shop\nagents: {counter: {kind: function, function: 'shop:counter'}}\n"


@pytest.fixture
def app(write):
    return write(APP, shop=SHOP)


async def test_a_runner_of_a_config_runs_on_the_test_model(write):
    write(
        APP.replace("tools: [price, sell]", "tools: [price]").replace("    sub_agents: [counter]\n", "") + "root: desk\n",
        shop=SHOP,
    )
    async with WorkflowBuilder() as builder, Runner(builder.build("app.yaml")) as runner:
        run = await runner.start("ann", "s", "hi")
        assert await run.result() == '{"price":5}'
        assert runner.config.max_concurrency == 3


async def test_an_approval_over_two_lives(app):
    first = ScriptedModel(Calls("sell", {"item": "tea"}))
    async with WorkflowBuilder(models={"main": first}) as builder, Runner(builder.build(app)) as runner:
        run = await runner.start("ann", "s", "One tea")
        await run.wait()
        (question,) = await run.interrupts()
        assert "tea" in str(question.prompt)
    assert sys.modules["shop"].sold == []
    second = ScriptedModel("Here it is.")
    async with WorkflowBuilder(models={"main": second}) as builder, Runner(builder.build(app)) as runner:
        run = await runner.answer(run.id, question.id, True)
        assert await run.result() == "Here it is."
    assert sys.modules["shop"].sold == ["tea"]


async def test_bounds_are_those_of_the_config(app):
    model = ScriptedModel(Calls("price", {"item": "a"}), repeat=True)
    async with WorkflowBuilder(models={"main": model}) as builder, Runner(builder.build(app)) as runner:
        record = await (await runner.start("ann", "s", "hi")).wait()
        assert record.error.code == "run.max_turns"
        assert len(model.requests) == 2


# -- SessionManager -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["path", "mapping", "config"])
async def test_a_session_manager(write, home, form):
    name = write(COUNTER, shop=SHOP)
    values = {"app_name": "shop", "agents": {"counter": {"kind": "function", "function": "shop:counter"}}}
    config = {"path": name, "mapping": values, "config": AppConfig.model_validate(values)}[form]
    manager = SessionManager(config=config, shared_builder=WorkflowBuilder(), max_concurrency=10)
    async with manager.session(user_id="user_123") as session:
        async with session.run("Hello") as run:
            assert await run.result() == "1"
        async with session.run("Hello") as run:
            assert [chunk async for chunk in run.result_stream()] == ["2"]
    runner = await manager.runner()
    assert (runner.app_name, runner.config.max_concurrency) == ("shop", 10)


async def test_what_the_manager_is_given_goes_before_the_config(write):
    name = write(f"{COUNTER}limits: {{max_concurrency: 3, max_queue: 4}}\n", shop=SHOP)
    builder = WorkflowBuilder()
    config = (await SessionManager(name, builder).runner()).config
    assert (config.app_name, config.max_concurrency, config.max_queue) == ("shop", 3, 4)
    config = (await SessionManager(name, builder, max_concurrency=7, app_name="other", max_queue=9).runner()).config
    assert (config.app_name, config.max_concurrency, config.max_queue) == ("other", 7, 9)
    assert config.agent.name == "counter"


async def test_a_manager_tells_what_is_wrong_and_asks_again(write):
    name = write(COUNTER.replace("shop:counter", "shop:cuonter"), shop=SHOP)
    manager = SessionManager(name, WorkflowBuilder())
    for _ in range(2):
        with pytest.raises(InvalidInput, match=r"app.yaml:2: agents.counter"):
            await manager.runner()
    write(COUNTER, shop=SHOP)
    assert (await manager.runner()).agent.name == "counter"


async def test_a_config_without_a_builder_is_told_to_have_one():
    with pytest.raises(InvalidInput, match=r"for an app.yaml shared_builder=WorkflowBuilder\(\)"):
        SessionManager(config="app.yaml")


async def test_an_agent_for_each_user(write):
    name = write(COUNTER + "per_user: true\n", shop=SHOP)
    builder = WorkflowBuilder()
    assert load_config(name).per_user
    ann, ben = builder.build(name, "ann"), builder.build(name, "ben")
    assert (ann.name, ben.name) == ("counter", "counter")
    assert ann is not ben


# -- what is shared -----------------------------------------------------------------------------------------------------


async def test_services_are_shared_by_all_that_a_builder_makes(write):
    text = f"{COUNTER}services: {{session: 'sqlite:///shop.db', artifacts: files, memory: memory}}\n"
    name = write(text, shop=SHOP)
    builder = WorkflowBuilder()
    first, second = builder.build(name), builder.build(load_config(name))
    assert first.session_service is second.session_service
    assert first.artifact_service is second.artifact_service
    assert first.memory_service is second.memory_service
    assert first.agent is not second.agent
    other = write(text.replace("app_name: shop", "app_name: other"), "other.yaml")
    assert builder.build(other).session_service is first.session_service  # one file, one store
    assert builder.build(other).memory_service is not first.memory_service
    async with Runner(first) as runner:
        assert await (await runner.start("ann", "s", "!")).result() == "1"
    await builder.close()


async def test_a_builder_closes_what_it_opened(app):
    builder = WorkflowBuilder()
    store = builder.build(app).session_service
    await store.list_apps()
    await builder.close()
    with pytest.raises(Unavailable) as caught:
        await store.list_apps()
    assert caught.value.code == "store.closed"
    await builder.close()
    assert await builder.build(app).session_service.list_apps() == []
    await builder.close()


async def test_one_that_fails_to_close_leaves_none_open(app):
    class Broken:
        async def close(self):
            raise RuntimeError("stuck")

    builder = WorkflowBuilder()
    store = builder.build(app).session_service
    builder._shared["broken"] = Broken()
    with pytest.raises(RuntimeError, match="stuck"):
        await builder.close()
    with pytest.raises(Unavailable):
        await store.list_apps()


class TestAgentsForEachUser:
    CONFIG = """\
app_name: shop
per_user: true
agents:
  counter: {kind: function, function: 'shop:Counter'}
"""
    MODULE = """
from sojourn import Agent


class Counter(Agent):
    def __init__(self, **options):
        super().__init__(**options)
        self.calls = 0

    async def run(self, ctx):
        self.calls += 1
        return self.calls
"""

    async def test_each_user_has_one_and_keeps_it(self, write):
        manager = SessionManager(write(self.CONFIG, shop=self.MODULE), WorkflowBuilder())
        results = []
        for user in ("ann", "ben", "ann"):
            async with manager.session(user_id=user) as session, session.run("hi") as run:
                results.append(await run.result())
        assert results == [1, 1, 2]
        await manager.close()

    @pytest.mark.parametrize(
        ("kept", "pause", "results"),
        [("", 1000, [1, 2]), ("", 2000, [1, 1]), ("per_user_idle: 100", 200, [1, 1]), ("per_user_idle: 100", 50, [1, 2]),
         ("per_user_idle: null", 10_000, [1, 2]), ("per_user_max: 2", 1, [1, 1]), ("per_user_max: null", 1, [1, 2])],
    )  # fmt: skip
    def test_how_long_they_are_kept_and_how_many(self, write, kept, pause, results):
        name = write(f"{self.CONFIG}{kept}\n", shop=self.MODULE)

        @for_seeds(2)
        async def check():
            manager = SessionManager(name, WorkflowBuilder())
            found = []
            for users in (("ann", "ben", "cleo"), ("ann",)):
                for user in users:
                    async with manager.session(user_id=user) as session, session.run("hi") as run:
                        found.append(await run.result())
                await asyncio.sleep(pause)
            assert [found[0], found[-1]] == results
            await manager.close()

        check()

    async def test_a_manager_that_asks_for_them_drops_nothing_else_of_the_config(self, write):
        text = self.CONFIG.replace("per_user: true\n", "") + (
            "services: {session: 'sqlite:///shop.db', artifacts: none}\n"
            "run_config: {max_turns: 7}\nlimits: {max_concurrency: 3, max_queue: 4}\n"
        )
        name = write(text, shop=self.MODULE)
        async with WorkflowBuilder() as builder, SessionManager(name, builder, per_user=True, max_queue=5) as manager:
            runner = await manager.runner()
            shared = builder.build(name)
            assert (runner.app_name, runner.artifacts) == ("shop", None)
            assert runner.store is shared.session_service
            assert (runner.config.run_config.max_turns, runner.config.max_concurrency) == (7, 3)
            assert runner.config.max_queue == 5
            results = []
            for user in ("ann", "ben", "ann"):
                async with manager.session(user_id=user) as session, session.run("hi") as run:
                    results.append(await run.result())
            assert results == [1, 1, 2]

    async def test_what_is_wrong_is_told_before_a_user_comes(self, write):
        with pytest.raises(InvalidInput, match="nobody"):
            WorkflowBuilder().build(write(self.CONFIG.replace("Counter", "nobody"), shop=self.MODULE))

"""Answers given by who holds the only slot: whoever waits for the run then must not keep it from going on."""

import asyncio

import pytest

from sojourn.agents.function import agent
from sojourn.content import Content, Part
from sojourn.errors import Conflict, RunWaiting
from sojourn.event import ASK_CALL
from sojourn.manager import SessionManager
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.testing.loop import for_seeds
from sojourn.testing.suite import raises
from tests.runner.support import APP, assert_at_rest, idle


@agent
async def asker(ctx):
    """Asks; `busy` goes on for a while after it has asked."""

    async def branch():
        return await ctx.run_agent(_question, branch="question")

    async def other():
        await asyncio.sleep(5 if "busy" in ctx.user_content.text else 0)

    (answer, _) = await asyncio.gather(branch(), other())
    return f"{answer}!"


@agent
async def _question(ctx):
    return await ctx.ask("q", "?")


def answering(question, value):
    return Content("user", (Part.from_function_response(ASK_CALL, {"result": value}, id=question.id),))


async def asked(runner, run):
    """The open question of a run, as soon as it is stored."""
    while not (found := await runner.store.list_interrupts(APP, user_id=run.user_id, run_uid=run.record.uid)):
        await asyncio.sleep(0.5)
    return found[0]


WAYS = ("by the Runner", "by a message", "by the Runner, from outside")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["hi", "busy"])
def test_in_a_sessions_block(text, way):
    @for_seeds(10)
    async def check():
        manager = SessionManager(asker, app_name=APP, max_concurrency=1)
        runner = await manager.runner()
        async with manager.session("u") as session:
            async with session.run(text) as run:
                question = await asked(runner, run)
                if text == "hi":
                    await run.wait()
                if way == "by the Runner":
                    again = await runner.answer(run.id, question.id, "yes")
                    assert await again.result() == "yes!"
                elif way == "by a message":
                    async with session.run(answering(question, "yes")) as again:
                        assert await again.result() == "yes!"
                else:
                    task = asyncio.create_task(runner.answer(run.id, question.id, "yes"))
                    again = await task
                    assert (await again.wait()).status is RunStatus.COMPLETED
            async with session.run("hi") as run:
                with pytest.raises(RunWaiting):
                    await run.result()
        await idle()
        assert_at_rest(runner)

    check()


@for_seeds(10)
async def test_in_the_block_of_another_session():
    manager = SessionManager(asker, app_name=APP, max_concurrency=1)
    runner = await manager.runner()
    run = await runner.start("u", "s", "hi")
    await run.wait()
    async with manager.session("the boss") as session:
        question = (await run.interrupts())[0]
        assert await (await runner.answer(run.id, question.id, "yes")).result() == "yes!"
        assert runner.limiter.active == 1, "the block still has its slot"
        async with session.run("hi") as own:
            assert (await own.wait()).status is RunStatus.WAITING
    await idle()
    assert_at_rest(runner)


@for_seeds(10)
async def test_blocks_inside_of_blocks_lend_what_they_hold():
    inner = SessionManager(asker, app_name="inner", max_concurrency=1)
    outer = SessionManager(asker, app_name="outer", max_concurrency=1)
    started = []
    async with outer.session("u"), inner.session("u"):
        for manager in (inner, outer):
            started.append(await (await manager.runner()).start("u", "other", "hi"))
        for run in started:
            assert (await run.wait()).status is RunStatus.WAITING
    await idle()
    for manager in (inner, outer):
        assert_at_rest(await manager.runner())


# -- from inside of runs ------------------------------------------------------------------------------------------------


class Desk:
    """A Runner with room for `bound` runs; its agent does what the message names, as one of `ways` says."""

    def __init__(self, bound=1, **ways):
        self.ways = ways
        self.now = self.most = 0

        @agent
        async def desk(ctx):
            way = self.ways.get(ctx.user_content.text)
            if way is None:
                return await ctx.run_agent(asker)
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                return await way(ctx)
            finally:
                self.now -= 1

        self.runner = Runner(app_name=APP, agent=desk, max_concurrency=bound)

    async def at_rest(self):
        await idle()
        assert_at_rest(self.runner)


@pytest.mark.parametrize("text", ["hi", "busy"])
def test_a_run_that_answers_what_it_has_started(text):
    @for_seeds(10)
    async def check():
        async def ask_and_answer(ctx):
            stream = desk.runner.run(ctx.user_id, "child", text)
            async with stream:
                async for _ in stream:
                    if stream.run is not None:
                        break
                question = await asked(desk.runner, stream.run)
                if text == "hi":
                    await stream.run.wait()
                again = await desk.runner.answer(stream.run.id, question.id, "yes")
                return await again.result()

        desk = Desk(parent=ask_and_answer)
        run = await desk.runner.start("u", "parent", "parent")
        assert await run.result() == "yes!"
        await desk.at_rest()

    check()


@for_seeds(10)
async def test_a_run_that_answers_another_users_run():
    async def answer_it(ctx):
        (question,) = await desk.runner.list_interrupts(user_id="u")
        run = await desk.runner.answer(question.run_id, question.id, "yes")
        said = [event.text async for event in run.events(run.start_pos, partials=False) if event.author != "user"]
        return [said, await run.result()]

    desk = Desk(boss=answer_it)
    run = await desk.runner.start("u", "s", "hi")
    await run.wait()
    boss = await desk.runner.start("the boss", "s", "boss")
    assert (await boss.result())[-1] == "yes!"
    await desk.at_rest()


@for_seeds(20)
async def test_a_slot_is_lent_to_one_run_at_a_time():
    async def many(ctx):
        runs = [await desk.runner.start(ctx.user_id, f"s{n}", "one") for n in range(6)]
        return await asyncio.gather(*(run.result() for run in runs))

    async def one(ctx):
        await asyncio.sleep(1)
        return ctx.session_id

    for bound in (1, 3):
        desk = Desk(bound, many=many, one=one)
        assert await (await desk.runner.start("u", "s", "many")).result() == [f"s{n}" for n in range(6)]
        # The one that waits, those with a slot, and the one that uses the slot of who waits.
        assert desk.most == bound + 1
        await desk.at_rest()


@for_seeds(20)
async def test_a_run_that_is_waited_for_behind_others_of_its_session():
    async def wait_for_the_last(ctx):
        async with desk.runner.run(ctx.user_id, "busy", "one") as child:
            return [event.text async for event in child]

    async def one(ctx):
        await asyncio.sleep(1)
        return "one"

    desk = Desk(parent=wait_for_the_last, one=one)
    parent = await desk.runner.start("u", "s", "parent")
    others = [await desk.runner.start("u", "busy", "one") for _ in range(3)]
    assert await parent.result() is not None
    assert [await other.result() for other in others] == ["one"] * 3
    await desk.at_rest()


@for_seeds(20)
async def test_a_run_that_would_wait_for_the_end_of_its_own_session_is_told():
    codes = []

    async def answer_it(ctx):
        (question,) = await desk.runner.list_interrupts()
        run = await desk.runner.answer(question.run_id, question.id, "yes")
        try:
            await run.result()
        except Conflict as error:
            codes.append(error.code)
        with raises(Conflict, "run.nested_session"):
            async for _ in run.frames(run.start_pos):
                pass
        return run.id

    desk = Desk(boss=answer_it)
    run = await desk.runner.start("u", "s", "hi")
    await run.wait()
    boss = await desk.runner.start("u", "s", "boss")
    assert await boss.result() == run.id
    assert codes == ["run.nested_session"]
    assert await (await desk.runner.follow(run.id)).result() == "yes!"
    await desk.at_rest()


@for_seeds(10)
async def test_what_goes_on_after_its_run_may_wait_for_the_next_of_the_session():
    background = []

    async def leave_something(ctx):
        async def follow():
            run = await desk.runner.start(ctx.user_id, ctx.session_id, "one")
            await asyncio.sleep(5)
            return await run.result()

        background.append(asyncio.create_task(follow()))
        return "left"

    async def one(ctx):
        await asyncio.sleep(20)
        return "one"

    desk = Desk(first=leave_something, one=one)
    assert await (await desk.runner.start("u", "s", "first")).result() == "left"
    assert await background[0] == "one"
    await desk.at_rest()

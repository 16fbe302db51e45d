"""A process to be killed: agents with a model, which writes down each real call of the model and of a tool.

Started as a program, it makes one such process for each line it reads, by `fork`, so that none has to load its modules.
"""

import asyncio
import json
import os
import signal
import sys
import traceback

from sojourn.agents.current import current_run
from sojourn.agents.llm.agent import LlmAgent
from sojourn.agents.llm.tool import ToolContext, tool
from sojourn.errors import Conflict
from sojourn.event import Event
from sojourn.run.status import RunStatus
from sojourn.runner.runner import Runner
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.models import Calls, ScriptedModel, Thinks
from tests.crash.worker import Notes

APP = "crash"
USERS = ("alice", "bob")


def hands_over(run_id):
    """Whether a run ends with another agent."""
    return int(run_id[1:]) % 4 == 2


def needs_leave(amount):
    """Whether a payment has to be allowed."""
    return amount % 3 == 1


def payment(run_id):
    """What a run pays."""
    return int(run_id[1:])


def make_agent(notes):
    """An agent that looks twice at once, pays, and answers, or hands over to one that looks once more and answers."""

    def model(name, turns):
        async def turn(shown):
            number = sum(line.startswith("model: turn") for line in shown.lines)
            notes.write(asked=f"{name}{number}", run=current_run().run_id)
            return [Thinks("Hm."), f"turn {number} ", pause, "of mine. ", *turns[number](current_run().run_id)]

        return ScriptedModel(*[turn], repeat=True, name=name)

    async def pause():
        await asyncio.sleep(0.002)

    async def look(at: int, context: ToolContext) -> str:
        """Looks at something."""
        notes.write(called=f"look {at}", run=context.run_id, key=context.idempotency_key, id=context.call_id)
        await asyncio.sleep(0.002)
        context.state.increment("looks")
        return f"seen {at}"

    @tool(require_approval=needs_leave)
    async def pay(amount: int, context: ToolContext) -> str:
        """Pays."""
        notes.write(called="pay", run=context.run_id, key=context.idempotency_key, id=context.call_id)
        await asyncio.sleep(0.002)
        context.state.increment("paid", amount)
        return f"paid {amount}"

    def last(run_id):
        return [Calls("transfer_to_agent", {"agent_name": "child"})] if hands_over(run_id) else ["End."]

    child = LlmAgent(
        name="child",
        model=model("child", [lambda run_id: [Calls("look", {"at": 3}, id="call_0")], lambda run_id: ["End."]]),
        tools=[look],
    )
    return LlmAgent(
        name="root",
        model=model(
            "root",
            [
                lambda run_id: [Calls("look", {"at": 1}, id="call_0", pieces=3), Calls("look", {"at": 2}, id="call_1")],
                lambda run_id: [Calls("pay", {"amount": payment(run_id)}, id="call_0")],
                last,
            ],
        ),
        tools=[look, pay],
        sub_agents=[child],
    )


async def execute(url, first_run, notes):
    """Takes up what is unfinished, and goes on starting runs until it is killed."""
    store = DatabaseSessionService(url)
    runner = Runner(app_name=APP, agent=make_agent(notes), session_service=store, max_concurrency=4)
    await runner.__aenter__()

    async def follow(run):
        async for item in run.events():
            if isinstance(item, Event):
                said = [c.id for c in item.get_function_calls()]
                given = [r.id for r in item.get_function_responses()]
                notes.write(seen=item.id, run=run.id, author=item.author, text=item.text, calls=said, results=given)

    async def answer_all():
        while True:
            for question in await runner.list_interrupts():
                try:
                    run = await runner.answer(question.run_id, question.id, True, user_id=question.user_id)
                except Conflict:
                    continue
                notes.write(answered=question.id, run=run.id)
                tasks.add(asyncio.ensure_future(follow(run)))
            await asyncio.sleep(0.01)

    tasks = {asyncio.ensure_future(answer_all())}
    for record in await store.unfinished(APP):
        tasks.add(asyncio.ensure_future(follow(await runner.follow(record.id))))
    number = first_run
    while True:
        user = USERS[number % len(USERS)]
        run = await runner.start(user, f"s{number}", "go", run_id=f"r{number}")
        notes.write(started=run.id)
        tasks.add(asyncio.ensure_future(follow(run)))
        number += 1
        # Not more than can be done in the time a process has, or runs would pile up.
        await asyncio.sleep(0.1)


async def warm_up():
    """Lets a run come to its end in memory: what is loaded late is loaded here, not in each process anew."""
    runner = Runner(app_name=APP, agent=make_agent(Notes(os.devnull)))
    run = await runner.start("alice", "s1", "go", run_id="r1")
    while (await run.wait()).status is RunStatus.WAITING:
        for question in await run.interrupts():
            run = await runner.answer(run.id, question.id, True)


def serve():
    """Forks a process for each line of input, and answers with its id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asyncio.run(warm_up())
    for line in sys.stdin:
        url, first_run, notes_path = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(execute(url, first_run, Notes(notes_path)))
            except BaseException:
                Notes(notes_path).write(broken=traceback.format_exc())
            os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()

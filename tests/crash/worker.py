"""A process to be killed: it executes runs on a database, and writes down what it was told and what it did.

Started as a program, it makes one such process for each line it reads, by `fork`, so that none has to be loaded anew.
"""

import asyncio
import json
import os
import signal
import sys
import traceback

from sojourn.agents.function import agent
from sojourn.content import Content
from sojourn.errors import Conflict
from sojourn.event import Event
from sojourn.runner.runner import Runner
from sojourn.store.database import DatabaseSessionService

APP = "crash"
SESSIONS = [(user, session) for user in ("alice", "bob") for session in ("s1", "s2", "s3")]
STEPS = 4


class Notes:
    """Lines in a file that survive the death of the process: each is one call to the operating system.

    A process may be killed within that call, after the end of a page: what there is of such a line is no note.
    """

    def __init__(self, path):
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(self._file, b"\n")

    def write(self, **what):
        os.write(self._file, (json.dumps(what) + "\n").encode())


def changes_its_mind(run_id):
    """Whether a run's later attempts say something else than the first."""
    return int(run_id[1:]) % 4 == 0


def asks(run_id):
    """Whether a run asks a person in its middle."""
    return int(run_id[1:]) % 3 == 1


def is_attached(run_id):
    """Whether a run is to end with its process."""
    return int(run_id[1:]) % 7 == 3


def make_agent(notes):
    """An agent with steps, state, pieces, messages and questions."""

    @agent
    async def worker(ctx):
        yield Content("model").with_text("begin")
        for n in range(STEPS):
            if n == 2 and asks(ctx.run_id):
                yield Content("model").with_text(f"got {await ctx.ask('q', 'which?')}")
            result = await ctx.step(f"{n}", lambda n=n: notes.write(effect=n, run=ctx.run_id, attempt=ctx.attempt) or n * n)
            ctx.state.increment("count")
            ctx.state.increment("user:count", 10)
            ctx.state["last"] = [ctx.run_id, n]
            yield f"step {n} "
            await asyncio.sleep(0.003)
            yield f"gave {result}"
            yield Content("model").with_text(f"{ctx.attempt}" if n == 1 and changes_its_mind(ctx.run_id) else "done")
        yield "end"

    return worker


async def execute(url, first_run, notes):
    """Takes up what is unfinished, and goes on starting runs until it is killed."""
    store = DatabaseSessionService(url)
    runner = Runner(app_name=APP, agent=make_agent(notes), session_service=store, max_concurrency=4)
    await runner.__aenter__()

    async def follow(events, run=None):
        async for item in events:
            run = run or events.run
            if isinstance(item, Event):
                notes.write(seen=item.id, run=run.id, pos=item.pos, text=item.text)
        if run.status.terminal:
            notes.write(ended=run.id)

    async def answer_all():
        given = 0
        while True:
            for question in await runner.list_interrupts():
                given += 1
                value = f"{os.getpid()}/{given}"
                try:
                    await runner.answer(question.run_id, question.id, value, user_id=question.user_id)
                except Conflict:
                    continue
                notes.write(answered=question.id, run=question.run_id, value=value)
            await asyncio.sleep(0.01)

    tasks = {asyncio.ensure_future(answer_all())}
    number = first_run
    while True:
        user, session = SESSIONS[number % len(SESSIONS)]
        run_id = f"r{number}"
        if is_attached(run_id):
            stream = runner.run(user, session, f"{number}", run_id=run_id)
            tasks.add(asyncio.ensure_future(follow(stream)))
        else:
            run = await runner.start(user, session, f"{number}", run_id=run_id)
            notes.write(started=run.id, user=user, session=session)
            tasks.add(asyncio.ensure_future(follow(run.events(), run)))
        number += 1
        # Not more than can be done in the time a process has, or runs would pile up.
        await asyncio.sleep(0.02)


def serve():
    """Forks a process for each line of input, and answers with its id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
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

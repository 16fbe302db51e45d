"""Each kind of write to a store; and a process that is killed at a chosen statement of one, or of bringing tables up to date.

Started as a program, it forks such a process for each line it reads, so that none has to be loaded anew, and answers with the
status that the process ends with.
"""

import asyncio
import json
import os
import signal
import sqlite3
import sys
import traceback
from asyncio import selector_events

from sojourn import platform
from sojourn.event import Usage
from sojourn.memory.database import DatabaseMemoryService
from sojourn.run.status import Move
from sojourn.store.database import DatabaseSessionService
from sojourn.testing.builders import ask, event, failure, finished, new_run, reply, session_key, start, step, write
from sojourn.testing.clock import ManualPlatform
from tests.memory.embedders import WordEmbedder


def users_of(app):
    """Two users, who have nothing in any other app."""
    return f"alice of {app}", f"bob of {app}"


def key(app, session_id, user=0):
    return session_key(session_id, user_id=users_of(app)[user], app_name=app)


def named(app, session_id, user=0):
    return key(app, session_id, user)._asdict()


async def prepare(store, app):
    """What the writes meet: runs of each status, state of each scope, and what is kept of a user without sessions."""
    await store.create_session(**named(app, "s1"), state={"a": 0, "old": 0, "user:a": 0, "app:a": 0})
    run = await start(store, "running", key(app, "s1"))
    await write(store, run, event(run, 1, "Hi.", calls=["c0"], state={"a": 1}), steps=[step("k0", 1)])
    await ask(store, await start(store, "waiting", key(app, "s2")), 1)
    await store.submit(new_run("queued", key(app, "s3")), begin=False)
    for n in range(3):
        await finished(store, f"done{n}", key(app, "s4"), "one", "two")
    await store.patch_session(**named(app, "s4"), state_delta={"a": 1})
    bobs = await start(store, "bobs", key(app, "s1", 1))
    await write(store, bobs, event(bobs, 1, state={"user:a": 1}, usage_metadata=Usage(total_token_count=5)), move=Move.COMPLETE)
    await store.delete_session(**named(app, "s1", 1))


async def append(store, app, **fields):
    run = await store.get_run(app, "running")
    said = event(run, 2, "said", responses=["c0"], state={"a": 2, "user:a": 2}, increments={"app:a": 2}, deleted=["old"])
    spent = event(run, 3, calls=[] if fields else ["c1"], usage_metadata=Usage(total_token_count=7))
    await write(store, run, said, spent, steps=[step("k1", 2)], **fields)


async def ask_more(store, app):
    await ask(store, await store.get_run(app, "running"), 2, "q2")


async def answer(store, app):
    await reply(store, await store.get_run(app, "waiting"))


def of_run(method, run_id, *arguments, **options):
    """A call that is given the number of a run."""

    async def call(store, app):
        run = await store.get_run(app, run_id)
        await getattr(store, method)(run.uid, *arguments, **options)

    return call


CHANGES = {"state_delta": {"a": 3, "user:a": 3, "app:a": 3}, "state_deleted": ["old"]}
NEW = {"a": 1, "user:b": 1, "app:b": 1}
WRITES = {
    "create": lambda store, app: store.create_session(**named(app, "new"), state=NEW),
    "patch": lambda store, app: store.patch_session(**named(app, "s1"), **CHANGES),
    "submit": lambda store, app: store.submit(new_run("new", key(app, "new")), begin=False),
    "submit and begin": lambda store, app: store.submit(new_run("new", key(app, "new")), begin=True),
    "begin": of_run("begin", "queued"),
    "append": append,
    "append and end": lambda store, app: append(store, app, move=Move.COMPLETE),
    "ask": ask_more,
    "answer": answer,
    "cancel": of_run("request_cancel", "waiting", "enough"),
    "ask to cancel": of_run("request_cancel", "running", "enough"),
    "close": of_run("close_run", "waiting", failure(), move=Move.EXPIRE),
    "requeue": of_run("requeue_lost", "running"),
    "take over": of_run("take_over", "running", failure(), move=Move.FAIL),
    "repeat": lambda store, app: store.submit(new_run("again", key(app, "s4"), retry_of="done1"), begin=True),
    "delete": lambda store, app: store.delete_session(**named(app, "s4")),
    "drop": lambda store, app: store.drop_session(key(app, "s4")),
    "trim": lambda store, app: store.trim_session(key(app, "s4"), keep_events=4),
    "erase": lambda store, app: store.erase_user(app, users_of(app)[1]),
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Death:
    """Kills this process before a statement that changes a database file, or at what it sends to a server.

    Attributes:
        left: How many of them come before; None as long as they do not count.
        after: Whether what is sent is sent before the process dies.
    """

    def __init__(self):
        self.left = None
        self.after = False
        connect, send = sqlite3.connect, selector_events._SelectorSocketTransport.write

        def connected(*arguments, **options):
            conn = connect(*arguments, **options)
            # Of those that read, each would be as good as the next one that does not.
            conn.set_trace_callback(lambda sql: sql.lstrip()[:6] != "SELECT" and self._counts() and die())
            return conn

        def sent(transport, data):
            # A statement (Bind or Query); what prepares one changes nothing.
            if data[:1] not in (b"B", b"Q") or not self._counts():
                send(transport, data)
                return
            if self.after:
                send(transport, data)
            die()

        sqlite3.connect, selector_events._SelectorSocketTransport.write = connected, sent

    def _counts(self):
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


async def migrate(url, what, number, after):
    """Opens a database, whose tables are made or brought up to date by that, and dies at a statement of it."""
    death = Death()
    death.left, death.after = number, after
    if what == "sessions":
        await DatabaseSessionService(url).list_apps()
    else:
        await DatabaseMemoryService(url, embedder=WordEmbedder()).list_memories("app", "alice")


async def change(url, options, app, kind, number, after):
    """Writes to a store, and dies at a statement of that."""
    death = Death()
    store = DatabaseSessionService(url, **options)
    await store.become_executor()
    await store.list_apps()
    await store.dropped_sessions(app)
    death.left, death.after = number, after
    await WRITES[kind](store, app)


def main():
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                with platform.use(ManualPlatform(seed=line)):
                    what, *arguments = json.loads(line)
                    asyncio.run({"migrate": migrate, "change": change}[what](*arguments))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

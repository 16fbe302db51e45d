"""Another process at work on a database file: `python -m tests.store.sqlite.other ROLE PATH [argument …]`.

It says on stdout, line by line, what it has done.
"""

import asyncio
import os
import resource
import sys

from sojourn.errors import SojournError
from sojourn.run.store import Batch
from sojourn.store.sqlite.executor import ExecutorRole
from sojourn.store.sqlite.service import SqliteSessionService
from sojourn.testing.builders import event, fence, reply, session_key, start, write


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def append_for_ever(store):
    """Appends in eight sessions at once and tells what was acknowledged, until it is killed."""

    async def one(name):
        run = await start(store, name, session_key(name))
        say(name, 1)
        ordinal = 0
        while True:
            ordinal += 1
            [stored] = (await write(store, run, event(run, ordinal, f"{ordinal}", increments={"n": 1}))).events
            say(name, stored.seq)

    await asyncio.gather(*(one(f"s{n}") for n in range(8)))


async def append_until_full(store, limit):
    """Appends until no file may grow beyond `limit` bytes, reads and tries again when that limit is gone."""
    run = await start(store)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    acknowledged = 0
    try:
        while True:
            await write(store, run, event(run, acknowledged + 1, "x" * 20_000))
            acknowledged += 1
    except SojournError as error:
        say("error", error.code, type(error.__cause__).__name__, error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    say("stored", acknowledged, (await store.get_session(app_name="shop", user_id="alice", session_id="s1")).event_count)
    await write(store, run, event(run, acknowledged + 1, "again"))
    say("again")


async def execute(store):
    """Becomes the executor, if it may, and stays it until its stdin ends."""
    try:
        await store.become_executor()
    except SojournError as error:
        say("error", error.code, error.message)
        return
    say("executor", os.getpid())
    await asyncio.to_thread(sys.stdin.read)


async def start_and_wait(store):
    """Starts a run and waits to be killed."""
    run = await start(store)
    await store.append(fence(run), Batch(events=[event(run, 1, "half")]))
    say("running", run.uid)
    await asyncio.to_thread(sys.stdin.read)


async def cancel(store, uid):
    say((await store.request_cancel(int(uid), "enough")).status)


async def answer(store, run_id):
    run = await store.get_run("shop", run_id)
    say((await reply(store, run)).record.status)


async def delete(store, session_id):
    await store.delete_session(app_name="shop", user_id="alice", session_id=session_id)
    say("deleted")


async def create_as_nobody(store):
    """Gives up root's rights, then reads and writes."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        session = await store.get_session(app_name="shop", user_id="alice", session_id="s1")
        say("read", session.id)
        await store.create_session(app_name="shop", user_id="alice", session_id="s2")
        say("written")
    except SojournError as error:
        say("error", error.code, error.message)


async def open_at_once(store):
    """Waits for a line, then opens the file."""
    say("ready")
    sys.stdin.readline()
    await store.create_session(app_name="shop", user_id="alice")
    say("created")


def fork_and_wait(path):
    """Becomes the executor, forks a child that outlives it, and waits to be killed."""
    role = ExecutorRole(path)
    role.claim()
    if os.fork() == 0:
        sys.stdin.read()
        os._exit(0)
    say("forked")
    sys.stdin.read()


async def main(work, path, *arguments):
    store = SqliteSessionService(path)
    try:
        await work(store, *arguments)
    finally:
        await store.close()


if __name__ == "__main__":
    work, path, *arguments = globals()[sys.argv[1]], *sys.argv[2:]
    if work is fork_and_wait:
        fork_and_wait(path)
    else:
        asyncio.run(main(work, path, *arguments))

"""Adds to a memory, until it is killed at a statement that was chosen. Started by `test_memory_crash`."""

import asyncio
import os
import signal
import sys
import traceback
from itertools import count

from sojourn.memory.sqlite import service as service_module
from sojourn.memory.sqlite.service import SqliteMemoryService
from sojourn.memory.types import Memory
from sojourn.sqlite.connection import connect
from sojourn.testing.memory_conformance import said
from tests.memory.embedders import WordEmbedder

APP, USER = "app", "alice"
SESSIONS, SIZE = 3, 8


def events(session, version):
    """What a session has in a version: the same ids and other texts, and one more event in each second version."""
    return [said(str(n), f"session {session} version {version} part {n}") for n in range(SIZE + version % 2)]


def entries(version):
    """What is added by hand in a version."""
    return [Memory(f"facts version {version} part {n}", id=f"fact {n}", timestamp=1.0) for n in range(SIZE)]


def dies_at(statement):
    """Sees to it that the process is killed when it begins a statement that writes or commits: the one of this number."""
    left = count(statement, -1)

    def traced(sql):
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def opened(*arguments, read_only=False, **options):
        conn = connect(*arguments, read_only=read_only, **options)
        if not read_only:
            conn.set_trace_callback(traced)
        return conn

    service_module.connect = opened


async def execute(path, versions, note):
    service = SqliteMemoryService(path, embedder=WordEmbedder())
    for version in versions:
        for session in range(SESSIONS):
            await service.add_session(APP, USER, f"s{session}", events(session, version))
        await service.add(APP, USER, entries(version))
        note(version)
        if version % 5 == 4:
            await service.forget(APP, USER, session_id="s0")


def serve():
    """Forks a process for each line of input, and answers with its id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        path, first, last, statement, notes = line.rstrip("\n").split("\t")
        pid = os.fork()
        if pid == 0:
            with open(notes, "a", buffering=1) as file:
                try:
                    if statement != "None":
                        dies_at(int(statement))
                    versions = range(int(first), int(last))
                    asyncio.run(execute(path, versions, lambda done, file=file: file.write(f"{done}\n")))
                except BaseException:
                    file.write(f"broken {traceback.format_exc()!r}\n")
            os._exit(1)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
